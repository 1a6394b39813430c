"""Rows of a results file: what they hold, how they are appended, packed and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypedDict

import numpy as np
import pandas as pd

from entityclip.config import config_hash
from entityclip.files import append, locked, mend_tail
from entityclip.statistics import DIRECTIONS


class Provenance(TypedDict):
    """Where a measurement came from."""

    seed: int
    config: dict[str, Any]
    config_hash: str
    data_fingerprint: str  # of the split that was measured
    trained_fingerprint: str | None  # of all data that trained the model; None: not recorded
    git_commit: str  # "-dirty" after it where the package differs from that commit
    versions: dict[str, str]
    device: str
    wall_time_s: float
    peak_memory_mb: float
    created: str  # ISO 8601, UTC


_HEAD, _COLUMNS = "shared", ("config", "versions", "image_of")


def pack(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first line, then the rows with hashes for what they share."""
    shared: dict[str, dict[str, Any]] = {name: {} for name in _COLUMNS}
    packed = []
    for row in rows:
        hashes = {n: config_hash(row[n]) for n in _COLUMNS if row.get(n) is not None}
        for name, key in hashes.items():
            shared[name][key] = row[name]
        packed.append({**row, **hashes})
    return [{_HEAD: {name: values for name, values in shared.items() if values}}, *packed]


def shared_values(line: Any) -> dict[str, dict[str, Any]] | None:
    """What a first line shares; None for any other line."""
    return line[_HEAD] if isinstance(line, dict) and line.keys() == {_HEAD} else None


def unpack(row: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole row; a row that shares nothing stays as it is. Raises KeyError for a lost value."""
    hashes = {name: row[name] for name in _COLUMNS if isinstance(row.get(name), str)}
    return {**row, **{name: shared[name][key] for name, key in hashes.items()}}


# what a row may have as its direction; "pairs" are matched or not
TASKS = (*DIRECTIONS, "image_to_section", "pairs")

KEY = (
    *("variant", "dataset", "split", "direction", "metric"),
    *("seed", "config_hash", "data_fingerprint", "trained_fingerprint"),
)


class ResultsError(ValueError):
    """A results file holds a line that is no measurement, or there are no results at all."""


class Row(Provenance):
    """One measurement, one line of a results file."""

    variant: str
    dataset: str
    split: str
    direction: str
    metric: str
    value: float
    low: float | None  # 95 % interval; None where none was computed
    high: float | None
    n_queries: int
    n_candidates: int


COLUMNS = (
    *("variant", "dataset", "split", "direction", "metric", "value", "low", "high"),
    *("n_queries", "n_candidates"),
    *Provenance.__annotations__,
)


class ClassificationRow(Provenance):
    """One measurement of a classification, one line of a results file."""

    variant: str
    dataset: str
    split: str
    protocol: str  # how the embeddings were judged, e.g. "linear probe"
    label: str  # what was told: "text", "image" or "combined"
    metric: str
    value: float
    low: float | None  # 95 % interval; None where none was computed
    high: float | None
    n_train: int  # labelled pairs learned from; 0 where none were
    n_test: int


class Schema(NamedTuple):
    """What a results file's rows hold and which columns make two rows the same measurement."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    made_by: str  # how to get rows where there are none


RETRIEVAL = Schema(
    COLUMNS, KEY, "run the evaluation first (notebooks/04_retrieval.ipynb, or `make reproduce`)"
)

CLASSIFICATION = Schema(
    tuple(ClassificationRow.__annotations__),
    (
        *("variant", "dataset", "split", "protocol", "label", "metric"),
        *("seed", "config_hash", "data_fingerprint", "trained_fingerprint"),
    ),
    "run notebooks/08_itr.ipynb",
)


# ------------------------------------------------------------------------------------------ rows


def measurement_rows(
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    *,
    variant: str,
    dataset: str,
    split: str,
    direction: str,
    n_queries: int,
    n_candidates: int,
    provenance: Provenance,
) -> list[Row]:
    """One row a metric; a metric without an interval gets None for both ends."""
    if direction not in TASKS:
        raise ResultsError(f"direction is {direction!r}; it must be one of {', '.join(TASKS)}")
    return [
        Row(
            variant=variant,
            dataset=dataset,
            split=split,
            direction=direction,
            metric=metric,
            value=value,
            low=intervals[metric][0] if metric in intervals else None,
            high=intervals[metric][1] if metric in intervals else None,
            n_queries=n_queries,
            n_candidates=n_candidates,
            **provenance,
        )
        for metric, value in metrics.items()
    ]


def append_rows(
    path: str | Path, rows: Iterable[Mapping[str, Any]], schema: Schema = RETRIEVAL
) -> None:
    """Append rows to a JSONL file, all or none, safe against other processes doing the same.

    The file and its folder are made as needed. A torn last line, left by a killed process, is moved
    to ``<name>.torn`` first, with a warning. Raises ResultsError for missing columns and for NaN or
    infinite values, before anything is written; OSError (a full disk) leaves the file as it was.
    """
    path = Path(path)
    payload = b"".join(_encode(row, number, schema) for number, row in enumerate(rows, start=1))
    if not payload:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path) as descriptor:
        mend_tail(descriptor, path)
        append(descriptor, payload, path)


