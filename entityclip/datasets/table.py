"""A million pairs in a few arrays: columns of UTF-8 text, seen as a sequence of `Pair`.

A list of a million `Pair` objects takes over a GB, and each worker that touches it copies it page
by page (reference counts live inside the objects). Arrays have no counts: workers made by fork
share them.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import overload

import numpy as np

from entityclip.datasets.pair import Pair
from entityclip.datasets.reading import iter_entries, list_pictures


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


MAX_CAPTION = 100_000  # characters; what is longer is a swallowed file, not a caption


_KEPT, _EMPTY, _OVERSIZED, _BROKEN, _MISSING, _OUTSIDE, _REPEATED = range(7)


_log = logging.getLogger(__name__)


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

    @property
    def left_out(self) -> int:
        """Rows that became no pair."""
        names = [field.name for field in fields(self)][1:7]
        return sum(getattr(self, name) for name in names)

    def __str__(self) -> str:
        rare = {
            "with an oversized caption": self.oversized_captions,
            "whose picture is a link out of the root": self.outside_root,
            "listed as broken": self.listed_as_broken,
        }
        parts = "".join(f", {count} {what}" for what, count in rare.items() if count)
        unused = f"; {self.unused_explanations} explanations fit no pair"
        return (
            f"{self.rows} rows; left out {self.empty_captions} with an empty caption, "
            f"{self.missing_pictures} without their picture, {self.repeated_ids} repeated{parts}; "
            f"{self.without_explanation} kept without an explanation"
            + (unused if self.unused_explanations else "")
        )


class PairBuilder:
    """Rows in, a `PairTable` and a `Report` out. Use one builder a split."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ids, self._images, self._captions = TextBuilder(), TextBuilder(), TextBuilder()
        self._groups, self._sections = LabelBuilder(), LabelBuilder()
        self._own_explanations = LabelBuilder()
        self._state = bytearray()
        self._folder_codes = array("i")
        self._folders: dict[str, int] = {}
        self._explanations: LabelColumn | None = None

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
        state = _KEPT
        if not caption:
            state = _EMPTY
        elif len(caption) > MAX_CAPTION:
            state, caption = _OVERSIZED, ""
        elif broken:
            state = _BROKEN
        try:
            self._ids.append(name)
            self._images.append(image)
            self._captions.append(caption)
            self._groups.append(group)
            self._sections.append(section)
            self._own_explanations.append(explanation)
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: half a surrogate pair in a text; mend the row") from error
        self._state.append(state)
        folder = image.rpartition("/")[0]
        self._folder_codes.append(self._folders.setdefault(folder, len(self._folders)))

    def explain(self, path: Path | None, key_of_file: Callable[[str], str],
                key_of_pair: Callable[[str, str], str]) -> None:  # fmt: skip
        """Join the explanations of a file, an object of key → text; None: there is no such file.

        `key_of_file` takes a key of the file, `key_of_pair` a pair's id and image path; explanation
        and pair belong together where these are equal. Empty explanations count as missing. Raises
        ValueError for other values than text and for two texts with one key.
        """
        texts, code_of = _read_explanations(path, key_of_file) if path else (TextBuilder(), {})
        ids, images = self._ids.column(), self._images.column()
        codes = np.full(len(ids), -1, np.int32)
        if code_of:
            for row in range(len(ids)):
                codes[row] = code_of.get(key_of_pair(ids[row], images[row]), -1)
        self._explanations = LabelColumn(codes, texts.column())

    def finish(self, what: str, *, limit: int | None, seed: int) -> tuple[PairTable, Report]:
        """The usable pairs in the order added, or a subset of them; logs the report of `what`."""
        if self._explanations is None:
            self._explanations = self._own_explanations.column()
        ids, images, state = self._ids.column(), self._images.column(), self._state
        self._mark_missing(images)
        seen: set[str] = set()
        for row in range(len(ids)):
            if state[row] == _KEPT:
                name = ids[row]
                if name in seen:
                    state[row] = _REPEATED
                seen.add(name)
        states = np.frombuffer(state, np.uint8)
        rows = np.flatnonzero(states == _KEPT)
        table = PairTable(
            self.root, ids, images, self._captions.column(), self._explanations,
            self._groups.column(), self._sections.column(), rows,
        )  # fmt: skip
        report = self._report(states, rows)
        _log.log(logging.WARNING if report.left_out else logging.INFO, "%s: %s", what, report)
        return table.compact().subset(limit, seed), report

    def _mark_missing(self, images: Sequence[str]) -> None:
        """Set the state of rows whose picture is missing or a link out; one listing a folder."""
        codes = np.frombuffer(self._folder_codes, np.int32)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(self._folders) + 1))
        home = self.root.resolve()
        for code, folder in enumerate(self._folders):
            present = list_pictures(home, self.root / folder)
            for row in order[bounds[code] : bounds[code + 1]].tolist():
                if self._state[row] == _KEPT:
                    found = present.get(images[row].rpartition("/")[2])
                    if not found:
                        self._state[row] = _MISSING if found is None else _OUTSIDE

    def _report(self, states: np.ndarray, rows: np.ndarray) -> Report:
        counts = np.bincount(states, minlength=7)
        codes = self._explanations.codes[rows]
        return Report(
            rows=len(states),
            empty_captions=int(counts[_EMPTY]),
            missing_pictures=int(counts[_MISSING]),
            repeated_ids=int(counts[_REPEATED]),
            oversized_captions=int(counts[_OVERSIZED]),
            outside_root=int(counts[_OUTSIDE]),
            listed_as_broken=int(counts[_BROKEN]),
            without_explanation=int((codes < 0).sum()),
            unused_explanations=len(self._explanations.texts) - len(np.unique(codes[codes >= 0])),
        )


def _read_explanations(
    path: Path, key_of_file: Callable[[str], str]
) -> tuple[TextBuilder, dict[str, int]]:
    """The distinct keys' texts, and each key's number among them."""
    texts, code_of = TextBuilder(), {}
    hashes = array("q")  # of the texts, to compare a second one of a key with
    for key, value in iter_entries(path):
        if not isinstance(value, str):
            got = type(value).__name__
            raise ValueError(f"{path}, key {key!r}: an explanation must be str, got {got}")
        value = value.strip()
        if not value:
            continue
        code = code_of.setdefault(key_of_file(key), len(texts))
        if code < len(texts):
            if hashes[code] != hash(value):
                raise ValueError(
                    f"{path}, key {key!r}: a second explanation of one picture; keep one"
                )
            continue
        hashes.append(hash(value))
        try:
            texts.append(value)
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}, key {key!r}: half a surrogate pair; mend it") from error
    return texts, code_of
