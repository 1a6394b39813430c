"""A million pairs in a few arrays: columns of UTF-8 text, seen as a sequence of `Pair`.

A list of a million `Pair` objects takes over a GB, and each worker that touches it copies it page
by page (reference counts live inside the objects). Arrays have no counts: workers made by fork
share them.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from entityclip.datasets.pair import Pair
from entityclip.datasets.reading import iter_entries, list_pictures

_log = logging.getLogger(__name__)
MAX_CAPTION = 100_000  # characters; what is longer is a swallowed file, not a caption


class TextColumn(Sequence[str | None]):
    """Optional texts, kept as UTF-8 bytes side by side; with `repeated`, equal ones only once."""

    def __init__(self, texts: Iterable[str | None] = (), *, repeated: bool = False) -> None:
        self.repeated = repeated
        self._data = bytearray()
        self._bounds = array("q", [0])  # of the distinct texts within the data
        self._codes = array("i")  # [n] which of them a row holds, -1: None
        self._code_of: dict[str, int] = {}
        for text in texts:
            self.append(text)

    def append(self, text: str | None) -> None:
        """Add a text. Raises UnicodeEncodeError, adding nothing, for half a surrogate pair."""
        new = len(self._bounds) - 1
        code = -1 if text is None else self._code_of.get(text, new)
        if code == new:
            self._data += text.encode()
            self._bounds.append(len(self._data))
            if self.repeated:
                self._code_of[text] = code
        self._codes.append(code)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, row: int) -> str | None:  # type: ignore[override]
        code = self._codes[row]
        if code < 0:
            return None
        return self._data[self._bounds[code] : self._bounds[code + 1]].decode()

    @property
    def distinct(self) -> int:
        """How many texts are kept."""
        return len(self._bounds) - 1

    @property
    def codes(self) -> np.ndarray:
        """[n] int32, equal where rows hold the same kept text; -1: None."""
        return np.array(self._codes, np.int32)

    def take(self, rows: np.ndarray) -> TextColumn:
        """The texts at `rows`, in that order, as a column of their own."""
        return TextColumn((self[row] for row in rows.tolist()), repeated=self.repeated)

    def lookup(self, codes: Iterable[int]) -> TextColumn:
        """A column whose rows are `codes` into this one's kept texts, which both share."""
        column = TextColumn(repeated=True)
        column._data, column._bounds, column._codes = self._data, self._bounds, array("i", codes)
        return column

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return len(self._data) + 8 * len(self._bounds) + 4 * len(self._codes)


