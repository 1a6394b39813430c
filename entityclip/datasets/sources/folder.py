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
from collections.abc import Callable
from pathlib import Path

from entityclip.datasets.reading import Row, csv_rows, known, need
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
_KEPT = ("explanation", "group", "section")


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
    path = _captions_file(root)
    builder = PairBuilder(root)
    pairs = _read(path, builder.notes.append)
    first: dict[str, int] = {}
    missing, repeated = [], []
    for row, name, image, _ in pairs:
        if not (root / image).is_file():
            missing.append((row, f"is {image!r}, and there is no such picture below {root}"))
        if first.setdefault(name, row.number) != row.number:
            repeated.append((row, f"is {name!r}, which row {first[name]} has already"))
    _refuse("image", missing)
    _refuse("id", repeated)
    for row, name, image, part in pairs:
        if split in ("all", part):
            kept = ((field, row.values.get(field, "").strip() or None) for field in _KEPT)
            builder.add(name, image, row.text("caption"), **dict(kept), where=row)
    return builder.finish(f"folder {split}", limit=limit, seed=seed)


def _captions_file(root: Path) -> Path:
    try:
        return need(root, FILE, layout=_LAYOUT)
    except FileNotFoundError as error:
        others = sorted(path.name for path in root.glob("*.csv")) if root.is_dir() else []
        hint = f"; is it {others[0]}? Then name it {FILE}" if others else ""
        raise FileNotFoundError(f"{error}{hint}") from None


def _read(path: Path, note: Callable[[str], None]) -> list[tuple[Row, str, str, str]]:
    """(row, id, image, split) of each row."""
    pairs, captions_of = [], Counter()
    for row in csv_rows(path, REQUIRED, optional=OPTIONAL, first=2, note=note):
        image = row.path_below("image")
        captions_of[image] += 1
        number = captions_of[image]
        name = row.id("id") if "id" in row.values else image + (f"#{number}" if number > 1 else "")
        pairs.append((row, name, image, _split(row, image)))
    return pairs


def _split(row: Row, image: str) -> str:
    if "split" not in row.values:
        share = hashlib.blake2b(image.encode("utf-8", "replace"), digest_size=8).digest()[0] / 256
        return "train" if share < 0.8 else "val" if share < 0.9 else "test"
    value = row.text("split").casefold()
    if value not in _NAMES:
        row.fail("split", f"is {value[:40]!r}, none of {', '.join(SPLITS[:3])}")
    return _NAMES[value]


def _refuse(field: str, wrong: list[tuple[Row, str]]) -> None:
    """Raise ValueError for the first of the wrong rows, if any; the others are counted, listed."""
    if not wrong:
        return
    (row, problem), *others = wrong
    listed = ", ".join(str(other.number) for other, _ in others[:_SHOWN])
    listed += "…" if len(others) > _SHOWN else ""
    more = f" ({len(others)} more such rows: {listed})" if others else ""
    raise ValueError(f"{row}: field {field!r} {problem}{more}; mend the rows")
