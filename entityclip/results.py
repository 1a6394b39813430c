"""Result rows: one measurement a line of JSONL, each with where it came from.

The tables and figures read only these rows, so each number can be traced to a seed, a config, a
commit, a data fingerprint and a machine. Rows are chosen by settings alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from entityclip.config import SHIPPED_FILES, Profile, config_hash
from entityclip.files import (
    append,
    atomic_write_text,
    checked,
    json_lines,
    locked,
    mend_tail,
    shortened,
    told,
)
from entityclip.identities import (
    CHAPTERS,
    drawn_domains,
    measured_identity,
    reading_order,
    table_entries,
)
from entityclip.statistics import DIRECTIONS
from entityclip.variants import FLOORS, VARIANTS

SHIPPED = SHIPPED_FILES / "figures" / "rows"
KINDS = (
    *("cost", "curves", "floor", "leak", "matching", "names", "names_cut", "pretraining"),
    *("ranks", "retrieval"),
)
TASKS = (*DIRECTIONS, "image_to_section", "pairs")  # a row's direction; "pairs" match or do not

Log = tuple[pd.DataFrame, pd.DataFrame]  # a row a step, a row a validation


class ResultsError(ValueError):
    """A results file holds a line that is no measurement, or there are no results at all."""


def _zoned(created: str) -> str:
    try:
        zone = datetime.fromisoformat(created).tzinfo
    except ValueError:
        raise ValueError(f"{created!r}; expected an ISO 8601 time") from None
    if zone is None:
        raise ValueError(f"{created!r} is without a time zone")
    return created


Finite = Annotated[float, Field(allow_inf_nan=False)]


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
    wall_time_s: Finite
    peak_memory_mb: Finite
    created: Annotated[str, AfterValidator(_zoned)]  # ISO 8601, UTC


class Row(Provenance):
    """One measurement, one line of a results file."""

    variant: str
    dataset: str
    split: str
    direction: str
    metric: str
    value: Finite
    low: Finite | None  # 95 % interval; None where none was computed
    high: Finite | None
    n_queries: int
    n_candidates: int


class _Whole(Row):
    """What some kinds' rows hold beyond a Row."""

    ranks: NotRequired[list[Finite] | None]
    clusters: NotRequired[list[int] | None]
    image_of: NotRequired[list[int] | None]
    sections: NotRequired[list[str] | None]
    confusion: NotRequired[list[list[int]] | None]
    trained_on: NotRequired[str]


class ClassificationRow(Provenance):
    """One measurement of a classification, one line of a results file."""

    variant: str
    dataset: str
    split: str
    protocol: str  # how the embeddings were judged, e.g. "linear probe"
    label: str  # what was told: "text", "image" or "combined"
    metric: str
    value: Finite
    low: Finite | None  # 95 % interval; None where none was computed
    high: Finite | None
    n_train: int  # labelled pairs learned from; 0 where none were
    n_test: int


