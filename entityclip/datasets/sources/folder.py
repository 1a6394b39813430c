"""Your own pictures and captions: a folder in any of the forms that `own_files` reads.

Fields are image and caption; optional ones are explanation, id, section, group, split. Rows count
as a spreadsheet shows them: a table's header is row 1. Unlike with the public sets, whose flaws are
left out and counted, a missing picture or a repeated id is an error here: you can mend the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from entityclip.datasets.reading import Row, known
from entityclip.datasets.sources.own_columns import SPLIT_NAMES
from entityclip.datasets.sources.own_files import read_own
from entityclip.datasets.table import PairBuilder, PairTable, Report

SPLITS = ("train", "val", "test", "all")

_SHOWN = 5  # rows an error names
_KEPT = ("explanation", "group", "section")


def folder_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0
) -> tuple[PairTable, Report]:
    """The pairs of a split in the file's order, and a report; `all` is every row.

    Where nothing says the split, a picture's name decides: a hash puts 80 % of the pictures into
    train and 10 % each into val and test, whatever else there is. Without a field `id`, the image
    path is the id, with ``#2`` for the second caption of a picture.

    Raises FileNotFoundError for a missing root or file, and ValueError naming file, row and field
    for missing columns, other encodings, missing pictures and repeated ids.
    """
    known("folder", split, SPLITS)
    notes: list[str] = []
    found = read_own(root, notes.append)
    pairs = list(_read(found.rows, root))
    builder = PairBuilder(found.pictures)
    builder.notes += notes
    first: dict[str, int] = {}
    missing, repeated = [], []
    for row, name, image, _ in pairs:
        if not _is_file(found.pictures / image):
            missing.append((row, f"is {image!r}, and there is no such picture below {root}"))
        if first.setdefault(name, row.number) != row.number:
            repeated.append((row, f"is {name!r}, which row {first[name]} has already"))
    _refuse("image", missing)
    _refuse("id", repeated)
    for row, name, image, part in pairs:
        if split in ("all", part):
            kept = ((field, (row.label(field) or "").strip() or None) for field in _KEPT)
            builder.add(name, image, row.text("caption"), **dict(kept), where=row)
    return builder.finish(f"folder {split}", limit=limit, seed=seed)


def _read(rows: Iterator[Row], root: Path) -> Iterator[tuple[Row, str, str, str]]:
    """(row, id, image, split) of each row."""
    captions_of: Counter[str] = Counter()
    for row in rows:
        image = _image(row, root)
        captions_of[image] += 1
        number = captions_of[image]
        name = row.id("id") if "id" in row.values else image + (f"#{number}" if number > 1 else "")
        yield row, name, image, _split(row, image)


def _image(row: Row, root: Path) -> str:
    """The picture's path below the root, which backslashes or the root itself may stand in."""
    value = row.text("image")
    if "\\" in value and not _is_file(root / value):
        value = value.replace("\\", "/")
    if value.startswith("/"):
        for home in (root, root.resolve()):
            value = value.removeprefix(f"{home.as_posix()}/")
    return Row({"image": value}, row.path, row.number).path_below("image")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False


def _split(row: Row, image: str) -> str:
    if not row.values.get("split"):
        if "split" in row.values and row.values["split"] is not None:
            row.fail("split", "is empty, none of train, val, test")
        share = hashlib.blake2b(image.encode("utf-8", "replace"), digest_size=8).digest()[0] / 256
        return "train" if share < 0.8 else "val" if share < 0.9 else "test"
    value = row.text("split").casefold()
    if value not in SPLIT_NAMES:
        row.fail("split", f"is {value[:40]!r}, none of {', '.join(SPLITS[:3])}")
    return SPLIT_NAMES[value]


def _refuse(field: str, wrong: list[tuple[Row, str]]) -> None:
    """Raise ValueError for the first of the wrong rows, if any; the others are counted, listed."""
    if not wrong:
        return
    (row, problem), *others = wrong
    listed = ", ".join(str(other.number) for other, _ in others[:_SHOWN])
    listed += "…" if len(others) > _SHOWN else ""
    more = f" ({len(others)} more such rows: {listed})" if others else ""
    raise ValueError(f"{row}: field {field!r} {problem}{more}; mend the rows")
