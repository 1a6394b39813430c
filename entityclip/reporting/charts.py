"""Charts of tables: recall, accuracies, doses, scores, lengths. Nothing here trains or measures.

`apply_style` first; then each function returns a figure for `save_figure`, and the table behind it
goes to `save_table`. Each raises ValueError where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from entityclip.reporting.style import (
    COLUMN,
    FLOOR_LOOK,
    GREY,
    HEAT,
    MARKERS,
    PAGE,
    PALETTE,
    VERMILLION,
    Marks,
    apply_style,
    beside,
    grid,
    head,
    legend_columns,
    marks,
    panels,
    save_figure,
    variant_legend,
)
from entityclip.reporting.tables import retrieval_table
from entityclip.results import ResultsError
from entityclip.statistics import METRICS
from entityclip.variants import (
    CONDITIONS,
    DIRECTION_LABELS,
    FLOORS,
    MATCHING,
    NOT_FINETUNED,
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
DOMAINS = {
    "newsroom": "Newsroom A",
    "newsroom-b": "Newsroom B",
    "n24news": "N24News",
    "visualnews": "VisualNews",
    "goodnews": "GoodNews",
    NOT_FINETUNED: "not fine-tuned",
}

_SHOWN = ("R@1", "R@5", "R@10")
_RECALLS = tuple(metric for metric in METRICS if metric.startswith("R@"))
_ENDS = ("", "_low", "_high")
_ASIDE = 0.05  # so that the intervals of two directions stand side by side
_SIDE_BY_SIDE = 10  # sections; larger matrices stand one above the other


# --------------------------------------------------------------------------------------- retrieval


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """R@1, R@5 and R@10 of each variant with 95 % intervals; a column a split, a row a direction.

    `table` is `retrieval_table` of one dataset. What was not measured is left empty; floors are
    dashed lines.
    """
    directions = in_order(table["direction"], DIRECTION_LABELS)
    height = 0.5 + 2.1 * len(directions)
    return _recall_panels(table, directions, height, "recall (%)", _intervals)


def plot_recall_curves(rows: pd.DataFrame) -> Figure:
    """Recall@K against K of each variant, text to image, a panel a split, with 95 % bands.

    `rows` are `read_rows` of one dataset.
    """
    table, directions = retrieval_table(rows), ["text_to_image"]
    return _recall_panels(table, directions, 2.7, "recall@K (%)", _curves)


def _recall_panels(
    table: pd.DataFrame, directions: Sequence[str], height: float, ylabel: str,
    fill: Callable[[Axes, dict[str, pd.Series], Marks], None],
) -> Figure:  # fmt: skip
    """A column a split, a row a direction; `fill` gets an axis, its rows by variant, the marks.

    Floors are among the rows, but have no marks.
    """
    if table.empty or table.groupby("split")["dataset"].nunique().max() > 1:
        found = ", ".join(sorted(set(table["dataset"]))) or "no rows"
        raise ValueError(f"a panel shows one dataset; the table has {found}")
    splits = in_order(table["split"], SPLIT_LABELS)
    names = in_order(table["variant"], VARIANT_LABELS)
    variants = marks([name for name in names if name not in FLOORS])
    figure, axes = panels(len(directions), len(splits), height, sharex=True, sharey=True)
    for i, direction in enumerate(directions):
        for axis, split in zip(axes[i], splits, strict=True):
            chosen = table[(table["split"] == split) & (table["direction"] == direction)]
            fill(axis, {row["variant"]: row for _, row in chosen.iterrows()}, variants)
            title = f"{label(split, SPLIT_LABELS)}, {label(direction, DIRECTION_LABELS)}"
            head(axis, title, len(splits))
            grid(axis, color="0.9")
        axes[i, 0].set_ylabel(ylabel)
    variant_legend(figure, variants, floors=[name for name in FLOORS if name in names])
    return figure


def _intervals(axis: Axes, rows: dict[str, pd.Series], variants: Marks) -> None:
    numbers = {variant: _numbers(row, _SHOWN) for variant, row in rows.items()}
    for name in (name for name in FLOORS if name in numbers):
        at = np.arange(len(_SHOWN))
        axis.hlines(numbers[name][0], at - 0.45, at + 0.45, **FLOOR_LOOK[name])
    # beyond four variants the numbers would run into each other; the table has them
    _side_by_side(axis, _SHOWN, numbers, variants, 0.8, said=len(variants) <= 4)
    axis.set(ylim=(0, 109), yticks=range(0, 101, 25))


def _curves(axis: Axes, rows: dict[str, pd.Series], variants: Marks) -> None:
    ks = [int(metric[2:]) for metric in _RECALLS]
    for variant, (colour, marker) in variants.items():
        if variant in rows:
            value, low, high = _numbers(rows[variant], _RECALLS)
            axis.fill_between(ks, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(ks, value, color=colour, marker=marker, clip_on=False)
    for name in (name for name in FLOORS if name in rows):
        values = _numbers(rows[name], _RECALLS)[0]
        axis.plot(np.array(ks)[~np.isnan(values)], values[~np.isnan(values)], **FLOOR_LOOK[name])
    axis.set(xscale="log", xlabel="K", ylim=(0, 103), yticks=range(0, 101, 25))
    axis.set_xticks(ks, labels=map(str, ks))
    axis.minorticks_off()


def _numbers(row: pd.Series, metrics: Sequence[str]) -> list[np.ndarray]:
    """Values, lows and highs of some metrics of one table row."""
    return [row[[metric + end for metric in metrics]].to_numpy(float) for end in _ENDS]


def _side_by_side(
    axis: Axes, kinds: Sequence[str], numbers: Mapping[str, Sequence[np.ndarray]],
    variants: Marks, width: float, *, said: bool = False,
) -> None:  # fmt: skip
    """At each of `kinds` the variants' values with lows and highs, `width` of a place in all."""
    apart = width / len(variants)
    for i, (variant, (colour, marker)) in enumerate(variants.items()):
        if variant not in numbers:
            continue
        value, low, high = numbers[variant]
        at = np.arange(len(kinds)) + (i - (len(variants) - 1) / 2) * apart
        axis.vlines(at, low, high, color=colour, linewidth=1.2)
        # above the axis, where a 0 would be struck through
        axis.plot(at, value, marker, color=colour, clip_on=False, zorder=3)
        for x, y, top in zip(at, value, np.fmax(value, high), strict=True):
            if said and not np.isnan(y):
                axis.annotate(
                    "100" if y == 100 else f"{y:.1f}", (x, top), xytext=(0, 2.5), ha="center",
                    va="bottom", textcoords="offset points", fontsize=6.5, color=colour,
                )  # fmt: skip
    axis.set_xticks(range(len(kinds)), labels=kinds)
    axis.set_xlim(-0.5, len(kinds) - 0.5)
    axis.tick_params(axis="x", length=0)


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
            places = [i for i, variant in enumerate(doses.values()) if variant in rows.index]
            if not places:
                raise ResultsError(f"no {direction} rows of {', '.join(doses.values())} on {split}")
            found = rows.reindex(doses.values()).iloc[places]
            at = np.add(places, aside)
            axis.vlines(at, found["R@1_low"], found["R@1_high"], color=colour, linewidth=1.2)
            axis.plot(at, found["R@1"], color=colour, marker=marker, label=shown)
        axis.set_xticks(range(len(doses)), labels=[f"{dose:g}" for dose in doses])
        axis.set(xlabel=name, xlim=(-0.4, len(doses) - 0.6))
        grid(axis)
    axes[0, 0].set_ylabel(f"R@1 (%), {label(split, SPLIT_LABELS).lower()}")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


