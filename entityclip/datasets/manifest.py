"""``data_manifest.yaml``: what each data set is and what lies below its root, as checked types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from entityclip.config import REPOSITORY
from entityclip.files import atomic_write_text

MANIFEST = REPOSITORY / "data_manifest.yaml"


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
    bytes: int | None = Field(default=None, ge=0)  # of all these files together
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
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ManifestError(f"{path.name}{line}: not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}") from error
    if node is None:
        raise ManifestError(f"{path.name} is empty; it must hold `datasets`")
    try:
        _refuse_repeated(node, path.name)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Manifest.model_validate(values)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ManifestError(f"{path.name}: not YAML: {error}") from error
    except ValidationError as error:
        raise ManifestError(_explain(error, node, path.name)) from error


def expand(pattern: str) -> list[str]:
    """A pattern with every ``{a,b}`` written out, from the innermost braces on."""
    end = pattern.find("}")
    start = pattern.rfind("{", 0, end) if end >= 0 else -1
    if start < 0:
        return [pattern]
    choices = pattern[start + 1 : end].split(",")
    plain = (pattern[:start] + choice + pattern[end + 1 :] for choice in choices)
    return list(dict.fromkeys(name for part in plain for name in expand(part)))


def record_pairs(dataset: str, counts: dict[str, int], path: Path = MANIFEST) -> list[str]:
    """Write counted pairs where the manifest has null; the splits filled.

    Comments and everything else keep their bytes; a number that stands there is never changed.
    """
    load_manifest(path)
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    edits, filled = [], []
    for split, count in counts.items():
        found = _find(node, ("datasets", dataset, "splits", split, "pairs"))
        if found is not None and found.tag == "tag:yaml.org,2002:null":
            edits.append((found.start_mark.index, found.end_mark.index, str(count)))
            filled.append(split)
    for start, end, count in sorted(edits, reverse=True):
        text = text[:start] + count + text[end:]
    if edits:
        atomic_write_text(path, text)
    return filled


def _explain(error: ValidationError, node: yaml.Node, name: str) -> str:
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such field"
        elif item["type"] not in ("missing", "value_error"):
            message += f" (got {item['input']!r})"
        line = _nearest(node, item["loc"]).start_mark.line + 1
        lines.append(f"{name}, line {line}: {where}: {message}")
    return "\n".join(lines)


def _nearest(node: yaml.Node, location: tuple[int | str, ...]) -> yaml.Node:
    """The node at a location, or the deepest one above it that exists."""
    for length in range(len(location), 0, -1):
        found = _find(node, location[:length])
        if found is not None:
            return found
    return node


def _find(node: yaml.Node, location: tuple[int | str, ...]) -> yaml.Node | None:
    for part in location:
        children = dict(_children(node))
        if part not in children:
            return None
        node = children[part]
    return node


def _children(node: yaml.Node) -> Iterator[tuple[Any, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from enumerate(node.value)


def _refuse_repeated(node: yaml.Node, name: str) -> None:
    """YAML's readers keep the last of two equal keys in silence."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise ManifestError(f"{name}, line {line}: {key.value!r} stands twice")
            seen.add(str(key.value))
    for _, child in _children(node):
        _refuse_repeated(child, name)


def find_datasets(folder: str | Path | None, manifest: Manifest | None = None) -> dict[str, Path]:
    """The downloaded data sets in `folder` itself, else in folders directly below it: name → root.

    A data set is there if every required line of its layout fits at least one file; whether it is
    whole is for ``verify`` to say. None, as `data_root` is by default, holds none.

    Raises FileNotFoundError for a folder that does not exist, and ValueError where two folders hold
    the same data set.
    """
    if folder is None:
        return {}
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; set `data_root` to where the data lie")
    manifest = manifest or load_manifest()
    found = _in(folder, manifest)
    if found:
        return dict.fromkeys(found, folder)
    roots: dict[str, Path] = {}
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        for name in _in(below, manifest):
            if name in roots:
                raise ValueError(
                    f"{roots[name]} and {below} both hold {name}; set `data_root` to one of them"
                )
            roots[name] = below
    return {name: roots[name] for name in manifest.datasets if name in roots}


def _in(root: Path, manifest: Manifest) -> list[str]:
    return [
        name
        for name, entry in manifest.datasets.items()
        if entry.layout and all(_fits(root, x.path) for x in entry.layout if x.required)
    ]


def _fits(root: Path, pattern: str) -> bool:
    # the first match is enough: a folder may hold a million pictures
    return any(next(root.glob(plain), None) is not None for plain in expand(pattern))
