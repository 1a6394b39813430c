"""The one record every dataset yields, and the torch dataset and batch made from it.

A source only has to produce a list of `Pair`; nothing after this file knows which source it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from entityclip.datasets.broken import Broken
from entityclip.datasets.decode import ImageError
from entityclip.datasets.record import Pair, Picture, data_fingerprint

if TYPE_CHECKING:
    from entityclip.distributed import Peers

__all__ = [
    "Batch",
    "Broken",
    "ImageError",
    "Item",
    "Pair",
    "PairDataset",
    "Picture",
    "data_fingerprint",
]

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
