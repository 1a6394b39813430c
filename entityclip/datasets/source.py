"""Safe paths and checked fields, for every loader of downloaded data.

Nothing below a root is read through a link or a path that leads out of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# ----------------------------------------------------------------------------------------- paths


def need(root: Path, *names: str, layout: str) -> None:
    """Raise FileNotFoundError for the first of root and root/name that does not exist."""
    for path in (root, *(root / name for name in names)):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; {layout}")


def first_of(root: Path, names: Sequence[str], *, layout: str) -> str:
    """The first of some names that exists below root. Raises FileNotFoundError if none does."""
    need(root, layout=layout)
    for name in names:
        if (root / name).exists():
            return name
    raise FileNotFoundError(f"{root} has none of {', '.join(names)}; {layout}")


def inside(root: Path, path: Path) -> Path:
    """`path`, if it is a regular file that links do not lead out of root; else ValueError."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is a link that leads out of {root}; put the file itself there")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; put the data file itself there")
    return path


def optional(root: Path, name: str) -> Path | None:
    """The file root/name, or None where there is none. Raises ValueError as `inside` does."""
    path = root / name
    return inside(root, path) if path.exists() or path.is_symlink() else None


def list_pictures(home: Path, folder: Path) -> dict[str, bool]:
    """The regular files of a folder: name → whether it really lies below `home` (resolved).

    A folder that does not exist has none. Raises ValueError for a folder that is a link out of
    `home`, PermissionError naming one that cannot be listed.
    """
    if not folder.resolve().is_relative_to(home):
        raise ValueError(f"{folder} is a link that leads out of {home}; put the pictures there")
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: not entry.is_symlink()
                or Path(entry.path).resolve().is_relative_to(home)
                for entry in entries
                if entry.is_file()
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise PermissionError(f"cannot list {folder}: {error}; make it readable") from error


# ------------------------------------------------------------------------------------------ rows


class Row:
    """One object of an annotation file; a field of the wrong type is an error that names it."""

    __slots__ = ("number", "path", "values")

    def __init__(self, values: Any, path: Path, number: int) -> None:
        self.values, self.path, self.number = values, path, number
        if not isinstance(values, dict):
            got = type(values).__name__
            raise ValueError(f"{path}, row {number}: expected an object, got {got}")

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
        if not value.strip():
            self.fail(field, "is empty")
        return value

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
            self.fail(field, f"is {value[:80]!r}, which is no plain path below the root")
        return value

    def fail(self, field: str, problem: str) -> NoReturn:
        """Raise ValueError naming file, row and field."""
        raise ValueError(
            f"{self.path}, row {self.number}: field {field!r} {problem}; mend or delete the row"
        )

    def _get(self, field: str, kinds: tuple[type, ...], *, required: bool = True) -> Any:
        value = self.values.get(field)
        if type(value) in kinds and (field in self.values or not required):
            return value
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        got = type(value).__name__ if field in self.values else "nothing"
        raise ValueError(
            f"{self.path}, row {self.number}: field {field!r} must be {wanted}, got {got}"
        )
