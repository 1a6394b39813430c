"""``data_manifest.yaml``: what each data set is and what lies below its root, as checked types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from entityclip.config import SHIPPED_FILES
from entityclip.files import Location, parse_yaml, read_text, told

MANIFEST = SHIPPED_FILES / "data_manifest.yaml"
_EXPANDED = 1000  # patterns that one with braces may stand for


class ManifestError(ValueError):
    """The manifest is wrong; the message names file, line and field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Paper(_Strict):
    """What to cite."""

    title: str = Field(min_length=1)
    authors: str = Field(min_length=1)
    venue: str
    year: int = Field(ge=1990, le=2100)
    url: str = Field(pattern=r"^https://")


class LayoutEntry(_Strict):
    """Files below the root: a pattern, and how many there are where that is known."""

    path: str
    what: str
    files: int | None = Field(default=None, ge=1)
    required: bool = True
    pictures: bool = False

    @field_validator("path")
    @classmethod
    def _below_the_root(cls, path: str) -> str:
        for plain in expand(path):
            parts = PurePosixPath(plain).parts
            if not parts or ".." in parts or plain.startswith("/") or "\\" in plain:
                raise ValueError(f"{plain!r} is no path below the root")
        return path


class Split(_Strict):
    """A split: usable pairs, and rows before anything is left out; null where not verified."""

    pairs: int | None = Field(ge=0)
    rows: int | None = Field(default=None, ge=0)
    contains_others: bool = False  # so that shared rows are no fault


class Entry(_Strict):
    """One data set."""

    title: str = Field(min_length=1)
    about: str = Field(min_length=1)
    paper: Paper | None
    license: str | None  # null: the page states none that we could verify
    terms: str
    page: str | None = Field(pattern=r"^https://")
    layout: list[LayoutEntry]
    splits: dict[str, Split] = Field(min_length=1)
    notebooks: list[str]


class Manifest(_Strict):
    """All data sets by name."""

    datasets: dict[str, Entry] = Field(min_length=1)


def load_manifest(path: Path = MANIFEST) -> Manifest:
    """Read and check a manifest. Raises ManifestError naming file, line and field."""
    try:
        text = read_text(path, ManifestError)
    except FileNotFoundError as error:
        raise ManifestError(f"{path} cannot be read: there is no such file") from error
    values, node = parse_yaml(text, ManifestError, path.name)
    if node is None:
        raise ManifestError(f"{path.name} is empty; it must hold `datasets`")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:

        def place(location: Location) -> str:
            return f"line {_line(node, location)}: {'.'.join(map(str, location))}"

        raise ManifestError(f"{path.name}, {told(error, place=place)}") from error


def expand(pattern: str) -> list[str]:
    """A pattern with every ``{a,b}`` written out, from the innermost braces on.

    Raises ValueError for one that stands for more than 1,000.
    """
    names = [pattern]
    while (more := list(dict.fromkeys(n for name in names for n in _spread(name)))) != names:
        names = more
        if len(names) > _EXPANDED:
            raise ValueError(f"{pattern[:40]!r}… stands for more than {_EXPANDED} patterns")
    return names


def _spread(pattern: str) -> list[str]:
    end = pattern.find("}")
    start = pattern.rfind("{", 0, end) if end >= 0 else -1
    if start < 0:
        return [pattern]
    choices = pattern[start + 1 : end].split(",")
    return [pattern[:start] + choice + pattern[end + 1 :] for choice in choices]


def missing_files(dataset: str, root: Path) -> list[str]:
    """The patterns that the manifest requires of a data set and that fit no file below `root`.

    Whether what is there is whole, ``entityclip data verify`` says.
    """
    required = [line.path for line in load_manifest().datasets[dataset].layout if line.required]
    # the first match is enough: a folder may hold a million pictures
    return [path for path in required if not any(any(root.glob(p)) for p in expand(path))]


def _line(node: yaml.Node, location: Location) -> int:
    """Where the node at a location stands, or the deepest one above it that exists."""
    for part in location:
        children = dict(_children(node))
        if part not in children:
            break
        node = children[part]
    return node.start_mark.line + 1


def _children(node: yaml.Node) -> Iterator[tuple[Any, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from enumerate(node.value)
