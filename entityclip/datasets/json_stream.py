"""Large JSON files read one row at a time: bounded memory, and errors that name the row.

``json.loads`` of VisualNews' 1.08 million rows takes several GB and, where the file is cut short,
can only say so. These readers hold one chunk at a time; NaN and keys given twice are refused.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_CHUNK = 1 << 22  # bytes read at once
_MAX_ROW = 1 << 26  # characters; a row beyond this is an unclosed bracket, not a row
_NUMBER = 64  # characters; more than a number leaves unread ("1." or "1e+") where a chunk ends
_SPACE = " \t\r\n"


def iter_rows(path: Path, key: str | None = None) -> Iterator[Any]:
    """The elements of the list a file holds, or of the list below `key` of its object.

    Raises ValueError naming the file and the row (counted from 0) for anything that is not JSON,
    for another type than expected, and for a missing `key`.
    """
    text = _Text(path)
    if key is None:
        text.expect("[", "list")
        yield from text.elements()
        text.end()
        return
    found = False
    text.expect("{", "dict")
    for name in text.names():
        if name != key:
            text.value()
            continue
        found = True
        text.expect("[", "list", f" under {key!r}")
        yield from text.elements()
    text.end()
    if not found:
        raise ValueError(f"{path} has no {key!r}; expected an object with a list under that key")


def iter_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The (key, value) pairs of the object a file holds. Raises ValueError as `iter_rows` does."""
    text = _Text(path)
    text.expect("{", "dict")
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

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def expect(self, bracket: str, kind: str, where: str = "") -> None:
        """Step over the bracket that opens a list or an object."""
        got = self.peek()
        if got != bracket:
            if got and got in '[{"tfn-0123456789':
                kinds = {"[": "list", "{": "dict", '"': "str", "t": "bool", "f": "bool"}
                hint = "; are these JSON lines? Make them one list" if got == "{" else ""
                name = kinds.get(got, "null" if got == "n" else "number")
                raise ValueError(f"{self.path} must hold a JSON {kind}{where}, got {name}{hint}")
            self.fail("the file is empty" if not got else f"{got!r} begins no JSON value")
        self._at += 1

    def elements(self) -> Iterator[Any]:
        """The values of a list up to its closing bracket."""
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            self.count += 1
            if self._closes("]"):
                return

    def names(self) -> Iterator[str]:
        """The keys of an object; the caller takes each value before the next key."""
        seen: set[str] = set()
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            name = self.value() if self.peek() == '"' else self.fail("a key must be a string")
            if name in seen:
                raise ValueError(f"{self.path}: key {name!r} stands twice; keep one of the two")
            seen.add(name)
            if self.peek() != ":":
                self.fail(f"':' is missing after key {name!r}")
            self._at += 1
            yield name
            self.count += 1
            if self._closes("}"):
                return

    def value(self) -> Any:
        """The next JSON value, however many chunks it spans."""
        self.peek()
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
        if self.peek():
            self.fail("more text follows the end")
        self._file.close()

    def fail(self, problem: str, cause: Exception | None = None) -> NoReturn:
        """Raise ValueError naming the file, the row and the problem."""
        self._file.close()
        raise ValueError(
            f"{self.path} is not JSON ({problem}, row {self.count}); fetch it again or mend it"
        ) from cause

    def _closes(self, bracket: str) -> bool:
        mark = self.peek()
        if mark not in (",", bracket) or not mark:
            self.fail(f"',' or {bracket!r} expected, got {mark or 'the end of the file'}")
        self._at += 1
        if mark == "," and self.peek() == bracket:
            self.fail("a comma stands before the end")
        return mark == bracket

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
