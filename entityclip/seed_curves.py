"""Training curves of several seeds: a mean and how far seeds lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from entityclip.style import PAGE, VARIANTS, in_order, label, legend_columns, marks
from entityclip.training_logs import Log, read_log

_PHASES = {"training": "Training (mean of each epoch)", "validation": "Validation"}


def seed_curves(logs: Mapping[str, Sequence[Log | str | Path]], term: str = "vtc") -> pd.DataFrame:
    """One loss term by epoch over the seeds of each variant; `logs` holds a log a seed.

    Columns: `variant`, `phase` ("training": mean over the epoch's steps, or "validation"), `epoch`,
    `seeds`, `mean`, `low` and `high` (least and greatest seed). An epoch that a seed has not
    reached is left out, so that every point is over all seeds. Raises ValueError for no logs and
    for a log without the term.
    """
    tables = []
    for variant, seeds in logs.items():
        read = [log if isinstance(log, tuple) else read_log(log) for log in seeds]
        if not read or any(term not in steps for steps, _ in read):
            raise ValueError(f"no {term!r} in the logs of {variant}")
        for phase in _PHASES:
            by_seed = pd.concat([_by_epoch(log, phase, term) for log in read], axis=1).dropna()
            tables.append(
                pd.DataFrame(
                    {
                        "variant": variant,
                        "phase": phase,
                        "epoch": by_seed.index.astype(int),
                        "seeds": by_seed.shape[1],
                        "mean": by_seed.mean(axis=1).to_numpy(),
                        "low": by_seed.min(axis=1).to_numpy(),
                        "high": by_seed.max(axis=1).to_numpy(),
                    }
                )
            )
    if not tables:
        raise ValueError(f"no {term!r} in the logs of nothing")
    return pd.concat(tables, ignore_index=True)


def plot_seed_curves(curves: pd.DataFrame, name: str = "VTC") -> Figure:
    """Mean line and least-to-greatest band over seeds of each variant, from `seed_curves`.

    `name` is the term's, as the axis should say it. Raises ValueError for an empty table.
    """
    if curves.empty:
        raise ValueError("nothing to show: no curves")
    variants = marks(in_order(curves["variant"], VARIANTS))
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.7), sharex=True, layout="constrained")
    for axis, (phase, title) in zip(axes, _PHASES.items(), strict=True):
        for variant, (colour, marker) in variants.items():
            rows = curves[(curves["variant"] == variant) & (curves["phase"] == phase)]
            axis.fill_between(
                rows["epoch"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0
            )
            axis.plot(rows["epoch"], rows["mean"], color=colour, marker=marker)
        axis.set_title(title, loc="left")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes[0].set_ylabel(name)
    seeds = curves.groupby("variant")["seeds"].first()
    lines = [
        Line2D([], [], color=colour, marker=marker, label=_named(variant, seeds[variant]))
        for variant, (colour, marker) in variants.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=legend_columns(len(lines), 3))
    return figure


def _by_epoch(log: Log, phase: str, term: str) -> pd.Series:
    steps, validations = log
    if phase == "training":
        return steps.groupby("epoch")[term].mean()
    if f"val_{term}" not in validations:  # killed before its first validation
        return pd.Series(dtype=float)
    return validations.groupby("epoch")[f"val_{term}"].last()


def _named(variant: str, seeds: int) -> str:
    ends = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"{label(variant, VARIANTS)} ({ends})".replace("$", r"\$")
