"""Losses over a training: one run's steps, and the bands of several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from entityclip.reporting.style import marks, panels, variant_legend
from entityclip.results import read_log
from entityclip.variants import CURVE_SPLITS, TERM, VARIANT_LABELS, in_order

_PHASES = {"training": "Training (mean of each epoch)", "validation": "Validation"}
TERMS = {"vtc": "VTC", "vtc_moe": "VTC of the experts", "itm": "GI-ITM"}


def seed_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """A loss by epoch over the seeds of each variant, from rows of kind "curves".

    Columns: `variant`, `phase` ("training": mean over the epoch's steps, or "validation"), `epoch`,
    `seeds`, `mean`, `low` and `high` (least and greatest seed). An epoch that a seed has not
    reached is left out, so that every point is over all seeds.
    """
    phases = dict(zip(CURVE_SPLITS, _PHASES, strict=True))
    epochs = rows["metric"].str.extract(r"epoch (\d+)$", expand=False).astype(int)
    curves = rows.assign(phase=rows["split"].map(phases), epoch=epochs)
    curves["seeds"] = curves.groupby(["variant", "phase"])["seed"].transform("nunique")
    by_epoch = curves.groupby(["variant", "phase", "epoch", "seeds"])["value"]
    table = by_epoch.agg(["count", "mean", "min", "max"]).reset_index()
    table = table[table["count"] == table["seeds"]].drop(columns="count")
    return table.rename(columns={"min": "low", "max": "high"}).reset_index(drop=True)


def plot_seed_curves(curves: pd.DataFrame) -> Figure:
    """Mean line and least-to-greatest band over seeds of each variant, from `seed_curves`.

    Raises ValueError for an empty table.
    """
    if curves.empty:
        raise ValueError("nothing to show: no curves")
    variants = marks(in_order(curves["variant"], VARIANT_LABELS))
    figure, (axes,) = panels(1, 2, 2.7, sharex=True)
    for axis, (phase, title) in zip(axes, _PHASES.items(), strict=True):
        for variant, (colour, marker) in variants.items():
            rows = curves[(curves["variant"] == variant) & (curves["phase"] == phase)]
            band = {"color": colour, "alpha": 0.18, "linewidth": 0}
            axis.fill_between(rows["epoch"], rows["low"], rows["high"], **band)
            axis.plot(rows["epoch"], rows["mean"], color=colour, marker=marker)
        _name_axis(axis, title, "epoch")
    axes[0].set_ylabel(TERMS[TERM])
    seeds = curves.groupby("variant")["seeds"].first()
    ends = {v: " (1 seed)" if seeds[v] == 1 else f" ({seeds[v]} seeds)" for v in variants}
    variant_legend(figure, variants, ends)
    return figure


def plot_training_curves(logs: Mapping[str, str | Path], term: str = "vtc") -> Figure:
    """One loss term in training and in validation, and the other terms where a log has any.

    `logs` holds the path of each variant's ``log.jsonl``. `term` is what all variants share and so
    may be compared. Training shows each step faintly and a running median; a ring marks the epoch
    whose checkpoint is kept, the lowest of what the run chose by. Raises ValueError for no logs and
    for a log without the term.
    """
    read = {name: read_log(path) for name, path in logs.items()}
    lacking = [name for name, (steps, _) in read.items() if term not in steps]
    if lacking or not read:
        raise ValueError(f"no {term!r} in the logs of {', '.join(lacking) or 'nothing'}")
    variants = marks(in_order(pd.Series(list(read)), VARIANT_LABELS))
    others = [n for n in TERMS if n != term and any(n in steps for steps, _ in read.values())]
    dashes = dict(zip(others, ("-", "--"), strict=False))
    figure, (axes,) = panels(1, 3 if others else 2, 2.7)
    for variant, (colour, marker) in variants.items():
        steps, validations = read[variant]
        axes[0].plot(steps["step"], steps[term], color=colour, alpha=0.25, linewidth=0.6)
        axes[0].plot(steps["step"], _smooth(steps[term]), color=colour)
        _validation(axes[1], validations, term, colour, marker)
        for name, style in dashes.items():
            if name in steps:
                axes[2].plot(steps["step"], _smooth(steps[name]), color=colour, linestyle=style)
    axes[0].set_ylabel(TERMS.get(term, term))
    _name_axis(axes[0], "Training", "step")
    _name_axis(axes[1], "Validation (ring: kept)", "epoch")
    if others:
        _name_axis(axes[2], "Further terms, training", "step")
        lines = [
            Line2D([], [], color="0.3", linestyle=d, label=TERMS[n]) for n, d in dashes.items()
        ]
        axes[2].legend(handles=lines, loc="upper right")
    variant_legend(figure, variants)
    return figure


def _validation(axis: Axes, rows: pd.DataFrame, term: str, colour: str, marker: str) -> None:
    if rows.empty:
        return
    name = f"val_{term}" if f"val_{term}" in rows else "val_loss"
    axis.plot(rows["epoch"], rows[name], color=colour, marker=marker)
    chosen_by = rows["best_by"].iloc[-1] if "best_by" in rows else "val_loss"
    kept = rows.loc[rows[chosen_by].idxmin()]
    ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": colour}
    axis.plot(kept["epoch"], kept[name], marker="o", **ring)


def _name_axis(axis: Axes, title: str, steps: str) -> None:
    axis.set_title(title, loc="left")
    axis.set_xlabel(steps)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _smooth(values: pd.Series) -> pd.Series:
    # a median: one bad batch should not look like a trend
    window = max(1, len(values) // 25)
    return values.rolling(window, center=True, min_periods=1).median()
