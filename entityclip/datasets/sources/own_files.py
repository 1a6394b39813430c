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
import itertools
from collections.abc import Iterator
from pathlib import Path

from entityclip.config import HUB
from entityclip.datasets.reading import Row, csv_rows, inside
from entityclip.datasets.sources.own_archives import (
    PICTURES,
    OwnFiles,
    holds_bytes,
    is_absolute,
    of_datasets,
    parquet_rows,
    tar_rows,
    unpacked,
)
from entityclip.datasets.sources.own_columns import (
    FIELD_OF,
    FIELDS,
    OPTIONAL,
    SPLIT_NAMES,
    Columns,
    Note,
    split_of,
)
from entityclip.files import parse_json, read_text

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_NAMED = ("captions", "metadata")


def read_own(root: Path, note: Note) -> OwnFiles:
    """The rows of a folder of one's own, however they are kept; `note` gets what is passed over.

    Raises FileNotFoundError for a folder that holds nothing of the kind, ValueError where several
    files could be meant and, while rows are read, for what is malformed, by file and row.
    """
    if str(root).startswith(HUB):
        return of_datasets(root, str(root).removeprefix(HUB).strip("/"), note)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; {expected()}")
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        return of_datasets(root, None, note)
    for folder in (root, root / "data"):
        if tables := _tables_of(folder):
            return _of_tables(root, tables, note)
    shards = sorted(root.glob("*.tar")) + sorted(root.glob("*/*.tar"))
    if shards:
        parts = ((path, split_of(path.relative_to(root))) for path in shards)
        return unpacked(root, shards, lambda: tar_rows(parts, note), note)
    texts = [p for p in sorted(root.rglob("*.txt")) if _picture_beside(p) is not None]
    if texts:
        return OwnFiles(root, _beside(root, texts))
    raise FileNotFoundError(f"{root / 'captions.csv'} does not exist; {expected()}")


def expected() -> str:
    """What a folder must hold, in a sentence's end."""
    return (
        "expected below the root: captions.csv with the columns image, caption (optional: "
        f"{', '.join(OPTIONAL)}), and the pictures; or one of the forms in entityclip/README.md"
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
    splits = [(path, split_of(Path(path.name))) for path in files]
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


def _listed(files: list[Path]) -> str:
    more = f" and {len(files) - 4} more" if len(files) > 4 else ""
    return ", ".join(path.name for path in files[:4]) + more


def _of_tables(root: Path, tables: list[tuple[Path, str | None]], note: Note) -> OwnFiles:
    if any(path.suffix.lower() == ".parquet" and holds_bytes(path) for path, _ in tables):
        files = [path for path, _ in tables]
        rows = itertools.chain.from_iterable
        return unpacked(
            root,
            files,
            lambda: rows(parquet_rows(path, split, note) for path, split in tables),
            note,
        )
    return OwnFiles(root, itertools.chain.from_iterable(
        _below(root, path, split, _table_rows(inside(root, path), note)) for path, split in tables
    ))  # fmt: skip


def _below(root: Path, path: Path, split: str | None, rows: Iterator[Row]) -> Iterator[Row]:
    """Rows whose pictures count from the table's folder, in the split it tells, if any."""
    folder = path.parent.relative_to(root).as_posix()
    for row in rows:
        image, values = row.values.get("image"), row.values
        if folder not in (".", "data") and isinstance(image, str) and not is_absolute(image):
            values = values | {"image": f"{folder}/{image.removeprefix('./')}"}
        if split is not None and not values.get("split"):
            values = values | {"split": split}
        yield Row(values, row.path, row.number)


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
        for values, _ in parquet_rows(path, None, note):
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
        known = {FIELD_OF.get(name.strip().casefold()) for name in found[delimiter]}
        if {"image", "caption"} <= known:
            return delimiter, found[delimiter]
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return usual, found.get(usual, [])


# ------------------------------------------------------------------------------- texts beside


def _picture_beside(text: Path) -> Path | None:
    there = (text.with_suffix(e) for kind in PICTURES for e in (kind, kind.upper()))
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
