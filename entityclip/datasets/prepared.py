"""Reading a prepared copy: where copies lie, whether one holds the data asked for, its pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from entityclip.config import runs_folder
from entityclip.datasets.pair import ImageError, Pair, Picture, decode
from entityclip.datasets.reading import sha256_of
from entityclip.datasets.table import PairTable
from entityclip.files import checked, parse_json, printable, read_at, read_json, read_text

MANIFEST = "prepared.json"
AUTO = "auto"  # as the setting `prepared`: the copy that lies where prepare puts it by default
_COMPARED = 64  # originals whose bytes are compared where a copy was made from another folder
_log = logging.getLogger(__name__)


class PreparedError(ValueError):
    """A prepared copy is incomplete, damaged or of other data; the message says which."""


class Shard(BaseModel):
    """A tar, as ``prepared.json`` has it; copies of before have no `index`, the sha256 of its."""

    name: str
    bytes: int
    sha256: str
    index: str | None = None


class Copy(BaseModel):
    """``prepared.json``; copies of before do not say from which `root` they were made."""

    options: dict[str, Any]
    shards: list[Shard]
    broken: dict[str, str]
    fingerprint: str
    root: str | None = None


_Count = Annotated[int, Field(ge=0, lt=2**62)]


class Index(BaseModel):
    """A shard's index: of each picture its name, offset, size and CRC-32.

    And, but in copies of before, the size and CRC-32 of the `originals`.
    """

    name: str
    bytes: _Count
    sha256: str
    plan: str  # what it was made from and how
    pictures: list[tuple[str, _Count, _Count, _Count]]
    broken: list[tuple[str, str]]
    originals: list[tuple[_Count, _Count]] | None = None


class _OldIndex(Index):
    pictures: list[tuple[str, _Count, _Count]]


# -------------------------------------------------------------------------------------- where


def data_folder(dataset: str, root: Path | None) -> Path:
    """Where ``entityclip data`` writes if not told: a folder for each data set and root."""
    name = dataset if root is None else f"{dataset}-{_short_digest([_resolved(root)])}"
    return runs_folder() / "data" / name


def copy_name(dataset: str, root: Path, options: dict[str, Any], splits: Sequence[str]) -> str:
    """The folder of a copy of some splits: another for another root and other options."""
    made_of = [dataset, _resolved(root), options, sorted(splits)]
    return f"prepared-{dataset}-{_short_digest(made_of)}"


def copy_of_before(parent: Path | None, dataset: str) -> Path:
    """Where earlier versions put a data set's copy, whatever its root; `parent`: ``--out``."""
    return (parent or runs_folder() / "data" / dataset) / "prepared"


def find_copy(dataset: str, root: Path | None, prepared: str | None) -> Path | None:
    """The folder that a setting `prepared` stands for; None: read the originals.

    "auto" is the copy of `root` where ``entityclip data prepare`` puts it if not told. Raises
    PreparedError unless there is just one.
    """
    if prepared is None or prepared != AUTO or root is None:
        return None if prepared is None else Path(prepared).expanduser()
    home = data_folder(dataset, root)
    found = sorted(path.parent for path in home.glob(f"prepared-*/{MANIFEST}"))
    if not found and (old := copy_of_before(None, dataset) / MANIFEST).is_file():
        found = [old.parent]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(folder) for folder in found)
        raise PreparedError(f"{len(found)} copies of {root}: {listed}; set `prepared` to one")
    raise PreparedError(f"no finished copy of {root} in {home}; {prepare_command(dataset, root)}")


def prepare_command(dataset: str, root: Path | str) -> str:
    """What to do for a copy of a data set, in words."""
    return f"`entityclip data prepare {dataset} --root {shlex.quote(str(root))}` makes one"


def _resolved(root: Path) -> str:
    return str(root.expanduser().resolve())


def _short_digest(value: Any) -> str:
    return sha256_of_text(json.dumps(value, sort_keys=True))[:8]


# ----------------------------------------------------------------------------------- originals


def originals(table: PairTable) -> dict[str, Path | Picture]:
    """A table's distinct pictures by the names that its column has for them."""
    first: dict[str, int] = {}
    for place, name in enumerate(table.image_names):
        first.setdefault(name, place)
    return {name: table[place].image for name, place in first.items()}


