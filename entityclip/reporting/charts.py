"""Charts of tables: recall, accuracies, doses, scores, lengths. Nothing here trains or measures.

`apply_style` first; then each function returns a figure for `save_figure`, and the table behind it
goes to `save_table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from entityclip.reporting.style import (
    COLUMN,
    GREY,
    MARKERS,
    PAGE,
    PALETTE,
    VERMILLION,
    Marks,
    apply_style,
    legend_columns,
    marks,
    save_figure,
    variant_legend,
)
from entityclip.reporting.tables import retrieval_table
from entityclip.results import ResultsError
from entityclip.statistics import METRICS
from entityclip.variants import (
    CONDITIONS,
    DIRECTION_LABELS,
    MATCHING,
    SPLIT_LABELS,
    VARIANT_LABELS,
    in_order,
    label,
)

# what each knob's table rows are, by its value; EntityCLIP is the paper's point on each axis
DOSES = {
    "experts a group": {
        0: "clip", 1: "experts-1", 2: "experts-2", 4: "entityclip", 8: "experts-8",
    },
    "λ, weight of VTC(V*, T*)": {0.01: "lambda-0.01", 0.1: "entityclip", 1.0: "lambda-1.0"},
}  # fmt: skip
RELATIONS = {"text": "text\nrepresented", "image": "image\nadds", "combined": "both\n(4 classes)"}

_SHOWN = ("R@1", "R@5", "R@10")
_RECALLS = tuple(metric for metric in METRICS if metric.startswith("R@"))
_ENDS = ("", "_low", "_high")
_ASIDE = 0.05  # so that the intervals of two directions stand side by side


def panels(
    rows: int, columns: int, height: float, width: float = PAGE, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure, inches high and wide, and its axes [rows, columns], laid out so that all fits."""
    size = {"figsize": (width, height), "squeeze": False, "layout": "constrained"}
    return plt.subplots(rows, columns, **size, **options)


def grid(axis: Axes, which: str = "y", color: str = "0.92") -> None:
    """Faint lines to read values by."""
    axis.grid(axis=which, color=color, linewidth=0.6)


def beside(axis: Axes, text: str, y: float, offset: tuple[float, float], **style: Any) -> None:
    """A small text at the axes' right edge, `offset` points from there."""
    axis.annotate(
        text, (1, y), xycoords=axis.get_yaxis_transform(), xytext=offset,
        textcoords="offset points", fontsize=6.5, **style,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- retrieval


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """R@1, R@5 and R@10 of each variant with 95 % intervals; a column a split, a row a direction.

    `table` is `retrieval_table` of one dataset. What was not measured is left empty.
    """
    _check(table)
    splits = in_order(table["split"], SPLIT_LABELS)
    directions = in_order(table["direction"], DIRECTION_LABELS)
    variants = marks(in_order(table["variant"], VARIANT_LABELS))
    height = 0.5 + 2.1 * len(directions)
    figure, axes = panels(len(directions), len(splits), height, sharex=True, sharey=True)
    for i, direction in enumerate(directions):
        for j, split in enumerate(splits):
            chosen = table[(table["split"] == split) & (table["direction"] == direction)]
            _intervals(axes[i, j], chosen, variants)
            axes[i, j].set_title(_title(split, direction), loc="left")
        axes[i, 0].set_ylabel("recall (%)")
    variant_legend(figure, variants)
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
                        "100" if y == 100 else f"{y:.1f}", (x, top), xytext=(0, 2.5),
                        textcoords="offset points", ha="center", va="bottom", fontsize=6.5,
                        color=colour,
                    )  # fmt: skip
    axis.set(xlim=(-0.5, len(_SHOWN) - 0.5), ylim=(0, 109), yticks=range(0, 101, 25))
    axis.set_xticks(range(len(_SHOWN)), labels=_SHOWN)
    axis.tick_params(axis="x", length=0)
    grid(axis, color="0.9")


def plot_recall_curves(rows: pd.DataFrame, direction: str = "text_to_image") -> Figure:
    """Recall@K against K of each variant, one direction, a panel a split, with 95 % bands.

    `rows` are `read_rows` of one dataset.
    """
    table = retrieval_table(rows[rows["direction"] == direction])
    _check(table)
    splits = in_order(table["split"], SPLIT_LABELS)
    variants = marks(in_order(table["variant"], VARIANT_LABELS))
    figure, axes = panels(1, len(splits), 2.7, sharey=True)
    for axis, split in zip(axes[0], splits, strict=True):
        _curves(axis, table[table["split"] == split], variants)
        axis.set_title(_title(split, direction), loc="left")
    axes[0, 0].set_ylabel("recall@K (%)")
    variant_legend(figure, variants)
    return figure


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
    grid(axis, color="0.9")


def _numbers(row: pd.Series, metrics: Sequence[str]) -> list[np.ndarray]:
    """Values, lows and highs of some metrics of one table row."""
    return [row[[metric + end for metric in metrics]].to_numpy(float) for end in _ENDS]


