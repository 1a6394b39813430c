"""The torch dataset and the batches made from pairs, whatever source they come from."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from entityclip.datasets.pair import ImageError, Pair, decoding, share_pixels
from entityclip.datasets.table import PairTable

_SHOWN = 10  # pairs an error names
_TOKENIZE_CHUNK = 4096  # texts


class Broken(NamedTuple):
    """A pair that was left out since its picture cannot be read."""

    id: str
    problem: str


class TooManyBroken(ImageError):
    """More pictures than the set share cannot be read; the message lists some of them."""


class BrokenPairs:
    """The broken pairs met so far among `total`; `problems` maps their ids to what is wrong.

    `max_broken` is the largest share of them that may be broken, from 0 to 1.
    """

    def __init__(self, total: int, max_broken: float | None) -> None:
        self.total, self.max_broken = total, max_broken or 0.0
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
            shown = "; ".join(list(self.problems.values())[:_SHOWN])
            raise TooManyBroken(
                f"{len(self)} of {self.total} pairs have a broken picture, more than the share "
                f"{self.max_broken:g} that is allowed; mend them, or raise max_broken. "
                f"The first: {shown}"
            )
        return new


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
    broken: list[Broken] = field(default_factory=list)  # asked for but left out
    siblings: Tensor | None = None  # [B, K] int64: who shares an id is no negative (views.py)
    lengths: list[int] | None = None  # tokens of the longest caption and explanation, if counted
    peers: Any = None  # `models.gather.Peers`, where other processes hold parts of this batch

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self) -> dict[str, Any]:
        """What a model's forward pass reads, by argument name."""
        names = ["images", "captions", "explanations", "image_keys"]
        more = ("others", "siblings", "lengths", "peers")
        names += [name for name in more if getattr(self, name) is not None]
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
    """What a dataset hands to its collate: a row number and its picture."""

    index: int
    image: Tensor  # [3, H, W] uint8, or float32 where the transform's tail is not known


class PairDataset(Dataset):
    """Pairs with their pictures decoded and their texts tokenised, as the model takes them.

    Args:
        pairs: what to serve, in this order, with unique ids. A `PairTable` is shared between
            workers, not copied.
        preprocess: open_clip's transform, PIL picture → float tensor [3, H, W].
        tokenize: texts → int64 tensor [n, L]; an open_clip tokenizer is one.
        with_explanations: also serve explanations; every pair must then have one.
        cache: tokenise all texts now and keep each picture after the geometric steps of
            `preprocess`, which must then be deterministic. Pictures are kept by the process that
            reads them, so this pays without workers and where all fit into memory.
        decoding: ``exact`` decodes in full. ``draft`` lets libjpeg shrink JPEGs of at least 3 times
            the model's side while it decodes: faster for training, and pixels differ by a few
            levels; never use it for reported evaluation.
        max_broken: the largest share of pairs, from 0 to 1, that whoever serves them may leave out
            because their picture cannot be read: they are then listed in ``batch.broken``, for
            `training.loop.train` to count. None: the first raises ImageError.

    Use it as ``DataLoader(dataset, batch_sampler=..., collate_fn=dataset.collate)``. Exact batches
    are bit for bit what ``torch.stack([preprocess(pair.load_image()) for pair in ...])`` gives.

    Raises ValueError for no pairs, repeated ids, missing explanations, a share that is none, and
    ``draft`` without a preprocess of known size.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        *,
        with_explanations: bool = False,
        cache: bool = False,
        decoding: Literal["exact", "draft"] = "exact",
        max_broken: float | None = None,
    ) -> None:
        if decoding not in ("exact", "draft"):
            raise ValueError(f"decoding is {decoding!r}; it must be exact or draft")
        if max_broken is not None and not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken is {max_broken}; it is a share, from 0 to 1")
        _check_pairs(pairs, with_explanations)
        self.pairs = pairs
        self.with_explanations, self.max_broken = with_explanations, max_broken
        self._tokenize = tokenize
        self._geometry, self._normalize = split_preprocess(preprocess)
        self._draft_to = _side(preprocess) if decoding == "draft" else None
        self._pictures: dict[str, Tensor] | None = {} if cache else None
        self._tokens = (self.captions, self.explanations) if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def image_keys(self) -> Tensor:
        """All pairs' picture keys [n] int64, made when first asked for (some 10 s a million)."""
        return torch.tensor([key63(pair.image_key) for pair in self.pairs])

    @cached_property
    def captions(self) -> Tensor:
        """All pairs' captions as tokens [n, L] int64, made when first asked for."""
        return self._tokenize_all([pair.caption for pair in self.pairs])

    @cached_property
    def explanations(self) -> Tensor | None:
        """All pairs' explanations as tokens [n, L] int64, made when first asked for."""
        if not self.with_explanations:
            return None
        return self._tokenize_all([str(pair.explanation) for pair in self.pairs])

    def __getitem__(self, index: int) -> Item | Broken:
        """A row's picture, or why there is none."""
        if not 0 <= index < len(self.pairs):
            raise IndexError(f"row {index} of a dataset of {len(self.pairs)} pairs")
        pair = self.pairs[index]
        if self._pictures is not None and pair.image_key in self._pictures:
            return Item(index, self._pictures[pair.image_key])
        if (worker := get_worker_info()) is not None:
            share_pixels(worker.num_workers)
        try:
            with decoding():
                picture = self._geometry(pair.load_image(draft_to=self._draft_to))
        except ImageError as error:
            if self.max_broken is None:
                raise
            return Broken(pair.id, str(error))
        image = picture_tensor(picture, self._normalize)
        if self._pictures is not None:
            self._pictures[pair.image_key] = image
        return Item(index, image)

    def collate(self, items: Sequence[Item | Broken]) -> Batch | list[Broken]:
        """A Batch of the whole items with the broken ones listed; only a list if all are broken.

        ToTensor and Normalize run here, once for all pictures.
        """
        broken = [item for item in items if isinstance(item, Broken)]
        whole = [item for item in items if isinstance(item, Item)]
        if not whole:
            return broken
        images = torch.stack([item.image for item in whole])
        if self._normalize is not None:
            mean, std = self._normalize
            images = images.to(torch.float32).div_(255).sub_(mean).div_(std)
        rows = [item.index for item in whole]
        pairs = [self.pairs[row] for row in rows]
        if self._tokens is not None:
            captions, explanations = (x if x is None else x[rows] for x in self._tokens)
        else:
            captions = self._tokenize([pair.caption for pair in pairs])
            told = [str(pair.explanation) for pair in pairs]
            explanations = self._tokenize(told) if self.with_explanations else None
        return Batch(
            ids=[pair.id for pair in pairs],
            images=images,
            captions=captions,
            explanations=explanations,
            image_keys=torch.tensor([key63(pair.image_key) for pair in pairs]),
            groups=[pair.group for pair in pairs],
            broken=broken,
        )

    def _tokenize_all(self, texts: list[str]) -> Tensor:
        starts = range(0, len(texts), _TOKENIZE_CHUNK)
        return torch.cat([self._tokenize(texts[n : n + _TOKENIZE_CHUNK]) for n in starts])


