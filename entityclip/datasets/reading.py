"""Safe paths and checked fields, for every loader of downloaded data.

Nothing below a root is read through a link or a path that leads out of it.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from entityclip.files import printable, shortened

_log = logging.getLogger(__name__)
_CHUNK = 1 << 22  # bytes of JSON read at once
_MAX_ROW = 1 << 26  # characters; a row beyond this is an unclosed bracket, not a row
_NUMBER = 64  # characters; more than a number leaves unread ("1." or "1e+") where a chunk ends
# what a JSON value that begins with a character is
_KINDS = {"[": "list", "{": "dict", '"': "str", "t": "bool", "f": "bool", "n": "null"}
_KINDS |= dict.fromkeys("-0123456789", "number")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
_MAX_FIELD = 1 << 24  # characters the csv module takes as one field
# what others' tables call our columns
ALIASES = {
    "image": ("file_name", "filename", "filepath", "file", "path", "image_path", "img"),
    "caption": ("text", "title"),
}

# ----------------------------------------------------------------------------------------- paths


def known(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Raise ValueError for a split that a data set lacks."""
    if split not in splits:
        there = ", ".join(splits)
        raise ValueError(f"{dataset} has no split {split!r}; there are {there}")


def need(root: Path, name: str, *others: str, layout: str) -> Path:
    """The file root/name, safe to read (see `inside`).

    Raises FileNotFoundError for the first of root, this file and root/others that does not exist.
    """
    for path in (root, *(root / each for each in (name, *others))):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; {layout}")
    return inside(root, root / name)


def first_of(root: Path, names: Sequence[str], *, layout: str) -> str:
    """The first of some names that exists below root. Raises FileNotFoundError if none does."""
    found = next((name for name in names if (root / name).exists()), None)
    if found is None:
        problem = f"has none of {', '.join(names)}" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {problem}; {layout}")
    return found


def inside(root: Path, path: Path) -> Path:
    """`path`, if it is a regular file that links do not lead out of root; else ValueError."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is a link that leads out of {root}; put the file itself there")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; put the data file itself there")
    return path


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, a byte-order mark dropped. Raises ValueError for others."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); fetch it again") from error
    return lines[:-1] if lines[-1] == "" else lines


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def optional(root: Path, name: str) -> Path | None:
    """The file root/name, or None where there is none. Raises ValueError as `inside` does."""
    path = root / name
    return inside(root, path) if path.exists() or path.is_symlink() else None


def list_pictures(home: Path, folder: Path) -> dict[str, bool]:
    """The regular files of a folder: name → whether it really lies below `home` (resolved).

    A folder that does not exist has none, and links that lead nowhere are none. Raises ValueError
    for a folder that is a link out of `home`, PermissionError naming one that cannot be listed.
    """
    if not folder.resolve().is_relative_to(home):
        raise ValueError(f"{folder} is a link that leads out of {home}; put the pictures there")
    found: dict[str, bool] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if os.path.isfile(target):
                        found[entry.name] = Path(target).is_relative_to(home)
                elif entry.is_file():
                    found[entry.name] = True
    except PermissionError as error:
        raise PermissionError(f"cannot list {folder}: {error}; make it readable") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise
    return found


# ------------------------------------------------------------------------------------------ rows


class Row:
    """One object of an annotation file; a field of the wrong type is an error that names it."""

    __slots__ = ("number", "path", "values")

    def __init__(self, values: Any, path: Path, number: int) -> None:
        self.values, self.path, self.number = values, path, number
        if not isinstance(values, dict):
            raise ValueError(f"{self}: expected an object, got {type(values).__name__}")

    def __str__(self) -> str:
        return f"{self.path}, row {self.number}"

    def text(self, field: str) -> str:
        """A text without white space around it; "" where it is null. The field must be there."""
        value = self._get(field, (str, type(None)))
        return "" if value is None else value.strip()

    def label(self, field: str, *, kinds: tuple[type, ...] = (str, int)) -> str | None:
        """An optional text or number, as text."""
        value = self._get(field, (*kinds, type(None)), required=False)
        return None if value is None else str(value)

    def id(self, field: str) -> str:
        """A text or whole number that names the row."""
        value = str(self._get(field, (str, int)))
        return value if value.strip() else self.fail(field, "is empty")

    def name(self, field: str) -> str:
        """An id that can stand as a file's name: one part, not hidden, no way out of a folder."""
        value = self.id(field)
        if "/" in value or "\\" in value or "\0" in value or value.startswith("."):
            self.fail(field, f"is {value[:80]!r}, which is no plain file name")
        return value

    def path_below(self, field: str) -> str:
        """A relative path with forward slashes, "./" before it dropped."""
        value = self._get(field, (str,)).removeprefix("./")
        parts = value.split("/")
        if "\\" in value or "\0" in value or not all(parts) or ".." in parts or "." in parts:
            hint = " with forward slashes" if "\\" in value else ""
            self.fail(field, f"is {value[:80]!r}, which is no plain path below the root{hint}")
        return value

    def fail(self, field: str, problem: str) -> NoReturn:
        """Raise ValueError naming file, row and field."""
        raise ValueError(f"{self}: field {field!r} {problem}; mend the row")

    def _get(self, field: str, kinds: tuple[type, ...], *, required: bool = True) -> Any:
        value = self.values.get(field)
        if type(value) in kinds and (field in self.values or not required):
            return value
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        got = type(value).__name__ if field in self.values else "nothing"
        self.fail(field, f"must be {wanted}, got {got}")