class Schema(NamedTuple):
    """What a results file's rows hold and which columns make two rows the same measurement."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    made_by: str  # how to get rows where there are none
    rows: TypeAdapter[Any]  # a row's types


_RUN = ("seed", "config_hash", "data_fingerprint", "trained_fingerprint")
KEY = ("variant", "dataset", "split", "direction", "metric", *_RUN)
LATER = "trained_fingerprint"  # a column that rows written before it lack

RETRIEVAL = Schema(
    tuple(Row.__annotations__),
    KEY,
    "run the evaluation first (notebooks/04_retrieval.ipynb, or `make reproduce`)",
    TypeAdapter(_Whole),
)
CLASSIFICATION = Schema(
    tuple(ClassificationRow.__annotations__),
    ("variant", "dataset", "split", "protocol", "label", "metric", *_RUN),
    "run notebooks/08_itr.ipynb",
    TypeAdapter(ClassificationRow),
)


def schema_of(kind: str) -> Schema:
    """What rows of a kind hold."""
    return CLASSIFICATION if kind == "relations" else RETRIEVAL


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
    rows = []
    for metric, value in metrics.items():
        low, high = intervals.get(metric, (None, None))
        row = Row(
            variant=variant, dataset=dataset, split=split, direction=direction, metric=metric,
            value=value, low=low, high=high, n_queries=n_queries, n_candidates=n_candidates,
            **provenance,
        )  # fmt: skip
        rows.append(row)
    return rows


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
        mend_tail(descriptor, path, _holds_rows, ResultsError)
        append(descriptor, payload, path)


def _holds_rows(first: bytes) -> bool:
    """Whether a file with this first line is one of rows; its only line may be torn."""
    try:
        row = json.loads(first)
    except ValueError:
        return not first.endswith(b"\n") and first.startswith(b"{")
    return isinstance(row, dict) and ("metric" in row or row.keys() == {_HEAD})


def _encode(row: Mapping[str, Any], number: int, schema: Schema) -> bytes:
    try:
        text = json.dumps(row, allow_nan=False, ensure_ascii=False, default=_plain)
    except ValueError as error:
        raise ResultsError(f"row {number} holds a NaN or infinite number: {error}") from error
    if problem := _problem(json.loads(text), schema):
        raise ResultsError(f"row {number} {problem}")
    return (text + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot stand in a result row")


def _problem(row: Mapping[str, Any], schema: Schema) -> str | None:
    """What keeps this mapping from being a measurement, or None."""
    missing = [name for name in schema.columns if name not in row and name != LATER]
    if missing:
        return f"lacks {', '.join(missing)}"
    try:
        schema.rows.validate_python({LATER: None, **row}, strict=True)
    except ValidationError as error:
        return (
            f"is no measurement ({row['variant']}, {row['split']}, {row['metric']}): {told(error)}"
        )
    return None


def read_rows(*paths: str | Path, schema: Schema = RETRIEVAL) -> pd.DataFrame:
    """All measurements of JSONL files or of folders' ``*.jsonl``, one a row, of one schema.

    Where a measurement (the schema's key) recurs, the last line wins, that of a later file before
    an earlier's: clocks may run ahead. Raises ResultsError for a line that is no row (file, line
    number and text are named) and where there is nothing to read.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = ((file, file.stat()) for file in files if file.exists())
    states = tuple((file, s.st_ino, s.st_size, s.st_mtime_ns) for file, s in found)
    frame = _read_files(states, schema)
    if frame.empty:
        raise ResultsError(f"no result rows in {', '.join(map(str, paths))}; {schema.made_by}")
    return frame.copy()


@lru_cache(maxsize=16)  # tables ask for the same files variant by variant
def _read_files(states: tuple[tuple[Any, ...], ...], schema: Schema) -> pd.DataFrame:
    rows = [row for path, *_ in states for row in _read_file(path, schema)]
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).drop_duplicates(list(schema.key), keep="last", ignore_index=True)


def _read_file(path: Path, schema: Schema) -> list[dict[str, Any]]:
    rows, shared = [], {}
    for number, row in json_lines(path, ResultsError):
        problem = None
        if not isinstance(row, dict):
            problem = "is not an object"
        elif row.keys() == {_HEAD}:
            shared = checked(_Shared, row[_HEAD], ResultsError, f"{path}, line {number}")
        else:
            try:
                rows.append(row := _unpack(row, shared))
                row.setdefault(LATER, None)
                problem = _problem(row, schema)
            except KeyError as error:
                problem = f"refers to {error}, which the file's first line no longer holds"
        if problem:
            shown = shortened(json.dumps(row, ensure_ascii=False), 200)
            raise ResultsError(f"{path}, line {number} {problem}: {shown!r}")
    return rows


# what rows share is written once, in a file's first line; they have its hashes
_HEAD, _SHARED = "shared", ("config", "versions", "image_of")
_Shared = dict[Literal["config", "versions", "image_of"], dict[str, Any]]


