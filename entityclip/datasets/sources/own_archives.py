"""Rows of archives: Parquet, WebDataset's tars, what Hugging Face's datasets saved or fetch.

Pictures that lie in them are unpacked once, below the runs; the archives stay as they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from entityclip.config import runs_folder
from entityclip.datasets.reading import Row
from entityclip.datasets.sources.own_columns import FIELD_OF, Columns, Note, one_line, split_of
from entityclip.files import atomic_write_bytes, atomic_write_text, json_lines

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_ROWS = "rows.jsonl"  # of an unpacked folder, written last
_SIGNS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}

Sample = tuple[dict[str, Any], bytes | None]  # a row's values, `_row` its number, and its picture
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFiles:
    """Rows with the fields of FIELDS, and the folder that their pictures' paths count from."""

    pictures: Path
    rows: Iterator[Row]


def is_absolute(image: str) -> bool:
    """Whether a path is one of some machine's, as Unix or as Windows writes it."""
    return image.startswith("/") or image[1:3] in (":\\", ":/")


# -------------------------------------------------------------------------------------- parquet


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: pip install 'entityclip[embed]' to read Parquet") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's are such
        raise ValueError(f"{path} is not readable Parquet: {one_line(error)}") from error


def holds_bytes(path: Path) -> bool:
    """Whether a Parquet file's pictures are bytes, plain or in datasets' struct."""
    import pyarrow.types as types

    with _parquet_file(path) as file:
        schema = file.schema_arrow
    kinds = [f.type for f in schema if FIELD_OF.get(f.name.strip().casefold()) == "image"]
    return any(types.is_binary(k) or types.is_large_binary(k) or types.is_struct(k) for k in kinds)


def parquet_rows(path: Path, split: str | None, note: Note) -> Iterator[Sample]:
    """Each row's values, `_row` its number among them, and its picture's bytes if it holds them."""
    with _parquet_file(path) as file:
        schema = {name: name for name in file.schema_arrow.names}
        of = Columns(path, note).of(list(schema))
        lacking = {"image", "caption"} - set(of.values())
        if lacking:
            got = ", ".join(schema)[:200]
            raise ValueError(f"{path}: no column {min(lacking)}: it has {got}")
        number = 0
        try:
            for batch in file.iter_batches(256, columns=list(of)):
                for values in batch.to_pylist():
                    number += 1
                    yield _with_bytes({of[name]: v for name, v in values.items()}, path, number,
                                      split)  # fmt: skip
        except (ValueError, OSError) as error:
            if str(error).startswith(str(path)):
                raise
            raise ValueError(f"{path}, row {number + 1}: {one_line(error)}") from error


def _with_bytes(
    values: dict[str, Any], path: Path, number: int, split: str | None
) -> tuple[dict[str, Any], bytes | None]:
    image, content = values.get("image"), None
    if isinstance(image, dict):
        content, image = image.get("bytes"), image.get("path")
    elif isinstance(image, bytes):
        content, image = image, None
    if content is not None:
        ending = _SIGNS.get(content[:2], ".jpg")
        name = PurePosixPath(str(image).replace("\\", "/")).name if image else ""
        image = name or f"{path.stem}-{number:06}{ending}"
    if not image:
        raise ValueError(f"{path}, row {number}: field 'image' is null; mend the row")
    texts = {name: v if v is None or isinstance(v, str) else str(v) for name, v in values.items()}
    told = {"split": split} if split and not texts.get("split") else {}
    return texts | told | {"image": image, "_row": number}, content


# ------------------------------------------------------------------------- WebDataset and datasets


def tar_rows(shards: Iterator[tuple[Path, str | None]], note: Note) -> Iterator[Sample]:
    """The samples of WebDataset's shards: `KEY.jpg` with `KEY.txt` or `KEY.json`."""
    number, lacking = 0, 0
    for path, split in shards:
        try:
            with tarfile.open(path) as tar:
                files = ((m, tar.extractfile(m).read()) for m in tar if m.isfile())
                parts = ((*_key_of(member.name), content) for member, content in files)
                for key, group in itertools.groupby(parts, key=lambda part: part[0]):
                    number += 1
                    values = _sample(key, {kind: content for _, kind, content in group}, path)
                    if values is None:
                        lacking += 1
                        continue
                    told = {"split": split} if split else {}
                    yield told | values[0] | {"_row": number}, values[1]
                _refuse_torn(tar, path)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(f"{path} is not a readable tar: {one_line(error)}") from error
    if lacking:
        note(f"{lacking} samples without a picture passed over")