# ------------------------------------------------------------------------------------------ JSON


def iter_rows(path: Path, key: str | None = None) -> Iterator[Any]:
    """The elements of the list a file holds, or of the list below `key` of its object.

    Raises ValueError naming the file and the row (counted from 0) for anything that is not JSON,
    for another type than expected, and for a missing `key`.
    """
    text = _Text(path)
    if key is None:
        yield from text.elements()
    else:
        found = False
        for name in text.names():
            if name == key:
                found = True
                yield from text.elements(f" under {key!r}")
            else:
                text.value()
        if not found:
            raise ValueError(f"{path} has no {key!r}; expected an object with a list under it")
    text.end()


def json_rows(path: Path, key: str | None = None) -> Iterator[Row]:
    """`iter_rows`, each of which must be an object. Raises ValueError as that and `Row` do."""
    return (Row(values, path, number) for number, values in enumerate(iter_rows(path, key)))


def iter_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of the object a file holds. Raises ValueError as `iter_rows` does."""
    text = _Text(path)
    for name in text.names():
        yield name, text.value()
    text.end()


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return row


class _Text:
    """A file's text from the place read so far on; `count` rows have been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = path.open("rb")
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)
        self._buffer, self._at, self._ended = "", 0, False

    def elements(self, where: str = "") -> Iterator[Any]:
        """The values of the list that begins here."""
        for _ in self._members("list", where):
            yield self.value()

    def names(self) -> Iterator[str]:
        """The keys of the object that begins here; the caller takes each value after its key."""
        seen: set[str] = set()
        for _ in self._members("dict"):
            name = self.value() if self._peek() == '"' else self.fail("a key must be a string")
            if name in seen:
                raise ValueError(f"{self.path}: key {name!r} stands twice; keep one of the two")
            seen.add(name)
            if self._peek() != ":":
                self.fail(f"':' is missing after key {name!r}")
            self._at += 1
            yield name

    def value(self) -> Any:
        """The next JSON value, however many chunks it spans."""
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    self.fail(error.msg, error)
            except (ValueError, RecursionError) as error:
                nested = isinstance(error, RecursionError)
                self.fail("nested too deeply" if nested else str(error), error)
            else:
                # a number near the end of a chunk ("1." of 1.5) may go on in the next
                room = _NUMBER if isinstance(value, (int, float)) else 0
                if end + room < len(self._buffer) or self._ended or not room:
                    self._at = end
                    return value
            if len(self._buffer) - self._at > _MAX_ROW:
                self.fail(f"no value ends within {_MAX_ROW} characters")
            self._fill()

    def end(self) -> None:
        """Close the file; nothing but white space may follow."""
        if self._peek():
            self.fail("more text follows the end")
        self._file.close()

    def fail(self, problem: str, cause: Exception | None = None) -> NoReturn:
        """Raise ValueError naming the file, the row and the problem."""
        self._file.close()
        raise ValueError(
            f"{self.path} is not JSON ({problem}, row {self.count}); fetch it again or mend it"
        ) from cause

    def _members(self, kind: str, where: str = "") -> Iterator[None]:
        """Step over the brackets and commas around members, each of which the caller reads."""
        got = self._peek()
        if got not in _KINDS:
            self.fail(f"{got!r} begins no JSON value" if got else "the file is empty")
        if _KINDS[got] != kind:
            hint = "; are these JSON lines? Make them one list" if got == "{" else ""
            raise ValueError(f"{self.path} must hold a JSON {kind}{where}, got {_KINDS[got]}{hint}")
        self._at += 1
        closing, mark = "]" if got == "[" else "}", ""
        while mark != closing:
            if self._peek() == closing:
                if mark:
                    self.fail("a comma stands before the end")
                self._at += 1
                return
            yield
            self.count += 1
            mark = self._peek()
            if mark not in (",", closing):
                self.fail(f"',' or {closing!r} expected, got {mark or 'the end of the file'}")
            self._at += 1

    def _peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def _fill(self) -> None:
        # as much again as is pending, so that a long value is not parsed anew for every chunk
        data = self._file.read(max(_CHUNK, len(self._buffer) - self._at))
        self._ended = not data
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8: {error.reason}", error)
        self._buffer = self._buffer[self._at :] + more
        self._at = 0


# ------------------------------------------------------------------------------------------- CSV


