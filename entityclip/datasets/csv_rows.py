"""Rows of a CSV file, checked: known columns, as many fields as the header has, UTF-8."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from entityclip.datasets.source import Row

_MAX_FIELD = 1 << 24  # characters the csv module takes as one field


def csv_rows(
    path: Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    escapechar: str | None = None,
    first: int = 0,
) -> Iterator[Row]:
    """The rows of a comma-separated UTF-8 file whose first line names its columns.

    Args:
        path: the file; a byte-order mark before the text is fine.
        columns: those that must be there.
        optional: those that may be. Others are ignored, unless a name is so close to one of these
            that it must be misspelt.
        escapechar: what stands before a quote inside quotes; None: quotes are doubled.
        first: the number of the first row below the header, as errors name it.

    Raises ValueError naming the file, and the row and column where that can be told.
    """
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, escapechar=escapechar, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, columns, optional)
            for number, cells in enumerate(reader, start=first):
                if not cells:  # an empty line; spreadsheets leave some at the end
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, row {number}: {len(cells)} fields for {len(header)} columns; "
                        "is a comma not quoted?"
                    )
                yield Row(dict(zip(header, cells, strict=True)), path, number)
    except UnicodeDecodeError as error:
        where = _wrong_bytes(path, first) or f" ({error})"
        raise ValueError(
            f"{path} is not readable CSV: not UTF-8{where}; fetch it again, or save it as CSV UTF-8"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{path} is not readable CSV ({error}); fetch it again") from error
    finally:
        csv.field_size_limit(before)


def _check_header(
    path: Path, header: list[str], columns: Sequence[str], optional: Sequence[str]
) -> None:
    got = ", ".join(header)[:200] or "nothing"
    lacking = [name for name in columns if name not in header]
    if lacking or len(set(header)) != len(header):
        problem = f"lacks {', '.join(lacking)}" if lacking else "names a column twice"
        hint = ""
        if len(header) == 1 and any(mark in got for mark in ";\t|"):
            hint = "; are the columns separated by something else than commas?"
        raise ValueError(
            f"{path}: the first line must name the columns {', '.join(columns)} once each, and "
            f"{problem}: got {got}{hint}"
        )
    for name in header:
        known = [*columns, *optional]
        close = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.85)
        if name not in known and close:
            raise ValueError(f"{path}: column {name!r} is none of ours; is it {close[0]!r}?")


def _wrong_bytes(path: Path, first: int) -> str:
    """Row and column of the first cell that is not UTF-8; "" where that cannot be told."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return " but UTF-16, in its first bytes"
    # Latin-1 reads any bytes and gives them back, so that csv can tell rows and columns apart
    try:
        rows = list(csv.reader(io.StringIO(data.decode("latin-1"), newline="")))
    except csv.Error:
        return ""
    for number, cells in enumerate(rows, start=first - 1):
        for column, cell in enumerate(cells):
            try:
                cell.encode("latin-1").decode()
            except UnicodeDecodeError as error:
                name = rows[0][column] if number >= first and column < len(rows[0]) else column
                byte = cell.encode("latin-1")[error.start]
                return f" in row {number}, column {name!r} (byte 0x{byte:02x})"
    return ""
