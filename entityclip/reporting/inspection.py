"""What a model looks at, drawn: attention over words and patches, gates, its space, Grad-CAM.

The numbers are those of `entityclip.evaluation.inspection`, handed over as arrays and tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from entityclip.reporting.markup import one_line
from entityclip.reporting.pictures import (
    GAP,
    POINT,
    axes_at,
    blank_page,
    line_height,
    show_picture,
    text_height,
    write,
)
from entityclip.reporting.style import (
    GREY,
    HEAT,
    PAGE,
    PALETTE,
    VERMILLION,
    Page,
    panels,
    text_width,
    wrap,
)

_POINTS = 6.5  # of words and labels
_LINE = 1.55  # line height of coloured words, of the font size
_BAR = 0.42  # inches at the foot for the colour bar
_COLUMN = 1.6  # inches of a picture's column
_COLOURS = {
    "image": PALETTE[5],
    "explanation from image": PALETTE[3],
    "explanation from text": PALETTE[2],
    "text": VERMILLION,
}
_GATES = (("image", "text"), ("fusion",))
_ASKERS = {"from_image": "the picture (CLS)", "from_text": "the caption (EOT)"}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LIGHT = "#b0b0b0"
_SIDES = {"picture": ("o", 16), "caption": ("^", 18)}
Place = tuple[str, int, float, float]  # a word, its line, and its left edge and width in inches


def plot_word_attention(
    table: pd.DataFrame, captions: Sequence[str], pictures: Sequence[Image.Image]
) -> Figure:
    """Each pair's picture beside its explanation, the words coloured by attention, twice.

    `table` is `inspection.word_table` of the pairs. One colour scale for all, so that rows may be
    compared. Raises ValueError for other captions and pictures than there are pairs, and for none.
    """
    pairs = [rows for _, rows in table.groupby("pair", sort=False)]
    if not len(pairs) == len(captions) == len(pictures) > 0:
        raise ValueError(
            f"{len(captions)} captions and {len(pictures)} pictures, {len(pairs)} pairs"
        )
    side = 1.15
    left, inches = side + 2 * GAP, PAGE - side - 3 * GAP
    captions = [wrap(caption, inches, 7.0, 3, "bold") for caption in captions]
    flows = [_flow(rows["word"], inches) for rows in pairs]
    heights = [
        max(side, text_height(caption, 7.0) + 2 * _block_height(flow)) + 2 * GAP
        for caption, flow in zip(captions, flows, strict=True)
    ]
    scale = Normalize(0, table[list(_ASKERS)].to_numpy().max())
    figure = blank_page(PAGE, sum(heights) + GAP + _BAR)
    top = GAP
    for number, (rows, flow) in enumerate(zip(pairs, flows, strict=True)):
        show_picture(axes_at(figure, GAP, top, side, side), pictures[number])
        write(figure, left, top, captions[number], fontsize=7.0, fontweight="bold")
        below = top + text_height(captions[number], 7.0) + 0.03
        for column, asker in _ASKERS.items():
            write(figure, left, below, f"{asker} reads", fontsize=_POINTS, color=GREY)
            _colour_words(figure, left, below, flow, scale(rows[column].to_numpy()))
            below += _block_height(flow)
        top += heights[number]
    _colour_bar(figure, scale, "attention of a word (%)")
    return figure


def plot_patch_attention(
    captions: Sequence[str], pictures: Sequence[Image.Image], maps: ArrayLike
) -> Figure:
    """A row a pair: its picture, then the same under the attention of each of n image experts.

    `maps` [pairs, n, h, w] are drawn in patches as large as they are, on one colour scale for all.
    Raises ValueError for no pairs and for maps of another shape.
    """
    maps = np.asarray(maps)
    if maps.ndim != 4 or not len(maps) == len(captions) == len(pictures) > 0:
        raise ValueError(f"{len(pictures)} pictures need maps [pairs, n, h, w]; got {maps.shape}")
    experts, text, head = maps.shape[1], 1.25, 0.2
    size = min(1.3, (PAGE - text - GAP * (experts + 3)) / (experts + 1))
    height, lines = size + GAP, int(size / line_height(7.0))
    scale = Normalize(0, maps.max())
    figure = blank_page(PAGE, head + height * len(maps) + GAP + _BAR)
    for row, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        top = head + GAP / 2 + row * height
        write(figure, GAP, top, wrap(caption, text, 7.0, lines), fontsize=7.0)
        under = [picture, *(_under_heat(picture, weights, scale) for weights in maps[row])]
        for place, shown in enumerate(under):
            axis = axes_at(figure, text + 2 * GAP + place * (size + GAP), top, size, size)
            show_picture(axis, shown)
            if row == 0:
                title = f"image {place}" if place else "picture"
                axis.set_title(title, fontsize=7, color=GREY, pad=3)
    _colour_bar(figure, scale, "attention of a patch (%)")
    return figure


def _under_heat(picture: Image.Image, weights: np.ndarray, scale: Normalize) -> Image.Image:
    """The picture as a faint relief in the colours of its patches' weights [h, w]."""
    heat = Image.fromarray(np.uint8(255 * mpl.colormaps[HEAT](scale(weights))[..., :3]))
    heat = heat.resize(picture.size, Image.Resampling.NEAREST)
    # night pictures are stretched: white keeps the scale's colour, black still lets it through
    grey = ImageOps.autocontrast(picture.convert("L"), cutoff=1)
    relief = 0.7 + 0.3 * np.asarray(grey, np.float32)[..., None] / 255
    return Image.fromarray(np.uint8(np.asarray(heat) * relief))


