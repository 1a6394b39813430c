"""Figures from stored result rows and training logs. Nothing here trains or measures.

`apply_style` first; then each function returns a figure for `save_figure`, and the table behind it
goes to `save_table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entityclip.ablation_plots import (
    describe_leak,
    leak_table,
    matching_table,
    plot_doses,
    plot_leak,
    plot_matching,
)
from entityclip.attention_plots import (
    ReadPair,
    SeenPicture,
    plot_patch_attention,
    plot_word_attention,
    read_pairs,
)
from entityclip.forest import forest_table, plot_forest
from entityclip.galleries import plot_gallery, plot_retrieval_gallery
from entityclip.gate_plots import gate_table, plot_gates
from entityclip.metrics import METRICS
from entityclip.seed_curves import plot_seed_curves, seed_curves
from entityclip.sheets import Sheet, save_sheet, sheet_latex, sheet_markdown
from entityclip.space_plots import plot_space, space_numbers, space_table
from entityclip.style import (
    COLUMN,
    DIRECTIONS,
    GREY,
    PAGE,
    PALETTE,
    SPLITS,
    VARIANTS,
    Marks,
    apply_style,
    in_order,
    label,
    legend_columns,
    marks,
    preview,
    save_figure,
    save_table,
    variant_legend,
)
from entityclip.tables import (
    reported_cells,
    reported_values,
    retrieval_markdown,
    retrieval_sheet,
    retrieval_table,
)
from entityclip.training_logs import log_table, read_log
from entityclip.training_plots import plot_training_curves
from entityclip.variant_differences import describe_differences, difference_sheet

__all__ = [
    "ReadPair",
    "SeenPicture",
    "Sheet",
    "apply_style",
    "describe_differences",
    "describe_leak",
    "difference_sheet",
    "forest_table",
    "gate_table",
    "leak_table",
    "log_table",
    "matching_table",
    "plot_doses",
    "plot_forest",
    "plot_gallery",
    "plot_gates",
    "plot_leak",
    "plot_lengths",
    "plot_matching",
    "plot_patch_attention",
    "plot_recall_curves",
    "plot_retrieval",
    "plot_retrieval_gallery",
    "plot_seed_curves",
    "plot_space",
    "plot_training_curves",
    "plot_word_attention",
    "preview",
    "read_log",
    "read_pairs",
    "reported_cells",
    "reported_values",
    "retrieval_markdown",
    "retrieval_sheet",
    "retrieval_table",
    "save_figure",
    "save_sheet",
    "save_table",
    "seed_curves",
    "sheet_latex",
    "sheet_markdown",
    "space_numbers",
    "space_table",
]

_SHOWN = ("R@1", "R@5", "R@10")
_RECALLS = tuple(metric for metric in METRICS if metric.startswith("R@"))


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """R@1, R@5 and R@10 of each variant with 95 % intervals; a column a split, a row a direction.

    `table` is `retrieval_table` of one dataset. What was not measured is left empty.
    """
    _check(table)
    splits, directions = in_order(table["split"], SPLITS), in_order(table["direction"], DIRECTIONS)
    variants = marks(in_order(table["variant"], VARIANTS))
    figure, axes = plt.subplots(
        len(directions),
        len(splits),
        figsize=(PAGE, 0.5 + 2.1 * len(directions)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for i, direction in enumerate(directions):
        for j, split in enumerate(splits):
            chosen = table[(table["split"] == split) & (table["direction"] == direction)]
            _intervals(axes[i, j], chosen, variants)
            axes[i, j].set_title(_title(split, direction), loc="left")
        axes[i, 0].set_ylabel("recall (%)")
    variant_legend(figure, variants)
    return figure


def plot_recall_curves(rows: pd.DataFrame, direction: str = "text_to_image") -> Figure:
    """Recall@K against K of each variant, one direction, a panel a split, with 95 % bands.

    `rows` are `read_rows` of one dataset.
    """
    table = retrieval_table(rows[rows["direction"] == direction])
    _check(table)
    splits, variants = (
        in_order(table["split"], SPLITS),
        marks(in_order(table["variant"], VARIANTS)),
    )
    figure, axes = plt.subplots(
        1, len(splits), figsize=(PAGE, 2.7), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, split in zip(axes[0], splits, strict=True):
        _curves(axis, table[table["split"] == split], variants)
        axis.set_title(_title(split, direction), loc="left")
    axes[0, 0].set_ylabel("recall@K (%)")
    variant_legend(figure, variants)
    return figure


def plot_lengths(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """Histograms of text lengths in tokens, by kind of text, against the encoder's limit."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    longest = max(limit, *(max(tokens) for tokens in lengths.values()))
    width = -(-longest // 60)  # whole tokens: uneven bins would draw peaks that are not there
    bins = np.arange(0.5, longest + width + 0.5, width)
    for (kind, tokens), colour in zip(lengths.items(), PALETTE, strict=False):
        axis.hist(tokens, bins=bins, color=colour, alpha=0.7, label=kind)
    axis.axvline(limit, color=GREY, linestyle="--", linewidth=1, label=f"limit ({limit})")
    axis.set(xlabel="tokens", ylabel="texts", xlim=(0, longest * 1.03))
    figure.legend(loc="outside lower center", ncols=legend_columns(len(lengths) + 1, 3))
    return figure


def _intervals(axis: Axes, rows: pd.DataFrame, variants: Marks) -> None:
    apart = 0.8 / len(variants)
    for i, (variant, (colour, marker)) in enumerate(variants.items()):
        for _, row in rows[rows["variant"] == variant].iterrows():
            value, low, high = _numbers(row, _SHOWN)
            at = np.arange(len(_SHOWN)) + (i - (len(variants) - 1) / 2) * apart
            axis.vlines(at, low, high, color=colour, linewidth=1.2)
            axis.plot(at, value, marker, color=colour, clip_on=False, zorder=3)  # above the axis
            # beyond four variants the numbers would run into each other; the table has them
            for x, y, top in zip(at, value, np.fmax(value, high), strict=True):
                if not np.isnan(y) and len(variants) <= 4:
                    axis.annotate(
                        "100" if y == 100 else f"{y:.1f}",
                        (x, top),
                        xytext=(0, 2.5),
                        textcoords="offset points",
                        ha="center",
                        va="bottom",
                        fontsize=6.5,
                        color=colour,
                    )
    axis.set(xlim=(-0.5, len(_SHOWN) - 0.5), ylim=(0, 109), yticks=range(0, 101, 25))
    axis.set_xticks(range(len(_SHOWN)), labels=_SHOWN)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)


