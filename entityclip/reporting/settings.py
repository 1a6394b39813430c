"""What other settings give, as notebook 13 shows it: a grid of two weights, and what steps cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from entityclip.reporting.markup import Cell, Sheet
from entityclip.reporting.style import BLUE, HEAT, grid, head, panels
from entityclip.reporting.tables import by_group
from entityclip.statistics import over_seeds
from entityclip.variants import (
    COSTS,
    SPLIT_LABELS,
    VARIANT_LABELS,
    in_order,
    label,
)

_NO_BOUNDS = (0.0, np.inf)


def plot_grid(table: pd.DataFrame) -> Figure:
    """R@1, text to picture, by λ (rows) and η (columns) of `recall_table`, a panel a split.

    `variant` is "λ × η". Colours compare the cells of a panel, a point of difference or more being
    half of the scale; cells say the value and its 95 % interval. What was not measured is blank.
    """
    table = table[table["direction"] == "text_to_image"]
    places = table["variant"].str.split(" × ", expand=True).astype(float)
    table = table.assign(moe=places[0], itm=places[1])
    splits = in_order(table["split"], SPLIT_LABELS)
    rows, columns = (sorted(set(table[name])) for name in ("moe", "itm"))
    figure, (axes,) = panels(1, len(splits), 1.1 + 0.45 * len(rows), sharey=True)
    for axis, split in zip(axes, splits, strict=True):
        here = table[table["split"] == split].set_index(["moe", "itm"])
        values, low, high = (
            here[f"R@1{end}"].unstack().reindex(index=rows, columns=columns).to_numpy(float)
            for end in ("", "_low", "_high")
        )
        least, most = np.nanmin(values), np.nanmax(values)
        room = max(most - least, 1) / 2  # so that neither end is white or black, nor noise an end
        norm = Normalize(least - room, most + room)
        axis.imshow(values, cmap=HEAT, norm=norm, aspect="auto")
        axis.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
        axis.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
        axis.tick_params(length=0)
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                text = f"{value:.1f}\n[{low[i, j]:.1f}, {high[i, j]:.1f}]"
                colour = "white" if norm(value) > 0.6 else "black"
                axis.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
        head(axis, f"{label(split, SPLIT_LABELS)}, R@1 (%)", len(splits))
    axes[len(splits) // 2].set_xlabel("η, weight of GI-ITM")
    axes[0].set_ylabel("λ, weight of VTC(V*, T*)")
    return figure


def cost_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a data set and variant, a column each of COSTS with `_low` and `_high`; the device.

    From rows of kind "cost"; of several seeds the first, since weights change no cost.
    """
    rows = rows[rows["seed"] == rows.groupby(["dataset", "variant"])["seed"].transform("min")]

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        line: dict[str, Any] = {"device": group["device"].iloc[0]}
        line |= {"batch": int(group["n_queries"].iloc[0])}
        line |= {"pictures": int(group["n_candidates"].iloc[0])}
        for metric in COSTS:
            found = over_seeds(group[group["metric"] == metric], _NO_BOUNDS)
            line |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), found, strict=True))
        return line

    return by_group(rows, ["dataset", "variant"], numbers)


def cost_sheet(table: pd.DataFrame) -> Sheet:
    """`cost_table` as printed: a block a data set; times with their range over repeats."""
    timed = ("ms a pair", "query")
    blocks = []
    for _, group in table.groupby("dataset", sort=False):
        block = []
        for _, row in group.iterrows():
            cells = []
            for name in COSTS:
                value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
                span = f"[{low:.3g}, {high:.3g}]" if name in timed else ""
                cells.append(Cell(f"{value:.3g}", span))
            block.append([row["dataset"], label(row["variant"], VARIANT_LABELS), *cells])
        blocks.append(block)
    notes = [
        f"Times are medians and ranges on {row.device}, batches of {row.batch}, queries among "
        f"{row.pictures} pictures of {row.dataset}."
        for row in table.drop_duplicates("dataset").itertuples()
    ]
    return Sheet(["Dataset", "Variant", *COSTS.values()], blocks, 2, notes)


def plot_costs(table: pd.DataFrame) -> Figure:
    """Each of COSTS as a panel, a bar a variant; a line spans the repeats of what was timed."""
    first = table[table["dataset"] == table["dataset"].iloc[0]]
    names = [label(variant, VARIANT_LABELS) for variant in first["variant"]]
    figure, axes = panels(2, 3, 1.0 + 0.5 * len(names), sharey=True)
    for axis, (metric, title) in zip(axes.flat, COSTS.items(), strict=True):
        places = np.arange(len(first))[::-1]
        axis.barh(places, first[metric], height=0.6, color=BLUE)
        axis.hlines(places, first[f"{metric}_low"], first[f"{metric}_high"], color="0.2")
        ends = first[f"{metric}_high"]
        for place, value, end in zip(places, first[metric], ends, strict=True):
            axis.text(end, place, f" {value:.3g}", va="center", fontsize=6.5, color="0.25")
        axis.set_yticks(places, names)
        axis.set_xlim(0, 1.25 * first[f"{metric}_high"].max() or 1)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_title(title, loc="left")
        axis.tick_params(axis="y", length=0)
        grid(axis, "x")
    return figure
