"""Serve large sets of picture files: texts tokenised on the way, broken pictures left out.

`PairDataset` holds a split's tokens in memory and stops at a broken picture, which suits the drawn
newsroom. `ImageTextDataset` starts at once on a million pairs and goes on past what is broken, up
to a share. Both give the same `Batch`, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from entityclip.datasets.broken import Broken, BrokenPairs
from entityclip.datasets.columns import PairTable
from entityclip.datasets.decode import ImageError
from entityclip.datasets.pair import (
    Batch,
    Item,
    Pair,
    check_pairs,
    key63,
    split_preprocess,
    tokenize_all,
)
from entityclip.datasets.pair import picture_tensor as to_tensor
from entityclip.datasets.prepared import PreparedPairs

_log = logging.getLogger(__name__)


class ImageTextDataset(Dataset):
    """Pairs, decoded and tokenised when they are asked for.

    Args:
        pairs: what to serve, in this order; a `PairTable` is shared between workers, not copied.
        preprocess: open_clip's transform, evaluation or training, PIL picture → [3, H, W] float32.
        tokenize: texts → int64 tensor [n, L]; an open_clip tokenizer is one.
        with_explanations: also serve explanations; every pair must then have one.
        decoding: ``exact`` decodes in full: pixels are ``preprocess(pair.load_image())`` and
            thereby open_clip's own (`decode` says where pictures are put right before). ``draft``
            lets libjpeg shrink JPEGs of at least 3 times the model's side while it decodes: faster
            for training, and pixels differ by a few levels; never use it for reported evaluation.
        on_broken: ``skip`` leaves a broken picture out of its batch and lists it in
            ``batch.broken``; ``raise`` raises ImageError, for where every pair must give a row.
        max_broken: the largest share of the pairs that whoever serves them may skip.

    Serve it with `ImageTextLoader`, or train on it (`training.train`): both count what was skipped
    and stop above the share. Raises ValueError for no pairs, repeated ids, missing explanations,
    a share that is none, and ``draft`` without a preprocess of known size.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        *,
        with_explanations: bool = False,
        decoding: Literal["exact", "draft"] = "exact",
        on_broken: Literal["skip", "raise"] = "skip",
        max_broken: float = 0.01,
    ) -> None:
        if decoding not in ("exact", "draft") or on_broken not in ("skip", "raise"):
            raise ValueError(
                f"decoding is {decoding!r}, on_broken {on_broken!r}; they must be exact or draft, "
                "skip or raise"
            )
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken is {max_broken}; it is a share, from 0 to 1")
        if not len(pairs):
            raise ValueError("empty split: there is no pair to serve")
        # loaders keep ids of a table unique; a million pairs are not built only to look again
        if with_explanations or not isinstance(pairs, (PairTable, PreparedPairs)):
            check_pairs(pairs, with_explanations)
        self.pairs = pairs
        self.with_explanations = with_explanations
        self.on_broken, self.max_broken = on_broken, max_broken
        self._tokenize = tokenize
        self._geometry, self._normalize = split_preprocess(preprocess)
        self._draft_to = _side(preprocess) if decoding == "draft" else None

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def image_keys(self) -> Tensor:
        """All pairs' picture keys [n] int64, made when first asked for (some 10 s a million)."""
        return torch.tensor([key63(pair.image_key) for pair in self.pairs])

    @cached_property
    def captions(self) -> Tensor:
        """All pairs' captions as tokens [n, L] int64, made when first asked for."""
        return tokenize_all([pair.caption for pair in self.pairs], self._tokenize)

    @cached_property
    def explanations(self) -> Tensor | None:
        """All pairs' explanations as tokens [n, L] int64, made when first asked for."""
        if not self.with_explanations:
            return None
        return tokenize_all([str(pair.explanation) for pair in self.pairs], self._tokenize)

    def __getitem__(self, index: int) -> Item | Broken:
        """A row's picture, or why there is none."""
        if not 0 <= index < len(self.pairs):
            raise IndexError(f"row {index} of a dataset of {len(self.pairs)} pairs")
        pair = self.pairs[index]
        try:
            picture = pair.load_image(draft_to=self._draft_to)
        except ImageError as error:
            if self.on_broken == "raise":
                raise
            return Broken(pair.id, str(error))
        return Item(index, to_tensor(self._geometry(picture), self._normalize))

    def collate(self, items: Sequence[Item | Broken]) -> Batch | list[Broken]:
        """A Batch of the whole items with the broken ones listed; only a list if all are broken."""
        broken = [item for item in items if isinstance(item, Broken)]
        whole = [item for item in items if not isinstance(item, Broken)]
        if not whole:
            return broken
        images = torch.stack([item.image for item in whole])
        if self._normalize is not None:
            mean, std = self._normalize
            images = images.to(torch.float32).div_(255).sub_(mean).div_(std)
        pairs = [self.pairs[item.index] for item in whole]
        texts = [pair.caption for pair in pairs]
        explanations = [str(pair.explanation) for pair in pairs]
        return Batch(
            ids=[pair.id for pair in pairs],
            images=images,
            captions=self._tokenize(texts),
            explanations=self._tokenize(explanations) if self.with_explanations else None,
            image_keys=torch.tensor([key63(pair.image_key) for pair in pairs]),
            groups=[pair.group for pair in pairs],
            broken=broken,
        )


