"""Differences between variants with their intervals: the tables behind them and a forest plot."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entityclip.style import BLUE, DIRECTIONS, GREY, PAGE, SPLITS, VARIANTS, label

_ROW = 0.2  # inches
COLUMNS = ("variant", "label", "group", "value", "low", "high", "seeds")


def forest_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`comparison.difference_table` with COLUMNS, as `plot_forest` wants it.

    Where all are compared with one variant, labels name only what is compared with it. Groups stand
    in the house's order of splits and directions.
    """
    places = {name: place for names in (SPLITS, DIRECTIONS) for place, name in enumerate(names)}
    differences = differences.sort_values(
        ["split", "direction"], key=lambda column: column.map(places), kind="stable"
    )
    one = differences["second"].nunique() == 1
    firsts = differences["first"].map(lambda name: label(name, VARIANTS))
    seconds = differences["second"].map(lambda name: label(name, VARIANTS))
    groups = [
        f"{label(row['split'], SPLITS)}, {label(row['direction'], DIRECTIONS)}, {row['metric']}"
        for _, row in differences.iterrows()
    ]
    table = differences.assign(label=firsts if one else firsts + " − " + seconds, group=groups)
    return table[list(COLUMNS)]


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
    axis.grid(axis="x", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    return figure


def separable(differences: pd.DataFrame) -> pd.Series:
    """Which differences have an interval that excludes 0; one without an interval is not."""
    return (differences["low"] > 0) | (differences["high"] < 0)


def _difference(axis: Axes, y: float, row: pd.Series) -> None:
    low, value, high = row["low"], row["value"], row["high"]
    if np.isnan(value):
        return
    if not np.isnan(low):
        axis.hlines(y, low, high, color=BLUE, linewidth=1.4)
    apart = low > 0 or high < 0
    axis.plot(
        value,
        y,
        "o",
        markersize=5,
        color=BLUE,
        markerfacecolor=BLUE if apart else "white",
        markeredgewidth=1.2,
    )
    interval = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    seeds = f"{row['seeds']:.0f} seed{'s' if row['seeds'] != 1 else ''}"
    numbers = f"{value:+.1f}{interval}".replace("-", "−")  # as on the axis
    for text, points in ((numbers, 6), (seeds, 90)):
        axis.annotate(
            text,
            (1, y),
            xycoords=axis.get_yaxis_transform(),
            xytext=(points, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color="0.25",
        )
