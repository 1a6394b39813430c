"""Figures from stored result rows and training logs. Nothing here trains or measures.

`apply_style` first; then each function returns a figure for `save_figure`, and the table behind it
goes to `save_table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from entityclip.datasets.care import SplitSummary
from entityclip.evaluation.inspection import Plane
from entityclip.reporting.pictures import _BAR_COLOURS, _LABELS
from entityclip.reporting.style import (
    BLUE,
    COLUMN,
    GREY,
    HEAT,
    MARKERS,
    PAGE,
    PALETTE,
    VERMILLION,
    Marks,
    legend_columns,
    marks,
    variant_legend,
)
from entityclip.reporting.tables import _PHASES, COLUMNS, retrieval_table
from entityclip.results import Log, ResultsError, read_log
from entityclip.statistics import METRICS
from entityclip.variants import (
    CONDITIONS,
    DIRECTION_LABELS,
    MATCHING,
    NOT_FINETUNED,
    SPLIT_LABELS,
    VARIANT_LABELS,
    in_order,
    label,
)


def draw_summary(summaries: Sequence[SplitSummary]) -> Figure:
    """Histograms of caption lengths and names a caption, and picture sizes, one colour a split."""
    import matplotlib.pyplot as plt

    from entityclip.reporting.style import PAGE, apply_style

    apply_style()
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.3), layout="constrained")
    for number, (name, unit) in enumerate((("words", "words"), ("names", "capitalised names"))):
        highest = max(int(np.percentile(getattr(s, name), 99)) for s in summaries)
        bins = np.arange(highest + 3) - 0.5
        for summary in summaries:
            values = np.minimum(getattr(summary, name), highest + 1)
            axes[number].hist(values, bins, density=True, histtype="step", label=summary.split)
        axes[number].set(xlabel=f"{unit} a caption", ylabel="share" if number == 0 else "")
    for summary in summaries:
        if len(summary.sizes):
            axes[2].scatter(*summary.sizes.T, s=5, alpha=0.4, linewidths=0, label=summary.split)
    for axis in axes[:2]:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[2].set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes[0].legend()
    plt.close(figure)  # the caller shows or saves it
    return figure


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
            DIRECTION_LABELS.items(), PALETTE, MARKERS, (-_ASIDE, _ASIDE), strict=False
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
    axes[0].set_ylabel(f"{metric} (%), {label(split, SPLIT_LABELS).lower()}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def plot_leak(table: pd.DataFrame, direction: str = "text_to_image") -> Figure:
    """`leak_table` as one group of marks a condition, a mark a variant; the dotted line is chance.

    Agreement that survives "same wrong" is the explanation copied; what "two different wrong"
    leaves is about picture and caption.
    """
    chosen = table[table["direction"] == direction]
    figure, axis = plt.subplots(figsize=(PAGE, 2.9), layout="constrained")
    variants = _grouped(axis, chosen, list(CONDITIONS))
    axis.set_ylabel(f"R@1 between V* and T* (%)\n{DIRECTION_LABELS[direction]}")
    axis.set_xlabel("explanation that V* and T* read at test")
    variant_legend(figure, variants)
    return figure


def plot_matching(table: pd.DataFrame) -> Figure:
    """`matching_table`: a group of marks a kind of pair, a mark a variant."""
    figure, axis = plt.subplots(figsize=(PAGE, 2.7), layout="constrained")
    variants = _grouped(axis, table, list(MATCHING))
    axis.set_ylabel("accuracy of the head (%)")
    axis.set_xlabel("pairs")
    variant_legend(figure, variants)
    return figure


def _grouped(axis: Axes, table: pd.DataFrame, kinds: list[str]) -> Marks:
    """A group of marks with intervals a kind, beside a line at chance; the variants' marks."""
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


_ROW = 0.2  # inches