def csv_rows(
    path: Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    escapechar: str | None = None,
    first: int = 0,
    fetched: bool = False,
    note: Callable[[str], object] = _log.warning,
    delimiter: str = ",",
    names: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """The rows of a UTF-8 file, separated by `delimiter`, whose first line names its columns.

    `names` says what the file's columns are called here, where otherwise.

    `columns` must be there, `optional` ones may; others are ignored. `escapechar` stands before a
    quote inside quotes (None: quotes are doubled); errors name the row below the header `first`,
    and say to fetch a `fetched` file again. `note` gets what is passed over and may be a mistake.

    Raises ValueError naming the file, and the row and column where that can be told.
    """
    before, number, blank = csv.field_size_limit(_MAX_FIELD), first - 2, 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, escapechar=escapechar, strict=True, delimiter=delimiter)
            header = [_called(name, names or {}) for name in next(reader, [])]
            _check_header(path, header, columns, optional, note)
            number = first - 1
            for number, cells in enumerate(reader, start=first):
                if not cells:  # an empty line; spreadsheets leave some at the end
                    blank += 1
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, row {number}: {len(cells)} fields for {len(header)} columns; "
                        f"is a {_SEPARATORS.get(delimiter, repr(delimiter))} not quoted?"
                    )
                yield Row(dict(zip(header, cells, strict=True)), path, number)
    except (UnicodeDecodeError, csv.Error) as error:
        found = _fault(path, first, escapechar, delimiter)
        what, advice = found or (f"{error}, row {number + 1}", "mend it")
        advice = "fetch it again" if fetched else advice
        raise ValueError(f"{path} is not readable CSV: {what}; {advice}") from error
    finally:
        csv.field_size_limit(before)
    if blank:
        note(f"{path.name}: {blank} blank lines passed over")


def _check_header(
    path: Path, header: list[str], columns: Sequence[str], optional: Sequence[str],
    note: Callable[[str], object],
) -> None:  # fmt: skip
    got = ", ".join(header)[:200] or "nothing"
    known = [*columns, *optional]
    others = {name.casefold(): name for name in header if name not in known}
    lacking = [name for name in columns if name not in header]
    if lacking or len(set(header)) != len(header):
        problem = f"lacks {', '.join(lacking)}" if lacking else "names a column twice"
        hint = ""
        if len(header) == 1 and any(mark in got for mark in ";\t|"):
            hint = "; are the columns separated by something else than commas?"
        for name in lacking:
            close = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
            meant = close or [other for other in ALIASES.get(name, ()) if other in others]
            hint += f"; is {others[meant[0]]!r} it? Then name it {name}" if meant else ""
        raise ValueError(
            f"{path}: the first line must name the columns {', '.join(columns)} once each, and "
            f"{problem}: got {shortened(printable(got), 300)}{hint}"
        )
    for name in (name for name in optional if name not in header):
        for close in difflib.get_close_matches(name, others, n=1, cutoff=0.85):
            note(f"{path.name}: column {others[close]!r} is ignored; is it {name!r}?")


def _called(name: str, names: Mapping[str, str]) -> str:
    """A column's name here; one of the file's that is called as another is here is not it."""
    if name in names:
        return names[name]
    return f"{name.strip()} " if name.strip() in names.values() else name.strip()


def _fault(
    path: Path, first: int, escapechar: str | None, delimiter: str
) -> tuple[str, str] | None:
    """What is wrong with the first cell that is not UTF-8 or whose quotes are wrong, and advice."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "not UTF-8 but UTF-16, in its first bytes", "save it as CSV UTF-8"
    # Latin-1 reads any bytes and gives them back, so that rows and columns can be told apart
    text = data.removeprefix(codecs.BOM_UTF8).decode("latin-1")
    mark = re.escape(escapechar or "")
    escaped = f"|{mark}." if mark else ""
    quoted = re.compile(rf'"(?:[^"{mark}]|""{escaped})*', re.DOTALL)
    d = re.escape(delimiter)
    cell = re.compile(rf'({quoted.pattern}"|[^"{d}\r\n][^{d}\r\n]*|)({d}|\r\n|\r|\n|\Z)', re.DOTALL)
    at, number, column, header = 0, first - 1, 0, []
    while at < len(text):
        name = header[column] if number >= first and column < len(header) else column
        where = f"in row {number}, column {name!r}"
        if not (found := cell.match(text, at)):
            if quoted.match(text, at).end() == len(text):
                return f"a quote opens {where} and is never closed", "close it"
            advice = "put the whole field into quotes, and write each quote inside twice"
            return f"more text follows a closing quote {where}", advice
        try:
            content = found[1].encode("latin-1").decode()
        except UnicodeDecodeError as error:
            byte = found[1].encode("latin-1")[error.start]
            return f"not UTF-8 {where} (byte 0x{byte:02x})", "save it as CSV UTF-8"
        if number < first:
            header.append(content.strip().strip('"'))
        number, column = (number, column + 1) if found[2] == delimiter else (number + 1, 0)
        at = found.end()
    return None
