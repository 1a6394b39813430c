"""The one record every dataset yields, and the torch dataset and batch made from it.

A source only has to produce a list of `Pair`; nothing after this file knows which source it was.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from entityclip.datasets.pair import ImageError, Pair
from entityclip.datasets.prepare import PreparedPairs
from entityclip.datasets.table import PairTable

if TYPE_CHECKING:
    from entityclip.models.negatives import Peers

_SHOWN = 10  # pairs an error names


class Broken(NamedTuple):
    """A pair that was left out since its picture cannot be read."""

    id: str
    problem: str


class TooManyBroken(ImageError):
    """More pictures than the set share cannot be read; the message lists some of them."""


class BrokenPairs:
    """The broken pairs met so far among `total`; `problems` maps their ids to what is wrong.

    Args:
        total: how many pairs there are.
        max_broken: the largest share of them that may be broken, from 0 to 1.
    """

    def __init__(self, total: int, max_broken: float) -> None:
        self.total, self.max_broken = total, max_broken
        self.problems: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.problems)

    def add(self, broken: Sequence[Broken]) -> dict[str, str]:
        """Count what was left out; those of it that are new, a pair being counted once.

        Raises TooManyBroken once more than ``max_broken * total`` pairs are broken.
        """
        new = {item.id: item.problem for item in broken if item.id not in self.problems}
        self.problems |= new
        if len(self) > self.max_broken * self.total:
            shown = "\n  ".join(list(self.problems.values())[:_SHOWN])
            raise TooManyBroken(
                f"{len(self)} of {self.total} pairs have a broken picture, more than the share "
                f"{self.max_broken:g} that is allowed; fetch them again, or raise max_broken. "
                f"The first:\n  {shown}"
            )
        return new


_TOKENIZE_CHUNK = 4096


@dataclass
class Batch:
    """B pairs, ready for the model."""

    ids: list[str]
    images: Tensor  # [B, 3, H, W] float32, normalised
    captions: Tensor  # [B, L] int64
    explanations: Tensor | None  # [B, L] int64
    image_keys: Tensor  # [B] int64; equal if and only if the picture is the same
    groups: list[str | None]
    others: Tensor | None = None  # [B, L] int64, another caption of each picture (captions.py)
    broken: list[Broken] = field(default_factory=list)  # asked for but left out (ImageTextDataset)
    lengths: list[int] | None = None  # tokens of the longest caption and explanation, if counted
    peers: Peers | None = None  # the other processes' parts of this batch, if there are any

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self) -> dict[str, Any]:
        """What a model's forward pass reads, by argument name."""
        names = ["images", "captions", "explanations", "image_keys"]
        names += [n for n in ("others", "lengths", "peers") if getattr(self, n) is not None]
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by DataLoader(pin_memory=True))."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {k: v for k, v in self.inputs().items() if isinstance(v, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})


class Item(NamedTuple):
    """What `PairDataset` hands to its collate: a row number and its picture."""

    index: int
    image: Tensor  # [3, H, W] uint8, or float32 where the transform's tail is not known


