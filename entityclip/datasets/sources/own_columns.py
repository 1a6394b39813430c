"""Which columns of others' tables are ours, and which names are those of splits."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entityclip.datasets.reading import ALIASES

OPTIONAL = ("explanation", "id", "section", "group", "split")
FIELDS = ("image", "caption", *OPTIONAL)
SPLIT_NAMES = {"dev": "val", "valid": "val", "validation": "val", "eval": "val"}
SPLIT_NAMES |= {name: name for name in ("train", "val", "test")}

_OF_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?=[-_.]|$)", re.IGNORECASE)

Note = Callable[[str], object]
log = logging.getLogger(__name__)

FIELD_OF = {name: name for name in FIELDS}
FIELD_OF |= {alias: field for field, names in ALIASES.items() for alias in names}


class Columns:
    """Which of a file's columns is which of ours; what is ignored is noted, once."""

    def __init__(self, path: Path, note: Note):
        self.path, self.note = path, note
        self._of: dict[str, str] = {}
        self._known: tuple[str, ...] = ()

    def of(self, columns: list[str]) -> dict[str, str]:
        """The file's name of a column -> ours, for those that are."""
        if tuple(columns) == self._known:
            return self._of
        self._known, chosen = tuple(columns), {}
        for field in FIELDS:
            names = [field, *ALIASES.get(field, ())]
            order = {name: place for place, name in enumerate(names)}
            there = [c for c in columns if c.strip().casefold() in order]
            # the very name first, so that a table that has it is read as ever
            there.sort(key=lambda c: (c.strip() != field, order[c.strip().casefold()]))
            if there:
                chosen[there[0]] = field
        self._of = chosen
        others = [c for c in columns if c not in chosen and not c.startswith("_")]
        if others and len(set(chosen.values()) & {"image", "caption"}) == 2:
            self._tell(others)
        return chosen

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A row's values under our names."""
        of = self.of(list(values))
        return {of[name]: value for name, value in values.items() if name in of}

    def _tell(self, others: list[str]) -> None:
        told = [c for c in others if c.strip()]
        if told and not getattr(self, "_told", False):
            self._told = True
            log.info("%s: columns that are ignored: %s", self.path.name, ", ".join(told[:8]))


def split_of(path: Path) -> str | None:
    """The split that a file's name begins with, or that its folder is called by."""
    for name in (path.name, path.parent.name):
        if found := _OF_SPLIT.match(name):
            return SPLIT_NAMES[found[1].lower()]
    return None


def one_line(error: BaseException) -> str:
    """What another library's error says, in a line's end."""
    return " ".join(str(error).split())[:300] or type(error).__name__
