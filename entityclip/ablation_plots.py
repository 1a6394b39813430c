"""Figures and tables of the ablations: doses, the leak question, the matching head's accuracy."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entityclip.probes import CONDITIONS, MATCHING
from entityclip.results import ResultsError
from entityclip.seed_intervals import over_seeds
from entityclip.style import (
    DIRECTIONS,
    GREY,
    MARKERS,
    PAGE,
    PALETTE,
    SPLITS,
    VARIANTS,
    Marks,
    in_order,
    label,
    marks,
    variant_legend,
)

# what each knob's table rows are, by its value; EntityCLIP is the paper's point on each axis
DOSES = {
    "experts a group": {
        0: "clip", 1: "experts-1", 2: "experts-2", 4: "entityclip", 8: "experts-8",
    },
    "λ, weight of VTC(V*, T*)": {0.01: "lambda-0.01", 0.1: "entityclip", 1.0: "lambda-1.0"},
}  # fmt: skip
_ASIDE = 0.05  # so that the intervals of two directions stand side by side


def plot_doses(table: pd.DataFrame, *, split: str, metric: str = "R@1") -> Figure:
    """A metric against the number of experts and against λ, both directions, with intervals.

    `table` is `retrieval_table` of the MMAE ablation; DOSES says which of its rows lie on an axis.
    A point that was not measured is left out. Raises ResultsError where an axis has none.
    """
    table = table[table["split"] == split]
    figure, axes = plt.subplots(
        1, len(DOSES), figsize=(PAGE, 2.5), sharey=True, layout="constrained"
    )
    for axis, (name, doses) in zip(axes, DOSES.items(), strict=True):
        for (direction, shown), colour, marker, aside in zip(
            DIRECTIONS.items(), PALETTE, MARKERS, (-_ASIDE, _ASIDE), strict=False
        ):
            rows = table[table["direction"] == direction].set_index("variant")
            found = {dose: rows.loc[v] for dose, v in doses.items() if v in rows.index}
            if not found:
                raise ResultsError(f"no {direction} rows of {', '.join(doses.values())} on {split}")
            values, low, high = (
                np.array([row[metric + end] for row in found.values()], float)
                for end in ("", "_low", "_high")
            )
            at = np.flatnonzero([dose in found for dose in doses]) + aside
            axis.vlines(at, low, high, color=colour, linewidth=1.2)
            axis.plot(at, values, color=colour, marker=marker, label=shown)
        axis.set_xticks(range(len(doses)), labels=[f"{dose:g}" for dose in doses])
        axis.set(xlabel=name, xlim=(-0.4, len(doses) - 0.6))
        axis.grid(axis="y", color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_ylabel(f"{metric} (%), {label(split, SPLITS).lower()}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def leak_table(rows: pd.DataFrame) -> pd.DataFrame:
    """R@1 between V* and T* by what each side reads: a row a variant, direction and condition.

    `rows` are stored rows of kind "leak". Columns `variant`, `split`, `direction`, `reads`,
    `value`, `low`, `high`, `seeds`, `chance`; intervals as in `retrieval_table`.
    """
    return _by_kind(rows, "R@1, ", list(CONDITIONS))


def plot_leak(table: pd.DataFrame, direction: str = "text_to_image") -> Figure:
    """`leak_table` as one group of marks a condition, a mark a variant; the dotted line is chance.

    Agreement that survives "same wrong" is the explanation copied; what "two different wrong"
    leaves is about picture and caption.
    """
    chosen = table[table["direction"] == direction]
    figure, axis = plt.subplots(figsize=(PAGE, 2.9), layout="constrained")
    variants = _grouped(axis, chosen, list(CONDITIONS))
    axis.set_ylabel(f"R@1 between V* and T* (%)\n{DIRECTIONS[direction]}")
    axis.set_xlabel("explanation that V* and T* read at test")
    variant_legend(figure, variants)
    return figure


def describe_leak(table: pd.DataFrame, direction: str = "text_to_image") -> list[str]:
    """A sentence a variant: what survives the same wrong explanation, and two different ones."""
    sentences = []
    for variant, rows in table[table["direction"] == direction].groupby("variant", sort=False):
        value = rows.set_index("reads")["value"]
        sentences.append(
            f"{label(variant, VARIANTS)}: R@1 between V* and T* is {value['own']:.1f} with the "
            f"own explanation, {value['same wrong']:.1f} when both read the same wrong one, "
            f"{value['two different wrong']:.1f} when they read different wrong ones "
            f"(chance {rows['chance'].iloc[0]:.2f})."
        )
    return sentences


def matching_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the matching head by kind of pair, columns as `leak_table`; chance is 50 %."""
    return _by_kind(rows, "accuracy, ", list(MATCHING)).assign(chance=50.0)


def plot_matching(table: pd.DataFrame) -> Figure:
    """`matching_table`: a group of marks a kind of pair, a mark a variant."""
    figure, axis = plt.subplots(figsize=(PAGE, 2.7), layout="constrained")
    variants = _grouped(axis, table, list(MATCHING))
    axis.set_ylabel("accuracy of the head (%)")
    axis.set_xlabel("pairs")
    variant_legend(figure, variants)
    return figure


def _by_kind(rows: pd.DataFrame, prefix: str, kinds: list[str]) -> pd.DataFrame:
    lines = []
    keys = ["variant", "split", "direction"]
    for names, group in rows.groupby(keys, sort=False):
        for kind in kinds:
            of_kind = group[group["metric"] == prefix + kind]
            if of_kind.empty:
                continue
            value, low, high = over_seeds(of_kind)
            lines.append(
                dict(zip(keys, names, strict=True))
                | {"reads": kind, "value": value, "low": low, "high": high}
                | {"seeds": len(of_kind), "chance": 100 / of_kind["n_candidates"].iloc[0]}
            )
    if not lines:
        raise ResultsError(f"no rows whose metric starts with {prefix!r}")
    return pd.DataFrame(lines)


def _grouped(axis: Axes, table: pd.DataFrame, kinds: list[str]) -> Marks:
    """A group of marks with intervals a kind, beside a line at chance; the variants' marks."""
    variants = marks(in_order(table["variant"], VARIANTS))
    apart = 0.7 / max(1, len(variants))
    for number, (variant, (colour, marker)) in enumerate(variants.items()):
        rows = table[table["variant"] == variant].set_index("reads").reindex(kinds)
        at = np.arange(len(kinds)) + (number - (len(variants) - 1) / 2) * apart
        axis.vlines(at, rows["low"], rows["high"], color=colour, linewidth=1.2)
        # above the axis, where a 0 would be struck through
        axis.plot(at, rows["value"], marker, color=colour, clip_on=False, zorder=3)
    chance = table["chance"].iloc[0]
    axis.axhline(chance, color=GREY, linestyle=":", linewidth=1)
    axis.annotate(
        "chance",
        (1, chance),
        xycoords=axis.get_yaxis_transform(),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        fontsize=6.5,
        color=GREY,
    )
    axis.set_xticks(range(len(kinds)), labels=kinds)
    axis.set(ylim=(0, 103), xlim=(-0.5, len(kinds) - 0.5))
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    return variants
