"""Write a prepared copy of a data set's pictures (see `prepared`): resumable, shard by shard."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from entityclip.datasets.pair import ImageError, Pair, decode
from entityclip.datasets.table import PairTable
from entityclip.files import atomic_write_bytes, atomic_write_text

MANIFEST = "prepared.json"


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


FORMAT_VERSION = 1


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareOptions:
    """How pictures are stored.

    JPEG changes pixels a little. With `lossless` (PNG) and `side` equal to the model's input size,
    open_clip's evaluation pixels from the copy are exactly those from the originals, since both are
    resized to that side by the same bicubic filter.
    """

    side: int = 256  # pixels; shorter side, smaller pictures keep their size
    quality: int = 90  # of the JPEGs
    lossless: bool = False  # PNG instead of JPEG
    shard_pictures: int = 1000

    def __post_init__(self) -> None:
        if not 16 <= self.side <= 4096:
            raise ValueError(f"side is {self.side}; it must be from 16 to 4096 pixels")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be from 1 to 100")
        if not 1 <= self.shard_pictures <= 100_000:
            raise ValueError(f"shard_pictures is {self.shard_pictures}; it must be 1 to 100000")


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
    """Write every distinct picture of the tables below `out`; the manifest (see `prepared`).

    A stopped call goes on at its first missing shard; finished shards are kept if their pictures'
    names, sizes and the options are unchanged. The same originals and options give the same bytes.

    Raises PreparedError for a folder made with other options, for no pictures, and (after the
    shards, before the manifest is written) where more than the share `max_broken` is broken.
    """
    options = options or PrepareOptions()
    described = {"format": FORMAT_VERSION, "dataset": dataset, **asdict(options)}
    pictures = {}
    for table in tables:
        for row in range(len(table)):
            pictures[table.image_name(row)] = table.root
    names = sorted(pictures)
    if not names:
        raise PreparedError(f"{dataset} has no picture to prepare")
    _check_options(out, described)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "options.json", json.dumps(described, indent=1) + "\n")
    shards, broken = [], {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        starts = range(0, len(names), options.shard_pictures)
        for number, start in enumerate(tqdm(starts, "shards", disable=not progress)):
            chosen = names[start : start + options.shard_pictures]
            paths = [pictures[name] / name for name in chosen]
            index = _shard(out / f"{dataset}-{number:06d}.tar", chosen, paths, start, described,
                           options, pool)  # fmt: skip
            shards.append({key: index[key] for key in ("name", "bytes", "sha256")})
            broken.update(index["broken"])
    if len(broken) > max_broken * len(names):
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(broken.items())[:5])
        raise PreparedError(
            f"{len(broken)} of {len(names)} pictures are broken, more than the share "
            f"{max_broken:g}: {shown}; fetch them again, or raise max_broken"
        )
    manifest = {
        "options": described,
        "pictures": len(names) - len(broken),
        "shards": shards,
        "broken": broken,
        "fingerprint": fingerprint(described, shards),
    }
    atomic_write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _check_options(out: Path, described: dict[str, Any]) -> None:
    path = out / "options.json"
    if path.exists() and read_json(path) != described:
        raise PreparedError(f"{out} was prepared with {read_json(path)}; choose another folder")


def _shard(
    path: Path,
    names: list[str],
    paths: list[Path],
    start: int,
    described: dict[str, Any],
    options: PrepareOptions,
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:
    """Write one shard and its index, unless they stand there already; the index."""
    sizes = [file.stat().st_size if file.is_file() else -1 for file in paths]
    plan = hashlib.sha256(json.dumps([described, names, sizes]).encode()).hexdigest()
    side_file = path.with_suffix(".json")
    if side_file.exists() and path.exists():
        index = read_json(side_file)
        if index.get("plan") == plan and index.get("bytes") == path.stat().st_size:
            return index
    buffer, places, broken = io.BytesIO(), [], []
    ending = "png" if options.lossless else "jpg"
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        encoded = pool.map(lambda file: _encode(file, options), paths)
        for number, (name, result) in enumerate(zip(names, encoded, strict=True), start=start):
            if isinstance(result, str):
                broken.append([name, result])
                continue
            data, size = result
            about = json.dumps({"picture": name, "width": size[0], "height": size[1]}).encode()
            offset = _member(tar, f"{number:09d}.{ending}", data)
            _member(tar, f"{number:09d}.json", about)
            places.append([name, offset, len(data)])
    content = buffer.getvalue()
    index = {
        "name": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "plan": plan,
        "pictures": places,
        "broken": broken,
    }
    atomic_write_bytes(path, content)  # the index last: where it stands, its shard is whole
    atomic_write_text(side_file, json.dumps(index) + "\n")
    return index


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file without dates or owners; the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # one header block, the names are short
    tar.addfile(info, io.BytesIO(data))
    return offset


def _encode(path: Path, options: PrepareOptions) -> tuple[bytes, tuple[int, int]] | str:
    """A picture's stored bytes and its upright original's (width, height), or what is wrong."""
    try:
        picture = decode(path)
    except ImageError as error:
        return str(error)
    size = picture.size
    if min(size) > options.side:
        # torchvision's resize to a shorter side, without the seconds that importing it takes
        shape = tuple(options.side * edge // min(size) for edge in size)
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    plain = Image.new("RGB", picture.size)
    plain.paste(picture)  # the pixels alone: no EXIF, profile or comment comes along
    if options.lossless:
        plain.save(buffer, "PNG")
    else:
        plain.save(buffer, "JPEG", quality=options.quality)
    return buffer.getvalue(), size