class PairDataset(Dataset):
    """Pairs with their texts tokenised once and, with `cache`, their pictures kept as uint8.

    Args:
        pairs: what to serve, in this order. Their ids must be unique.
        preprocess: open_clip's evaluation transform, PIL picture → float tensor [3, H, W]. It must
            be deterministic, since a cached picture passes its geometric steps only once.
        tokenize: texts → int64 tensor [n, L]; an open_clip tokenizer is one.
        with_explanations: also serve explanations; every pair must then have one.
        cache: keep each picture after the geometric steps. The cache belongs to the process that
            fills it, so it pays with DataLoader(num_workers=0).

    Use it as ``DataLoader(dataset, batch_sampler=..., collate_fn=dataset.collate)``. The batch is
    bit for bit what ``torch.stack([preprocess(pair.load_image()) for pair in ...])`` gives.

    Raises ValueError for no pairs, repeated ids, and missing explanations.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        *,
        with_explanations: bool,
        cache: bool,
    ) -> None:
        self.pairs = list(pairs)
        check_pairs(self.pairs, with_explanations)
        self.captions = tokenize_all([pair.caption for pair in self.pairs], tokenize)
        self.explanations = (
            tokenize_all([str(pair.explanation) for pair in self.pairs], tokenize)
            if with_explanations
            else None
        )
        self.image_keys = torch.tensor([key63(pair.image_key) for pair in self.pairs])
        self._geometry, self._normalize = split_preprocess(preprocess)
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self.pairs):
            raise IndexError(f"row {index} of a dataset of {len(self.pairs)} pairs")
        if self._cache is None:
            return Item(index, self._picture(index))
        key = int(self.image_keys[index])
        if key not in self._cache:
            self._cache[key] = self._picture(index)
        return Item(index, self._cache[key])

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several rows at once, which is what a DataLoader asks for."""
        return [self[int(index)] for index in indices]

    def collate(self, items: Sequence[Item]) -> Batch:
        """Stack items into a Batch; ToTensor and Normalize run here, once for all pictures."""
        images = torch.stack([item.image for item in items])
        if self._normalize is not None:
            mean, std = self._normalize
            images = images.to(torch.float32).div_(255).sub_(mean).div_(std)
        rows = torch.tensor([item.index for item in items])
        pairs = [self.pairs[item.index] for item in items]
        return Batch(
            ids=[pair.id for pair in pairs],
            images=images,
            captions=self.captions[rows],
            explanations=None if self.explanations is None else self.explanations[rows],
            image_keys=self.image_keys[rows],
            groups=[pair.group for pair in pairs],
        )

    def _picture(self, index: int) -> Tensor:
        return picture_tensor(self._geometry(self.pairs[index].load_image()), self._normalize)


def picture_tensor(
    picture: Image.Image | Tensor, normalize: tuple[Tensor, Tensor] | None
) -> Tensor:
    """What `split_preprocess`' first part gave, as the [3, H, W] tensor an `Item` holds."""
    if normalize is None:
        return picture
    return torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1).contiguous()


def check_pairs(pairs: Sequence[Pair], with_explanations: bool) -> None:
    """Raise ValueError for no pairs, repeated ids, and missing explanations where asked for."""
    if not pairs:
        raise ValueError("empty split: there is no pair to serve")
    repeated = [name for name, count in Counter(pair.id for pair in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} repeated pair ids: {', '.join(repeated[:5])}")
    if with_explanations:
        lacking = [pair.id for pair in pairs if not pair.explanation]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(pairs)} pairs lack an explanation, the first is "
                f"{lacking[0]!r}; generate explanations for this split or train without them"
            )


def tokenize_all(texts: list[str], tokenize: Callable[[list[str]], Tensor]) -> Tensor:
    """`tokenize` in chunks: int64 tensor [n, L]."""
    starts = range(0, len(texts), _TOKENIZE_CHUNK)
    return torch.cat([tokenize(texts[start : start + _TOKENIZE_CHUNK]) for start in starts])


def key63(key: str) -> int:
    """A picture's key as a non-negative int64."""
    # 63 bits, so that the hash is a non-negative int64
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def split_preprocess(
    preprocess: Callable[[Image.Image], Tensor],
) -> tuple[Callable[[Image.Image], Image.Image | Tensor], tuple[Tensor, Tensor] | None]:
    """The geometric steps and the [3, 1, 1] mean and std; (preprocess, None) for other tails."""
    # a second to import, which redrawing figures can do without
    from torchvision.transforms import Compose, Normalize, ToTensor

    steps = preprocess.transforms if isinstance(preprocess, Compose) else []
    if len(steps) < 2 or not isinstance(steps[-2], ToTensor) or type(steps[-1]) is not Normalize:
        return preprocess, None
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (steps[-1].mean, steps[-1].std))
    return Compose(steps[:-2]), (mean, std)


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
        return Item(index, picture_tensor(self._geometry(picture), self._normalize))

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