def pack(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first line, then the rows with hashes for what they share."""
    shared: dict[str, dict[str, Any]] = {name: {} for name in _SHARED}
    packed = []
    for row in rows:
        hashes = {n: config_hash(row[n]) for n in _SHARED if row.get(n) is not None}
        for name, key in hashes.items():
            shared[name][key] = row[name]
        packed.append({**row, **hashes})
    return [{_HEAD: {name: values for name, values in shared.items() if values}}, *packed]


def _unpack(row: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole row; a row that shares nothing stays as it is. Raises KeyError for a lost value."""
    hashes = {name: row[name] for name in _SHARED if isinstance(row.get(name), str)}
    return {**row, **{name: shared[name][key] for name, key in hashes.items()}}


def row_files(profile: Profile, kind: str, *, shipped: bool = True) -> list[Path]:
    """Where rows of a kind may lie, the repository's first."""
    here = profile.results / f"{kind}.jsonl"
    return [SHIPPED / profile.name / f"{kind}.jsonl", here] if shipped else [here]


def find_rows(
    profile: Profile,
    kind: str,
    *,
    variants: Iterable[str] | None = None,
    shipped: bool = True,
) -> pd.DataFrame:
    """Rows of a kind for these very settings, of any seed, in the variants' order; empty for none.

    `kind` is one of KINDS. Data are not asked about: of a measurement that was made on several
    data, the latest counts.
    """
    rows = _all_rows(profile, kind, shipped)
    if rows.empty:
        return rows
    every = FLOORS if kind == "floor" else VARIANTS
    names = list(every if variants is None else variants)
    asked = itertools.product(names, rows["seed"].unique().tolist())
    hashes = {config_hash(measured_identity(profile.settings, kind, *one)) for one in asked}
    rows = _latest(rows[rows["config_hash"].isin(hashes)], kind)
    return _placed(rows, {"variant": names, "direction": TASKS})


def table_rows(profile: Profile, kind: str, table: str) -> pd.DataFrame:
    """`find_rows` of a table's entries, in their order; `variant` is what the table calls each."""
    parts = [
        find_rows(replace(profile, settings=entry.settings), kind, variants=[entry.variant]).assign(
            variant=entry.label
        )
        for entry in table_entries(profile.settings, table)
    ]
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else _all_rows(profile, kind, True)[:0]


def rows_of(
    profile: Profile,
    kind: str,
    identities: Iterable[Mapping[str, Any]],
    *,
    shipped: bool = True,
    data: str | None = None,
    trained: str | None = None,
) -> pd.DataFrame:
    """Rows of a kind whose configurations are `identities`, in their order; else none.

    With `data`, the fingerprint of a split, only rows measured on it; with `trained`, only rows of
    models that such data trained, and those that do not say. Otherwise the latest count.
    """
    rows = _all_rows(profile, kind, shipped)
    if rows.empty:
        return rows
    place = {config_hash(one): at for at, one in enumerate(identities)}
    rows = rows.loc[rows["config_hash"].map(place).dropna().sort_values(kind="stable").index]
    if data is not None:
        rows = rows[rows["data_fingerprint"] == data]
    if trained is not None:
        rows = rows[rows[LATER].isna() | (rows[LATER] == trained)]
    return _latest(rows, kind)


def chapter_rows(profile: Profile, kind: str) -> pd.DataFrame:
    """Rows of a chapter (a key of `identities.CHAPTERS`), ordered to be shown; else none.

    Where the profile names other `domains`, rows measured on others than these are left out.
    """
    rows = rows_of(profile, kind, CHAPTERS[kind](profile))
    if kind == "cross_domain" and profile.settings.domains:
        there = [*drawn_domains(profile.settings), *profile.settings.domains]
        rows = rows[rows["dataset"].isin(there)].reset_index(drop=True)
    return in_reading_order(profile, kind, rows)


def in_reading_order(profile: Profile, kind: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a chapter in the order in which tables and figures show them."""
    order = reading_order(profile.settings, kind)
    return rows if rows.empty or not order else _placed(rows, order)


def _placed(rows: pd.DataFrame, order: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    """The rows sorted by some columns, each in the order of its values."""

    def place(column: pd.Series) -> pd.Series:
        return column.map({value: at for at, value in enumerate(order[column.name])})

    return rows.sort_values(list(order), key=place, kind="stable", ignore_index=True)


def _all_rows(profile: Profile, kind: str, shipped: bool) -> pd.DataFrame:
    files = row_files(profile, kind, shipped=shipped)
    if not any(file.exists() and file.stat().st_size for file in files):
        return pd.DataFrame(columns=list(schema_of(kind).columns))  # no rows, but their columns
    return read_rows(*files, schema=schema_of(kind))


def _latest(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Of each measurement the row written last, on whatever data."""
    key = [name for name in schema_of(kind).key if not name.endswith("_fingerprint")]
    last = rows.sort_index().drop_duplicates(key, keep="last").index  # by line, not as ordered
    return rows.loc[rows.index.isin(last)].reset_index(drop=True)


def stored_rows(profile: Profile, kind: str = "retrieval", **choice: Any) -> pd.DataFrame:
    """As `find_rows`. Raises ResultsError, naming the notebook to run, if there are none."""
    rows = find_rows(profile, kind, **choice)
    if rows.empty:
        notebook = "03_train" if kind == "pretraining" else "04_retrieval"
        raise ResultsError(
            f"{profile.results} has no {kind} rows of profile {profile.name}'s "
            f"present settings; run notebook {notebook}"
        )
    return rows


def write_shipped(profile: Profile, kind: str, rows: pd.DataFrame) -> None:
    """Make `rows` those that the repository ships of a kind; none leave what it ships alone.

    What they repeat stands in the file's first line (`shared_columns`).
    """
    if rows.empty:
        return
    order = ["variant", "dataset", "split", "seed"]
    order += [c for c in ("direction", "protocol", "label", "trained_on") if c in rows]
    rows = rows.sort_values(order, kind="stable")  # metrics stay in the order they were measured in
    target = SHIPPED / profile.name / f"{kind}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    for record in records:
        if record[LATER] is None:
            del record[LATER]
    as_text = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    lines = [as_text(record) for record in pack(records)]
    atomic_write_text(target, "".join(f"{line}\n" for line in lines))


def read_log(path: str | Path) -> Log:
    """A run's ``log.jsonl`` as (steps, validations), a row each, a column a logged number.

    A step logged twice, as after a resume, counts as logged last. Rows that list broken pictures
    are passed over. The line a running or killed run was still writing is left out with a warning;
    any other line that is no log row raises ResultsError naming it.
    """
    found: dict[str, dict[int, Any]] = {"loss": {}, "val_loss": {}, "broken": {}}
    for number, row in json_lines(path, ResultsError):
        kind = _log_kind(row, f"{path}, line {number}")
        found[kind][row["step"]] = row
    steps, validations = (
        pd.DataFrame([rows[step] for step in sorted(rows)] or {"epoch": [], "step": [], kind: []})
        for kind, rows in found.items()
        if kind != "broken"
    )
    return steps, validations


def log_table(logs: Mapping[str, str | Path]) -> pd.DataFrame:
    """The numbers behind the training curves: a row a step or validation, a column a number.

    `logs` holds each variant's ``log.jsonl``. Speeds are left out: they are the machine's.
    """
    parts = [
        part.assign(variant=name)
        for name, path in logs.items()
        for part in read_log(path)
        if not part.empty
    ]
    table = pd.concat(parts, ignore_index=True).drop(columns="pairs_per_s", errors="ignore")
    first = ["variant", "step", "epoch"]
    return table[first + [column for column in table if column not in first]]


_Numbers = TypeAdapter(dict[str, Finite])
_NO_NUMBERS = ("best_by", "split", "broken")


def _log_kind(row: Any, where: str) -> str:
    """What makes it a row of a log: a step's loss, a validation's, or broken pictures."""
    if isinstance(row, dict) and type(row.get("step")) is int:
        try:
            _Numbers.validate_python({k: row[k] for k in row if k not in _NO_NUMBERS}, strict=True)
        except ValidationError as error:
            raise ResultsError(f"{where}: {told(error)}") from error
        for kind in ("loss", "val_loss", "broken"):
            if kind in row and ("epoch" in row or kind == "broken"):
                return kind
    shown = shortened(json.dumps(row, ensure_ascii=False), 200)
    raise ResultsError(f"{where} is neither a step nor a validation: {shown!r}")
