"""What to embed: pictures of a folder, of a table of paths, of pairs, or handed over in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from entityclip.datasets.csv_rows import csv_rows
from entityclip.datasets.decode import ImageError, decode
from entityclip.datasets.pair import Pair
from entityclip.datasets.record import Picture

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"))
MAX_BYTES = 1 << 29  # of a file; a picture that Pillow would decode is smaller
Source = Path | Picture | Image.Image
Images = str | Path | Mapping[str, Any] | Sequence[Any]


@dataclass
class Listing:
    """Pictures by id, and the files beside them that are none."""

    pictures: dict[str, Source] = field(default_factory=dict)
    not_pictures: list[str] = field(default_factory=list)


def list_pictures(images: Images) -> Listing:
    """The pictures of a folder, a CSV or Parquet file of paths, pairs, a mapping or a sequence.

    Ids are paths below the folder, a table's column `id` (else its paths), the pairs' ids, a
    mapping's keys, or a sequence's paths (its pictures' numbers). Whether a file can be read shows
    later. Raises FileNotFoundError, and ValueError for a table without column `image`, for repeated
    ids and for what is none of these.
    """
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder or a table of paths")
        return Listing(_unique(_of_table(path), str(path)))
    if isinstance(images, Mapping):
        return Listing({str(name): _source(value) for name, value in images.items()})
    return Listing(_unique(_of_sequence(images), "the pictures"))


def key_of(picture: Source) -> tuple[str, bytes | None]:
    """A key that only the same picture has, and a file's bytes.

    Raises ImageError for a file that cannot be read.
    """
    if isinstance(picture, Path):
        data = _read(picture)
        return _digest(b"file", data), data
    if isinstance(picture, Image.Image):
        about = f"{picture.mode} {picture.size}".encode()
        return _digest(about, picture.tobytes()), None
    return _digest(b"made", picture.key.encode()), None


def load(picture: Source, data: bytes | None) -> Image.Image:
    """The picture in upright 8-bit RGB; `data` is its file's content. Raises ImageError."""
    if data is not None:
        return decode(data)
    return picture.convert("RGB") if isinstance(picture, Image.Image) else picture.load()


def signature(picture: Source) -> str | None:
    """Path, size and time of a file, by which an unchanged one is known without reading it."""
    if not isinstance(picture, Path):
        return None
    try:
        status = picture.stat()
    except OSError:
        return None
    return readable(f"{picture.resolve()}|{status.st_size}|{status.st_mtime_ns}")


def readable(name: str) -> str:
    r"""A file name as text: bytes of it that are not UTF-8 are written as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _of_folder(folder: Path) -> Listing:
    listing, home = Listing(), folder.resolve()
    for path in sorted(_walk(folder)):
        name = readable(path.relative_to(folder).as_posix())
        if path.suffix.lower() in ENDINGS and _inside(home, path):
            listing.pictures[name] = path
        else:
            listing.not_pictures.append(name)
    return listing


def _inside(home: Path, path: Path) -> bool:
    """Whether links lead nowhere else: beyond the folder may lie anything of this machine."""
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _of_table(path: Path) -> Iterator[tuple[str, Source]]:
    """Rows of columns `image` and, if there is one, `id`; paths count from the table's folder."""
    if path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix.lower() == ".csv":
        rows = ((row.values["image"], row.values.get("id"))
                for row in csv_rows(path, ("image",), optional=("id",), first=2))  # fmt: skip
    else:
        raise ValueError(f"{path} is no folder, and no table: give .csv or .parquet")
    for image, name in rows:
        yield str(image if name is None else name), path.parent / str(image)


def _parquet_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(f"{path}: pip install pyarrow to read Parquet, or give CSV") from error
    try:
        names = pq.read_schema(path).names
        if "image" not in names:
            raise ValueError(f"{path} has no column 'image'; it has {', '.join(names)}")
        table = pq.read_table(path, columns=[name for name in ("image", "id") if name in names])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not readable Parquet ({error})") from error
    images = table["image"].to_pylist()
    return zip(images, table["id"].to_pylist() if "id" in names else images, strict=True)


def _of_sequence(images: Sequence[Any]) -> Iterator[tuple[str, Source]]:
    for number, value in enumerate(images):
        if isinstance(value, Pair):
            yield value.id, value.image
        else:
            source = _source(value)
            yield (str(value) if isinstance(source, Path) else str(number)), source


def _source(value: Any) -> Source:
    if isinstance(value, (str, os.PathLike)):
        return Path(value).expanduser()
    if isinstance(value, (Image.Image, Picture)):
        return value
    raise ValueError(f"{value!r:.80} is no picture: give a path, a PIL picture or a pair")


def _unique(items: Iterator[tuple[str, Source]], what: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for name, source in items:
        if name in found:
            raise ValueError(f"{what}: id {name!r} stands twice; give each picture its own id")
        found[name] = source
    return found


def _read(path: Path) -> bytes:
    try:
        # also keeps named pipes and devices, which would block, from being opened
        if not path.is_file():
            raise ImageError("no such file" if not path.exists() else "not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path.stat().st_size} bytes are more than {MAX_BYTES}")
        return path.read_bytes()
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{type(error).__name__}: {error.strerror}") from error


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(np.uint64(len(part)).tobytes() + part)
    return digest.hexdigest()