class ImageTextLoader:
    """Batches of an `ImageTextDataset`; stops when more than its `max_broken` are broken.

    Args:
        dataset: what to serve.
        batch_size: pairs asked for at once; a batch is smaller by its broken pictures.
        shuffle: a new order every epoch.
        seed: of the order and, with the worker's number, of what training transforms draw; the same
            (seed, epoch, workers) gives the same batches. Without workers, transforms draw from the
            process's own generators, which the caller seeds.
        workers: processes that decode.
        pin_memory: page-locked batches for a GPU; None: where CUDA is available.

    `broken` maps the ids left out so far, over all epochs, to what is wrong with their pictures.
    Iterating raises TooManyBroken (see `BrokenPairs.add`).
    """

    def __init__(
        self,
        dataset: ImageTextDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.epoch = 0
        self._left_out = BrokenPairs(len(dataset), dataset.max_broken)
        self._generator = torch.Generator()
        self._loader = DataLoader(
            dataset,
            batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            collate_fn=dataset.collate,
            num_workers=workers,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            # from it torch seeds its own, Python's and NumPy's generators in every worker
            generator=self._generator,
            persistent_workers=False,  # each epoch's workers are seeded anew
        )

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def broken(self) -> dict[str, str]:
        """Id → problem of each pair left out so far."""
        return self._left_out.problems

    def __iter__(self) -> Iterator[Batch]:
        self._generator.manual_seed((self.seed << 20) + self.epoch)
        self.epoch += 1
        for batch in self._loader:
            self._left_out.add(batch.broken if isinstance(batch, Batch) else batch)
            if isinstance(batch, Batch):
                yield batch
        if self.broken:
            _log.warning("%d pairs with a broken picture were left out", len(self.broken))


def whole_batch(batch: Batch | list[Broken]) -> Batch:
    """What `collate` gave, for evaluation, which must not lose a candidate in silence.

    Raises ImageError naming pair and file for the first broken picture.
    """
    broken = batch.broken if isinstance(batch, Batch) else batch
    if broken:
        raise ImageError(
            f"{broken[0].problem}; evaluation needs every picture of the split: fetch it again, or "
            "leave its pair out of the data"
        )
    return batch


def _side(preprocess: Callable[[Image.Image], Tensor]) -> int:
    """The larger side of what the transform gives, in pixels."""
    for step in getattr(preprocess, "transforms", []):
        size = getattr(step, "size", None)
        if size is not None:
            return size if isinstance(size, int) else max(size)
    raise ValueError("decoding='draft' needs a preprocess made of steps, one of them with a `size`")