def plot_forest(differences: pd.DataFrame, title: str = "difference") -> Figure:
    """One line a difference, under its group's heading; the zero line means "no difference".

    `differences` has COLUMNS: `value` with its 95 % interval `low` to `high` in the metric's unit,
    `seeds` it is over; groups and rows are drawn in the table's order. A mark is filled where the
    interval excludes 0, hollow where it does not or where there is none. `title` names the axis.
    Raises ValueError for an empty table or one that lacks a column.
    """
    lacking = [name for name in COLUMNS if name not in differences]
    if lacking or differences.empty:
        raise ValueError(f"no differences to show{': no ' + ', '.join(lacking) if lacking else ''}")
    groups = list(differences.groupby("group", sort=False))
    lines = len(differences) + len(groups) + 0.6 * (len(groups) - 1)
    figure = plt.figure(figsize=(PAGE, 0.75 + _ROW * lines), layout="constrained")
    axis = figure.add_subplot()
    y, places, names = 0.0, [], []
    for group, rows in groups:
        places.append(y)
        names.append(group)
        for _, row in rows.iterrows():
            y += 1
            _difference(axis, y, row)
            places.append(y)
            names.append(row["label"])
        y += 1.6
    axis.axvline(0, color=GREY, linewidth=0.9, zorder=0)
    axis.set(ylim=(y - 1.6 + 0.7, -0.7), xlabel=title)
    axis.set_yticks(places, labels=names, parse_math=False)
    headings = np.cumsum([0, *(len(rows) + 1 for _, rows in groups[:-1])])
    for number, text in enumerate(axis.get_yticklabels()):
        text.set_fontweight("bold" if number in headings else "normal")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    return figure


