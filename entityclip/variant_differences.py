"""Differences between variants: from stored rows to a table, a forest plot and sentences."""

from __future__ import annotations

import pandas as pd

from entityclip.forest import COLUMNS, separable
from entityclip.results import ResultsError
from entityclip.sheets import Cell, Sheet
from entityclip.style import DIRECTIONS, SPLITS, VARIANTS, in_order, label
from entityclip.tables import mean_over_seeds, number_cell, refuse_mixtures

_KEYS = ["split", "direction", "metric", "variant"]


def difference_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Stored paired differences ("a minus b") as `plot_forest` wants them, seeds taken together.

    `rows` are `read_rows` of ``differences.jsonl``, of one dataset. One seed keeps its own interval
    (paired bootstrap over queries); several give their mean with Student's t over seeds.
    """
    lines = []
    for (split, direction, metric, variant), group in _in_house_order(rows).groupby(
        _KEYS, sort=False
    ):
        seeds = group["seed"].nunique()
        value, low, high = mean_over_seeds(group["value"].to_numpy(float))
        if seeds == 1:
            low, high = group[["low", "high"]].astype(float).iloc[0]
        first, _, second = variant.partition(" minus ")
        named = f"{label(first, VARIANTS)} − {label(second, VARIANTS)}"
        lines.append((variant, named, _group(split, direction, metric), value, low, high, seeds))
    return _table(lines)


def seed_differences(
    rows: pd.DataFrame, reference: str, metric: str = "R@1", direction: str = "text_to_image"
) -> pd.DataFrame:
    """Each variant minus `reference`, seed by seed, as `plot_forest` wants them; a group a split.

    `rows` are `read_rows` of ``retrieval.jsonl``, of one dataset. Values are means over the seeds
    that both have, intervals Student's t over them (the variance of training, what seeds share
    taken out); a single seed has none. A variant without a seed in common is left out. Raises
    ResultsError for rows of different data and where `reference` was not measured.
    """
    refuse_mixtures(rows)
    chosen = rows[(rows["metric"] == metric) & (rows["direction"] == direction)]
    lines = []
    for split in in_order(chosen["split"], SPLITS):
        by_seed = chosen[chosen["split"] == split].pivot(
            index="seed", columns="variant", values="value"
        )
        if reference not in by_seed:
            raise ResultsError(
                f"no {metric} rows of {reference!r} on {split}, {direction}: measure it there, or "
                "choose another reference"
            )
        for variant in in_order(pd.Series(by_seed.columns), VARIANTS):
            each = (by_seed[variant] - by_seed[reference]).dropna()
            if variant != reference and len(each):
                line = (variant, label(variant, VARIANTS), _group(split, direction, metric))
                lines.append((*line, *mean_over_seeds(each.to_numpy(float)), len(each)))
    return _table(lines)


def difference_sheet(differences: pd.DataFrame, reference: str = "") -> Sheet:
    """A differences table as printed, with a sentence made from its numbers below."""
    blocks = [
        [
            [
                row["group"],
                row["label"],
                number_cell(*row[["value", "low", "high"]], over_seeds=row["seeds"] > 1, sign="+"),
                Cell(f"{row['seeds']:.0f}"),
            ]
            for _, row in rows.iterrows()
        ]
        for _, rows in differences.groupby("group", sort=False)
    ]
    notes = describe_differences(differences, reference)
    return Sheet(["Group", "Variant", "Difference", "Seeds"], blocks, 2, notes)


def describe_differences(
    differences: pd.DataFrame, reference: str = "", *, higher_is_better: bool = True
) -> list[str]:
    """A sentence a group: what is better, what is worse, what these intervals cannot separate.

    `differences` has `forest.COLUMNS`. `reference` is what was subtracted, as a reader should see
    it; "" where labels say so themselves ("a − b"), for which better and worse mean a. A
    difference without an interval is named as untested, never as a finding.
    """
    return [
        f"{group}: {'; '.join(_verdicts(rows, reference, higher_is_better))}."
        for group, rows in differences.groupby("group", sort=False)
    ]


def _verdicts(rows: pd.DataFrame, reference: str, higher_is_better: bool) -> list[str]:
    apart, untested = separable(rows), rows["low"].isna()
    better = (rows["value"] > 0) == higher_is_better
    of, to, by = (f" {word} {reference}" if reference else "" for word in ("than", "from", "with"))
    parts = (
        (f"better{of}", rows[apart & better]),
        (f"worse{of}", rows[apart & ~better]),
        (f"not separable{to or ' from 0'}", rows[~apart & ~untested]),
        (f"without an interval, so not compared{by}", rows[untested]),
    )
    return [
        f"{verdict}: {', '.join(_said(row) for _, row in part.iterrows())}"
        for verdict, part in parts
        if len(part)
    ]


def _said(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f", {row['low']:+.1f} to {row['high']:+.1f}"
    return f"{row['label']} ({row['value']:+.1f}{interval})"


def _group(split: str, direction: str, metric: str) -> str:
    return f"{label(split, SPLITS)}, {label(direction, DIRECTIONS)}, {metric}"


def _in_house_order(rows: pd.DataFrame) -> pd.DataFrame:
    datasets = sorted(set(rows["dataset"]))
    if len(datasets) > 1:
        raise ResultsError(f"differences of one dataset at a time; there are {', '.join(datasets)}")
    known = {"split": SPLITS, "direction": DIRECTIONS}

    def place(column: pd.Series) -> pd.Series:
        order = in_order(column, known.get(column.name, {}))
        return column.map({name: i for i, name in enumerate(order)})

    return rows.sort_values(_KEYS, key=place, kind="stable")


def _table(lines: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=list(COLUMNS))