def _flow(words: Iterable[str], inches: float) -> list[Place]:
    """Words filled into lines like prose."""
    space = 0.3 * _POINTS * POINT
    places, line, left = [], 0, 0.0
    for word in map(one_line, words):
        width = text_width(word, _POINTS) + space
        if left and left + width > inches:
            line, left = line + 1, 0.0
        places.append((word, line, left, width))
        left += width
    return places


def _block_height(places: list[Place]) -> float:
    lines = places[-1][1] + 1
    return line_height(_POINTS) + 0.04 + lines * _POINTS * _LINE * POINT + 0.04


def _colour_words(
    figure: Figure, left: float, top: float, places: list[Place], shares: np.ndarray
) -> None:
    """Words below their asker's line, each on its colour; `shares` from 0 to 1 of the scale."""
    page, long = figure.get_size_inches()
    height = _POINTS * _LINE * POINT
    start = top + line_height(_POINTS) + 0.04
    for (word, line, right, width), share in zip(places, shares, strict=True):
        colour = mpl.colormaps[HEAT](float(share))
        x, y = left + right, start + line * height
        corner = x / page, 1 - (y + height) / long
        box = Rectangle(corner, width / page, height / long, facecolor=colour, linewidth=0)
        box.set(transform=figure.transFigure, figure=figure)
        figure.add_artist(box)
        dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5
        figure.text(
            (x + width / 2) / page, 1 - (y + height / 2) / long, word, ha="center",
            va="center_baseline", color="white" if dark else "black", fontsize=_POINTS,
        )  # fmt: skip


def _colour_bar(figure: Figure, scale: Normalize, what: str) -> None:
    _, long = figure.get_size_inches()
    axis = axes_at(figure, PAGE - 2.2 - GAP, long - _BAR + 0.06, 2.2, 0.08)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100 * scale.vmax), HEAT), cax=axis, orientation="horizontal"
    )
    bar.outline.set_linewidth(0.4)
    axis.tick_params(labelsize=_POINTS, length=2, pad=1.5)
    write(figure, PAGE - 2.3 - GAP, long - _BAR + 0.04, what, fontsize=_POINTS, ha="right")