def _curves(axis: Axes, rows: pd.DataFrame, variants: Marks) -> None:
    ks = [int(metric[2:]) for metric in _RECALLS]
    for variant, (colour, marker) in variants.items():
        for _, row in rows[rows["variant"] == variant].iterrows():
            value, low, high = _numbers(row, _RECALLS)
            axis.fill_between(ks, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(ks, value, color=colour, marker=marker, clip_on=False)
    axis.set(xscale="log", xlabel="K", ylim=(0, 103), yticks=range(0, 101, 25))
    axis.set_xticks(ks, labels=map(str, ks))
    axis.minorticks_off()
    axis.grid(axis="y", color="0.9", linewidth=0.6)


def _numbers(row: pd.Series, metrics: tuple[str, ...]) -> list[np.ndarray]:
    """Values, lows and highs of some metrics of one table row."""
    return [
        row[[metric + end for metric in metrics]].to_numpy(float) for end in ("", "_low", "_high")
    ]


def _title(split: str, direction: str) -> str:
    return f"{label(split, SPLITS)}, {label(direction, DIRECTIONS)}"


def _check(table: pd.DataFrame) -> None:
    datasets = sorted(set(table["dataset"]))
    if len(datasets) != 1:
        raise ValueError(
            f"a figure shows one dataset; the table has {', '.join(datasets) or 'no rows'}"
        )
