"""Stored result rows, training logs and the papers' own numbers as tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from entityclip.config import config_hash
from entityclip.metrics import METRICS
from entityclip.results import ResultsError
from entityclip.style import DIRECTIONS, SPLITS, VARIANTS, in_order, label

log = logging.getLogger(__name__)

Log = tuple[pd.DataFrame, pd.DataFrame]  # a row a step, a row a validation
_GROUP = ["dataset", "split", "variant", "direction"]


def retrieval_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a (dataset, split, variant, direction), one column a metric, from `read_rows`.

    Columns: the four names, `seeds`, `n_queries`, `n_candidates`, `interval`, then each of METRICS
    with `<metric>_low` and `<metric>_high`. With one seed the intervals are the rows' own (95 %
    bootstrap over queries: the variance of the test set); with several, values are means over seeds
    and intervals Student's t over seeds (the variance of training), as `interval` says. A metric
    that a seed lacks is blank, never a mean over fewer seeds than the row claims.

    Raises ResultsError where rows of different data, or of one seed under different settings, would
    be set side by side.
    """
    _refuse_mixtures(rows)
    table = []
    for names, group in rows.groupby(_GROUP, sort=False):
        seeds = group["seed"].nunique()
        line: dict[str, Any] = dict(zip(_GROUP, names, strict=True)) | {
            "seeds": seeds,
            "n_queries": group["n_queries"].iloc[0],
            "n_candidates": group["n_candidates"].iloc[0],
            "interval": "bootstrap over queries" if seeds == 1 else "t over seeds",
        }
        for metric in METRICS:
            of_metric = group[group["metric"] == metric]
            numbers = _summary(of_metric, metric) if len(of_metric) == seeds else (np.nan,) * 3
            line |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), numbers, strict=True))
        table.append(line)
    return _sorted(pd.DataFrame(table))


def retrieval_markdown(table: pd.DataFrame) -> str:
    """`retrieval_table` as a Markdown table, "76.7 [72.5, 80.8]" where there is an interval."""
    metrics = ["R@1", "R@5", "R@10", "MedR", "MeanR"]
    several = table["dataset"].nunique() > 1
    header = [*(["Dataset"] if several else []), "Split", "Direction", "Variant", *metrics]
    first_number = len(header) - len(metrics)
    lines = [header, ["---" if i < first_number else "--:" for i in range(len(header))]]
    for _, row in table.iterrows():
        names = [
            *([row["dataset"]] if several else []),
            label(row["split"], SPLITS),
            label(row["direction"], DIRECTIONS),
            label(row["variant"], VARIANTS),
        ]
        lines.append([*(name.replace("|", "\\|") for name in names), *_cells(row, metrics)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reported_values(path: str | Path) -> pd.DataFrame:
    """The papers' own numbers, each with its place: columns paper, table, row, column, value.

    No file gives an empty table, and a value nobody could read stays blank: none is ever invented.
    Raises ResultsError naming the line for a value without its place, a double or no number.
    """
    columns = ["paper", "table", "row", "column", "value"]
    path = Path(path)
    if not path.exists():
        return pd.DataFrame(columns=columns).astype({"value": float})
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != columns:
        raise ResultsError(f"{path}: columns are {list(frame.columns)}; expected {columns}")
    values = pd.to_numeric(frame["value"].replace("", np.nan), errors="coerce")
    problems = {
        "lacks its paper, table, row or column": (frame[columns[:4]] == "").any(axis=1),
        "stands there twice": frame.duplicated(columns[:4]),
        "is no finite number": (frame["value"] != "") & ~np.isfinite(values),
    }
    for problem, found in problems.items():
        if found.any():
            place = int(np.flatnonzero(found)[0])
            raise ResultsError(
                f"{path}, line {place + 2}: the value {problem}: {frame.loc[place].to_dict()}"
            )
    return frame.assign(value=values)


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


def _refuse_mixtures(rows: pd.DataFrame) -> None:
    for (dataset, split), group in rows.groupby(["dataset", "split"]):
        found = group.groupby("data_fingerprint")["variant"].unique()
        if len(found) > 1:
            which = "; ".join(f"{data}: {', '.join(names)}" for data, names in found.items())
            raise ResultsError(
                f"rows of {dataset}/{split} come from different data ({which}); measure all "
                "variants on the same data, or choose rows by data_fingerprint"
            )
    settings = rows["config"].map(lambda config: config_hash(_without_seeds(config)))
    for (dataset, split, variant), group in settings.groupby(
        [rows["dataset"], rows["split"], rows["variant"]]
    ):
        if group.nunique() > 1:
            which = ", ".join(sorted(set(rows.loc[group.index, "config_hash"])))
            raise ResultsError(
                f"rows of {variant} on {dataset}/{split} come from different settings (config_hash "
                f"{which}); choose rows by config_hash"
            )


def _without_seeds(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _without_seeds(v) for k, v in config.items() if k != "seed"}
    return [_without_seeds(v) for v in config] if isinstance(config, list) else config


def _summary(rows: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """Value, low and high of one metric, a row a seed."""
    values = rows["value"].to_numpy(float)
    if len(values) == 1:
        low, high = rows[["low", "high"]].astype(float).iloc[0]
        return values[0], low, high
    mean = values.mean()
    half = _t_quantile(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    bounds = (0, 100) if metric.startswith("R@") else (1, np.inf)
    low, high = np.clip([mean - half, mean + half], *bounds)
    return mean, low, high


def _t_quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t; no SciPy for one number."""
    few = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
    if degrees <= len(few):
        return few[degrees - 1]
    z, n = NormalDist().inv_cdf(0.975), degrees
    # Abramowitz and Stegun, 26.7.5
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    places = {"split": SPLITS, "variant": VARIANTS, "direction": DIRECTIONS}

    def place(column: pd.Series) -> pd.Series:
        order = in_order(column, places.get(column.name, {}))
        return column.map({name: i for i, name in enumerate(order)})

    return table.sort_values(["dataset", "split", "direction", "variant"], key=place).reset_index(
        drop=True
    )


def _cells(row: pd.Series, metrics: list[str]) -> list[str]:
    cells = []
    for metric in metrics:
        value, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
        cell = "" if np.isnan(value) else f"{value:.1f}"
        cells.append(cell if not cell or np.isnan(low) else f"{cell} [{low:.1f}, {high:.1f}]")
    return cells