# of a `Pair`'s texts, those that many pairs may share or lack
COLUMNS = {
    "id": False, "image": False, "caption": False,
    "explanation": True, "group": True, "section": True,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class PairTable(Sequence[Pair]):
    """Pairs with pictures below `root`, equal to any sequence of the same pairs. Ids are unique.

    `rows` [n] int64 says which rows of the columns the table shows, in which order. The column
    ``image`` holds paths below the root, with forward slashes.
    """

    root: Path
    columns: dict[str, TextColumn]
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
            return replace(self, rows=self.rows[index])
        row = int(self.rows[index])
        texts = {name: column[row] for name, column in self.columns.items()}
        return Pair(**{**texts, "image": self.root / texts["image"]})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (PairTable, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        size = f"{self.nbytes / 2**20:.1f} MiB"
        return f"{type(self).__name__}({len(self)} pairs, {size}, root={str(self.root)!r})"

    @property
    def nbytes(self) -> int:
        """Bytes of memory all columns take, rows that are not shown included."""
        return self.rows.nbytes + sum(column.nbytes for column in self.columns.values())

    @property
    def image_names(self) -> list[str]:
        """The paths of all pictures below the root, in the table's order."""
        return [self.columns["image"][row] for row in self.rows.tolist()]


@dataclass
class Report:
    """What a load read, and what it left out."""

    rows: int = 0
    empty_captions: int = 0  # left out
    missing_pictures: int = 0  # left out
    repeated_ids: int = 0  # left out after the first
    oversized_captions: int = 0  # left out: more than MAX_CAPTION characters
    outside_root: int = 0  # left out: the picture is a link that leads out of the root
    listed_as_broken: int = 0  # left out: the release itself lists the picture as broken
    without_explanation: int = 0  # kept
    unused_explanations: int = 0  # keys of the explanations' file that no kept pair has
    notes: list[str] = field(default_factory=list)  # passed over, and maybe a mistake

    @property
    def counts(self) -> dict[str, int]:
        """All but the notes."""
        return {name: value for name, value in vars(self).items() if name != "notes"}

    @property
    def left_out(self) -> int:
        """Rows that became no pair."""
        return sum(getattr(self, name) for name in _REASONS)

    def __str__(self) -> str:
        if not self.rows:
            return "0 rows: none of the file is of this split"
        counts = {what: getattr(self, name) for name, what in _REASONS.items()}
        often = [*counts][:3]
        parts = [f"{count} {what}" for what, count in counts.items() if count or what in often]
        notes = [f"{self.unused_explanations} explanations fit no pair"]
        notes = notes[: self.unused_explanations] + self.notes
        return (
            f"{self.rows} rows; left out {', '.join(parts)}; {self.without_explanation} kept "
            f"without an explanation{''.join(f'; {note}' for note in notes)}"
        )


# why a row is left out: field of `Report` -> in words; its place here, from 1, is the row's state
_REASONS = {
    "empty_captions": "with an empty caption",
    "missing_pictures": "without their picture",
    "repeated_ids": "repeated",
    "oversized_captions": "with an oversized caption",
    "outside_root": "whose picture is a link out of the root",
    "listed_as_broken": "listed as broken",
}
_STATE = {name: number for number, name in enumerate(_REASONS, 1)}  # 0: kept


class PairBuilder:
    """Rows in, a `PairTable` and a `Report` out. Use one builder a split."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._columns = {name: TextColumn(repeated=many) for name, many in COLUMNS.items()}
        self._state = bytearray()
        self._folders = TextColumn(repeated=True)  # of the pictures
        self.notes: list[str] = []  # for the report

    def add(
        self,
        name: str,
        image: str,
        caption: str,
        *,
        group: str | None = None,
        section: str | None = None,
        explanation: str | None = None,
        where: object,
        broken: bool = False,
    ) -> None:
        """Take a row. `image` is a path below the root; `broken`: the release says so itself.

        `explanation` is for sets that keep it in the row; others call `explain`.

        Raises ValueError beginning with `where` (a `Row` or text) for text that is not Unicode.
        """
        state = _STATE["listed_as_broken"] if broken else 0
        if not caption:
            state = _STATE["empty_captions"]
        elif len(caption) > MAX_CAPTION:
            state, caption = _STATE["oversized_captions"], ""
        texts = (name, image, caption, explanation, group, section)
        try:
            for column, text in zip(self._columns.values(), texts, strict=True):
                column.append(text)
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: half a surrogate pair in a text; mend the row") from error
        self._state.append(state)
        self._folders.append(image.rpartition("/")[0])

    def explain(self, path: Path | None, key_of_file: Callable[[str], str],
                key_of_pair: Callable[[str, str], str]) -> None:  # fmt: skip
        """Join the explanations of a file, an object of key → text; None: there is no such file.

        `key_of_file` takes a key of the file, `key_of_pair` a pair's id and image path; explanation
        and pair belong together where these are equal. Empty explanations count as missing. Raises
        ValueError for other values than text and for two texts with one key.
        """
        if path is not None:
            texts, code_of = _read_explanations(path, key_of_file)
            pairs = zip(self._columns["id"], self._columns["image"], strict=True)
            codes = [code_of.get(key_of_pair(name, image), -1) for name, image in pairs]
            self._columns["explanation"] = texts.lookup(codes)

    def finish(self, what: str, *, limit: int | None, seed: int) -> tuple[PairTable, Report]:
        """The usable pairs in the order added, or a subset of them; logs the report of `what`."""
        self._mark_missing()
        first: dict[str, int] = {}
        for row, name in enumerate(self._columns["id"]):
            if not self._state[row] and first.setdefault(name, row) != row:
                self._state[row] = _STATE["repeated_ids"]
        states = np.frombuffer(self._state, np.uint8)
        table = PairTable(self.root, self._columns, np.flatnonzero(states == 0))
        explanations = self._columns["explanation"]
        codes = explanations.codes[table.rows]
        counts = np.bincount(states, minlength=len(_REASONS) + 1).tolist()
        report = Report(
            rows=len(states),
            without_explanation=int((codes < 0).sum()),
            unused_explanations=explanations.distinct - len(np.unique(codes[codes >= 0])),
            notes=self.notes,
            **dict(zip(_REASONS, counts[1:], strict=True)),
        )
        level = logging.WARNING if report.left_out or report.notes else logging.INFO
        _log.log(level, "%s: %s", what, report)
        return _subset(table, limit, seed), report

    def _mark_missing(self) -> None:
        """Set the state of rows whose picture is missing or a link out; one listing a folder."""
        home, images, codes = self.root.resolve(), self._columns["image"], self._folders.codes
        order = np.argsort(codes, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
            present = list_pictures(home, self.root / self._folders[rows[0]]) if len(rows) else {}
            for row in rows.tolist():
                inside = present.get(images[row].rpartition("/")[2])
                if not inside and not self._state[row]:
                    reason = "missing_pictures" if inside is None else "outside_root"
                    self._state[row] = _STATE[reason]


def _subset(table: PairTable, limit: int | None, seed: int) -> PairTable:
    """`limit` pairs chosen by `seed` in the table's order; all where there are no more.

    They get columns of their own if half of the rows or more are dropped.
    """
    rows = table.rows
    if limit is not None and limit < len(rows):
        rows = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]
    if 2 * len(rows) > len(table.columns["id"]):
        return replace(table, rows=rows)
    columns = {name: column.take(rows) for name, column in table.columns.items()}
    return PairTable(table.root, columns, np.arange(len(rows)))


def _read_explanations(
    path: Path, key_of_file: Callable[[str], str]
) -> tuple[TextColumn, dict[str, int]]:
    """The distinct keys' texts, and each key's number among them."""
    texts, code_of = TextColumn(), {}
    for key, value in iter_entries(path):
        if not isinstance(value, str):
            got = type(value).__name__
            raise ValueError(f"{path}, key {key!r}: an explanation must be str, got {got}")
        value = value.strip()
        if not value:
            continue
        code = code_of.setdefault(key_of_file(key), len(texts))
        if code < len(texts) and texts[code] != value:
            raise ValueError(f"{path}, key {key!r}: a second explanation of one picture; keep one")
        try:
            if code == len(texts):
                texts.append(value)
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}, key {key!r}: half a surrogate pair; mend it") from error
    return texts, code_of
