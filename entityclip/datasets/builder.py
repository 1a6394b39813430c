"""Rows in, pairs out: what every loader of downloaded data does after it has read a row.

The builder leaves out what cannot be used, counts it in a `Report`, joins the explanations, and
returns a `PairTable`.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from entityclip.datasets.columns import LabelBuilder, LabelColumn, PairTable, TextBuilder
from entityclip.datasets.json_stream import iter_entries
from entityclip.datasets.source import list_pictures

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
