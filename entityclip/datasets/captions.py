"""Several captions a picture: each batch also carries another caption of every picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from entityclip.datasets.pair import Batch, Item, PairDataset


class SeveralCaptionsDataset(PairDataset):
    """A `PairDataset` whose batches fill `others` with another caption of each pair's picture.

    Which one is drawn from torch's generator, so it follows from the run's seed. Arguments are
    those of `PairDataset`. Raises ValueError where a picture has one caption only.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        counts = Counter(pair.image_key for pair in self.pairs)
        lonely = [pair.id for pair in self.pairs if counts[pair.image_key] < 2]
        if lonely:
            raise ValueError(
                f"{len(lonely)} of {len(counts)} pictures have one caption and AsCL's richer text "
                f"joins two; the first is pair {lonely[0]!r}. Give every picture at least two "
                "captions (in the newsroom a multiple of 5 pairs), or set `richer: false`"
            )
        # rows of one picture side by side, so that another caption is a step along its stretch
        self._order = self.image_keys.argsort(stable=True)
        self._place = self._order.argsort()
        _, picture, counts = self.image_keys.unique(return_inverse=True, return_counts=True)
        self._start, self._count = (counts.cumsum(0) - counts)[picture], counts[picture]

    def collate(self, items: Sequence[Item]) -> Batch:
        """`PairDataset.collate`, and the other captions."""
        batch = super().collate(items)
        rows = torch.tensor([item.index for item in items])
        start, count = self._start[rows], self._count[rows]
        step = 1 + (torch.rand(len(rows)) * (count - 1)).long()
        other = self._order[start + (self._place[rows] - start + step) % count]
        batch.others = self.captions[other]
        return batch