def _title(split: str, direction: str) -> str:
    return f"{label(split, SPLIT_LABELS)}, {label(direction, DIRECTION_LABELS)}"


def _check(table: pd.DataFrame) -> None:
    datasets = sorted(set(table["dataset"]))
    if len(datasets) != 1:
        found = ", ".join(datasets) or "no rows"
        raise ValueError(f"a figure shows one dataset; the table has {found}")


def plot_doses(table: pd.DataFrame) -> Figure:
    """R@1 against the number of experts and against λ, both directions, with intervals.

    `table` is `retrieval_table` of the MMAE ablation on one split; DOSES says which rows lie on an
    axis. What was not measured is left out. Raises ResultsError where an axis has nothing.
    """
    (split,) = table["split"].unique()
    figure, axes = panels(1, len(DOSES), 2.5, sharey=True)
    for axis, (name, doses) in zip(axes[0], DOSES.items(), strict=True):
        for (direction, shown), colour, marker, aside in zip(
            DIRECTION_LABELS.items(), PALETTE, MARKERS, (-_ASIDE, _ASIDE), strict=False
        ):
            rows = table[table["direction"] == direction].set_index("variant")
            found = {dose: rows.loc[v] for dose, v in doses.items() if v in rows.index}
            if not found:
                raise ResultsError(f"no {direction} rows of {', '.join(doses.values())} on {split}")
            numbers = [_numbers(row, ["R@1"]) for row in found.values()]
            values, low, high = np.array(numbers)[..., 0].T
            at = np.flatnonzero([dose in found for dose in doses]) + aside
            axis.vlines(at, low, high, color=colour, linewidth=1.2)
            axis.plot(at, values, color=colour, marker=marker, label=shown)
        axis.set_xticks(range(len(doses)), labels=[f"{dose:g}" for dose in doses])
        axis.set(xlabel=name, xlim=(-0.4, len(doses) - 0.6))
        grid(axis)
    axes[0, 0].set_ylabel(f"R@1 (%), {label(split, SPLIT_LABELS).lower()}")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


# ------------------------------------------------------------------------------- shares and scores


def plot_leak(table: pd.DataFrame, direction: str = "text_to_image") -> Figure:
    """`leak_table` as one group of marks a condition, a mark a variant; the dotted line is chance.

    Agreement that survives "same wrong" is the explanation copied; what "two different wrong"
    leaves is about picture and caption.
    """
    chosen = table[table["direction"] == direction]
    names = {
        "ylabel": f"R@1 between V* and T* (%)\n{DIRECTION_LABELS[direction]}",
        "xlabel": "explanation that V* and T* read at test",
    }
    return _grouped(chosen, list(CONDITIONS), 2.9, **names)


def plot_matching(table: pd.DataFrame) -> Figure:
    """`matching_table`: a group of marks a kind of pair, a mark a variant."""
    names = {"ylabel": "accuracy of the head (%)", "xlabel": "pairs"}
    return _grouped(table, list(MATCHING), 2.7, **names)


def _grouped(table: pd.DataFrame, kinds: list[str], height: float, **names: str) -> Figure:
    """A group of marks with intervals a kind, beside a line at chance."""
    figure, ((axis,),) = panels(1, 1, height)
    variants = marks(in_order(table["variant"], VARIANT_LABELS))
    apart = 0.7 / max(1, len(variants))
    for number, (variant, (colour, marker)) in enumerate(variants.items()):
        rows = table[table["variant"] == variant].set_index("reads").reindex(kinds)
        at = np.arange(len(kinds)) + (number - (len(variants) - 1) / 2) * apart
        axis.vlines(at, rows["low"], rows["high"], color=colour, linewidth=1.2)
        # above the axis, where a 0 would be struck through
        axis.plot(at, rows["value"], marker, color=colour, clip_on=False, zorder=3)
    chance = table["chance"].iloc[0]
    axis.axhline(chance, color=GREY, linestyle=":", linewidth=1)
    beside(axis, "chance", chance, (0, 2), ha="right", color=GREY)
    axis.set_xticks(range(len(kinds)), labels=kinds)
    axis.set(ylim=(0, 103), xlim=(-0.5, len(kinds) - 0.5), **names)
    axis.tick_params(axis="x", length=0)
    grid(axis)
    variant_legend(figure, variants)
    return figure


def plot_rsum(table: pd.DataFrame, title: str = "") -> Figure:
    """RSUM of `ascl_recall_table`: a line a variant, a point a seed, a bar at their mean."""
    variants = list(dict.fromkeys(table["variant"]))
    figure, ((axis,),) = panels(1, 1, 0.7 + 0.28 * len(variants), PAGE * 0.6)
    for place, variant in enumerate(variants):
        values = table[table["variant"] == variant]["RSUM"]
        colour = GREY if variant.startswith("contrastive") else VERMILLION
        axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
        if len(values) > 1:
            axis.plot([values.mean()], [place], "|", color="black", markersize=14)
    axis.set_yticks(range(len(variants)), variants)
    axis.set(xlabel="RSUM (at most 600)", ylim=(len(variants) - 0.5, -0.5), title=title)
    return figure


