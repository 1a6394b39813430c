"""Result rows: one measurement a line of JSONL, each with where it came from.

The tables and figures read only these rows, so each number can be traced to a seed, a config, a
commit, a data fingerprint and a machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypedDict

import numpy as np
import pandas as pd

from entityclip.config import REPOSITORY, Profile, as_dict, config_hash
from entityclip.files import append, atomic_write_text, locked, mend_tail
from entityclip.statistics import DIRECTIONS
from entityclip.variants import CHAPTERS, VARIANTS, identity, reading_order

if TYPE_CHECKING:
    import torch


def git_commit(repository: Path = REPOSITORY) -> str:
    """The checkout's commit, "-dirty" if package files differ from it, "unknown" outside one.

    Only `entityclip/` is compared: figures and executed notebooks change while a run goes on, and
    the settings stand in the row itself.
    """

    def git(*arguments: str) -> str:
        # a git hook's GIT_DIR would point elsewhere than at the package's own checkout
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(repository), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        return done.stdout.strip()

    try:
        # a package installed below some other project's checkout has no commit of its own
        if Path(git("rev-parse", "--show-toplevel")).resolve() != repository.resolve():
            return "unknown"
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", "entityclip") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


_PACKAGES = (
    *("entityclip", "torch", "open_clip_torch", "accelerate", "safetensors"),
    *("numpy", "pandas", "pillow", "matplotlib", "seaborn", "scikit-learn"),
)


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


def provenance(
    *,
    config: Any,
    seed: int,
    data_fingerprint: str,
    device: torch.device | str,
    wall_time_s: float,
    trained_fingerprint: str | None = None,
) -> Provenance:
    """What every row of one measured run shares.

    config is a dataclass, a pydantic model or plain JSON values. Peak memory is the GPU's on a GPU,
    else this process's resident peak, in MiB.
    """
    return Provenance(
        seed=seed,
        config=as_dict(config),
        config_hash=config_hash(config),
        data_fingerprint=data_fingerprint,
        trained_fingerprint=trained_fingerprint,
        git_commit=git_commit(),
        versions=_versions(),
        device=_device_name(device),
        wall_time_s=round(float(wall_time_s), 3),
        peak_memory_mb=round(peak_memory_mb(device), 1),
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def environment() -> dict[str, str]:
    """Versions of what a run depends on, the device, the cores and the commit."""
    import torch  # here and below, for what is only read needs none

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = {"device": _device_name(device), "cores": str(os.cpu_count())}
    return {**_versions(), **machine, "commit": git_commit()}


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """The most memory used so far, MiB: the GPU's allocations, else this process's resident set."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    # On Linux getrusage's peak is inherited from the parent process, a notebook's from its runner
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _device_name(device: torch.device | str) -> str:
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"CPU {name}, {torch.get_num_threads()} threads"


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


_LATER = "trained_fingerprint"  # a column that rows written before it lack


def _problem(row: Mapping[str, Any], schema: Schema) -> str | None:
    """What keeps this mapping from being a measurement, or None."""
    missing = [name for name in schema.columns if name not in row and name != _LATER]
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


def select_rows(*paths: str | Path, **wanted: Any) -> pd.DataFrame:
    """`read_rows` whose columns have these values; no rows where no file is there yet."""
    if not any(Path(path).exists() for path in paths):
        return pd.DataFrame(columns=list(COLUMNS))
    rows = read_rows(*paths)
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


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
            row.setdefault(_LATER, None)
            problem = _problem(row, schema)
        except KeyError as error:
            problem = f"refers to {error}, which the file's first line no longer holds"
    if problem:
        raise ResultsError(f"{where} {problem}: {shown}")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


SHIPPED = REPOSITORY / "figures" / "rows"


