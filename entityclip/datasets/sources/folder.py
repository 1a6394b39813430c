"""Your own pictures and captions: a folder of pictures and one CSV file.

Expected below the root::

    captions.csv    columns image, caption; optional explanation, id, section, group, split
    …               pictures, at the paths that column `image` gives

The file is UTF-8, separated by commas. Rows count as a spreadsheet shows them: the header is row 1.
Unlike with the public sets, whose flaws are left out and counted, a missing picture or a repeated
id is an error here: you can mend the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn

from entityclip.datasets.reading import Row, csv_rows, inside, known, need
from entityclip.datasets.table import PairBuilder, PairTable, Report

SPLITS = ("train", "val", "test", "all")
FILE = "captions.csv"
REQUIRED = ("image", "caption")
OPTIONAL = ("explanation", "id", "section", "group", "split")

_LAYOUT = (
    f"expected below the root: {FILE} with the columns {', '.join(REQUIRED)} "
    f"(optional: {', '.join(OPTIONAL)}), and the pictures"
)

_NAMES = {"dev": "val", "valid": "val", "validation": "val"} | {name: name for name in SPLITS[:3]}
_SHOWN = 5  # rows an error names


class _Pair(NamedTuple):
    row: Row
    id: str
    image: str
    split: str


def folder_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0
) -> tuple[PairTable, Report]:
    """The pairs of a split in the file's order, and a report; `all` is every row.

    Without a column `split`, a picture's name decides: a hash puts 80 % of the pictures into train
    and 10 % each into val and test, whatever else the file holds. Without a column `id`, the image
    path is the id, with ``#2`` for the second caption of a picture.

    Raises FileNotFoundError for a missing root or file, and ValueError naming file, row and field
    for missing columns, other encodings, missing pictures and repeated ids.
    """
    known("folder", split, SPLITS)
    _need(root)
    path = inside(root, root / FILE)
    pairs = _read(path)
    _refuse_missing(root, path, pairs)
    _refuse_repeated(path, pairs)
    builder = PairBuilder(root)
    for pair in pairs:
        if split in ("all", pair.split):
            builder.add(
                pair.id,
                pair.image,
                pair.row.text("caption"),
                group=_optional(pair.row, "group"),
                section=_optional(pair.row, "section"),
                explanation=_optional(pair.row, "explanation"),
                where=pair.row,
            )
    return builder.finish(f"folder {split}", limit=limit, seed=seed)


def _need(root: Path) -> None:
    try:
        need(root, FILE, layout=_LAYOUT)
    except FileNotFoundError as error:
        others = sorted(path.name for path in root.glob("*.csv")) if root.is_dir() else []
        hint = f"; is it {others[0]}? Then name it {FILE}" if others else ""
        raise FileNotFoundError(f"{error}{hint}") from None


def _read(path: Path) -> list[_Pair]:
    rows, captions_of = [], Counter()
    for row in csv_rows(path, REQUIRED, optional=OPTIONAL, first=2):
        image = row.path_below("image")
        captions_of[image] += 1
        number = captions_of[image]
        name = row.id("id") if "id" in row.values else image + (f"#{number}" if number > 1 else "")
        rows.append(_Pair(row, name, image, _split(row, image)))
    return rows


def _split(row: Row, image: str) -> str:
    if "split" not in row.values:
        share = hashlib.blake2b(image.encode("utf-8", "replace"), digest_size=8).digest()[0] / 256
        return "train" if share < 0.8 else "val" if share < 0.9 else "test"
    value = row.text("split").casefold()
    if value not in _NAMES:
        row.fail("split", f"is {value[:40]!r}, none of {', '.join(SPLITS[:3])}")
    return _NAMES[value]


def _optional(row: Row, field: str) -> str | None:
    value = row.values.get(field)
    return (value or "").strip() or None


def _refuse_missing(root: Path, path: Path, pairs: list[_Pair]) -> None:
    lacking = [pair for pair in pairs if not (root / pair.image).is_file()]
    if lacking:
        problem = f"is {lacking[0].image!r}, and there is no such picture below {root}"
        _fail(path, [pair.row.number for pair in lacking], "image", problem)


def _refuse_repeated(path: Path, pairs: list[_Pair]) -> None:
    first: dict[str, int] = {}
    repeated = [
        (pair.row.number, pair.id, before)
        for pair in pairs
        if (before := first.setdefault(pair.id, pair.row.number)) != pair.row.number
    ]
    if repeated:
        _, name, before = repeated[0]
        problem = f"is {name!r}, which row {before} has already"
        _fail(path, [number for number, _, _ in repeated], "id", problem)


def _fail(path: Path, rows: list[int], field: str, problem: str) -> NoReturn:
    """Raise ValueError for the first of some rows; the others are counted and listed."""
    more = ""
    if len(rows) > 1:
        listed = ", ".join(map(str, rows[1 : 1 + _SHOWN])) + ("…" if len(rows) > 1 + _SHOWN else "")
        more = f" ({len(rows) - 1} more such rows: {listed})"
    raise ValueError(f"{path}, row {rows[0]}: field {field!r} {problem}{more}; mend the rows")
