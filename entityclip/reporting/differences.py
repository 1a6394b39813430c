"""Differences between variants: their table, their forest plot and the sentences about them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entityclip.reporting.charts import beside, grid
from entityclip.reporting.markup import Cell, Sheet, number_cell
from entityclip.reporting.style import BLUE, GREY, PAGE
from entityclip.variants import DIRECTION_LABELS, SPLIT_LABELS, VARIANT_LABELS, label

COLUMNS = ("variant", "label", "group", "value", "low", "high", "seeds")
_ROW = 0.2  # inches


def forest_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`statistics.difference_table` with COLUMNS, as `plot_forest` wants it.

    Where all are compared with one variant, labels name only what is compared with it. Groups stand
    in the house's order of splits and directions.
    """
    places = {
        name: place
        for names in (SPLIT_LABELS, DIRECTION_LABELS)
        for place, name in enumerate(names)
    }
    differences = differences.sort_values(
        ["split", "direction"], key=lambda column: column.map(places), kind="stable"
    )
    one = differences["second"].nunique() == 1
    firsts = differences["first"].map(lambda name: label(name, VARIANT_LABELS))
    seconds = differences["second"].map(lambda name: label(name, VARIANT_LABELS))
    groups = [
        f"{label(row['split'], SPLIT_LABELS)}, {label(row['direction'], DIRECTION_LABELS)}, "
        f"{row['metric']}"
        for _, row in differences.iterrows()
    ]
    table = differences.assign(label=firsts if one else firsts + " − " + seconds, group=groups)
    return table[list(COLUMNS)]


def separable(differences: pd.DataFrame) -> pd.Series:
    """Which differences have an interval that excludes 0; one without an interval is not."""
    return (differences["low"] > 0) | (differences["high"] < 0)


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
    apart, untested = separable(rows), rows["low"].isna()
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
    Raises ValueError for an empty table or one that lacks a column.
    """
    lacking = [name for name in COLUMNS if name not in differences]
    if lacking or differences.empty:
        raise ValueError(f"no differences to show{': no ' + ', '.join(lacking) if lacking else ''}")
    groups = list(differences.groupby("group", sort=False))
    lines = len(differences) + len(groups) + 0.6 * (len(groups) - 1)
    figure = plt.figure(figsize=(PAGE, 0.75 + _ROW * lines), layout="constrained")
    axis = figure.add_subplot()
    y, places, names = 0.0, [], []
    for group, rows in groups:
        places.append(y)
        names.append(group)
        for _, row in rows.iterrows():
            y += 1
            _difference(axis, y, row)
            places.append(y)
            names.append(row["label"])
        y += 1.6
    axis.axvline(0, color=GREY, linewidth=0.9, zorder=0)
    axis.set(ylim=(y - 1.6 + 0.7, -0.7), xlabel=title)
    axis.set_yticks(places, labels=names, parse_math=False)
    headings = np.cumsum([0, *(len(rows) + 1 for _, rows in groups[:-1])])
    for number, text in enumerate(axis.get_yticklabels()):
        text.set_fontweight("bold" if number in headings else "normal")
    axis.tick_params(axis="y", length=0)
    grid(axis, "x")
    axis.spines["left"].set_visible(False)
    return figure


def _difference(axis: Axes, y: float, row: pd.Series) -> None:
    low, value, high = row["low"], row["value"], row["high"]
    if np.isnan(value):
        return
    if not np.isnan(low):
        axis.hlines(y, low, high, color=BLUE, linewidth=1.4)
    face = BLUE if low > 0 or high < 0 else "white"
    axis.plot(value, y, "o", markersize=5, color=BLUE, markerfacecolor=face, markeredgewidth=1.2)
    interval = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    seeds = f"{row['seeds']:.0f} seed{'s' if row['seeds'] != 1 else ''}"
    numbers = f"{value:+.1f}{interval}".replace("-", "−")  # as on the axis
    for text, points in ((numbers, 6), (seeds, 90)):
        beside(axis, text, y, (points, 0), va="center", color="0.25")