def size_of(image: Path | Picture) -> int:
    """A picture file's bytes; -1: there is none, -2: it may not be read, which may change."""
    if not isinstance(image, Path):
        return getattr(image, "size", 0)  # a picture in an archive
    try:
        status = image.stat()
    except OSError:
        return -1
    if not stat.S_ISREG(status.st_mode):
        return -1
    return status.st_size if os.access(image, os.R_OK) else -2


def checksum_of(image: Path | Picture) -> int:
    """The CRC-32 of a picture file's bytes; 0 for one that is made, not read. Raises OSError."""
    if isinstance(image, Path):
        return zlib.crc32(image.read_bytes())
    return zlib.crc32(image.read()) if hasattr(image, "read") else 0


def plan_of(options: dict[str, Any], size_by_name: dict[str, int]) -> str:
    """A digest of what a shard is made from, by names and sizes, and how."""
    made_of = [options, list(size_by_name), list(size_by_name.values())]
    return sha256_of_text(json.dumps(made_of))


# ---------------------------------------------------------------------------------------- use


@dataclass(frozen=True)
class TarPicture:
    """One picture inside a shard: `size` bytes from `offset` on, with a CRC-32 (-1: unknown)."""

    shard: Path
    offset: int
    size: int
    key: str
    checksum: int = -1

    def load(self) -> Image.Image:
        """The picture in RGB. Raises ImageError naming shard and picture."""
        try:
            return decode(self.read())
        except OSError as error:
            raise ImageError(f"cannot read {self.key} in {self.shard}: {error}") from error

    def read(self) -> bytes:
        """The picture's bytes. Raises OSError, ImageError for others than were written."""
        with self.shard.open("rb", buffering=0) as file:
            content = read_at(file.fileno(), self.size, self.offset)
        if self.checksum not in (-1, zlib.crc32(content)):
            raise ImageError("its bytes have changed since; prepare again")
        return content


@dataclass(frozen=True, eq=False)
class PreparedTable(PairTable):
    """Pairs of a table with their pictures taken from a prepared copy.

    `places` [n, 4] int64 says where those of all the columns' rows lie: shard, offset, size, and
    their CRC-32.
    """

    shards: list[Path]
    places: np.ndarray
    fingerprint: str

    def __getitem__(self, index):
        """A `Pair`, or for a slice a `PreparedTable` on the same columns."""
        pair = super().__getitem__(index)
        if not isinstance(pair, Pair):
            return pair
        row = self.rows[index]
        shard, offset, size, checksum = self.places[row].tolist()
        # the original's name stays in the key, the copy's fingerprint tells it from the original
        key = f"prepared-{self.fingerprint}/{self.columns['image'][row]}"
        return replace(pair, image=TarPicture(self.shards[shard], offset, size, key, checksum))


def use_prepared(table: PairTable, folder: Path, dataset: str | None = None) -> PreparedTable:
    """The pairs of `table` with their pictures taken from a prepared copy.

    Pairs whose picture was broken when the copy was made are left out, and how many is logged.
    Raises PreparedError for a copy that is unfinished, changed, or does not hold the table's
    pictures as they now are below its root, with the numbers; `dataset` is for what to do then.
    """
    copy = read_copy(folder)
    asked, shards = originals(table), []
    place_of: dict[str, tuple[int, int, int, int]] = {}
    original_of: dict[str, tuple[int, int]] = {}
    others: set[str] = set()  # made from other files than lie below the root now
    for number, shard in enumerate(copy.shards):
        shards.append(_checked(folder, shard))
        index = _read_index(shards[-1], shard)
        names = [name for name, *_ in index.pictures]
        for name, offset, size, *checksum in index.pictures:
            place_of[name] = (number, offset, size, *(checksum or [-1]))
        if index.originals is not None:
            original_of.update(zip(names, index.originals, strict=True))
        else:
            all_names = sorted([*names, *(name for name, _ in index.broken)])
            sizes = {name: size_of(asked.get(name, table.root / name)) for name in all_names}
            others.update(names if plan_of(copy.options, sizes) != index.plan else ())
    elsewhere = copy.root != _resolved(table.root)
    others |= _others(asked, original_of, contents=elsewhere)
    _refuse_others(table, asked, copy, folder, place_of.keys(), others, dataset)
    names, none = table.columns["image"], (-1, 0, 0, -1)
    places = np.array([place_of.get(name, none) for name in names], np.int64)
    there = places[table.rows, 0] >= 0
    kept, lacking = table.rows[there], table.rows[~there]
    if len(lacking):
        first = [names[row] for row in lacking[:3].tolist()]
        shown = "; ".join(f"{name}: {copy.broken[name]}" for name in first)
        what = "pairs without a prepared picture left out"
        _log.warning("%s: %d %s (%s)", folder, len(lacking), what, printable(shown))
    return PreparedTable(table.root, table.columns, kept, shards, places, copy.fingerprint)