# ------------------------------------------------------------------------------- shares and scores


def plot_leak(table: pd.DataFrame) -> Figure:
    """`leak_table`, text to image: a group of marks a condition, a mark a variant; dotted: chance.

    Agreement that survives "same wrong" is the explanation copied; what "two different wrong"
    leaves is about picture and caption.
    """
    chosen = table[table["direction"] == "text_to_image"]
    ylabel = f"R@1 between V* and T* (%)\n{DIRECTION_LABELS['text_to_image']}"
    return _grouped(chosen, CONDITIONS, 2.9, ylabel, "explanation that V* and T* read at test")


def plot_matching(table: pd.DataFrame) -> Figure:
    """`matching_table`: a group of marks a kind of pair, a mark a variant."""
    return _grouped(table, MATCHING, 2.7, "accuracy of the head (%)", "pairs")


def _grouped(
    table: pd.DataFrame, kinds: Iterable[str], height: float, ylabel: str, xlabel: str
) -> Figure:
    """A group of marks with intervals a kind, beside a line at chance."""
    figure, ((axis,),) = panels(1, 1, height)
    variants = marks(in_order(table["variant"], VARIANT_LABELS))
    numbers = {
        variant: rows.set_index("reads").reindex(kinds)[["value", "low", "high"]].to_numpy().T
        for variant, rows in table.groupby("variant")
    }
    _side_by_side(axis, list(kinds), numbers, variants, 0.7)
    chance = table["chance"].iloc[0]
    axis.axhline(chance, color=GREY, linestyle=":", linewidth=1)
    beside(axis, "chance", chance, (0, 2), ha="right", color=GREY)
    axis.set(ylim=(0, 103), ylabel=ylabel, xlabel=xlabel)
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

    `rows` are relation rows of one data set.
    """
    protocols, variants = rows["protocol"].unique(), list(rows["variant"].unique())
    figure, axes = panels(1, len(protocols), 2.9, sharey=True)
    width, colours = 0.8 / len(variants), (GREY, *PALETTE)  # the start weights come first
    for axis, protocol in zip(axes[0], protocols, strict=True):
        for i, variant in enumerate(variants):
            chosen = rows[(rows["protocol"] == protocol) & (rows["variant"] == variant)]
            look = {"color": colours[i % len(colours)], "zorder": 3}
            for place, kind in enumerate(RELATIONS):
                values = chosen.loc[chosen["label"] == kind, "value"]
                x = place + (i - (len(variants) - 1) / 2) * width
                named, marker = variant if place == 0 else None, MARKERS[i % len(MARKERS)]
                axis.scatter([x] * len(values), values, s=9, marker=marker, label=named, **look)
                axis.hlines(values.mean(), x - 0.4 * width, x + 0.4 * width, **look)
        axis.set_title(protocol, loc="left")
        axis.set_xticks(range(len(RELATIONS)), list(RELATIONS.values()))
    axes[0, 0].set_ylabel("weighted F1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


# --------------------------------------------------------------------------------------- heat maps


def plot_confusions(confusions: Mapping[str, pd.DataFrame]) -> Figure:
    """Heat maps of `scores.confusions`, one a variant; colour: share of a true section.

    Counts stand in the cells, but for zeros.
    """
    variants = in_order(pd.Series(list(confusions)), VARIANT_LABELS)
    k = max(map(len, confusions.values()), default=0)
    columns = len(variants) if k <= _SIDE_BY_SIDE else 1
    rows = -(-len(variants) // max(columns, 1))
    cell = (PAGE - 1.6) / max(columns * k, 1)
    height = min(cell * k, PAGE) + (1.1 if k > _SIDE_BY_SIDE else 0.9)
    alike = columns > 1 and len({tuple(c.index) for c in confusions.values()}) == 1
    figure, axes = panels(rows, columns, rows * height, sharey=alike)
    points = float(np.clip(26 * cell, 3.5, 7.0))
    for axis, variant in zip(axes.flat, variants, strict=True):
        counts = confusions[variant]
        shares = 100 * counts.to_numpy(float) / counts.to_numpy(float).sum(1, keepdims=True)
        texts = np.where(counts > 0, counts.astype(str), "")
        _heat_map(axis, shares, texts, (list(counts.index), list(counts.columns)), points)
        axis.set_title(label(variant, VARIANT_LABELS), loc="left")
        axis.set(xlabel="predicted section", ylabel="")
    for axis in axes[:, 0]:
        axis.set_ylabel("true section")
    _colour_bar(figure, axes, "share of the true section (%)")
    return figure


def plot_cross_domain(table: pd.DataFrame) -> Figure:
    """Heat maps of `cross_domain_table`, a variant each: trained on (row) × tested on (column).

    Cells say R@1, text to image, with its 95 % interval; what is only pretrained is every map's
    last row. What was not measured is left blank.
    """
    chosen = table[table["direction"] == "text_to_image"]
    without = chosen["trained_on"] == NOT_FINETUNED
    variants = in_order(chosen.loc[~without, "variant"], VARIANT_LABELS)
    trained, tested = (in_order(chosen[name], DOMAINS) for name in ("trained_on", "dataset"))
    names = [[label(name, DOMAINS) for name in side] for side in (trained, tested)]
    figure, axes = panels(1, len(variants), 1.1 + 0.5 * len(trained), sharey=True)
    for axis, variant in zip(axes[0], variants, strict=True):
        mine = chosen[(chosen["variant"] == variant) | without]
        mine = mine.set_index(["trained_on", "dataset"])
        values, low, high = (
            mine[f"R@1{end}"].unstack().reindex(index=trained, columns=tested).to_numpy(float)
            for end in _ENDS
        )
        texts = np.full(values.shape, "", dtype=object)
        for at in zip(*np.nonzero(~np.isnan(values)), strict=True):
            texts[at] = f"{values[at]:.1f}\n[{low[at]:.1f}, {high[at]:.1f}]"
        _heat_map(axis, values, texts, names, 6.5, slant=0)
        axis.set_title(label(variant, VARIANT_LABELS), loc="left")
        axis.set_xlabel("tested on")
    axes[0, 0].set_ylabel("trained on")
    _colour_bar(figure, axes, f"R@1 (%), {DIRECTION_LABELS['text_to_image']}")
    return figure


def _heat_map(
    axis: Axes, values: np.ndarray, texts: np.ndarray, names: Sequence[list[str]], points: float,
    slant: float = 90,
) -> None:  # fmt: skip
    """Cells coloured by `values` in percent, with their `texts`; `names` of rows and of columns."""
    axis.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    rows, columns = names
    axis.set_xticks(range(len(columns)), labels=columns, rotation=slant)
    axis.set_yticks(range(len(rows)), labels=rows)
    axis.tick_params(length=0)
    axis.spines[:].set(visible=True, color="0.8")  # a pale cell needs an edge
    for (i, j), text in np.ndenumerate(texts):
        if text:  # the upper end of the scale is dark
            colour = "white" if values[i, j] > 60 else "black"
            axis.text(j, i, text, ha="center", va="center", fontsize=points, color=colour)


def _colour_bar(figure: Figure, axes: np.ndarray, text: str) -> None:
    scale = ScalarMappable(Normalize(0, 100), HEAT)
    bar = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.01, ticks=range(0, 101, 25))
    bar.set_label(text)
    bar.outline.set_visible(False)


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