def _difference(axis: Axes, y: float, row: pd.Series) -> None:
    low, value, high = row["low"], row["value"], row["high"]
    if np.isnan(value):
        return
    if not np.isnan(low):
        axis.hlines(y, low, high, color=BLUE, linewidth=1.4)
    apart = low > 0 or high < 0
    axis.plot(
        value,
        y,
        "o",
        markersize=5,
        color=BLUE,
        markerfacecolor=BLUE if apart else "white",
        markeredgewidth=1.2,
    )
    interval = "" if np.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    seeds = f"{row['seeds']:.0f} seed{'s' if row['seeds'] != 1 else ''}"
    numbers = f"{value:+.1f}{interval}".replace("-", "−")  # as on the axis
    for text, points in ((numbers, 6), (seeds, 90)):
        axis.annotate(
            text,
            (1, y),
            xycoords=axis.get_yaxis_transform(),
            xytext=(points, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color="0.25",
        )


_COLOURS = {
    "image": PALETTE[5],
    "explanation from image": PALETTE[3],
    "explanation from text": PALETTE[2],
    "text": VERMILLION,
}


_TITLES = {"image": "Image gate", "text": "Text gate", "fusion": "Fusion gate"}


_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def gate_table(weights: pd.DataFrame) -> pd.DataFrame:
    """`inspection.gate_weights` in one row a gate and expert, in their own order.

    Columns: `gate`, `expert`, `pairs`, `mean`, the quantiles `q05`, `q25`, `q50`, `q75`, `q95`, and
    `even`, what each expert would get of a gate without preference.
    """
    groups = weights.groupby(["gate", "expert"], sort=False)["weight"]
    quantiles = groups.quantile(list(_QUANTILES)).unstack()
    quantiles.columns = [f"q{round(100 * q):02d}" for q in _QUANTILES]
    table = groups.agg(pairs="size", mean="mean").join(quantiles).reset_index()
    return table.assign(even=1 / table.groupby("gate")["expert"].transform("size"))


def plot_gates(table: pd.DataFrame) -> Figure:
    """Weights of each gate's experts from `gate_table`: 5-95 % whiskers, quartile box, median.

    The dashed line is the even share. Raises ValueError for an empty table.
    """
    gates = [gate for gate in _TITLES if gate in set(table["gate"])]
    if not gates:
        raise ValueError("nothing to show: no gate weights")
    sides = [gate for gate in gates if gate != "fusion"]
    rows = max(table.groupby("gate")["expert"].size())
    figure = plt.figure(figsize=(PAGE, 0.9 + 0.19 * max(rows, 8)), layout="constrained")
    columns = [[[gate] for gate in sides], [["fusion"]] if "fusion" in gates else []]
    subfigures = figure.subfigures(1, sum(map(bool, columns)), squeeze=False)[0]
    for part, mosaic in zip(subfigures, filter(None, columns), strict=True):
        for gate, axis in part.subplot_mosaic(mosaic).items():
            _boxes(axis, table[table["gate"] == gate])
            axis.set_title(_TITLES[gate], loc="left")
            if gate == mosaic[-1][0]:
                axis.set_xlabel("weight")
    used = {
        _source(gate, expert) for gate, expert in zip(table["gate"], table["expert"], strict=True)
    }
    handles = [
        Patch(color=c, alpha=0.75, label=name) for name, c in _COLOURS.items() if name in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _boxes(axis: Axes, rows: pd.DataFrame) -> None:
    names = ("whislo", "q1", "med", "q3", "whishi")
    stats = [
        dict(zip(names, row[["q05", "q25", "q50", "q75", "q95"]], strict=True))
        for _, row in rows.iterrows()
    ]
    boxes = axis.bxp(
        stats,
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.65,
        medianprops={"color": "black", "linewidth": 1.2},
        **{f"{part}props": {"linewidth": 0.7} for part in ("box", "whisker", "cap")},
    )
    for box, gate, expert in zip(boxes["boxes"], rows["gate"], rows["expert"], strict=True):
        box.set(facecolor=_COLOURS[_source(gate, expert)], alpha=0.75)
    axis.axvline(rows["even"].iloc[0], color=GREY, linestyle="--", linewidth=0.9, zorder=0)
    axis.set_yticks(range(1, len(rows) + 1), labels=[_short(name) for name in rows["expert"]])
    axis.tick_params(axis="y", length=0, labelsize=6.5)
    axis.invert_yaxis()
    axis.set_xlim(0)


def _source(gate: str, expert: str) -> str:
    """What an expert read, and for whom."""
    kind, _, rest = expert.partition(" ")
    if kind != "explanation":
        return kind
    return f"explanation {rest.partition(' ')[2] or f'from {gate}'}"


def _short(expert: str) -> str:
    return expert.partition(" from ")[0]  # the colour tells from where


def plot_seed_curves(curves: pd.DataFrame, name: str = "VTC") -> Figure:
    """Mean line and least-to-greatest band over seeds of each variant, from `seed_curves`.

    `name` is the term's, as the axis should say it. Raises ValueError for an empty table.
    """
    if curves.empty:
        raise ValueError("nothing to show: no curves")
    variants = marks(in_order(curves["variant"], VARIANT_LABELS))
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


def _named(variant: str, seeds: int) -> str:
    ends = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"{label(variant, VARIANT_LABELS)} ({ends})".replace("$", r"\$")


_LIGHT = "#b0b0b0"


_SIDES = {"picture": ("o", 16), "caption": ("^", 18)}


def space_table(planes: dict[str, Plane]) -> pd.DataFrame:
    """The points of all planes, with their plane's title as `model`."""
    parts = [seen.points.assign(model=title) for title, seen in planes.items()]
    return pd.concat(parts, ignore_index=True)[["model", "kind", "pair", "label", "x", "y"]]


def space_numbers(planes: dict[str, Plane]) -> pd.DataFrame:
    """A row a plane: `model`, `alignment`, `uniformity_images`, `uniformity_texts`."""
    names = ("alignment", "uniformity_images", "uniformity_texts")
    return pd.DataFrame(
        [{"model": title} | {n: getattr(seen, n) for n in names} for title, seen in planes.items()]
    )


def plot_space(planes: dict[str, Plane], pictures: int = 150) -> Figure:
    """Discs for pictures, triangles for captions, a thin line between those of a pair.

    `planes` holds `embedding_space.plane` by title, a panel each. The numbers above a panel are the
    whole split's, the marks those of some `pictures` only, for more would hide each other. Colours
    are labels (the six most frequent; others grey). Axes are principal components and mean nothing
    across panels. Raises ValueError for no planes.
    """
    if not planes:
        raise ValueError("nothing to show: no planes")
    labels = next(iter(planes.values())).points.query("kind == 'caption'")["label"]
    counts = labels[labels != ""].value_counts()
    # by frequency, then by alphabet: a tie must not change colours
    shown = sorted(counts.index, key=lambda name: (-counts[name], name))[: len(PALETTE)]
    colours = dict(zip(shown, PALETTE, strict=False))
    width = min(PAGE, 3.4 * len(planes) + 0.2)
    figure, axes = plt.subplots(
        1, len(planes), figsize=(width, 3.9), squeeze=False, layout="constrained"
    )
    for axis, (title, seen) in zip(axes[0], planes.items(), strict=True):
        _scatter(axis, seen, colours, pictures)
        axis.set_title(f"{title}\n{_space_numbers(seen)}", loc="left", fontsize=7.5)
    handles = [
        Line2D([], [], linestyle="", marker=mark, color=GREY, label=f"{side}s")
        for side, (mark, _) in _SIDES.items()
    ]
    handles += [Line2D([], [], linewidth=4, color=c, label=name) for name, c in colours.items()]
    if len(counts) > len(colours):
        handles.append(Line2D([], [], linewidth=4, color=_LIGHT, label="others"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _scatter(axis: Axes, seen: Plane, colours: dict[str, str], limit: int) -> None:
    points = seen.points[seen.points["pair"] < limit]
    pictures = points[points["kind"] == "picture"].set_index("pair")[["x", "y"]]
    captions = points[points["kind"] == "caption"]
    ends = zip(
        captions[["x", "y"]].to_numpy(), pictures.loc[captions["pair"]].to_numpy(), strict=True
    )
    axis.add_collection(LineCollection(list(ends), colors="0.65", linewidths=0.5, zorder=1))
    for side, (mark, size) in _SIDES.items():
        part = points[points["kind"] == side]
        axis.scatter(
            part["x"],
            part["y"],
            c=[colours.get(name, _LIGHT) for name in part["label"]],
            marker=mark,
            s=size,
            linewidths=0.3,
            edgecolors="white",
            zorder=2,
        )
    first, second = (f"{100 * share:.0f} %" for share in seen.explained)
    axis.set(xlabel=f"component 1 ({first} of variance)", ylabel=f"component 2 ({second})")
    axis.set(xticks=[], yticks=[])


def _space_numbers(seen: Plane) -> str:
    return (
        f"alignment {seen.alignment:.2f}, uniformity {seen.uniformity_images:.2f} (pictures), "
        f"{seen.uniformity_texts:.2f} (captions)"
    )


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
    variants = marks(in_order(pd.Series(list(read)), VARIANT_LABELS))
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


_SHOWN = ("R@1", "R@5", "R@10")


_RECALLS = tuple(metric for metric in METRICS if metric.startswith("R@"))


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """R@1, R@5 and R@10 of each variant with 95 % intervals; a column a split, a row a direction.

    `table` is `retrieval_table` of one dataset. What was not measured is left empty.
    """
    _check(table)
    splits, directions = (
        in_order(table["split"], SPLIT_LABELS),
        in_order(table["direction"], DIRECTION_LABELS),
    )
    variants = marks(in_order(table["variant"], VARIANT_LABELS))
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
        in_order(table["split"], SPLIT_LABELS),
        marks(in_order(table["variant"], VARIANT_LABELS)),
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
    return f"{label(split, SPLIT_LABELS)}, {label(direction, DIRECTION_LABELS)}"


def _check(table: pd.DataFrame) -> None:
    datasets = sorted(set(table["dataset"]))
    if len(datasets) != 1:
        raise ValueError(
            f"a figure shows one dataset; the table has {', '.join(datasets) or 'no rows'}"
        )


DOMAINS = {
    "newsroom": "Newsroom A",
    "newsroom-b": "Newsroom B",
    "n24news": "N24News",
    "visualnews": "VisualNews",
    "goodnews": "GoodNews",
    NOT_FINETUNED: "not fine-tuned",
}


_SIDE_BY_SIDE = 10  # sections; larger matrices stand one above the other


def plot_confusions(confusions: Mapping[str, pd.DataFrame]) -> Figure:
    """Heat maps of `section_tables.confusions`, one a variant; colour: share of a true section.

    Counts stand in the cells, but for zeros. Raises ValueError for none.
    """
    if not confusions:
        raise ValueError("no confusion matrix to show")
    variants = in_order(pd.Series(list(confusions)), VARIANT_LABELS)
    k = max(len(counts) for counts in confusions.values())
    columns = len(variants) if k <= _SIDE_BY_SIDE else 1
    rows = -(-len(variants) // columns)
    cell = (PAGE - 1.6) / (columns * k)
    height = min(cell * k, PAGE) + (1.1 if k > _SIDE_BY_SIDE else 0.9)
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=(PAGE, rows * height),
        squeeze=False,
        sharey=columns > 1 and len({tuple(c.index) for c in confusions.values()}) == 1,
        layout="constrained",
    )
    points = float(np.clip(26 * cell, 3.5, 7.0))
    for axis, variant in zip(axes.flat, variants, strict=True):
        counts = confusions[variant]
        shares = 100 * counts.to_numpy(float) / counts.to_numpy(float).sum(1, keepdims=True)
        texts = np.where(counts > 0, counts.astype(str), "")
        _heat_map(axis, shares, texts, list(counts.index), list(counts.columns), points)
        axis.set_title(label(variant, VARIANT_LABELS), loc="left")
        axis.set(xlabel="predicted section", ylabel="")
    for axis in axes[:, 0]:
        axis.set_ylabel("true section")
    _colour_bar(figure, axes, "share of the true section (%)")
    return figure


def plot_cross_domain(
    table: pd.DataFrame, metric: str = "R@1", direction: str = "text_to_image"
) -> Figure:
    """Heat maps of `cross_domain_table`, a variant each: trained on (row) × tested on (column).

    Cells say the metric with its 95 % interval; what is only pretrained is every map's last row.
    What was not measured is left blank. `metric` is one in percent. Raises ValueError for no rows.
    """
    chosen = table[table["direction"] == direction]
    without = chosen["trained_on"] == NOT_FINETUNED
    variants = in_order(chosen.loc[~without, "variant"], VARIANT_LABELS)
    if not variants or not metric.startswith("R@"):
        raise ValueError(f"nothing to show of {metric}, {direction}: {len(chosen)} rows")
    tested = in_order(chosen["dataset"], DOMAINS)
    trained = in_order(chosen["trained_on"], DOMAINS)
    figure, axes = plt.subplots(
        *(1, len(variants)),
        figsize=(PAGE, 1.1 + 0.5 * len(trained)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, variant in zip(axes[0], variants, strict=True):
        mine = chosen[(chosen["variant"] == variant) | without]
        keyed = mine.set_index(["trained_on", "dataset"])
        values, texts = _matrix(keyed, trained, tested, metric)
        names = [[label(name, DOMAINS) for name in side] for side in (trained, tested)]
        _heat_map(axis, values, texts, *names, 6.5, slant=0)
        axis.set_title(label(variant, VARIANT_LABELS), loc="left")
        axis.set_xlabel("tested on")
    axes[0, 0].set_ylabel("trained on")
    _colour_bar(figure, axes, f"{metric} (%), {label(direction, DIRECTION_LABELS)}")
    return figure


def _matrix(
    keyed: pd.DataFrame, trained: list[str], tested: list[str], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    values = np.full((len(trained), len(tested)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for i, source in enumerate(trained):
        for j, target in enumerate(tested):
            if (source, target) in keyed.index:
                value, low, high = keyed.loc[
                    (source, target), [metric, f"{metric}_low", f"{metric}_high"]
                ]
                values[i, j] = value
                texts[i, j] = f"{value:.1f}\n[{low:.1f}, {high:.1f}]"
    return values, texts


def _heat_map(
    axis: Axes,
    values: np.ndarray,
    texts: np.ndarray,
    rows: list[str],
    columns: list[str],
    points: float,
    slant: float = 90,
) -> None:
    axis.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
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


def plot_checks(table: pd.DataFrame) -> Figure:
    """`checks_table` as points, a line a check, a mark a set of explanations."""
    sets = [column for column in table if column != "meaning"]
    figure, axis = plt.subplots(figsize=(PAGE, 0.9 + 0.2 * len(table)), layout="constrained")
    height = np.arange(len(table))[::-1]
    for name, (colour, marker) in marks(sets).items():
        axis.plot(
            *(table[name], height),
            linestyle="none",
            marker=marker,
            markersize=6,
            color=colour,
            label=name,
            clip_on=False,
            zorder=3,  # above the axis
        )
    axis.set_yticks(height, labels=[check.replace("_", " ") for check in table.index])
    # one check in ten rows must still be told from none
    right = min(100.0, max(20.0, 1.1 * table[sets].to_numpy().max()))
    axis.set(xlim=(0, right), ylim=(-0.6, len(table) - 0.4), xlabel="explanations that fail (%)")
    axis.grid(axis="both", color="0.9", linewidth=0.6)
    axis.tick_params(axis="y", length=0, pad=8)
    figure.legend(loc="outside lower center", ncols=len(sets))
    return figure


def plot_wrong(table: pd.DataFrame) -> Figure:
    """`wrong_similarities` as pairs of points, true and wrong."""
    figure, axis = plt.subplots(figsize=(PAGE / 2, 2.0), layout="constrained")
    places = range(len(table))
    axis.hlines(places, table["wrong"], table["true"], color=GREY, linewidth=1)
    axis.plot(table["true"], places, "o", color=GREY, label="true caption")
    axis.plot(table["wrong"], places, "D", color=VERMILLION, label="made wrong")
    axis.set_yticks(places, table["kind"])
    axis.set(xlabel="mean similarity S with the picture", ylim=(len(table) - 0.5, -0.5))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
    return figure


def plot_rsum(table: pd.DataFrame, title: str = "") -> Figure:
    """RSUM of `recall_table`: a line a variant, a point a seed, the mean of several as a bar."""
    variants = list(dict.fromkeys(table["variant"]))
    height = 0.7 + 0.28 * len(variants)
    figure, axis = plt.subplots(figsize=(PAGE * 0.6, height), layout="constrained")
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

    `rows` are `relations.RelationStudy.rows` of one data set. Raises ValueError for none.
    """
    if rows.empty:
        raise ValueError("nothing to show: no rows")
    protocols, variants = rows["protocol"].unique(), list(rows["variant"].unique())
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(PAGE, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    width = 0.8 / len(variants)
    for axis, protocol in zip(axes[0], protocols, strict=True):
        for i, variant in enumerate(variants):
            chosen = rows[(rows["protocol"] == protocol) & (rows["variant"] == variant)]
            for place, kind in enumerate(_LABELS):
                values = chosen.loc[chosen["label"] == kind, "value"]
                x = place + (i - (len(variants) - 1) / 2) * width
                style = {"color": _BAR_COLOURS[i % len(_BAR_COLOURS)], "zorder": 3}
                axis.scatter([x] * len(values), values, s=9, marker=MARKERS[i % len(MARKERS)],
                             label=variant if place == 0 else None, **style)  # fmt: skip
                axis.hlines(values.mean(), x - 0.4 * width, x + 0.4 * width, **style)
        axis.set_title(protocol, loc="left")
        axis.set_xticks(range(len(_LABELS)), list(_LABELS.values()))
    axes[0, 0].set_ylabel("weighted F1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
