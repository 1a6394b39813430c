"""A split's batches for the training loop, smaller by the pictures that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from entityclip.datasets.dataset import Batch, Broken, BrokenPairs, PairDataset
from entityclip.models.gather import Peers
from entityclip.training.processes import World
from entityclip.training.run_folder import TrainingError

Found = Callable[[dict[str, str]], None]


def full_batches(rows: Sequence[int], size: int) -> list[list[int]]:
    """`rows` in batches of `size`; what does not fill one is left out."""
    return [list(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]


class SplitServer:
    """Serves rows of `dataset` in the order asked for; `broken` counts and lists what it left out.

    A batch stays one batch however many of its pictures are broken, so that the number of a step
    says where a resumed run goes on. Of several processes each gets a share of a batch's rows, and
    all know of all broken pairs.

    `text_lengths` (captions, explanations → tokens of the longest) is asked before a batch goes to
    the device, so that the model need not ask a GPU.
    """

    def __init__(
        self,
        dataset: PairDataset,
        workers: int,
        device: torch.device,
        world: World = World(),  # noqa: B008
        *,
        text_lengths: Callable[[Tensor, Tensor | None], list[int] | None] | None = None,
        negatives: Literal["global", "local"] = "global",
    ) -> None:
        self.dataset, self.workers, self.device = dataset, workers, device
        self.world, self.text_lengths, self.negatives = world, text_lengths, negatives
        self.broken = BrokenPairs(len(dataset), getattr(dataset, "max_broken", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(
        self, rows: list[list[int]], seed: int, found: Found | None = None
    ) -> Iterator[Batch]:
        """The batches of these rows on the device.

        `found` is told of broken pairs met for the first time (id → problem) before their batch is
        given. Raises TooManyBroken above the dataset's share, TrainingError for a batch of which a
        process has no whole picture; on all processes alike.
        """
        loader = DataLoader(
            self.dataset,
            batch_sampler=[self.world.share(batch) for batch in rows],
            collate_fn=self.dataset.collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # an iterator draws its workers' seed: from here, not from the stream that draws
            # negatives, or an epoch resumed in its middle would draw others
            generator=torch.Generator().manual_seed(seed),
        )
        for served in loader:
            batch = served if isinstance(served, Batch) else None
            if batch is not None and self.text_lengths is not None:
                lengths = self.text_lengths(batch.captions, batch.explanations)
                batch = replace(batch, lengths=lengths)
            batch = self._shared(batch, served.broken if batch is not None else served, found)
            yield batch.to(self.device, non_blocking=True)

    def _shared(self, batch: Batch | None, broken: list[Broken], found: Found | None) -> Batch:
        """The batch as all processes know it; what is broken is counted, listed or refused."""
        size = 0 if batch is None else len(batch)
        longest = max(batch.lengths or [0]) if batch is not None else 0
        facts = self.world.exchange([size, longest, len(broken)])
        sizes, lengths, left_out = zip(*facts, strict=True)
        if any(left_out):
            everyone = self.world.collect([tuple(item) for item in broken])
            broken = [Broken(*item) for part in everyone for item in part]
        new = self.broken.add(broken)
        if new and found is not None:
            found(new)
        if not all(sizes):
            whose = "" if len(sizes) == 1 else "a process's share of "
            raise TrainingError(
                f"{whose}a batch has no whole picture: "
                f"{'; '.join(item.problem for item in broken)}. "
                "Fetch them again, or raise batch_size"
            )
        if len(sizes) == 1:
            return batch
        peers = Peers(self.world.rank, sizes, max(lengths), self.negatives)
        return replace(batch, peers=peers)
