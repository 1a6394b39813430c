"""Stored result rows and the papers' own numbers as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entityclip.identity import config_hash
from entityclip.metrics import METRICS
from entityclip.results import ResultsError
from entityclip.seed_intervals import PERCENT, over_seeds
from entityclip.sheets import Cell, Mark, Sheet, sheet_markdown, standings
from entityclip.style import DIRECTIONS, SPLITS, VARIANTS, in_order, label

_PRINTED = ("R@1", "R@5", "R@10", "MedR", "MeanR")
_GROUP = ["dataset", "split", "variant", "direction"]
_NEEDED = [*_GROUP, *("seed", "metric", "value", "low", "high", "n_queries", "n_candidates")]


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
    refuse_mixtures(rows)
    rows = rows[_NEEDED]  # without the columns of where they come from, which cost most to group
    table = []
    for names, group in rows.groupby(_GROUP, sort=False):
        seeds, by_metric = group["seed"].nunique(), dict(list(group.groupby("metric")))
        line: dict[str, Any] = dict(zip(_GROUP, names, strict=True)) | {
            "seeds": seeds,
            "n_queries": group["n_queries"].iloc[0],
            "n_candidates": group["n_candidates"].iloc[0],
            "interval": "bootstrap over queries" if seeds == 1 else "t over seeds",
        }
        for metric in METRICS:
            of_metric = by_metric.get(metric, ())
            bounds = PERCENT if metric.startswith("R@") else (1, np.inf)
            whole = len(of_metric) == seeds
            numbers = over_seeds(of_metric, bounds) if whole else (np.nan,) * 3
            line |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), numbers, strict=True))
        table.append(line)
    return _sorted(pd.DataFrame(table))


def retrieval_sheet(
    table: pd.DataFrame, reported: pd.DataFrame | None = None, *, marked: bool = True
) -> Sheet:
    """`retrieval_table` as printed: best and second of each split, direction and metric `marked`.

    An interval over seeds is "± half", one over queries or cut at a metric's bound "[low, high]".
    With `reported` (`reported_values`) there is a last column "Reported", empty where no source
    gives a value.
    """
    several = table["dataset"].nunique() > 1
    names = [*(["Dataset"] if several else []), "Split", "Direction", "Variant"]
    said = None if reported is None else reported_cells(table, reported)
    blocks = [
        [
            [*_names(row, several), *cells, *([] if said is None else [said[at]])]
            for (at, row), cells in zip(group.iterrows(), _cells(group, marked), strict=True)
        ]
        for _, group in table.groupby(["dataset", "split", "direction"], sort=False)
    ]
    header = [*names, *_PRINTED, *([] if said is None else ["Reported"])]
    return Sheet(header, blocks, len(names))


def retrieval_markdown(table: pd.DataFrame) -> str:
    """`retrieval_table` as a Markdown table in which nothing is marked."""
    return sheet_markdown(retrieval_sheet(table, marked=False))


def reported_cells(table: pd.DataFrame, reported: pd.DataFrame) -> pd.Series:
    """What papers report for each row of `retrieval_table`: "R@1 12.5, R@5 30.1", or nothing.

    A value of `reported_values` belongs to a row if its `row` is the variant's name and its
    `column` reads "<dataset> <split> <direction> <metric>", such as "n24news test text_to_image
    R@1": the numbers of other data never stand beside ours. Its `table` is the paper's own.
    """
    known = reported.dropna(subset="value").set_index(["row", "column"])["value"]
    if not known.index.is_unique:
        twice = known.index[known.index.duplicated()][0]
        raise ResultsError(f"two reported values for {twice[0]}, {twice[1]}; keep one source")

    def said(row: pd.Series) -> str:
        place = f"{row['dataset']} {row['split']} {row['direction']}"
        found = {m: known.get((row["variant"], f"{place} {m}")) for m in METRICS}
        return ", ".join(f"{m} {value:g}" for m, value in found.items() if value is not None)

    return pd.Series([said(row) for _, row in table.iterrows()], index=table.index, dtype=str)


def reported_values(path: str | Path) -> pd.DataFrame:
    """The papers' own numbers, each with its place: columns paper, table, row, column, value.

    No file gives an empty table, and a value nobody could read stays blank: none is ever invented.
    `reported_cells` says how a value finds its place.
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


def refuse_mixtures(rows: pd.DataFrame) -> None:
    """Raise ResultsError for rows of different data, or of a variant under different settings."""
    for (dataset, split), group in rows.groupby(["dataset", "split"]):
        found = group.groupby("data_fingerprint")["variant"].unique()
        if len(found) > 1:
            which = "; ".join(f"{data}: {', '.join(names)}" for data, names in found.items())
            raise ResultsError(
                f"rows of {dataset}/{split} come from different data ({which}); measure all "
                "variants on the same data, or choose rows by data_fingerprint"
            )
    configs = rows.drop_duplicates("config_hash").set_index("config_hash")["config"]
    settings = configs.map(lambda config: config_hash(_without_seeds(config)))
    settings = rows["config_hash"].map(settings)
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


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    places = {"split": SPLITS, "variant": VARIANTS, "direction": DIRECTIONS}

    def place(column: pd.Series) -> pd.Series:
        order = in_order(column, places.get(column.name, {}))
        return column.map({name: i for i, name in enumerate(order)})

    return table.sort_values(["dataset", "split", "direction", "variant"], key=place).reset_index(
        drop=True
    )


def _names(row: pd.Series, several: bool) -> list[str]:
    """What a row of a printed table is called."""
    return [
        *([row["dataset"]] if several else []),
        label(row["split"], SPLITS),
        label(row["direction"], DIRECTIONS),
        label(row["variant"], VARIANTS),
    ]


def _cells(group: pd.DataFrame, marked: bool) -> list[list[Cell]]:
    """The printed metrics of each row of one split and direction."""
    columns, rows = [], group.to_dict("records")
    for metric in _PRINTED:
        # as printed: what looks equal is marked equally
        marks = standings(group[metric].round(1), higher_is_better=metric.startswith("R@"))
        columns.append(
            [
                number_cell(
                    *(row[name] for name in (metric, f"{metric}_low", f"{metric}_high")),
                    mark if marked else "",
                    over_seeds=row["interval"] == "t over seeds",
                )
                for row, mark in zip(rows, marks, strict=True)
            ]
        )
    return [list(cells) for cells in zip(*columns, strict=True)]


def number_cell(
    value: float, low: float, high: float, mark: Mark = "", *, over_seeds: bool, sign: str = ""
) -> Cell:
    """A value to one decimal with its interval: "± half" if it is symmetric and over seeds.

    `sign` "+" shows a difference's sign. NaN gives an empty cell, or one without interval.
    """
    if np.isnan(value):
        return Cell()
    text = f"{value:{sign}.1f}"
    if np.isnan(low):
        return Cell(text, mark=mark)
    if over_seeds and np.isclose(high - value, value - low):
        return Cell(text, f"± {high - value:.1f}", mark)
    return Cell(text, f"[{low:{sign}.1f}, {high:{sign}.1f}]", mark)