def _encode(row: Mapping[str, Any], number: int, schema: Schema) -> bytes:
    problem = _problem(row, schema)
    if problem:
        raise ResultsError(f"row {number} {problem}")
    try:
        text = json.dumps(row, allow_nan=False, ensure_ascii=False, default=_plain)
    except ValueError as error:
        raise ResultsError(f"row {number} holds a NaN or infinite number: {error}") from error
    return (text + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot stand in a result row")


LATER = "trained_fingerprint"  # a column that rows written before it lack


def _problem(row: Mapping[str, Any], schema: Schema) -> str | None:
    """What keeps this mapping from being a measurement, or None."""
    missing = [name for name in schema.columns if name not in row and name != LATER]
    if missing:
        return f"lacks {', '.join(missing)}"
    for name in ("value", "low", "high"):
        given = row[name]
        if given is None and name != "value":
            continue
        if not isinstance(given, Real) or isinstance(given, bool) or not math.isfinite(given):
            return (
                f"has {given!r} as {name} of {row['metric']} ({row['variant']}, {row['split']}); "
                "only finite numbers are measurements"
            )
    try:
        if datetime.fromisoformat(row["created"]).tzinfo is None:
            return f"has created={row['created']!r} without a time zone"
    except (TypeError, ValueError):
        return f"has created={row['created']!r}; expected an ISO 8601 time"
    return None


def read_rows(*paths: str | Path, schema: Schema = RETRIEVAL) -> pd.DataFrame:
    """All measurements of JSONL files or of folders' ``*.jsonl``, one a row, of one schema.

    Where a measurement (the schema's key) recurs, the row created last wins, and of equals the
    later line. Raises ResultsError for a line that is no row (file, line number and text are named)
    and where there is nothing to read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    states = tuple(_state(file) for file in files if file.exists())
    frame = _read_files(states, schema)
    if frame.empty:
        raise ResultsError(f"no result rows in {', '.join(map(str, paths))}; {schema.made_by}")
    return frame.copy()


class _State(NamedTuple):
    """A file as it is at this moment."""

    path: Path
    inode: int
    size: int
    changed_ns: int


def _state(path: Path) -> _State:
    status = path.stat()
    return _State(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # tables ask for the same files variant by variant
def _read_files(files: tuple[_State, ...], schema: Schema) -> pd.DataFrame:
    rows = [row for file in files for row in _read_file(file.path, schema)]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    created = pd.to_datetime(frame["created"], format="ISO8601", utc=True)
    frame = frame.loc[created.sort_values(kind="stable").index]
    return frame.drop_duplicates(list(schema.key), keep="last").reset_index(drop=True)


def _read_file(path: Path, schema: Schema) -> list[dict[str, Any]]:
    # bytes, cut at newlines only: str.splitlines also cuts at U+2028, which JSON leaves in strings
    lines = path.read_bytes().split(b"\n")
    rows, shared = [], {}
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            continue
        row = _parse(line, f"{path}, line {number}", schema, shared)
        head = shared_values(row)
        if head is None:
            rows.append(row)
        else:
            shared = head
    return rows


def _parse(
    line: bytes, where: str, schema: Schema, shared: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    text = line.decode("utf-8", errors="replace")
    shown = repr(text if len(text) <= 200 else text[:200] + "…")
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ResultsError(
            f"{where} is not JSON ({error}): {shown}; delete the line (a torn last line is moved "
            "aside when results are next appended)"
        ) from error
    problem = None if isinstance(row, dict) else "is not an object"
    if shared_values(row) is None and not problem:
        try:
            row = unpack(row, shared)
            row.setdefault(LATER, None)
            problem = _problem(row, schema)
        except KeyError as error:
            problem = f"refers to {error}, which the file's first line no longer holds"
    if problem:
        raise ResultsError(f"{where} {problem}: {shown}")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