def plot_cams(
    pictures: Sequence[Image.Image], texts: Sequence[str], cams: Mapping[str, NDArray[np.float32]]
) -> Figure:
    """Pictures in a row, and below them Grad-CAM maps [N, H, W] of each of several models.

    Raises ValueError for no pictures and for maps of another number of them.
    """
    for name, maps in cams.items():
        if len(maps) != len(pictures):
            raise ValueError(f"{len(maps)} maps of {name!r} for {len(pictures)} pictures")
    size = min((PAGE - 0.4) / max(len(pictures), 1), _COLUMN)
    figure, axes = panels(1 + len(cams), len(pictures), 0.75 + (1 + len(cams)) * size)
    for column, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        title = wrap(text, size, 6.5, 5)
        axes[0, column].set_title(title, fontsize=6.5)
        for axis, maps in zip(axes[:, column], (None, *cams.values()), strict=True):
            axis.imshow(picture, interpolation="none")
            if maps is not None:
                extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
                axis.imshow(maps[column], cmap="inferno", alpha=0.5, vmin=0, vmax=1, extent=extent)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, name in zip(axes[:, 0], ("picture", *cams), strict=True):
        axis.set_ylabel(wrap(name, 1.3, 7.5, 3), fontsize=7.5)
    return figure


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
    if table.empty:
        raise ValueError("nothing to show: no gate weights")
    gates = dict(list(table.groupby("gate")))
    # one below the other those of picture and text, beside them that of fusion
    columns = [[[gate] for gate in side if gate in gates] for side in _GATES]
    columns = [mosaic for mosaic in columns if mosaic]
    height = 0.9 + 0.19 * max(8, *map(len, gates.values()))
    figure = plt.figure(figsize=(PAGE, height), layout="constrained", FigureClass=Page)
    parts = figure.subfigures(1, len(columns), squeeze=False)[0]
    for part, mosaic in zip(parts, columns, strict=True):
        for gate, axis in part.subplot_mosaic(mosaic).items():
            _boxes(axis, gates[gate])
            axis.set_title(f"{gate.capitalize()} gate", loc="left")
        axis.set_xlabel("weight")
    used = set(map(_source, table["gate"], table["expert"]))
    shown = {name: colour for name, colour in _COLOURS.items() if name in used}
    handles = [Patch(color=colour, alpha=0.75, label=name) for name, colour in shown.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _boxes(axis: Axes, rows: pd.DataFrame) -> None:
    quantiles = dict(q05="whislo", q25="q1", q50="med", q75="q3", q95="whishi")
    lines = {f"{part}props": {"linewidth": 0.7} for part in ("box", "whisker", "cap")}
    boxes = axis.bxp(
        rows[list(quantiles)].rename(columns=quantiles).to_dict("records"),
        orientation="horizontal", showfliers=False, patch_artist=True, widths=0.65,
        medianprops={"color": "black", "linewidth": 1.2}, **lines,
    )  # fmt: skip
    for box, gate, expert in zip(boxes["boxes"], rows["gate"], rows["expert"], strict=True):
        box.set(facecolor=_COLOURS[_source(gate, expert)], alpha=0.75)
    axis.axvline(rows["even"].iloc[0], color=GREY, linestyle="--", linewidth=0.9, zorder=0)
    # the colour tells what an explanation is from
    axis.set_yticks(range(1, len(rows) + 1), labels=rows["expert"].str.partition(" from ")[0])
    axis.tick_params(axis="y", length=0, labelsize=6.5)
    axis.invert_yaxis()
    axis.set_xlim(0)


def _source(gate: str, expert: str) -> str:
    """What an expert read, and for whom."""
    kind, _, rest = expert.partition(" ")
    if kind != "explanation":
        return kind
    return f"explanation {rest.partition(' ')[2] or f'from {gate}'}"


def space_table(planes: Mapping[str, Any]) -> pd.DataFrame:
    """The points of all planes (`evaluation.inspection.plane`), with their title as `model`."""
    parts = [seen.points.assign(model=title) for title, seen in planes.items()]
    return pd.concat(parts, ignore_index=True)[["model", "kind", "pair", "label", "x", "y"]]


def space_numbers(planes: Mapping[str, Any]) -> pd.DataFrame:
    """A row a plane: `model`, `alignment`, `uniformity_images`, `uniformity_texts`."""
    names = ("alignment", "uniformity_images", "uniformity_texts")
    rows = [[title, *(getattr(seen, name) for name in names)] for title, seen in planes.items()]
    return pd.DataFrame(rows, columns=["model", *names])


def plot_space(planes: Mapping[str, Any], pictures: int = 150) -> Figure:
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
    figure, axes = panels(1, len(planes), 3.9, width)
    for axis, (title, seen) in zip(axes[0], planes.items(), strict=True):
        _scatter(axis, seen, colours, pictures)
        uniform = f"{seen.uniformity_images:.2f} (pictures), {seen.uniformity_texts:.2f} (captions)"
        said = f"{title}\nalignment {seen.alignment:.2f}, uniformity {uniform}"
        axis.set_title(said, loc="left", fontsize=7.5)
    handles = [
        Line2D([], [], linestyle="", marker=mark, color=GREY, label=f"{side}s")
        for side, (mark, _) in _SIDES.items()
    ]
    handles += [Line2D([], [], linewidth=4, color=c, label=name) for name, c in colours.items()]
    if len(counts) > len(colours):
        handles.append(Line2D([], [], linewidth=4, color=_LIGHT, label="others"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _scatter(axis: Axes, seen: Any, colours: dict[str, str], limit: int) -> None:
    points = seen.points[seen.points["pair"] < limit]
    pictures = points[points["kind"] == "picture"].set_index("pair")[["x", "y"]]
    captions = points[points["kind"] == "caption"]
    ends = captions[["x", "y"]].to_numpy(), pictures.loc[captions["pair"]].to_numpy()
    lines = list(zip(*ends, strict=True))
    axis.add_collection(LineCollection(lines, colors="0.65", linewidths=0.5, zorder=1))
    for side, (mark, size) in _SIDES.items():
        part = points[points["kind"] == side]
        axis.scatter(
            part["x"], part["y"], c=[colours.get(name, _LIGHT) for name in part["label"]],
            marker=mark, s=size, linewidths=0.3, edgecolors="white", zorder=2,
        )  # fmt: skip
    first, second = (f"{100 * share:.0f} %" for share in seen.explained)
    axis.set(xlabel=f"component 1 ({first} of variance)", ylabel=f"component 2 ({second})")
    axis.set(xticks=[], yticks=[])


def plot_wrong(table: pd.DataFrame) -> Figure:
    """`wrong_similarities` as pairs of points, true and wrong."""
    figure, ((axis,),) = panels(1, 1, 2.0, PAGE / 2)
    places = range(len(table))
    axis.hlines(places, table["wrong"], table["true"], color=GREY, linewidth=1)
    axis.plot(table["true"], places, "o", color=GREY, label="true caption")
    axis.plot(table["wrong"], places, "D", color=VERMILLION, label="made wrong")
    axis.set_yticks(places, table["kind"])
    axis.set(xlabel="mean similarity S with the picture", ylim=(len(table) - 0.5, -0.5))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
    return figure


def plot_draws(table: pd.DataFrame) -> Figure:
    """`drawn_negatives` as curves: how likely a negative is, by its rank; a panel a VTC."""
    moments = list(table["vtc"].unique())
    figure, (axes,) = panels(1, len(moments), 2.2)
    looks = {"hard": (GREY, "ours"), "floored": (VERMILLION, "the public code's")}
    for axis, vtc in zip(axes, moments, strict=True):
        for draw, (colour, name) in looks.items():
            rows = table[(table["vtc"] == vtc) & (table["draw"] == draw)]
            others = rows[rows["rank"] > 0]
            axis.plot(others["rank"], others["probability"], color=colour, label=name)
        axis.set(title=f"VTC {vtc:g}", xlabel="rank of the negative", xscale="log", yscale="log")
        axis.set_ylim(1e-5, 1)
    axes[0].set_ylabel("probability")
    axes[-1].legend(loc="upper right")
    return figure
