"""The stored rows of an experiment: what was measured here, and what the repository ships.

Rows measured here lie in ``runs/<profile>/results``, shipped ones in ``figures/rows/<profile>``,
one file a kind: those of KINDS here, those of the later chapters in `chapter_rows`. Of a
measurement that both have, the newer counts. Rows of other settings or other data stay aside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.config import REPOSITORY
from entityclip.experiments import Experiment
from entityclip.files import atomic_write_text
from entityclip.identity import config_hash
from entityclip.results import ResultsError, read_rows
from entityclip.shared_columns import pack
from entityclip.variants import VARIANTS

SHIPPED = REPOSITORY / "figures" / "rows"
KINDS = ("curves", "leak", "matching", "pretraining", "ranks", "retrieval")


def row_files(experiment: Experiment, kind: str, *, shipped: bool = True) -> list[Path]:
    """Where rows of a kind may lie, the repository's first."""
    here = experiment.results / f"{kind}.jsonl"
    return [SHIPPED / experiment.profile.name / f"{kind}.jsonl", here] if shipped else [here]


def find_rows(
    experiment: Experiment,
    kind: str,
    *,
    variants: Iterable[str] | None = None,
    shipped: bool = True,
) -> pd.DataFrame:
    """Rows of a kind for these very settings and data, of any seed; empty where there are none."""
    files = row_files(experiment, kind, shipped=shipped)
    if not any(file.exists() and file.stat().st_size for file in files):
        return pd.DataFrame()
    rows = read_rows(*files)
    names = list(VARIANTS) if variants is None else list(variants)
    wanted = {name: _without_seed(experiment.identity(name)) for name in names}
    configs = rows.drop_duplicates("config_hash").set_index("config_hash")["config"]
    same = rows["variant"].map(wanted) == rows["config_hash"].map(configs.map(_without_seed))
    return rows[same & _same_data(experiment, rows)].reset_index(drop=True)


def stored_rows(experiment: Experiment, kind: str = "retrieval", **choice: Any) -> pd.DataFrame:
    """As `find_rows`. Raises ResultsError, naming the notebook to run, if there are none."""
    rows = find_rows(experiment, kind, **choice)
    if rows.empty:
        notebook = "03_train" if kind == "pretraining" else "04_retrieval"
        raise ResultsError(
            f"{experiment.results} has no {kind} rows of profile {experiment.profile.name}'s "
            f"present settings; run notebook {notebook}"
        )
    return rows


def ship_rows(experiment: Experiment) -> dict[str, int]:
    """Merge this experiment's rows into those the repository ships; how many of each kind it has.

    Only rows of the present settings are kept, in a fixed order, so the file changes only where a
    measurement did.
    """
    found = {kind: find_rows(experiment, kind) for kind in KINDS}
    for kind, rows in found.items():
        write_shipped(experiment, kind, rows)
    return {kind: len(rows) for kind, rows in found.items() if len(rows)}


def write_shipped(experiment: Experiment, kind: str, rows: pd.DataFrame) -> None:
    """Make `rows` those that the repository ships of a kind; none leave what it ships alone.

    What they repeat stands in the file's first line (`shared_columns`).
    """
    if rows.empty:
        return
    order = ["variant", "dataset", "split", "seed"]
    order += [c for c in ("direction", "protocol", "label", "trained_on") if c in rows]
    rows = rows.sort_values(order, kind="stable")  # metrics stay in the order they were measured in
    target = SHIPPED / experiment.profile.name / f"{kind}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    records = rows.astype(object).where(rows.notna(), None).to_dict("records")
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in pack(records)]
    atomic_write_text(target, "".join(f"{line}\n" for line in lines))


def _without_seed(config: Mapping[str, Any]) -> str:
    return config_hash({key: value for key, value in config.items() if key != "seed"})


def _same_data(experiment: Experiment, rows: pd.DataFrame) -> pd.Series:
    @cache
    def present(split: str) -> str | None:
        try:
            return experiment.fingerprint(split)
        except FileNotFoundError:
            return None  # tables can be redrawn on a machine that lacks the data

    here = rows["split"].map(present)
    return here.isna() | (here == rows["data_fingerprint"])
