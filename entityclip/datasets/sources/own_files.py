"""What a folder of your own may hold: a table, split folders, shards, texts beside pictures.

=====================  ==========================================================================
files                  rows
=====================  ==========================================================================
captions or metadata   ``.csv``, ``.tsv`` (or ``;``, ``|``, found by looking), ``.jsonl``,
                       ``.parquet``; or the only such file there, whatever its name
split folders          ``train/``, ``val/``, ``test/`` with such a file in each (an imagefolder)
parquet shards         ``train-00000-of-00004.parquet`` …, here or in ``data/``
WebDataset shards      ``*.tar`` of ``KEY.jpg`` (png, webp) with ``KEY.txt`` or ``KEY.json``
datasets' folder       what ``save_to_disk`` of Hugging Face's datasets wrote; ``hf://NAME``
texts beside           ``NAME.jpg`` with ``NAME.txt``
=====================  ==========================================================================

Columns are told by the ecosystem's names, in any case: `image` (`file_name`, `filepath`, `path` …),
`caption` (`text`, `title`). Pictures that lie in archives are unpacked once, below the runs.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from entityclip.config import HUB, runs_folder
from entityclip.datasets.reading import ALIASES, Row, csv_rows, inside
from entityclip.files import (
    atomic_write_bytes,
    atomic_write_text,
    json_lines,
    parse_json,
    read_text,
)

OPTIONAL = ("explanation", "id", "section", "group", "split")
FIELDS = ("image", "caption", *OPTIONAL)
SPLIT_NAMES = {"dev": "val", "valid": "val", "validation": "val", "eval": "val"}
SPLIT_NAMES |= {name: name for name in ("train", "val", "test")}

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_NAMED = ("captions", "metadata")
_OF_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?=[-_.]|$)", re.IGNORECASE)
_ROWS = "rows.jsonl"  # of an unpacked folder, written last
_SIGNS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}

Note = Callable[[str], object]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnFiles:
    """Rows with the fields of FIELDS, and the folder that their pictures' paths count from."""

    pictures: Path
    rows: Iterator[Row]


def read_own(root: Path, note: Note) -> OwnFiles:
    """The rows of a folder of one's own, however they are kept; `note` gets what is passed over.

    Raises FileNotFoundError for a folder that holds nothing of the kind, ValueError where several
    files could be meant and, while rows are read, for what is malformed, by file and row.
    """
    if str(root).startswith(HUB):
        return _of_datasets(root, str(root).removeprefix(HUB).strip("/"), note)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; {expected()}")
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        return _of_datasets(root, None, note)
    for folder in (root, root / "data"):
        if tables := _tables_of(folder):
            return _of_tables(root, tables, note)
    shards = sorted(root.glob("*.tar")) + sorted(root.glob("*/*.tar"))
    if shards:
        parts = ((path, _split_of(path.relative_to(root))) for path in shards)
        return _unpacked(root, shards, lambda: _of_tars(parts, note), note)
    texts = [p for p in sorted(root.rglob("*.txt")) if _picture_beside(p) is not None]
    if texts:
        return OwnFiles(root, _beside(root, texts))
    raise FileNotFoundError(f"{root / 'captions.csv'} does not exist; {expected()}")


def expected() -> str:
    """What a folder must hold, in a sentence's end."""
    return (
        "expected below the root: captions.csv with the columns image, caption (optional: "
        f"{', '.join(OPTIONAL)}), and the pictures; or one of the other forms that README lists"
    )


# --------------------------------------------------------------------------------------- tables


def _tables_of(folder: Path) -> list[tuple[Path, str | None]]:
    """The tables to read, each with the split that its name or folder tells."""
    files = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in _TABLES and p.is_file()]
    named = [path for path in files if path.stem.lower() in _NAMED]
    if named or len(files) == 1:
        chosen = named or files
        if len(chosen) > 1:
            raise ValueError(f"{folder} has {_listed(chosen)}; which is meant? Keep one there")
        return [(chosen[0], None)]
    splits = [(path, _split_of(Path(path.name))) for path in files]
    if files and all(split for _, split in splits):
        return splits
    if files and {path.suffix.lower() for path in files} == {".parquet"}:
        return [(path, None) for path in files]  # shards of one table
    if files:
        raise ValueError(f"{folder} has {_listed(files)}; name the one that is meant captions.*")
    found = []
    for part in sorted(p for p in folder.glob("*") if p.is_dir()):
        if part.name.lower() in SPLIT_NAMES and (inner := _tables_of(part)):
            found += [(path, SPLIT_NAMES[part.name.lower()]) for path, _ in inner]
    return found


