"""Pictures that are others, byte for byte or nearly, and which of them two splits share.

Near-duplicates are told by a perceptual hash: one picture stored anew, resized or a little brighter
keeps nearly all of its bits. Cropped, turned or mirrored ones are other pictures to it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from entityclip.console import progress_bar

SAME_FILE = "the same file"
NEAR = 16  # of 256 bits: two pictures that differ in no more are nearly the same
_SIDE, _WAVES = 64, 16  # the grey picture's side in pixels, its frequencies a direction
_PLAIN = 2.0  # grey levels: a picture that varies less has nothing but noise to tell it by
_NEIGHBOURS = 32  # of a hash in sorted order that it is compared with, a band


class Leak(NamedTuple):
    """A picture of the split `second` that is one of `first`, and by how many bits of 256 it isn't.

    `how` is `SAME_FILE`, "the same bytes" or "nearly the same".
    """

    first: str
    second: str
    picture: str  # of second
    other: str  # of first
    how: str
    bits: int = 0


@cache
def _waves() -> tuple[np.ndarray, np.ndarray]:
    """A cosine transform's first rows, [waves, side], and its results' order from slow to fast."""
    place, wave = np.arange(_SIDE) + 0.5, np.arange(_WAVES)
    order = np.argsort(wave[:, None] + wave, axis=None, kind="stable")
    return np.cos(np.pi / _SIDE * np.outer(wave, place)), order


def perceptual_hash(picture: Image.Image) -> np.ndarray:
    """The signs of an RGB picture's 255 slowest waves, slow ones first, [4] uint64.

    They say where it is lighter and darker, whatever its size and mean. Zeros for a plain picture.
    """
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0).convert("L")
    grey = np.asarray(small, np.float64)
    if grey.std() < _PLAIN:
        return np.zeros(4, np.uint64)
    cosines, order = _waves()
    strength = cosines @ (grey - grey.mean()) @ cosines.T
    strength[0, 0] = 0
    return np.packbits(strength.ravel()[order] > 0).view(">u8").astype(np.uint64)


def near_pairs(
    hashes: np.ndarray, near: int = NEAR, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Every two of distinct [n, 4] uint64 hashes that differ in at most `near` bits.

    Returns their rows, [k, 2] int64, and how many bits differ, [k]. Hashes are compared with those
    beside them when sorted by each of 16 bands of 16 bits (and by what follows it): linear in n but
    for the sorting. What is near in at least one band is found, as nearly all is.
    """
    count, found = len(hashes), np.empty(0, np.int64)  # found: first row * count + second
    bands = [hashes[:, n // 4] >> np.uint64(48 - n % 4 * 16) & np.uint64(0xFFFF) for n in range(16)]
    bar = progress_bar(bands, "comparing", delay=2, show=progress)  # a minute for a million
    for number, band in enumerate(bar):
        key = band
        for more in range(1, 4):
            key = key << np.uint64(16) | bands[(number + more) % 16]
        order = np.argsort(key, kind="stable")
        ordered, band, close = hashes[order], band[order], [found]
        for step in range(1, min(_NEIGHBOURS, count - 1) + 1):
            (at,) = np.nonzero(band[step:] == band[:-step])
            if not len(at):
                break
            at = at[_apart(ordered[at], ordered[at + step]) <= near]
            one, other = order[at], order[at + step]
            close.append(np.minimum(one, other) * count + np.maximum(one, other))
        found = np.unique(np.concatenate(close))
    pairs = np.stack([found // max(count, 1), found % max(count, 1)], axis=1)
    return pairs, _apart(hashes[pairs[:, 0]], hashes[pairs[:, 1]])


def _apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.bitwise_count(some ^ others).sum(axis=1, dtype=np.int64)


class Alike:
    """Which of n pictures are alike: by sha256 ([n, 32] uint8) and perceptual hash ([n, 4] uint64).

    Rows of zeros stand for pictures that could not be read, or are too plain to compare.
    """

    def __init__(self, sums: np.ndarray, looks: np.ndarray, *, progress: bool = False) -> None:
        self.same, _ = _numbered(sums)
        self.look, distinct = _numbered(looks)
        self._near: dict[int, list[tuple[int, int]]] = defaultdict(list)  # look -> (bits, look)
        rows, apart = near_pairs(distinct, progress=progress)
        for (one, other), bits in zip(rows.tolist(), apart.tolist(), strict=True):
            self._near[one].append((bits, other))
            self._near[other].append((bits, one))

    def groups(self) -> Iterator[list[int]]:
        """The rows of pictures that are equal byte for byte, a list for each that is repeated."""
        order = np.argsort(self.same, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(self.same[order])) + 1):
            if len(rows) > 1 and self.same[rows[0]] >= 0:
                yield rows.tolist()

    def nearest(self, same: dict[int, int], looks: dict[int, int], row: int) -> tuple | None:
        """(row, how, bits) of the most like `row` among some, by their `same` and `look`."""
        if (other := same.get(int(self.same[row]))) is not None:
            return other, "the same bytes", 0
        look = int(self.look[row])
        for bits, near in sorted([(0, look), *self._near.get(look, ())]):
            if near in looks:
                return looks[near], "nearly the same", bits
        return None


def _numbered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's number among the distinct ones that are not zero, -1: zero; and those."""
    there = rows.any(axis=1)
    numbers = np.full(len(rows), -1)
    distinct, numbers[there] = np.unique(rows[there], axis=0, return_inverse=True)
    return numbers, distinct


def leaks(names: Sequence[str], alike: Alike, splits: Mapping[str, set[str]]) -> list[Leak]:
    """For every two splits, the second's pictures that are the first's, each with the most like.

    `names` are those of the rows of `alike`; `splits` has the pictures of each.
    """
    rows = {split: [row for row, name in enumerate(names) if name in pictures]
            for split, pictures in splits.items()}  # fmt: skip
    found = []
    for first, second in itertools.combinations(splits, 2):
        same = {int(alike.same[row]): row for row in reversed(rows[first])}
        looks = {int(alike.look[row]): row for row in reversed(rows[first])}
        for unknown in (same, looks):
            unknown.pop(-1, None)
        for row in rows[second]:
            if names[row] in splits[first]:
                found.append(Leak(first, second, names[row], names[row], SAME_FILE))
            elif nearest := alike.nearest(same, looks, row):
                other, how, bits = nearest
                found.append(Leak(first, second, names[row], names[other], how, bits))
    return found