def _refuse_torn(tar: tarfile.TarFile, path: Path) -> None:
    """Raise ValueError unless a tar was read to its end: Python just stops at a damaged header."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{path} is damaged or cut off at byte {tar.offset}; fetch it again")


def _key_of(name: str) -> tuple[str, str]:
    """A member's sample and kind: everything before the first dot of its name, and the rest."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, kind = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), f".{kind.lower()}"


def _sample(key: str, parts: dict[str, bytes], path: Path) -> tuple[dict[str, Any], bytes] | None:
    picture = next((kind for kind in PICTURES if kind in parts), None)
    if picture is None:
        return None
    values: dict[str, Any] = {}
    try:
        if ".json" in parts:
            told = json.loads(parts[".json"])
            if not isinstance(told, dict):
                raise ValueError("its .json holds no object")
            of = Columns(path, log.debug).named(told)
            values = {n: v if v is None or isinstance(v, str) else str(v) for n, v in of.items()}
        if ".txt" in parts:
            values["caption"] = parts[".txt"].decode("utf-8-sig")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, sample {key}: {one_line(error)}; mend it") from error
    return {"caption": "", **values, "image": key + picture}, parts[picture]


def of_datasets(root: Path, hub: str | None, note: Note) -> OwnFiles:
    """What Hugging Face's datasets saved, or fetches by name (never tried against the hub here)."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{root}: pip install 'entityclip[data]' to read it") from error
    try:
        found = datasets.load_dataset(hub) if hub else datasets.load_from_disk(str(root))
    except Exception as error:  # the library raises its own, pyarrow's and OSErrors
        raise ValueError(f"{root} cannot be read by datasets: {one_line(error)}") from error
    parts = found.items() if isinstance(found, dict) else [(None, found)]

    def rows() -> Iterator[Sample]:
        for part, table in parts:
            split = split_of(Path(part)) if part else None
            of = Columns(root / (part or ""), note).of(table.column_names)
            lacking = {"image", "caption"} - set(of.values())
            if lacking:
                got = ", ".join(table.column_names)[:200]
                raise ValueError(f"{root}: {part or 'it'} has no column {min(lacking)}: {got}")
            table = table.select_columns(list(of))
            for name, field in of.items():
                if field == "image" and isinstance(table.features[name], datasets.Image):
                    table = table.cast_column(name, datasets.Image(decode=False))
            for number, values in enumerate(table, start=1):
                where = root / (part or "data")
                yield _with_bytes({of[n]: v for n, v in values.items()}, where, number, split)

    state = [p for p in sorted(root.rglob("*")) if p.is_file()] if not hub else []
    prints = [getattr(table, "_fingerprint", "") for _, table in parts]
    return unpacked(root, state, rows, note, told=prints)


# -------------------------------------------------------------------------------------- unpacking


def unpacked(
    root: Path,
    files: list[Path],
    rows: Callable[[], Iterator[Sample]],
    note: Note,
    *,
    told: list[str] | None = None,
) -> OwnFiles:
    """Rows of archives, whose pictures are unpacked below the runs, once for each state of them."""
    states = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    digest = hashlib.sha256(json.dumps([str(root), states, told or []]).encode()).hexdigest()[:16]
    home = runs_folder() / "data" / "unpacked"
    folder = home / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', root.name) or 'data'}-{digest}"
    listed = folder / _ROWS
    if not listed.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a killed call's
        log.info("pictures of %s are unpacked to %s", root, folder)
        lines = []
        for values, content in rows():
            image = values["image"]
            parts = image.split("/")
            if not all(parts) or {".", ".."} & {*parts} or "\0" in image or is_absolute(image):
                raise ValueError(f"{root}, row {values['_row']}: {image!r:.80} is no plain path")
            if content is not None:
                atomic_write_bytes(folder / image, content)
            lines.append(json.dumps(values) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(listed, "".join(lines))
    found = (
        Row({k: v for k, v in values.items() if k != "_row"}, root, values["_row"])
        for _, values in json_lines(listed, ValueError)
    )
    return OwnFiles(folder, found)
