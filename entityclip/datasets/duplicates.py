"""What two splits share: ids, pictures and captions. Shared rows leak test data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from entityclip.datasets.pair import Pair


@dataclass(frozen=True)
class Overlap:
    """What stands in both of two splits, in numbers of distinct values, with the first few ids."""

    first: str
    second: str
    ids: int
    pictures: int
    captions: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} share {self.ids} ids, {self.pictures} pictures and "
            f"{self.captions} captions (e.g. {', '.join(self.examples)})"
        )


def overlaps(splits: Mapping[str, Sequence[Pair]]) -> list[Overlap]:
    """Every two splits that share an id, a picture's path or a caption, in the order given.

    Captions are compared as text: agencies' short captions may recur for good reasons, so a shared
    caption alone is a hint and no fault. Splits that contain one another by definition (``all``,
    ``train+restval``) should not be passed.
    """
    hashed = {name: _hashes(pairs) for name, pairs in splits.items()}
    found = []
    for first, second in itertools.combinations(splits, 2):
        counts, rows = [], set()
        for mine, theirs in zip(hashed[first], hashed[second], strict=True):
            shared, where, _ = np.intersect1d(mine, theirs, return_indices=True)
            counts.append(len(shared))
            rows.update(where[:3].tolist())
        if any(counts):
            examples = tuple(splits[first][row].id for row in sorted(rows)[:3])
            found.append(Overlap(first, second, *counts, examples))
    return found


def _hashes(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """64-bit hashes of ids, pictures and captions, [n] uint64 each."""
    out = np.empty((3, len(pairs)), np.uint64)
    for row, pair in enumerate(pairs):
        for kind, text in enumerate((pair.id, pair.image_key, pair.caption)):
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            out[kind, row] = int.from_bytes(digest, "big")
    return out[0], out[1], out[2]