def _split_of(path: Path) -> str | None:
    """The split that a file's name begins with, or that its folder is called by."""
    for name in (path.name, path.parent.name):
        if found := _OF_SPLIT.match(name):
            return SPLIT_NAMES[found[1].lower()]
    return None


def _listed(files: list[Path]) -> str:
    more = f" and {len(files) - 4} more" if len(files) > 4 else ""
    return ", ".join(path.name for path in files[:4]) + more


def _of_tables(root: Path, tables: list[tuple[Path, str | None]], note: Note) -> OwnFiles:
    if any(path.suffix.lower() == ".parquet" and _holds_bytes(path) for path, _ in tables):
        files = [path for path, _ in tables]
        rows = itertools.chain.from_iterable
        return _unpacked(
            root, files, lambda: rows(_parquet(path, split, note) for path, split in tables), note
        )
    return OwnFiles(root, itertools.chain.from_iterable(
        _below(root, path, split, _table_rows(inside(root, path), note)) for path, split in tables
    ))  # fmt: skip


def _below(root: Path, path: Path, split: str | None, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows whose pictures count from the table's folder, in the split it tells, if any."""
    folder = path.parent.relative_to(root).as_posix()
    for row in rows:
        image, values = row.values.get("image"), row.values
        if folder not in (".", "data") and isinstance(image, str) and not _absolute(image):
            values = values | {"image": f"{folder}/{image.removeprefix('./')}"}
        if split is not None and not values.get("split"):
            values = values | {"split": split}
        yield Row(values, row.path, row.number)


def _absolute(image: str) -> bool:
    return image.startswith("/") or image[1:3] in (":\\", ":/")


def _table_rows(path: Path, note: Note) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        told = Columns(path, note)
        lines = read_text(path, ValueError).removeprefix("\ufeff").split("\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():  # a last line that is cut is no line, unlike in what we write
                value = parse_json(line, ValueError, f"{path}, line {number}")
                yield Row(told.named(value) if isinstance(value, dict) else value, path, number)
    elif kind == ".parquet":
        for values, _ in _parquet(path, None, note):
            number = values.pop("_row")
            yield Row(values, path, number)
    else:
        delimiter, header = _sniffed(path)
        names = Columns(path, note).of(header)
        yield from csv_rows(
            path, FIELDS[:2], optional=OPTIONAL, first=2, note=note, delimiter=delimiter,
            names=names,
        )  # fmt: skip


def _sniffed(path: Path) -> tuple[str, list[str]]:
    """The separator under which the first line names an image and a caption, and its columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(1 << 16)
    except UnicodeDecodeError:
        return ",", []  # csv_rows says where
    found = {}
    for delimiter in ",\t;|":
        try:
            found[delimiter] = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            continue
        known = {_FIELD_OF.get(name.strip().casefold()) for name in found[delimiter]}
        if {"image", "caption"} <= known:
            return delimiter, found[delimiter]
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return usual, found.get(usual, [])


_FIELD_OF = {name: name for name in FIELDS}
_FIELD_OF |= {alias: field for field, names in ALIASES.items() for alias in names}


class Columns:
    """Which of a file's columns is which of ours; what is ignored is noted, once."""

    def __init__(self, path: Path, note: Note):
        self.path, self.note = path, note
        self._of: dict[str, str] = {}
        self._known: tuple[str, ...] = ()

    def of(self, columns: list[str]) -> dict[str, str]:
        """The file's name of a column -> ours, for those that are."""
        if tuple(columns) == self._known:
            return self._of
        self._known, chosen = tuple(columns), {}
        for field in FIELDS:
            names = [field, *ALIASES.get(field, ())]
            order = {name: place for place, name in enumerate(names)}
            there = [c for c in columns if c.strip().casefold() in order]
            # the very name first, so that a table that has it is read as ever
            there.sort(key=lambda c: (c.strip() != field, order[c.strip().casefold()]))
            if there:
                chosen[there[0]] = field
        self._of = chosen
        others = [c for c in columns if c not in chosen and not c.startswith("_")]
        if others and len(set(chosen.values()) & {"image", "caption"}) == 2:
            self._tell(others)
        return chosen

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A row's values under our names."""
        of = self.of(list(values))
        return {of[name]: value for name, value in values.items() if name in of}

    def _tell(self, others: list[str]) -> None:
        told = [c for c in others if c.strip()]
        if told and not getattr(self, "_told", False):
            self._told = True
            log.info("%s: columns that are ignored: %s", self.path.name, ", ".join(told[:8]))


# -------------------------------------------------------------------------------------- parquet


def _parquet_file(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: pip install 'entityclip[embed]' to read Parquet") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's are such
        raise ValueError(f"{path} is not readable Parquet: {_line(error)}") from error


def _holds_bytes(path: Path) -> bool:
    """Whether a Parquet file's pictures are bytes, plain or in datasets' struct."""
    import pyarrow.types as types

    with _parquet_file(path) as file:
        schema = file.schema_arrow
    kinds = [f.type for f in schema if _FIELD_OF.get(f.name.strip().casefold()) == "image"]
    return any(types.is_binary(k) or types.is_large_binary(k) or types.is_struct(k) for k in kinds)


def _parquet(
    path: Path, split: str | None, note: Note
) -> Iterator[tuple[dict[str, Any], bytes | None]]:
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
            raise ValueError(f"{path}, row {number + 1}: {_line(error)}") from error


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


def _of_tars(
    shards: Iterator[tuple[Path, str | None]], note: Note
) -> Iterator[tuple[dict[str, Any], bytes | None]]:
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
            raise ValueError(f"{path} is not a readable tar: {_line(error)}") from error
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
    picture = next((kind for kind in _PICTURES if kind in parts), None)
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
        raise ValueError(f"{path}, sample {key}: {_line(error)}; mend it") from error
    return {"caption": "", **values, "image": key + picture}, parts[picture]


def _of_datasets(root: Path, hub: str | None, note: Note) -> OwnFiles:
    """What Hugging Face's datasets saved, or fetches by name (never tried against the hub here)."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{root}: pip install 'entityclip[data]' to read it") from error
    try:
        found = datasets.load_dataset(hub) if hub else datasets.load_from_disk(str(root))
    except Exception as error:  # the library raises its own, pyarrow's and OSErrors
        raise ValueError(f"{root} cannot be read by datasets: {_line(error)}") from error
    parts = found.items() if isinstance(found, dict) else [(None, found)]

    def rows() -> Iterator[tuple[dict[str, Any], bytes | None]]:
        for part, table in parts:
            split = _split_of(Path(part)) if part else None
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
    return _unpacked(root, state, rows, note, told=prints)


# -------------------------------------------------------------------------------------- unpacking


def _unpacked(
    root: Path,
    files: list[Path],
    rows: Callable[[], Iterator[tuple[dict[str, Any], bytes | None]]],
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
            if not all(parts) or {".", ".."} & {*parts} or "\0" in image or _absolute(image):
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


# ------------------------------------------------------------------------------- texts beside


def _picture_beside(text: Path) -> Path | None:
    there = (text.with_suffix(e) for kind in _PICTURES for e in (kind, kind.upper()))
    return next((path for path in there if path.is_file()), None)


def _beside(root: Path, texts: list[Path]) -> Iterator[Row]:
    for number, path in enumerate(texts, start=1):
        picture = _picture_beside(inside(root, path))
        try:
            caption = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text; save it so") from error
        name = picture.relative_to(root)
        split = SPLIT_NAMES.get(name.parts[0].lower()) if len(name.parts) > 1 else None
        values = {"image": name.as_posix(), "caption": caption}
        yield Row(values | ({"split": split} if split else {}), path, number)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
