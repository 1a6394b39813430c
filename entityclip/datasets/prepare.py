"""A prepared copy of a data set's pictures, smaller and in tars: written once, then read from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from tqdm import tqdm

from entityclip.datasets.pair import ImageError, Pair, decode, decoding
from entityclip.datasets.reading import sha256_of
from entityclip.datasets.table import PairTable
from entityclip.files import (
    atomic_write_bytes,
    atomic_write_text,
    checked,
    parse_json,
    printable,
    read_at,
    read_json,
    read_text,
)

MANIFEST = "prepared.json"
FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


class PreparedError(ValueError):
    """A prepared copy is incomplete, damaged or made with other options; the message says which."""


class _Shard(BaseModel):
    """A tar, as ``prepared.json`` has it; copies of before have no `index`, the sha256 of its."""

    name: str
    bytes: int
    sha256: str
    index: str | None = None


class _Copy(BaseModel):
    """``prepared.json``."""

    options: dict[str, Any]
    shards: list[_Shard]
    broken: dict[str, str]
    fingerprint: str


_Count = Annotated[int, Field(ge=0, lt=2**62)]


class _Index(BaseModel):
    """A shard's index: of each picture its name, offset, size and CRC-32."""

    name: str
    bytes: _Count
    sha256: str
    plan: str  # what it was made from and how
    pictures: list[tuple[str, _Count, _Count, _Count]]
    broken: list[tuple[str, str]]


class _OldIndex(_Index):
    pictures: list[tuple[str, _Count, _Count]]


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
            return decode(self._content())
        except OSError as error:
            raise ImageError(f"cannot read {self.key} in {self.shard}: {error}") from error

    def _content(self) -> bytes:
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


def use_prepared(table: PairTable, folder: Path) -> PreparedTable:
    """The pairs of `table` with their pictures taken from a prepared copy.

    Pairs whose picture the copy lacks (broken ones) are left out, and how many is logged. Raises
    PreparedError for a copy that is unfinished, changed or of other data.
    """
    copy = _read_copy(folder)
    place_of: dict[str, tuple[int, int, int, int]] = {}
    shards = []
    for number, shard in enumerate(copy.shards):
        path = folder / shard.name
        if Path(shard.name).name != shard.name or path.is_symlink():
            raise PreparedError(f"{folder / MANIFEST}: {shard.name!r} leads out of the folder")
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise PreparedError(f"{path} is missing or not {shard.bytes} bytes; prepare again")
        shards.append(path)
        for name, offset, size, *checksum in _read_index(path, shard).pictures:
            place_of[name] = (number, offset, size, *(checksum or [-1]))
    names, none = table.columns["image"], (-1, 0, 0, -1)
    places = np.array([place_of.get(name, none) for name in names], np.int64)
    there = places[table.rows, 0] >= 0
    kept, lacking = table.rows[there], table.rows[~there]
    if not len(kept):
        raise PreparedError(f"{folder} holds no picture of these {len(table)} pairs; other data?")
    if len(lacking):
        first = [names[row] for row in lacking[:3].tolist()]
        shown = "; ".join(f"{name}: {copy.broken.get(name, 'never prepared')}" for name in first)
        what = "pairs without a prepared picture left out"
        _log.warning("%s: %d %s (%s)", folder, len(lacking), what, printable(shown))
    return PreparedTable(table.root, table.columns, kept, shards, places, copy.fingerprint)


def _read_copy(folder: Path) -> _Copy:
    """A prepared copy's manifest. Raises PreparedError where there is none or it was changed."""
    try:
        copy = read_json(folder / MANIFEST, PreparedError, _Copy)
    except FileNotFoundError:
        problem = f"{folder} has no {MANIFEST}; run prepare (again, if it was stopped)"
        raise PreparedError(problem) from None
    if copy.fingerprint != _fingerprint(copy.options, copy.shards):
        raise PreparedError(f"{folder / MANIFEST} was changed or damaged; prepare again")
    return copy


