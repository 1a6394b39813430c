"""Differences between variants: their table, their forest plot and the sentences about them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entityclip.reporting.markup import Cell, Sheet, number_cell
from entityclip.reporting.style import BLUE, GREY, beside, grid, panels
from entityclip.results import ResultsError
from entityclip.variants import DIRECTION_LABELS, SPLIT_LABELS, VARIANT_LABELS

COLUMNS = ("variant", "label", "group", "value", "low", "high", "seeds")
_ROW = 0.2  # inches


def forest_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`statistics.difference_table` with COLUMNS, as `plot_forest` wants it.

    Where all are compared with one variant, labels name only what is compared with it. Groups stand
    in the house's order of splits and directions.
    """
    places = {name: i for names in (SPLIT_LABELS, DIRECTION_LABELS) for i, name in enumerate(names)}
    table = differences.sort_values(
        ["split", "direction"], key=lambda column: column.map(places), kind="stable"
    )
    first, second = (table[side].replace(VARIANT_LABELS) for side in ("first", "second"))
    split, direction = table["split"].replace(SPLIT_LABELS), table["direction"]
    group = split + ", " + direction.replace(DIRECTION_LABELS) + ", " + table["metric"]
    one = second.nunique() == 1
    return table.assign(label=first if one else first + " − " + second, group=group)[list(COLUMNS)]


def difference_sheet(differences: pd.DataFrame, reference: str = "") -> Sheet:
    """A differences table as printed, with a sentence made from its numbers below."""
    blocks = [
        [
            [
                row["group"],
                row["label"],
                number_cell(*row[["value", "low", "high"]], over_seeds=False, sign="+"),
                Cell(f"{row['seeds']:.0f}"),
            ]
            for _, row in rows.iterrows()
        ]
        for _, rows in differences.groupby("group", sort=False)
    ]
    notes = describe_differences(differences, reference)
    return Sheet(["Group", "Variant", "Difference", "Seeds"], blocks, 2, notes)


def describe_differences(differences: pd.DataFrame, reference: str = "") -> list[str]:
    """A sentence a group: what is better, what is worse, what these intervals cannot separate.

    `differences` has COLUMNS. `reference` is what was subtracted, as a reader should see
    it; "" where labels say so themselves ("a − b"), for which better and worse mean a. A
    difference without an interval is named as untested, never as a finding.
    """
    return [
        f"{group}: {'; '.join(_verdicts(rows, reference))}."
        for group, rows in differences.groupby("group", sort=False)
    ]


def _verdicts(rows: pd.DataFrame, reference: str) -> list[str]:
    apart, untested = (rows["low"] > 0) | (rows["high"] < 0), rows["low"].isna()
    better = rows["value"] > 0  # all of what is compared is a share of hits
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


def plot_forest(differences: pd.DataFrame, title: str = "difference") -> Figure:
    """One line a difference, under its group's heading; the zero line means "no difference".

    `differences` has COLUMNS: `value` with its 95 % interval `low` to `high` in the metric's unit,
    `seeds` it is over; groups and rows are drawn in the table's order. A mark is filled where the
    interval excludes 0, hollow where it does not or where there is none. `title` names the axis.
    Raises ResultsError for an empty table.
    """
    if differences.empty:
        raise ResultsError("no differences to show")
    groups = differences.groupby("group", sort=False)
    lines = len(differences) + groups.ngroups + 0.6 * (groups.ngroups - 1)
    figure, ((axis,),) = panels(1, 1, 0.75 + _ROW * lines)
    y, places, names, weights = -1.6, [], [], []
    for group, rows in groups:
        y += 1.6
        places.append(y)
        for _, row in rows.iterrows():
            y += 1
            _difference(axis, y, row)
            places.append(y)
        names += [group, *rows["label"]]
        weights += ["bold", *["normal"] * len(rows)]
    axis.axvline(0, color=GREY, linewidth=0.9, zorder=0)
    axis.set(ylim=(y + 0.7, -0.7), xlabel=title)
    axis.set_yticks(places, labels=names)
    for text, weight in zip(axis.get_yticklabels(), weights, strict=True):
        text.set_fontweight(weight)
    axis.tick_params(axis="y", length=0)
    grid(axis, "x")
    axis.spines["left"].set_visible(False)
    return figure


def _difference(axis: Axes, y: float, row: pd.Series) -> None:
    low, value, high = row["low"], row["value"], row["high"]
    if not np.isnan(low):
        axis.hlines(y, low, high, color=BLUE, linewidth=1.4)
    face = BLUE if low > 0 or high < 0 else "white"
    axis.plot(value, y, "o", markersize=5, color=BLUE, markerfacecolor=face, markeredgewidth=1.2)
    interval = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    seeds = f"{row['seeds']:.0f} seed{'s' if row['seeds'] != 1 else ''}"
    numbers = f"{value:+.1f}{interval}".replace("-", "−")  # as on the axis
    for text, points in ((numbers, 6), (seeds, 90)):
        beside(axis, text, y, (points, 0), va="center", color="0.25")
