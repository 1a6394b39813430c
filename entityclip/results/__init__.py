"""Result rows: one measurement a line of JSONL, each with where it came from.

The tables and figures read only these rows, so each number can be traced to a seed, a config, a
commit, a data fingerprint and a machine. Here rows are chosen by settings alone, and shipped; how
a file of them is written and read stands in `rows`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.config import REPOSITORY, Profile, config_hash
from entityclip.files import atomic_write_text
from entityclip.identities import CHAPTERS, identity, reading_order
from entityclip.results.rows import (
    CLASSIFICATION,
    COLUMNS,
    KEY,
    LATER,
    RETRIEVAL,
    ClassificationRow,
    Provenance,
    ResultsError,
    Row,
    Schema,
    append_rows,
    measurement_rows,
    pack,
    read_rows,
)
from entityclip.variants import VARIANTS

__all__ = [
    "CLASSIFICATION", "COLUMNS", "KEY", "KINDS", "RETRIEVAL", "SHIPPED", "ClassificationRow", "Log",
    "Provenance", "ResultsError", "Row", "Schema", "append_rows", "chapter_rows", "find_rows",
    "git_commit", "in_reading_order", "log_table", "measurement_rows", "pack", "read_log",
    "read_rows", "row_files", "rows_of", "schema_of", "stored_rows", "write_shipped",
]  # fmt: skip

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
        rows = rows[rows[LATER].isna() | (rows[LATER] == trained)]
    return _latest(rows, kind)


def chapter_rows(profile: Profile, kind: str) -> pd.DataFrame:
    """Rows of a chapter (a key of `identities.CHAPTERS`), ordered to be shown; else none."""
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