def _read_index(shard: Path, known: _Shard) -> _Index:
    """A shard's index, checked; where it has no checksums of pictures, the shard's is compared."""
    path = shard.with_suffix(".json")
    index, text = _parse_index(path, _Index if known.index else _OldIndex)
    if known.index not in (None, _sha256(text)):
        raise PreparedError(f"{path} was changed or damaged; prepare again")
    if not known.index and _sha256_once(shard, shard.stat().st_mtime_ns) != known.sha256:
        raise PreparedError(f"{shard} was changed or damaged; prepare again")
    return index


def _parse_index(path: Path, kind: type[_Index]) -> tuple[_Index, str]:
    try:
        text = read_text(path, PreparedError)
    except FileNotFoundError:
        raise PreparedError(f"{path} is missing; prepare again") from None
    value = parse_json(text, PreparedError, str(path))
    return checked(kind, value, PreparedError, str(path)), text


@cache
def _sha256_once(path: Path, _changed: int) -> str:
    return sha256_of(path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprint(options: dict[str, Any], shards: Sequence[_Shard]) -> str:
    """Sixteen hex digits that differ whenever an option or a byte of a shard does."""
    return _sha256(json.dumps([options, [shard.sha256 for shard in shards]], sort_keys=True))[:16]


@dataclass(frozen=True)
class PrepareOptions:
    """How pictures are stored.

    JPEG changes pixels a little. With `lossless` (PNG) and `side` equal to the model's input size,
    open_clip's evaluation pixels from the copy are exactly those from the originals, since both are
    resized to that side by the same bicubic filter.
    """

    side: int = 256  # pixels of the shorter side; smaller pictures keep their size
    quality: int = 90  # of the JPEGs
    lossless: bool = False  # PNG instead of JPEG
    shard_pictures: int = 1000

    def __post_init__(self) -> None:
        ranges = {"side": (16, 4096), "quality": (1, 100), "shard_pictures": (1, 100_000)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be from {low} to {high}")


def prepare(
    dataset: str,
    tables: Sequence[PairTable],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    workers: int = 4,
    max_broken: float = 0.01,
    progress: bool = True,
) -> dict[str, Any]:
    """Write every distinct picture of the tables below `out`; what ``prepared.json`` then holds.

    A stopped call goes on at its first missing shard; finished shards are kept if their bytes,
    their pictures' names and sizes, and the options are unchanged. The same originals and options
    give the same bytes.

    Raises PreparedError for a folder made with other options or by something else, for no pictures,
    and (after the shards, before the manifest is written) where more than the share `max_broken` is
    broken.
    """
    options = options or PrepareOptions()
    described = {"format": FORMAT_VERSION, "dataset": dataset, **asdict(options)}
    pictures = {name: table.root / name for table in tables for name in table.image_names}
    if not pictures:
        raise PreparedError(f"{dataset} has no picture to prepare")
    settings = out / "options.json"
    if settings.exists() and (before := read_json(settings, PreparedError)) != described:
        raise PreparedError(f"{out} was prepared with {before}; choose another folder")
    if not settings.exists() and any(out.glob(f"{dataset}-*.tar")):
        raise PreparedError(f"{out} holds tars that prepare did not write; choose another folder")
    atomic_write_text(settings, json.dumps(described, indent=1) + "\n")
    names, shards, broken = sorted(pictures), [], {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        starts = range(0, len(names), options.shard_pictures)
        for number, start in enumerate(tqdm(starts, "shards", disable=not progress)):
            chosen = {name: pictures[name] for name in names[start : start + starts.step]}
            shard, lost = _shard(
                out / f"{dataset}-{number:06d}.tar", chosen, start, described, pool
            )
            shards.append(shard)
            broken.update(lost)
    if len(broken) > max_broken * len(names):
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(broken.items())[:5])
        raise PreparedError(
            f"{len(broken)} of {len(names)} pictures are broken, more than the share "
            f"{max_broken:g}: {shown}; mend them, or raise max_broken"
        )
    manifest = {
        "options": described, "pictures": len(names) - len(broken),
        "shards": [shard.model_dump() for shard in shards],
        "broken": broken, "fingerprint": _fingerprint(described, shards),
    }  # fmt: skip
    atomic_write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _shard(
    path: Path, pictures: dict[str, Path], start: int, options: dict[str, Any],
    pool: ThreadPoolExecutor,
) -> tuple[_Shard, dict[str, str]]:  # fmt: skip
    """Write one shard and its index, unless they stand there already; the broken of its pictures.

    An index that cannot be used is ours to write anew, as is a shard whose bytes have changed.
    """
    files, side_file = pictures.values(), path.with_suffix(".json")
    sizes = [_size(file) for file in files]
    plan = _sha256(json.dumps([options, list(pictures), sizes]))
    with contextlib.suppress(FileNotFoundError, PreparedError):
        index, text = _parse_index(side_file, _Index)
        if index.plan == plan and _describes(index, pictures, path.read_bytes()):
            return _described(index, text)
    buffer, places, broken = io.BytesIO(), [], []
    ending = "png" if options["lossless"] else "jpg"
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        encoded = pool.map(lambda file: _encode(file, options), files)
        for number, (name, result) in enumerate(zip(pictures, encoded, strict=True), start):
            if isinstance(result, str):
                broken.append((name, result))
                continue
            data, size = result
            about = json.dumps({"picture": name, "width": size[0], "height": size[1]}).encode()
            offset = _member(tar, f"{number:09d}.{ending}", data)
            _member(tar, f"{number:09d}.json", about)
            places.append((name, offset, len(data), zlib.crc32(data)))
    content = buffer.getvalue()
    index = _Index(
        name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
        plan=plan, pictures=places, broken=broken,
    )  # fmt: skip
    if grown := [name for name, file, size in zip(pictures, files, sizes, strict=True)
                 if _size(file) != size]:  # fmt: skip
        what = "changed while they were prepared; prepare again"
        _log.warning("%s: %d pictures (%s, …) %s", path, len(grown), printable(grown[0]), what)
    text = json.dumps(index.model_dump()) + "\n"
    atomic_write_bytes(path, content)  # the index last: where it stands, its shard is whole
    atomic_write_text(side_file, text)
    return _described(index, text)


def _describes(index: _Index, names: Iterable[str], shard: bytes) -> bool:
    """Whether an index is that of these pictures and bytes."""
    lost = {name for name, _ in index.broken}
    return (
        index.sha256 == hashlib.sha256(shard).hexdigest()
        and [name for name, *_ in index.pictures] == [name for name in names if name not in lost]
        and all(zlib.crc32(shard[at : at + size]) == sum_ for _, at, size, sum_ in index.pictures)
    )


def _described(index: _Index, text: str) -> tuple[_Shard, dict[str, str]]:
    shard = _Shard(name=index.name, bytes=index.bytes, sha256=index.sha256, index=_sha256(text))
    return shard, dict(index.broken)


def _size(file: Path) -> int:
    """A file's bytes; -1: there is none, -2: it may not be read, which may change."""
    if not file.is_file():
        return -1
    return file.stat().st_size if os.access(file, os.R_OK) else -2


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file without dates or owners; the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # one header block, the names are short
    tar.addfile(info, io.BytesIO(data))
    return offset


def _encode(path: Path, options: dict[str, Any]) -> tuple[bytes, tuple[int, int]] | str:
    """A picture's stored bytes and its upright original's (width, height), or what is wrong."""
    try:
        with decoding():
            picture = decode(path)
            size = picture.size
            if min(size) > options["side"]:
                # torchvision's resize to a shorter side, without the seconds its import takes
                shape = tuple(options["side"] * edge // min(size) for edge in size)
                picture = picture.resize(shape, Image.Resampling.BICUBIC)
    except ImageError as error:
        return str(error)
    buffer = io.BytesIO()
    plain = Image.new("RGB", picture.size)
    plain.paste(picture)  # the pixels alone: no EXIF, profile or comment comes along
    # the quality is JPEG's alone
    plain.save(buffer, "PNG" if options["lossless"] else "JPEG", quality=options["quality"])
    return buffer.getvalue(), size
