"""Several captions a picture: each batch also carries another caption of every picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from entityclip.datasets.dataset import Batch, ChangedPairs, PairDataset
from entityclip.datasets.newsroom.outlet_a import NewsroomPicture, generated_caption, second_caption
from entityclip.datasets.pair import Pair
from entityclip.files import read_json

FILE = "generated.json"
ONE_CAPTION = (
    "one caption a picture and AsCL's richer text joins two; set `richer: false` in ascl.model "
    "to train it without"
)

# data sets whose pairs hold several captions of a picture, one a pair
_SEVERAL = ("flickr30k", "mscoco")


class SeveralCaptions(ChangedPairs):
    """Another dataset, whose batches get another caption of each pair's picture as `others`.

    Args:
        dataset: what to serve.
        tokenize: texts → int64 tensor [n, L]; that of `dataset`.
        seconds: a caption a pair to take. None: one of the other pairs that show the same picture,
            drawn from torch's generator, so it follows from the run's seed.

    Raises ValueError for another number of `seconds` than of pairs and, without them, where a
    picture has one caption only.
    """

    def __init__(
        self,
        dataset: PairDataset,
        tokenize: Callable[[list[str]], Tensor],
        seconds: Sequence[str] | None = None,
    ) -> None:
        super().__init__(dataset, tokenize)
        self._seconds = seconds
        if seconds is not None and len(seconds) != len(dataset):
            raise ValueError(f"{len(seconds)} second captions for {len(dataset)} pairs")
        if seconds is None:
            _check_captions(dataset.pairs)
            self._place_captions(dataset.image_keys)

    def change(self, batch: Batch, rows: list[int]) -> None:
        """Add the other captions."""
        batch.others = self._tokenize(self._others(rows))

    def _others(self, rows: list[int]) -> list[str]:
        if self._seconds is not None:
            return [self._seconds[row] for row in rows]
        at = torch.tensor(rows)
        start, count = self._start[at], self._count[at]
        step = 1 + (torch.rand(len(rows)) * (count - 1)).long()
        drawn = self._order[start + (self._place[at] - start + step) % count]
        return [self.pairs[row].caption for row in drawn.tolist()]

    def _place_captions(self, image_keys: Tensor) -> None:
        # rows of one picture side by side, so that another caption is a step along its stretch
        self._order = image_keys.argsort(stable=True)
        self._place = self._order.argsort()
        _, picture, counts = image_keys.unique(return_inverse=True, return_counts=True)
        self._start, self._count = (counts.cumsum(0) - counts)[picture], counts[picture]


def has_second_captions(dataset: str) -> bool:
    """Whether a data set tells more than one caption of a picture."""
    return dataset == "newsroom" or dataset in _SEVERAL


def second_captions(dataset: str, pairs: Sequence[Pair]) -> list[str] | None:
    """A second caption of each pair's picture; None where it is that of another pair.

    Raises ValueError for a data set of one caption a picture.
    """
    if not has_second_captions(dataset):
        raise ValueError(f"{dataset} has {ONE_CAPTION}")
    return [second_caption(pair) for pair in pairs] if dataset == "newsroom" else None


def _check_captions(pairs: Sequence[Pair]) -> None:
    counts = Counter(pair.image_key for pair in pairs)
    lonely = [pair.id for pair in pairs if counts[pair.image_key] < 2]
    if lonely:
        raise ValueError(
            f"{len(lonely)} of {len(counts)} pictures have one caption and AsCL's richer text "
            f"joins two; the first is pair {lonely[0]!r}. Give every picture at least two "
            "captions (in the newsroom a multiple of 5 pairs), or set `richer: false`"
        )


def with_generated(pairs: Sequence[Pair], root: Path | None = None) -> list[Pair]:
    """The pairs with a generated caption in place of each explanation.

    Raises FileNotFoundError where pairs lie in files and `root` has no ``generated.json``, and
    ValueError for one that is no JSON object or lacks a pair's caption.
    """
    if all(isinstance(pair.image, NewsroomPicture) for pair in pairs):
        return [replace(pair, explanation=generated_caption(pair)) for pair in pairs]
    if root is None:
        raise ValueError(f"generated captions are read from {FILE}: set the pairs' `data_root`")
    path = Path(root) / FILE
    texts = _read(path)
    lacking = [pair.id for pair in pairs if not texts.get(pair.id)]
    if lacking:
        raise ValueError(
            f"{path}: {len(lacking)} of {len(pairs)} pairs have no caption, the first is "
            f"{lacking[0]!r}; generate them or leave the task cluster_generated out"
        )
    return [replace(pair, explanation=texts[pair.id]) for pair in pairs]


def _read(path: Path) -> dict[str, str]:
    wanted = "an object of pair id → caption"
    try:
        return read_json(path, ValueError, dict[str, str])
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no {path}: write {wanted} there, made by a captioning model, or leave the task "
            "cluster_generated out"
        ) from error
    except ValueError as error:
        raise ValueError(f"{error}; it must hold {wanted}") from error
