"""A split's batches for the training loop, smaller by the pictures that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader

from entityclip.datasets.broken import BrokenPairs
from entityclip.datasets.images import ImageTextDataset
from entityclip.datasets.pair import Batch, PairDataset
from entityclip.step_log import TrainingError


class SplitServer:
    """Serves rows of `dataset` in the order asked for; `broken` counts and lists what it left out.

    A batch stays one batch however many of its pictures are broken, so that the number of a step
    says where a resumed run goes on.
    """

    def __init__(
        self, dataset: PairDataset | ImageTextDataset, *, workers: int, device: torch.device
    ) -> None:
        self.dataset, self.workers, self.device = dataset, workers, device
        # a PairDataset leaves nothing out
        self.broken = BrokenPairs(len(dataset), getattr(dataset, "max_broken", 0.0))

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(
        self, rows: list[list[int]], *, seed: int, found: Callable[[dict[str, str]], None]
    ) -> Iterator[Batch]:
        """The batches of these rows on the device.

        `found` is told of broken pairs met for the first time (id → problem) before their batch is
        given. Raises TooManyBroken above the dataset's share, TrainingError for a batch without a
        whole picture.
        """
        loader = DataLoader(
            self.dataset,
            batch_sampler=rows,
            collate_fn=self.dataset.collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # an iterator draws its workers' seed: from here, not from the stream that draws
            # negatives, or an epoch resumed in its middle would draw others
            generator=torch.Generator().manual_seed(seed),
        )
        for batch in loader:
            whole = isinstance(batch, Batch)
            new = self.broken.add(batch.broken if whole else batch)
            if new:
                found(new)
            if not whole:
                raise TrainingError(
                    f"a batch has no whole picture: {'; '.join(item.problem for item in batch)}. "
                    "Fetch them again, or raise batch_size"
                )
            yield batch.to(self.device, non_blocking=True)
