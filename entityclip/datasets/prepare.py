"""A prepared copy of a data set's pictures, smaller and in tars: written once, then read from."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from entityclip.datasets.pair import ImageError, Pair, decode
from entityclip.datasets.table import PairTable
from entityclip.files import atomic_write_bytes, atomic_write_text

MANIFEST = "prepared.json"
FORMAT_VERSION = 1
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
            with self.shard.open("rb", buffering=0) as file:
                return decode(os.pread(file.fileno(), self.size, self.offset))
        except OSError as error:
            raise ImageError(f"cannot read {self.key} in {self.shard}: {error}") from error


@dataclass(frozen=True, eq=False)
class PreparedTable(PairTable):
    """Pairs of a table with their pictures taken from a prepared copy.

    `places` [n, 3] int64 says where those of all the columns' rows lie: shard, offset, size.
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
        shard, offset, size = self.places[row].tolist()
        # the original's name stays in the key, the copy's fingerprint tells it from the original
        key = f"prepared-{self.fingerprint}/{self.columns['image'][row]}"
        return replace(pair, image=TarPicture(self.shards[shard], offset, size, key))


def use_prepared(table: PairTable, folder: Path) -> PreparedTable:
    """The pairs of `table` with their pictures taken from a prepared copy.

    Pairs whose picture the copy lacks (broken ones) are left out, and how many is logged. Raises
    PreparedError for a copy that is unfinished, changed or of other data.
    """
    manifest = read_manifest(folder)
    place_of: dict[str, tuple[int, int, int]] = {}
    shards = []
    for number, shard in enumerate(manifest["shards"]):
        path = folder / shard["name"]
        if Path(shard["name"]).name != shard["name"] or path.is_symlink():
            raise PreparedError(f"{folder / MANIFEST}: {shard['name']!r} leads out of the folder")
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise PreparedError(f"{path} is missing or not {shard['bytes']} bytes; prepare again")
        shards.append(path)
        for name, offset, size in read_json(path.with_suffix(".json"))["pictures"]:
            place_of[name] = (number, offset, size)
    none = (-1, 0, 0)
    places = np.array([place_of.get(name, none) for name in table.columns["image"]], np.int64)
    kept = table.rows[places[table.rows, 0] >= 0]
    if not len(kept):
        raise PreparedError(f"{folder} holds no picture of these {len(table)} pairs; other data?")
    if len(kept) < len(table):
        left_out = len(table) - len(kept)
        _log.warning("%s: %d pairs without a prepared picture left out", folder, left_out)
    return PreparedTable(table.root, table.columns, kept, shards, places, manifest["fingerprint"])


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
    """Write every distinct picture of the tables below `out`; the manifest (see `prepared`).

    A stopped call goes on at its first missing shard; finished shards are kept if their pictures'
    names, sizes and the options are unchanged. The same originals and options give the same bytes.

    Raises PreparedError for a folder made with other options, for no pictures, and (after the
    shards, before the manifest is written) where more than the share `max_broken` is broken.
    """
    options = options or PrepareOptions()
    described = {"format": FORMAT_VERSION, "dataset": dataset, **asdict(options)}
    pictures = {name: table.root / name for table in tables for name in table.image_names}
    if not pictures:
        raise PreparedError(f"{dataset} has no picture to prepare")
    settings = out / "options.json"
    if settings.exists() and (before := read_json(settings)) != described:
        raise PreparedError(f"{out} was prepared with {before}; choose another folder")
    atomic_write_text(settings, json.dumps(described, indent=1) + "\n")
    names, shards, broken = sorted(pictures), [], {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        starts = range(0, len(names), options.shard_pictures)
        for number, start in enumerate(tqdm(starts, "shards", disable=not progress)):
            chosen = {name: pictures[name] for name in names[start : start + starts.step]}
            index = _shard(out / f"{dataset}-{number:06d}.tar", chosen, start, described, pool)
            shards.append({key: index[key] for key in ("name", "bytes", "sha256")})
            broken.update(index["broken"])
    if len(broken) > max_broken * len(names):
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(broken.items())[:5])
        raise PreparedError(
            f"{len(broken)} of {len(names)} pictures are broken, more than the share "
            f"{max_broken:g}: {shown}; fetch them again, or raise max_broken"
        )
    manifest = {
        "options": described, "pictures": len(names) - len(broken), "shards": shards,
        "broken": broken, "fingerprint": fingerprint(described, shards),
    }  # fmt: skip
    atomic_write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _shard(
    path: Path, pictures: dict[str, Path], start: int, options: dict[str, Any],
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:  # fmt: skip
    """Write one shard and its index, unless they stand there already; the index."""
    files = pictures.values()
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    plan = hashlib.sha256(json.dumps([options, list(pictures), sizes]).encode()).hexdigest()
    side_file = path.with_suffix(".json")
    if side_file.exists() and path.exists():
        index = read_json(side_file)
        if index.get("plan") == plan and index.get("bytes") == path.stat().st_size:
            return index
    buffer, places, broken = io.BytesIO(), [], []
    ending = "png" if options["lossless"] else "jpg"
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        encoded = pool.map(lambda file: _encode(file, options), files)
        for number, (name, result) in enumerate(zip(pictures, encoded, strict=True), start):
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
        "name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "plan": plan, "pictures": places, "broken": broken,
    }  # fmt: skip
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


def _encode(path: Path, options: dict[str, Any]) -> tuple[bytes, tuple[int, int]] | str:
    """A picture's stored bytes and its upright original's (width, height), or what is wrong."""
    try:
        picture = decode(path)
    except ImageError as error:
        return str(error)
    size = picture.size
    if min(size) > options["side"]:
        # torchvision's resize to a shorter side, without the seconds that importing it takes
        shape = tuple(options["side"] * edge // min(size) for edge in size)
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    plain = Image.new("RGB", picture.size)
    plain.paste(picture)  # the pixels alone: no EXIF, profile or comment comes along
    # the quality is JPEG's alone
    plain.save(buffer, "PNG" if options["lossless"] else "JPEG", quality=options["quality"])
    return buffer.getvalue(), size