ImageTextDataset = PairDataset  # the name it has for sets in files


class ChangedPairs(Dataset, ABC):
    """Another dataset, whose batches `change` changes."""

    def __init__(
        self, dataset: PairDataset | ChangedPairs, tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        self.dataset, self.pairs, self.max_broken = dataset, dataset.pairs, dataset.max_broken
        self._tokenize, self._seed = tokenize, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | Broken:
        return self.dataset[index]

    def begin(self, seed: int) -> None:
        """Called before an epoch's batches are made, with the seed that its draws follow from."""
        self._seed = seed
        if isinstance(self.dataset, ChangedPairs):
            self.dataset.begin(seed)

    @abstractmethod
    def change(self, batch: Batch, rows: list[int]) -> None:
        """Change what the dataset served of these rows."""

    def collate(self, items: Sequence[Item | Broken]) -> Batch | list[Broken]:
        """The dataset's own `collate`, changed where anything is whole."""
        batch = self.dataset.collate(items)
        if isinstance(batch, Batch):
            self.change(batch, [item.index for item in items if not isinstance(item, Broken)])
        return batch


def whole_batch(batch: Batch | list[Broken]) -> Batch:
    """What `collate` gave, for evaluation, which must not lose a candidate in silence.

    Raises ImageError naming pair and file for the first broken picture.
    """
    broken = batch.broken if isinstance(batch, Batch) else batch
    if broken:
        raise ImageError(
            f"{broken[0].problem}; evaluation needs every picture of the split: mend it, or leave "
            "its pair out of the data"
        )
    return batch


def picture_tensor(
    picture: Image.Image | Tensor, normalize: tuple[Tensor, Tensor] | None
) -> Tensor:
    """What `split_preprocess`' first part gave, as the [3, H, W] tensor an `Item` holds."""
    if normalize is None:
        return picture
    return torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1).contiguous()


def key63(key: str) -> int:
    """A picture's key as a non-negative int64."""
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


def _side(preprocess: Callable[[Image.Image], Tensor]) -> int:
    """The larger side of what the transform gives, in pixels."""
    for step in getattr(preprocess, "transforms", []):
        size = getattr(step, "size", None)
        if size is not None:
            return size if isinstance(size, int) else max(size)
    raise ValueError("decoding='draft' needs a preprocess made of steps, one of them with a `size`")


def _check_pairs(pairs: Sequence[Pair], with_explanations: bool) -> None:
    """Raise ValueError for no pairs, repeated ids, and missing explanations where asked for."""
    if not len(pairs):
        raise ValueError("empty split: there is no pair to serve")
    # loaders keep ids of a table unique; a million pairs are not built only to look again
    counts = Counter() if isinstance(pairs, PairTable) else Counter(pair.id for pair in pairs)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} repeated pair ids: {', '.join(repeated[:5])}")
    lacking = [pair.id for pair in pairs if not pair.explanation] if with_explanations else []
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs lack an explanation, the first is "
            f"{lacking[0]!r}; generate explanations for this split or train without them"
        )
