"""Losses over a training, one run's steps and the bands of several seeds; recall by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from entityclip.reporting.style import head, marks, panels, variant_legend
from entityclip.reporting.tables import by_group
from entityclip.results import read_log
from entityclip.statistics import over_seeds
from entityclip.variants import (
    CURVE_SPLITS,
    NAME_BINS,
    NAMES_CUT,
    SPLIT_LABELS,
    TERM,
    VARIANT_LABELS,
    in_order,
    label,
)

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


def name_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Recall by how often training captions hold a query's rarest name, from rows of kind "names".

    Columns: `split`, `variant`, `training captions` (a bin of NAME_BINS), `metric`, `queries`,
    `value`, `low`, `high` (over seeds), `seeds`; and what is left with the names cut, where that
    was measured, as the bin "names cut".
    """
    told = rows["metric"].str.extract(r"^(R@\d+), (?:rarest name in (.+) training captions|(.+))$")
    rows = rows.assign(metric=told[0], bin=told[1].fillna(told[2]))

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        found = over_seeds(group)._asdict()
        return {"queries": int(group["n_queries"].iloc[0]), **found, "seeds": len(group)}

    table = by_group(rows, ["split", "variant", "bin", "metric"], numbers)
    places = {name: place for place, name in enumerate([*NAME_BINS.values(), NAMES_CUT])}
    order = table.assign(place=table["bin"].map(places)).sort_values(
        ["split", "metric", "place"], kind="stable"
    )
    found = order.drop(columns="place").rename(columns={"bin": "training captions"})
    return found.reset_index(drop=True)


def plot_by_name(table: pd.DataFrame) -> Figure:
    """R@10 against the bins of `name_table`, a panel a split; a point is a variant's mean."""
    table = table[table["metric"] == "R@10"]
    splits = in_order(table["split"], SPLIT_LABELS)
    variants = marks(in_order(table["variant"], VARIANT_LABELS))
    figure, (axes,) = panels(1, len(splits), 2.8, sharey=True)
    for axis, split in zip(axes, splits, strict=True):
        here = table[table["split"] == split]
        bins = [b for b in (*NAME_BINS.values(), NAMES_CUT) if b in set(here["training captions"])]
        for number, (variant, (colour, marker)) in enumerate(variants.items()):
            rows = here[here["variant"] == variant].set_index("training captions")
            places = [bins.index(name) + 0.08 * (number - len(variants) / 2) for name in rows.index]
            ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            axis.errorbar(places, rows["value"], ends, color=colour, fmt=marker, linewidth=1)
        counts = here.groupby("training captions")["queries"].first()
        short = [name.replace(" and more", "+").replace("names ", "names\n") for name in bins]
        ticks = [f"{said}\n({counts[name]})" for said, name in zip(short, bins, strict=True)]
        axis.set_xticks(range(len(bins)), ticks)
        axis.set_xlim(-0.6, len(bins) - 0.4)
        head(axis, label(split, SPLIT_LABELS), len(splits))
    axes[len(splits) // 2].set_xlabel("training captions with the rarest name (queries)")
    axes[0].set_ylabel("text to picture, R@10 (%)")
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
