"""A million pairs in a few arrays: columns of UTF-8 text, seen as a sequence of `Pair`.

A list of a million `Pair` objects takes over a GB, and each worker that touches it copies it page
by page (reference counts live inside the objects). Arrays have no counts: workers made by fork
share them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from entityclip.datasets.pair import Pair


@dataclass(frozen=True, eq=False)
class TextColumn(Sequence[str]):
    """n texts: their UTF-8 bytes in a row, [bytes] uint8, and their bounds, [n + 1] int64."""

    data: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        return self.data[self.bounds[row] : self.bounds[row + 1]].tobytes().decode()

    def take(self, rows: np.ndarray) -> TextColumn:
        """The texts at `rows`, in that order, as a column of their own."""
        return text_column(self[row] for row in rows.tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.data.nbytes + self.bounds.nbytes


class TextBuilder:
    """Texts one by one into a `TextColumn`."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._bounds = array("q", [0])

    def append(self, text: str) -> None:
        """Add a text. Raises UnicodeEncodeError for half a surrogate pair."""
        self._data += text.encode()
        self._bounds.append(len(self._data))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def column(self) -> TextColumn:
        """What was added, without copying it; nothing can be added afterwards."""
        return TextColumn(np.frombuffer(self._data, np.uint8), np.frombuffer(self._bounds, "q"))


def text_column(texts: Iterable[str]) -> TextColumn:
    """A column of `texts`."""
    builder = TextBuilder()
    for text in texts:
        builder.append(text)
    return builder.column()


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """n optional texts, of which many may be equal: [n] int32 codes into `texts`, -1 for None."""

    codes: np.ndarray
    texts: TextColumn

    def __getitem__(self, row: int) -> str | None:
        code = int(self.codes[row])
        return None if code < 0 else self.texts[code]

    def take(self, rows: np.ndarray) -> LabelColumn:
        """The texts at `rows` as a column that holds no others."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        first = int(len(used) > 0 and used[0] < 0)
        kept = self.texts.take(used[first:])
        return LabelColumn((codes.reshape(-1) - first).astype(np.int32), kept)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.codes.nbytes + self.texts.nbytes


class LabelBuilder:
    """Optional texts one by one into a `LabelColumn`."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}

    def append(self, text: str | None) -> None:
        """Add a text or None. Raises UnicodeEncodeError for half a surrogate pair."""
        code = -1 if text is None else self._code_of.get(text)
        if code is None:
            text.encode()
            code = self._code_of[text] = len(self._code_of)
        self._codes.append(code)

    def column(self) -> LabelColumn:
        """What was added; nothing can be added afterwards."""
        return LabelColumn(np.frombuffer(self._codes, np.int32), text_column(self._code_of))


@dataclass(frozen=True, eq=False)
class PairTable(Sequence[Pair]):
    """Pairs with pictures below `root`, equal to any sequence of the same pairs.

    `rows` [n] int64 says which rows of the columns the table shows, in which order. Ids are unique.
    """

    root: Path
    ids: TextColumn
    images: TextColumn  # paths below the root, with forward slashes
    captions: TextColumn
    explanations: LabelColumn
    groups: LabelColumn
    sections: LabelColumn
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairTable: ...
    def __getitem__(self, index):
        """A `Pair`, or for a slice a `PairTable` on the same columns."""
        if isinstance(index, slice):
            return self.with_rows(self.rows[index])
        row = int(self.rows[index])
        return Pair(
            self.ids[row],
            self.root / self.images[row],
            self.captions[row],
            self.explanations[row],
            self.groups[row],
            self.sections[row],
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (PairTable, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"PairTable({len(self)} pairs, {self.nbytes / 2**20:.1f} MiB, root={str(self.root)!r})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory all columns take, rows that are not shown included."""
        names = ("ids", "images", "captions", "explanations", "groups", "sections", "rows")
        return sum(getattr(self, name).nbytes for name in names)

    def image_name(self, index: int) -> str:
        """The path of a pair's picture below the root, with forward slashes."""
        return self.images[int(self.rows[index])]

    def by_group(self) -> dict[str, list[int]]:
        """Each group's pairs, as positions in the table; pairs without a group are in none."""
        groups: dict[str, list[int]] = {}
        for position, row in enumerate(self.rows.tolist()):
            group = self.groups[row]
            if group is not None:
                groups.setdefault(group, []).append(position)
        return groups

    def subset(self, limit: int | None, seed: int) -> PairTable:
        """`limit` pairs chosen by `seed` in the table's order; all where there are no more."""
        if limit is None or limit >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:limit])
        return self.with_rows(self.rows[chosen]).compact()

    def compact(self) -> PairTable:
        """The same pairs, in columns of their own if this drops half of the rows or more."""
        if 2 * len(self.rows) > len(self.ids):
            return self
        names = ("ids", "images", "captions", "explanations", "groups", "sections")
        columns = (getattr(self, name).take(self.rows) for name in names)
        return PairTable(self.root, *columns, rows=np.arange(len(self.rows)))

    def with_rows(self, rows: np.ndarray) -> PairTable:
        """Other rows of the same columns."""
        return PairTable(
            self.root, self.ids, self.images, self.captions, self.explanations, self.groups,
            self.sections, rows,
        )  # fmt: skip
