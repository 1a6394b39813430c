"""Figures from stored result rows and training logs. Nothing here trains or measures.

`apply_style` first; then each function returns a figure for `save_figure`, and the table behind it
goes to `save_table`.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entityclip.galleries import plot_gallery, plot_retrieval_gallery
from entityclip.metrics import METRICS
from entityclip.style import (
    DIRECTIONS,
    PAGE,
    SPLITS,
    VARIANTS,
    apply_style,
    in_order,
    label,
    marks,
    save_figure,
    save_table,
)
from entityclip.tables import (
    Log,
    read_log,
    reported_values,
    retrieval_markdown,
    retrieval_table,
)

__all__ = [
    "apply_style",
    "plot_gallery",
    "plot_recall_curves",
    "plot_retrieval",
    "plot_retrieval_gallery",
    "plot_training_curves",
    "read_log",
    "reported_values",
    "retrieval_markdown",
    "retrieval_table",
    "save_figure",
    "save_table",
]

Marks = dict[str, tuple[str, str]]  # (colour, marker) by variant
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
    _legend(figure, variants)
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
    _legend(figure, variants)
    return figure


def plot_training_curves(logs: Mapping[str, Log], term: str = "loss") -> Figure:
    """A loss of each step, faint, and its running median; and the validation loss of each epoch.

    `logs` holds `read_log` by variant; `term` is the logged loss to draw: the total, or "vtc",
    which variants with other terms have in common. The best epoch is ringed. Raises ValueError for
    no logs and for a term that no log has.
    """
    if not any(term in steps for steps, _ in logs.values()):
        raise ValueError(f"no log has {term!r}; logs are of {', '.join(logs) or 'nothing'}")
    variants = marks(in_order(pd.Series(list(logs)), VARIANTS))
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.7), layout="constrained")
    for variant, (colour, marker) in variants.items():
        steps, validations = logs[variant]
        if term in steps and len(steps):
            left.plot(steps["step"], steps[term], color=colour, alpha=0.25, linewidth=0.6)
            left.plot(steps["step"], _smooth(steps[term]), color=colour)
        if len(validations):
            right.plot(validations["epoch"], validations["val_loss"], color=colour, marker=marker)
            best = validations.loc[validations["val_loss"].idxmin()]
            right.plot(
                *(best["epoch"], best["val_loss"]),
                marker="o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=colour,
            )
    left.set(xlabel="step", ylabel="training loss" if term == "loss" else f"training {term}")
    left.set_title("Training (line: running median)", loc="left")
    right.set(xlabel="epoch", ylabel="validation loss")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_title("Validation (ring: lowest)", loc="left")
    _legend(figure, variants)
    return figure


def _intervals(axis: Axes, rows: pd.DataFrame, variants: Marks) -> None:
    apart = 0.8 / len(variants)
    for i, (variant, (colour, marker)) in enumerate(variants.items()):
        for _, row in rows[rows["variant"] == variant].iterrows():
            value, low, high = _numbers(row, _SHOWN)
            at = np.arange(len(_SHOWN)) + (i - (len(variants) - 1) / 2) * apart
            axis.vlines(at, low, high, color=colour, linewidth=1.2)
            axis.plot(at, value, marker, color=colour)
            for x, y, top in zip(at, value, np.fmax(value, high), strict=True):
                if not np.isnan(y):
                    axis.annotate(
                        f"{y:.1f}",
                        (x, top),
                        xytext=(0, 2.5),
                        textcoords="offset points",
                        ha="center",
                        va="bottom",
                        fontsize=6.5 if len(variants) <= 4 else 5.5,
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
            axis.plot(ks, value, color=colour, marker=marker)
    axis.set(xscale="log", xlabel="K", ylim=(0, 103), yticks=range(0, 101, 25))
    axis.set_xticks(ks, labels=map(str, ks))
    axis.minorticks_off()
    axis.grid(axis="y", color="0.9", linewidth=0.6)


def _numbers(row: pd.Series, metrics: tuple[str, ...]) -> list[np.ndarray]:
    """Values, lows and highs of some metrics of one table row."""
    return [
        row[[metric + end for metric in metrics]].to_numpy(float) for end in ("", "_low", "_high")
    ]


def _smooth(values: pd.Series) -> pd.Series:
    # a median: one bad batch should not look like a trend
    window = max(1, len(values) // 25)
    return values.rolling(window, center=True, min_periods=1).median()


def _title(split: str, direction: str) -> str:
    return f"{label(split, SPLITS)}, {label(direction, DIRECTIONS)}"


def _legend(figure: Figure, variants: Marks) -> None:
    lines = [
        Line2D([], [], color=colour, marker=marker, label=label(variant, VARIANTS))
        for variant, (colour, marker) in variants.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(lines)))


def _check(table: pd.DataFrame) -> None:
    datasets = sorted(set(table["dataset"]))
    if len(datasets) != 1:
        raise ValueError(
            f"a figure shows one dataset; the table has {', '.join(datasets) or 'no rows'}"
        )