KINDS = ("curves", "leak", "matching", "pretraining", "ranks", "retrieval")


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
    """Rows of a kind for these very settings, of any seed; empty where there are none.

    `kind` is one of KINDS. Data are not asked about: of a measurement that was made on several
    data, the latest counts.
    """
    profile = getattr(profile, "profile", profile)
    rows = _all_rows(profile, kind, shipped)
    if rows.empty:
        return rows
    names = list(VARIANTS) if variants is None else list(variants)
    wanted = {n: _without_seed(identity(profile.settings, n, profile.seed)) for n in names}
    configs = rows.drop_duplicates("config_hash").set_index("config_hash")["config"]
    same = rows["variant"].map(wanted) == rows["config_hash"].map(configs.map(_without_seed))
    return _latest(rows[same], kind)


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
        rows = rows[rows[_LATER].isna() | (rows[_LATER] == trained)]
    return _latest(rows, kind)


def chapter_rows(profile: Profile, kind: str) -> pd.DataFrame:
    """Rows of a chapter (a key of `variants.CHAPTERS`), ordered to be shown; else none."""
    return in_reading_order(profile, kind, rows_of(profile, kind, CHAPTERS[kind](profile)))


def in_reading_order(profile: Profile, kind: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a chapter in the order in which tables and figures show them."""
    order = reading_order(profile.settings, kind)
    if rows.empty or not order:
        return rows

    def place(column: pd.Series) -> pd.Series:
        return column.map({value: at for at, value in enumerate(order[column.name])})

    return rows.sort_values(list(order), key=place, kind="stable", ignore_index=True)


def schema_of(kind: str) -> Schema:
    """What rows of a kind hold."""
    return CLASSIFICATION if kind == "relations" else RETRIEVAL


def _all_rows(profile: Profile, kind: str, shipped: bool) -> pd.DataFrame:
    files = row_files(profile, kind, shipped=shipped)
    if not any(file.exists() and file.stat().st_size for file in files):
        return pd.DataFrame(columns=list(schema_of(kind).columns))  # no rows, but their columns
    return read_rows(*files, schema=schema_of(kind))


def _latest(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Of each measurement the row made last, on whatever data."""
    key = [name for name in schema_of(kind).key if not name.endswith("_fingerprint")]
    created = pd.to_datetime(rows["created"], format="ISO8601", utc=True)
    last = rows.loc[created.sort_values(kind="stable").index].drop_duplicates(key, keep="last")
    return rows.loc[rows.index.isin(last.index)].reset_index(drop=True)


def stored_rows(profile: Profile, kind: str = "retrieval", **choice: Any) -> pd.DataFrame:
    """As `find_rows`. Raises ResultsError, naming the notebook to run, if there are none."""
    profile = getattr(profile, "profile", profile)
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
        if record[_LATER] is None:
            del record[_LATER]
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in pack(records)]
    atomic_write_text(target, "".join(f"{line}\n" for line in lines))


def _without_seed(config: Mapping[str, Any]) -> str:
    return config_hash({key: value for key, value in config.items() if key != "seed"})


log = logging.getLogger(__name__)


Log = tuple[pd.DataFrame, pd.DataFrame]  # a row a step, a row a validation


def read_log(path: str | Path) -> Log:
    """A run's ``log.jsonl`` as (steps, validations), a row each, a column a logged number.

    A step logged twice, as after a resume, counts as logged last. Rows that list broken pictures
    are passed over. The line a running or killed run was still writing is left out with a warning;
    any other line that is no log row raises ResultsError naming it.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines.pop():
        log.warning("%s: its last line is incomplete and left out", path)
    found: dict[str, dict[int, Any]] = {"loss": {}, "val_loss": {}, "broken": {}}
    for number, line in enumerate(lines, start=1):
        kind, row = _log_row(line, f"{path}, line {number}")
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


def _log_row(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, dict) and "step" in row:
        for kind in ("loss", "val_loss", "broken"):
            if kind in row and ("epoch" in row or kind == "broken"):
                return kind, row
    raise ResultsError(f"{where} is neither a step nor a validation: {line[:200]!r}")
