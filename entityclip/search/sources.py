"""Where pictures and texts come from: folders, tables, pairs, memory; each with an id and a key."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from entityclip.datasets.pair import ImageError, Pair, Picture, decode
from entityclip.datasets.reading import csv_rows
from entityclip.files import read_text

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"))
MAX_BYTES = 1 << 29  # of a file; a picture that Pillow would decode is smaller

Source = Path | bytes | Picture | Image.Image
Images = str | Path | Mapping[str, Any] | Sequence[Any]
Texts = Mapping[str, str] | Sequence[str] | Sequence[Pair]


class LeftOut(dict[str, list[str]]):
    """What was found and left out: why → the names, in the order they were met."""

    def add(self, why: str, name: str) -> None:
        """Count one."""
        self.setdefault(why, []).append(name)


NO_PICTURE, LINK = "no pictures", "links, which are not followed"
FOLDER = "folders that may not be read"


def list_pictures(images: Images) -> tuple[dict[str, Source], LeftOut]:
    """Pictures by id, and what lies beside them and is none.

    `images` is a folder, a CSV or Parquet file of paths (or, in Parquet, of files' bytes), pairs, a
    mapping or a sequence. Ids are paths below the folder, a table's column `id` (else its paths or
    row numbers), the pairs' ids, a mapping's keys, or a sequence's paths (its pictures' numbers).
    Whether a file can be read shows later. Raises FileNotFoundError, and ValueError for a table
    without column `image`, a row without a picture, repeated ids and what is none of these.
    """
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder or a table of paths")
        return _unique(_of_table(path), str(path)), LeftOut()
    if isinstance(images, Mapping):
        return {str(name): _source(value) for name, value in images.items()}, LeftOut()
    return _unique(_of_sequence(images), "the pictures"), LeftOut()


def list_texts(texts: Texts) -> dict[str, str]:
    """Texts by id: a mapping's keys, the ids of pairs (of their captions), or numbers.

    Raises ValueError for a single string, a whole table, what is no text, and repeated ids.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of texts")
    if hasattr(texts, "columns"):
        raise ValueError("texts is a table; give one of its columns")
    items = texts.items() if isinstance(texts, Mapping) else enumerate(texts)
    named = (
        (text.id, text.caption) if isinstance(text, Pair) else (str(name), text)
        for name, text in items
    )
    found = _unique(named, "the texts")
    for name, text in found.items():
        if not isinstance(text, str):
            raise ValueError(f"text {name}: {text!r:.80} is no text")
    return found


def read_lines(path: Path) -> tuple[list[str], list[int]]:
    """A file's texts, one a line (which newlines alone end), and the numbers of blank lines."""
    lines = read_text(path, ValueError).removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        del lines[-1]
    lines = [line.removesuffix("\r") for line in lines]
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    return [line for line in lines if line.strip()], blank


def read_picture(source: Source) -> tuple[str, Callable[[], Image.Image]]:
    """A key that only the same picture has, and what gives it in upright 8-bit RGB.

    Raises ImageError for a file that cannot be read, the second only for one that is no picture.
    """
    if isinstance(source, (Path, bytes)):
        content = _content(source) if isinstance(source, Path) else source
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


def _of_folder(folder: Path) -> tuple[dict[str, Source], LeftOut]:
    pictures, left_out, home = {}, LeftOut(), folder.resolve()

    def name_of(path: str | Path) -> str:
        return _as_text(Path(path).relative_to(folder).as_posix())

    def unreadable(error: OSError) -> None:
        left_out.add(FOLDER, f"{name_of(error.filename)} ({error.strerror})")

    files = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        files += [Path(parent, name) for name in names]
        files += [path for name in folders if (path := Path(parent, name)).is_symlink()]
    for path in sorted(files):
        if path.is_symlink() and (path.is_dir() or not _inside(home, path)):
            left_out.add(LINK, name_of(path))
        elif path.suffix.lower() in ENDINGS:
            pictures[name_of(path)] = path
        else:
            left_out.add(NO_PICTURE, name_of(path))
    return pictures, left_out


def _as_text(name: str) -> str:
    r"""A file name as text: bytes of it that are not UTF-8 are written as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _inside(home: Path, path: Path) -> bool:
    """Whether links lead nowhere else: beyond the folder may lie anything of this machine."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.resolve(strict=True)  # else nothing is raised for a loop since Python 3.13
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _of_table(path: Path) -> Iterator[tuple[str, Source]]:
    """Rows of columns `image` and, if there is one, `id`; paths count from the table's folder."""
    if path.suffix.lower() == ".parquet":
        yield from _of_parquet(path)
    elif path.suffix.lower() == ".csv":
        for row in csv_rows(path, ("image",), optional=("id",), first=2):
            image, name = row.values["image"], row.values.get("id")
            yield str(image if name is None else name), path.parent / str(image)
    else:
        raise ValueError(f"{path} is no folder, and no table: give .csv or .parquet")


def _of_parquet(path: Path) -> Iterator[tuple[str, Source]]:
    """Rows whose `image` is a path, a file's bytes, or a data set's struct of both."""
    pa = arrow(path)
    try:
        with pa.parquet.ParquetFile(path) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            if "image" not in kinds:
                raise ValueError(f"no column 'image'; it has {', '.join(kinds)}")
            rows = file.read(columns=["image", "id"]).to_pylist()  # passes over a column not there
    except (ValueError, OSError, KeyError) as error:  # pyarrow's are such, too
        raise ValueError(f"{path} is not readable Parquet: {error}") from error
    kind, types = kinds["image"], pa.types
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
    if not (texts or types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind)):
        raise ValueError(f"{path}: column image holds {kind}; paths or bytes of files are read")
    for number, row in enumerate(rows, start=1):
        image, told = row["image"], None
        if isinstance(image, dict):
            told = image.get("path")
            image = image.get("bytes") or told
        if not isinstance(image, (str, bytes)) or not image:
            raise ValueError(f"{path}, row {number}: image is {'null' if not image else kind}")
        name = row.get("id")
        name = (told or (image if isinstance(image, str) else number)) if name is None else name
        yield str(name), path.parent / image if isinstance(image, str) else image


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