def plot_relation_scores(rows: pd.DataFrame) -> Figure:
    """Weighted F1 of each label: a panel a protocol, a small mark a seed, a bar at their mean.

    `rows` are relation rows of one data set. Raises ValueError for none.
    """
    if rows.empty:
        raise ValueError("nothing to show: no rows")
    protocols, variants = rows["protocol"].unique(), list(rows["variant"].unique())
    figure, axes = panels(1, len(protocols), 2.9, sharey=True)
    width, colours = 0.8 / len(variants), (GREY, *PALETTE)  # the start weights come first
    for axis, protocol in zip(axes[0], protocols, strict=True):
        for i, variant in enumerate(variants):
            chosen = rows[(rows["protocol"] == protocol) & (rows["variant"] == variant)]
            for place, kind in enumerate(RELATIONS):
                values = chosen.loc[chosen["label"] == kind, "value"]
                x = place + (i - (len(variants) - 1) / 2) * width
                style = {"color": colours[i % len(colours)], "zorder": 3}
                named, marker = variant if place == 0 else None, MARKERS[i % len(MARKERS)]
                axis.scatter([x] * len(values), values, s=9, marker=marker, label=named, **style)
                axis.hlines(values.mean(), x - 0.4 * width, x + 0.4 * width, **style)
        axis.set_title(protocol, loc="left")
        axis.set_xticks(range(len(RELATIONS)), list(RELATIONS.values()))
    axes[0, 0].set_ylabel("weighted F1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


# -------------------------------------------------------------------------------------------- data


def plot_summary(summaries: Sequence[Any]) -> Figure:
    """Histograms of caption lengths and names a caption, and picture sizes, one colour a split.

    A summary has `split`, `words` and `names` (a number a caption) and `sizes` [n, 2] in pixels, as
    `datasets.care.summarise` gives.
    """
    figure, ((*histograms, sizes),) = panels(1, 3, 2.3)
    units = {"words": "words", "names": "capitalised names"}
    for axis, (name, unit) in zip(histograms, units.items(), strict=True):
        highest = max(int(np.percentile(getattr(s, name), 99)) for s in summaries)
        bins = np.arange(highest + 3) - 0.5
        for summary in summaries:
            values = np.minimum(getattr(summary, name), highest + 1)
            axis.hist(values, bins, density=True, histtype="step", label=summary.split)
        axis.set_xlabel(f"{unit} a caption")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for summary in summaries:
        if len(summary.sizes):
            sizes.scatter(*summary.sizes.T, s=5, alpha=0.4, linewidths=0, label=summary.split)
    sizes.set(xlabel="width (pixels)", ylabel="height (pixels)")
    histograms[0].set_ylabel("share")
    histograms[0].legend()
    return figure


def save_summary(summaries: Sequence[Any], folder: Path) -> list[Path]:
    """`plot_summary` as ``summary.png`` and ``.svg``; the paths."""
    apply_style()
    return save_figure(plot_summary(summaries), folder, "summary", "entityclip data summary")


def plot_lengths(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """Histograms of text lengths in tokens, by kind of text, against the encoder's limit."""
    figure, ((axis,),) = panels(1, 1, 2.4, COLUMN)
    longest = max(limit, *(max(tokens) for tokens in lengths.values()))
    width = -(-longest // 60)  # whole tokens: uneven bins would draw peaks that are not there
    bins = np.arange(0.5, longest + width + 0.5, width)
    for (kind, tokens), colour in zip(lengths.items(), PALETTE, strict=False):
        axis.hist(tokens, bins=bins, color=colour, alpha=0.7, label=kind)
    axis.axvline(limit, color=GREY, linestyle="--", linewidth=1, label=f"limit ({limit})")
    axis.set(xlabel="tokens", ylabel="texts", xlim=(0, longest * 1.03))
    figure.legend(loc="outside lower center", ncols=legend_columns(len(lengths) + 1, 3))
    return figure


def plot_checks(table: pd.DataFrame) -> Figure:
    """`checks_table` as points, a line a check, a mark a set of explanations."""
    sets = [column for column in table if column != "meaning"]
    figure, ((axis,),) = panels(1, 1, 0.9 + 0.2 * len(table))
    height = np.arange(len(table))[::-1]
    for name, (colour, marker) in marks(sets).items():
        style = {"linestyle": "none", "marker": marker, "markersize": 6, "color": colour}
        axis.plot(table[name], height, label=name, clip_on=False, zorder=3, **style)  # above it
    axis.set_yticks(height, labels=[check.replace("_", " ") for check in table.index])
    # one check in ten rows must still be told from none
    right = min(100.0, max(20.0, 1.1 * table[sets].to_numpy().max()))
    axis.set(xlim=(0, right), ylim=(-0.6, len(table) - 0.4), xlabel="explanations that fail (%)")
    grid(axis, "both", "0.9")
    axis.tick_params(axis="y", length=0, pad=8)
    figure.legend(loc="outside lower center", ncols=len(sets))
    return figure
