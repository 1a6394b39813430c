"""A prepared copy of a data set's pictures: upright RGB, shortest side 256, in WebDataset tars.

Why tars: the format is POSIX's and forty years old; ``tar xf``, webdataset, HF datasets
and plain Python read it, it needs no dependency, a shard is written once and copied whole, and with
the offsets kept beside it a picture is one ``pread``, so any order of reading is fast. Arrow would
bring a 40 MB dependency to store the same JPEG bytes.

A folder holds ``{dataset}-000000.tar`` (members ``000000000.jpg`` and ``000000000.json``), beside
each its index ``{dataset}-000000.json``, and at the end ``prepared.json``: options, shards with
sha256, broken pictures, fingerprint. Texts stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from entityclip.datasets.columns import PairTable
from entityclip.datasets.decode import ImageError, decode
from entityclip.datasets.pair import Pair

MANIFEST = "prepared.json"
_log = logging.getLogger(__name__)


class PreparedError(ValueError):
    """A prepared copy is incomplete, damaged or made with other options; the message says which."""


@dataclass(frozen=True)
class TarPicture:
    """One picture inside a shard: `size` bytes from `offset` on."""

    shard: Path
    offset: int
    size: int
    key: str

    def load(self) -> Image.Image:
        """The picture in RGB. Raises ImageError naming shard and picture."""
        try:
            descriptor = os.open(self.shard, os.O_RDONLY)
            try:
                data = os.pread(descriptor, self.size, self.offset)
            finally:
                os.close(descriptor)
            return decode(data)
        except OSError as error:
            raise ImageError(f"cannot read {self.key} in {self.shard}: {error}") from error


class PreparedPairs(Sequence[Pair]):
    """The pairs of a table with their pictures taken from a prepared copy, in the table's order."""

    def __init__(self, table: PairTable, folder: Path, index: dict[str, tuple[int, int, int]],
                 shards: list[str], fingerprint: str) -> None:  # fmt: skip
        places = [index.get(table.image_name(row)) for row in range(len(table))]
        kept = np.array([row for row, place in enumerate(places) if place is not None], np.int64)
        self.table = table.with_rows(table.rows[kept])
        self.left_out = len(table) - len(kept)
        self._places = np.array([place for place in places if place is not None], np.int64)
        self._folder, self._shards, self._fingerprint = folder, shards, fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index):
        """A `Pair`, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        pair = self.table[index]
        shard, offset, size = self._places[index].tolist()
        # the original's name stays in the key, the copy's fingerprint tells it from the original
        key = f"prepared-{self._fingerprint}/{self.table.image_name(index)}"
        picture = TarPicture(self._folder / self._shards[shard], offset, size, key)
        return Pair(pair.id, picture, pair.caption, pair.explanation, pair.group, pair.section)

    @cached_property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return [self.table.ids[row] for row in self.table.rows.tolist()]


def use_prepared(table: PairTable, folder: Path) -> PreparedPairs:
    """The pairs of `table` with their pictures taken from a prepared copy.

    Pairs whose picture the copy lacks (broken ones) are left out; how many is logged and stands in
    `left_out`. Raises PreparedError for a copy that is unfinished, changed or of other data.
    """
    manifest = read_manifest(folder)
    index: dict[str, tuple[int, int, int]] = {}
    names = []
    for number, shard in enumerate(manifest["shards"]):
        path = folder / shard["name"]
        if Path(shard["name"]).name != shard["name"] or path.is_symlink():
            raise PreparedError(f"{folder / MANIFEST}: {shard['name']!r} leads out of the folder")
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise PreparedError(f"{path} is missing or not {shard['bytes']} bytes; prepare again")
        names.append(shard["name"])
        for name, offset, size in read_json(path.with_suffix(".json"))["pictures"]:
            index[name] = (number, offset, size)
    pairs = PreparedPairs(table, folder, index, names, manifest["fingerprint"])
    if not pairs:
        raise PreparedError(f"{folder} holds no picture of these {len(table)} pairs; other data?")
    level = logging.WARNING if pairs.left_out else logging.INFO
    _log.log(level, "%s: %d pairs without a prepared picture left out", folder, pairs.left_out)
    return pairs


def read_manifest(folder: Path) -> dict[str, Any]:
    """A prepared copy's manifest. Raises PreparedError where there is none or it was changed."""
    if not (folder / MANIFEST).is_file():
        raise PreparedError(f"{folder} has no {MANIFEST}; run prepare (again, if it was stopped)")
    manifest = read_json(folder / MANIFEST)
    lacking = {"options", "shards", "broken", "fingerprint"} - set(manifest)
    if lacking or manifest["fingerprint"] != fingerprint(manifest["options"], manifest["shards"]):
        raise PreparedError(f"{folder / MANIFEST} was changed or damaged; prepare again")
    return manifest


def fingerprint(options: dict[str, Any], shards: list[dict[str, Any]]) -> str:
    """Sixteen hex digits that differ whenever an option or a byte of a shard does."""
    text = json.dumps([options, [shard["sha256"] for shard in shards]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises PreparedError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PreparedError(f"{path} cannot be read ({error}); prepare again") from error
    if not isinstance(value, dict):
        raise PreparedError(f"{path} must hold a JSON object; prepare again")
    return value