def _others(
    asked: dict[str, Path | Picture], original_of: dict[str, tuple[int, int]], *, contents: bool
) -> set[str]:
    """Which of the pictures are other files than the originals; with `contents`, some are read."""
    there = [name for name in asked if name in original_of]
    others = {name for name in there if size_of(asked[name]) not in (-2, original_of[name][0])}
    if contents:
        chosen = there[:: max(1, len(there) // _COMPARED)]
        others |= {name for name in chosen if checksum_of(asked[name]) != original_of[name][1]}
    return others


def _refuse_others(
    table: PairTable, asked: dict[str, Path | Picture], copy: Copy, folder: Path,
    held: Sequence[str], others: set[str], dataset: str | None,
) -> None:  # fmt: skip
    """Raise PreparedError with the numbers unless a copy holds all that is asked for."""
    lacking = [name for name in asked if name not in held and name not in copy.broken]
    changed = [name for name in asked if name in others]
    good = sum(name in held and name not in others for name in asked)
    if good and not lacking and not changed:
        return
    counts = {
        "never prepared": lacking, "made from other files than lie there now": changed,
        "broken when it was made": [name for name in asked if name in copy.broken],
    }  # fmt: skip
    said = [f"{len(names)} {what}, e.g. {names[0]}" for what, names in counts.items() if names]
    holds = f"{good} of these" if good else "no picture of these"
    command = prepare_command(dataset or copy.options.get("dataset", "DATASET"), table.root)
    raise PreparedError(
        f"{folder} holds {holds} {len(asked)} pictures below {table.root} ({'; '.join(said)}); it "
        f"was made from {copy.root or 'a folder that it does not name'}; {command} that does"
    )


def read_copy(folder: Path) -> Copy:
    """A prepared copy's manifest. Raises PreparedError where there is none or it was changed."""
    try:
        copy = read_json(folder / MANIFEST, PreparedError, Copy)
    except FileNotFoundError:
        problem = f"{folder} has no {MANIFEST}; run prepare (again, if it was stopped)"
        raise PreparedError(problem) from None
    if copy.fingerprint != fingerprint_of(copy.options, copy.shards):
        raise PreparedError(f"{folder / MANIFEST} was changed or damaged; prepare again")
    return copy


def _checked(folder: Path, shard: Shard) -> Path:
    path = folder / shard.name
    if Path(shard.name).name != shard.name or path.is_symlink():
        raise PreparedError(f"{folder / MANIFEST}: {shard.name!r} leads out of the folder")
    if not path.is_file() or path.stat().st_size != shard.bytes:
        raise PreparedError(f"{path} is missing or not {shard.bytes} bytes; prepare again")
    return path


def _read_index(shard: Path, known: Shard) -> Index:
    """A shard's index, checked; where it has no checksums of pictures, the shard's is compared."""
    path = shard.with_suffix(".json")
    index, text = parse_index(path, Index if known.index else _OldIndex)
    if known.index not in (None, sha256_of_text(text)):
        raise PreparedError(f"{path} was changed or damaged; prepare again")
    if not known.index and _sha256_once(shard, shard.stat().st_mtime_ns) != known.sha256:
        raise PreparedError(f"{shard} was changed or damaged; prepare again")
    return index


def parse_index(path: Path, kind: type[Index] = Index) -> tuple[Index, str]:
    """A shard's index and its text. Raises PreparedError."""
    try:
        text = read_text(path, PreparedError)
    except FileNotFoundError:
        raise PreparedError(f"{path} is missing; prepare again") from None
    value = parse_json(text, PreparedError, str(path))
    return checked(kind, value, PreparedError, str(path)), text


@cache
def _sha256_once(path: Path, _changed: int) -> str:
    return sha256_of(path)


def sha256_of_text(text: str) -> str:
    """In hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of(options: dict[str, Any], shards: Sequence[Shard]) -> str:
    """Sixteen hex digits that differ whenever an option or a byte of a shard does."""
    digests = [shard.sha256 for shard in shards]
    return sha256_of_text(json.dumps([options, digests], sort_keys=True))[:16]
