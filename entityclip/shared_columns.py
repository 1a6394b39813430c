"""Rows as the repository ships them: what thousands of rows repeat is written once.

A file's first line is ``{"shared": {column: {hash: value}}}``; in the rows below it, these columns
hold the hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from entityclip.identity import config_hash

_HEAD, _COLUMNS = "shared", ("config", "versions")


def pack(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first line, then the rows with hashes for what they share."""
    shared: dict[str, dict[str, Any]] = {name: {} for name in _COLUMNS}
    packed = []
    for row in rows:
        hashes = {name: config_hash(row[name]) for name in _COLUMNS}
        for name, key in hashes.items():
            shared[name][key] = row[name]
        packed.append({**row, **hashes})
    return [{_HEAD: shared}, *packed]


def shared_values(line: Any) -> dict[str, dict[str, Any]] | None:
    """What a first line shares; None for any other line."""
    return line[_HEAD] if isinstance(line, dict) and line.keys() == {_HEAD} else None


def unpack(row: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole row; a row that shares nothing stays as it is. Raises KeyError for a lost value."""
    hashes = {name: row[name] for name in _COLUMNS if isinstance(row.get(name), str)}
    return {**row, **{name: shared[name][key] for name, key in hashes.items()}}
