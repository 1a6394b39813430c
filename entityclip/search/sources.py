"""Where pictures and texts come from: folders, tables, pairs, memory; each with an id and a key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from entityclip.datasets.pair import ImageError, Pair, Picture, decode
from entityclip.datasets.reading import csv_rows

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"))
MAX_BYTES = 1 << 29  # of a file; a picture that Pillow would decode is smaller

Source = Path | Picture | Image.Image
Images = str | Path | Mapping[str, Any] | Sequence[Any]
Texts = Mapping[str, str] | Sequence[str] | Sequence[Pair]


def list_pictures(images: Images) -> tuple[dict[str, Source], list[str]]:
    """Pictures by id, and the files beside them that are none.

    `images` is a folder, a CSV or Parquet file of paths, pairs, a mapping or a sequence. Ids are
    paths below the folder, a table's column `id` (else its paths), the pairs' ids, a mapping's
    keys, or a sequence's paths (its pictures' numbers). Whether a file can be read shows later.
    Raises FileNotFoundError, and ValueError for a table without column `image`, for repeated ids
    and for what is none of these.
    """
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder or a table of paths")
        return _unique(_of_table(path), str(path)), []
    if isinstance(images, Mapping):
        return {str(name): _source(value) for name, value in images.items()}, []
    return _unique(_of_sequence(images), "the pictures"), []


def list_texts(texts: Texts) -> dict[str, str]:
    """Texts by id: a mapping's keys, the ids of pairs (of their captions), or numbers.

    Raises ValueError for a single string and for repeated ids.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of texts")
    if isinstance(texts, Mapping):
        return {str(name): text for name, text in texts.items()}
    named = (
        (text.id, text.caption) if isinstance(text, Pair) else (str(number), text)
        for number, text in enumerate(texts)
    )
    return _unique(named, "the texts")


def read_picture(source: Source) -> tuple[str, Callable[[], Image.Image]]:
    """A key that only the same picture has, and what gives it in upright 8-bit RGB.

    Raises ImageError for a file that cannot be read, the second only for one that is no picture.
    """
    if isinstance(source, Path):
        content = _content(source)
        return _digest(b"file", content), lambda: decode(content)
    if isinstance(source, Image.Image):
        about = f"{source.mode} {source.size}".encode()
        return _digest(about, source.tobytes()), lambda: source.convert("RGB")
    return _digest(b"made", source.key.encode()), source.load


def text_key(text: str) -> str:
    """A key that only the same text has."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def signature(source: Source) -> str | None:
    """Path, size and time of a file, by which an unchanged one is known without reading it."""
    if not isinstance(source, Path):
        return None
    try:
        status = source.stat()
    except OSError:
        return None
    return _as_text(f"{source.resolve()}|{status.st_size}|{status.st_mtime_ns}")


def arrow(path: Path) -> Any:
    """The package pyarrow, with its `parquet`. Raises ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: pip install pyarrow for Parquet, or use another file") from error
    return pyarrow


def _of_folder(folder: Path) -> tuple[dict[str, Source], list[str]]:
    pictures, others, home = {}, [], folder.resolve()
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    for path in sorted(files):
        name = _as_text(path.relative_to(folder).as_posix())
        if path.suffix.lower() in ENDINGS and _inside(home, path):
            pictures[name] = path
        else:
            others.append(name)
    return pictures, others


def _as_text(name: str) -> str:
    r"""A file name as text: bytes of it that are not UTF-8 are written as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _inside(home: Path, path: Path) -> bool:
    """Whether links lead nowhere else: beyond the folder may lie anything of this machine."""
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _of_table(path: Path) -> Iterator[tuple[str, Source]]:
    """Rows of columns `image` and, if there is one, `id`; paths count from the table's folder."""
    if path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix.lower() == ".csv":
        rows = (row.values for row in csv_rows(path, ("image",), optional=("id",), first=2))
    else:
        raise ValueError(f"{path} is no folder, and no table: give .csv or .parquet")
    for row in rows:
        image, name = row["image"], row.get("id")
        yield str(image if name is None else name), path.parent / str(image)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with arrow(path).parquet.ParquetFile(path) as file:
            if "image" not in file.schema_arrow.names:
                raise ValueError(f"no column 'image'; it has {', '.join(file.schema_arrow.names)}")
            return file.read(columns=["image", "id"]).to_pylist()  # passes over a column not there
    except ValueError as error:  # pyarrow's errors are such, too
        raise ValueError(f"{path} is not readable Parquet: {error}") from error


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


def _unique(items: Iterator[tuple[str, Any]], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in items:
        if name in found:
            raise ValueError(f"{what}: id {name!r} stands twice; give each its own id")
        found[name] = item
    return found


def _content(path: Path) -> bytes:
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
