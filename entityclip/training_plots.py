"""Training curves of one run a variant: every step, every validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from entityclip.style import PAGE, VARIANTS, in_order, marks, variant_legend
from entityclip.training_logs import Log, read_log

TERMS = {"vtc": "VTC", "vtc_moe": "VTC of the experts", "itm": "GI-ITM"}


def plot_training_curves(logs: Mapping[str, Log | str | Path], term: str = "vtc") -> Figure:
    """One loss term in training and in validation, and the other terms where a log has any.

    `logs` holds `read_log`, or the log's path, by variant. `term` is what all variants share and so
    may be compared. Training shows each step faintly and a running median; a ring marks the epoch
    whose checkpoint is kept, that of the lowest total validation loss. Raises ValueError for no
    logs and for a log without the term.
    """
    read = {
        name: read_log(log) if isinstance(log, str | Path) else log for name, log in logs.items()
    }
    lacking = [name for name, (steps, _) in read.items() if term not in steps]
    if lacking or not read:
        raise ValueError(f"no {term!r} in the logs of {', '.join(lacking) or 'nothing'}")
    variants = marks(in_order(pd.Series(list(read)), VARIANTS))
    others = [
        name for name in TERMS if name != term and any(name in steps for steps, _ in read.values())
    ]
    figure, axes = plt.subplots(1, 3 if others else 2, figsize=(PAGE, 2.7), layout="constrained")
    for variant, (colour, marker) in variants.items():
        steps, validations = read[variant]
        axes[0].plot(steps["step"], steps[term], color=colour, alpha=0.25, linewidth=0.6)
        axes[0].plot(steps["step"], _smooth(steps[term]), color=colour)
        _validation(axes[1], validations, term, colour, marker)
        for name, dashes in zip(others, ("-", "--"), strict=False):
            if name in steps:
                axes[2].plot(steps["step"], _smooth(steps[name]), color=colour, linestyle=dashes)
    _name_terms(axes, term, others)
    variant_legend(figure, variants)
    return figure


def _validation(axis: Axes, rows: pd.DataFrame, term: str, colour: str, marker: str) -> None:
    if rows.empty:
        return
    name = f"val_{term}" if f"val_{term}" in rows else "val_loss"
    axis.plot(rows["epoch"], rows[name], color=colour, marker=marker)
    kept = rows.loc[rows["val_loss"].idxmin()]
    axis.plot(
        *(kept["epoch"], kept[name]),
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor=colour,
    )


def _name_terms(axes: np.ndarray, term: str, others: list[str]) -> None:
    axes[0].set(xlabel="step", ylabel=TERMS.get(term, term))
    axes[0].set_title("Training", loc="left")
    axes[1].set(xlabel="epoch")
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes[1].set_title("Validation (ring: kept)", loc="left")
    if others:
        axes[2].set(xlabel="step")
        axes[2].set_title("Further terms, training", loc="left")
        handles = [
            Line2D([], [], color="0.3", linestyle=dashes, label=TERMS[name])
            for name, dashes in zip(others, ("-", "--"), strict=False)
        ]
        axes[2].legend(handles=handles, loc="upper right")


def _smooth(values: pd.Series) -> pd.Series:
    # a median: one bad batch should not look like a trend
    window = max(1, len(values) // 25)
    return values.rolling(window, center=True, min_periods=1).median()
