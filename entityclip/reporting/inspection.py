"""What a model looks at, drawn: attention over words and patches, gates, its space, Grad-CAM.

The numbers are those of `entityclip.evaluation.inspection`, handed over as arrays and tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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

from entityclip.reporting.charts import panels
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
from entityclip.reporting.style import GREY, HEAT, PAGE, PALETTE, VERMILLION, text_width, wrap

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
_TITLES = {"image": "Image gate", "text": "Text gate", "fusion": "Fusion gate"}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LIGHT = "#b0b0b0"
_SIDES = {"picture": ("o", 16), "caption": ("^", 18)}


class ReadPair(NamedTuple):
    """A pair and how its explanation is read: one weight a word, from either side."""

    caption: str
    picture: Image.Image
    words: Sequence[str]
    from_image: ArrayLike  # [words], asked by the picture's CLS
    from_text: ArrayLike  # [words], asked by the caption's EOT


class SeenPicture(NamedTuple):
    """A pair and one map [h, w] an image expert of where on the picture it looks."""

    caption: str
    picture: Image.Image
    maps: ArrayLike  # [n, h, w]


def read_pairs(
    table: pd.DataFrame, captions: Sequence[str], pictures: Sequence[Image.Image]
) -> list[ReadPair]:
    """`inspection.word_table` beside each pair's caption and picture, in the table's order."""
    return [
        ReadPair(caption, picture, rows["word"].tolist(), rows["from_image"], rows["from_text"])
        for (_, rows), caption, picture in zip(
            table.groupby("pair", sort=False), captions, pictures, strict=True
        )
    ]


def plot_word_attention(pairs: Sequence[ReadPair]) -> Figure:
    """Each pair's picture beside its explanation, the words coloured by attention, twice.

    One colour scale for all, so that rows may be compared. Raises ValueError for no pairs and where
    words and weights differ in number.
    """
    if not pairs:
        raise ValueError("nothing to show: no pairs")
    for pair in pairs:
        counts = len(pair.words), len(pair.from_image), len(pair.from_text)
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(
                f"{counts[0]} words with {counts[1]} and {counts[2]} weights: {pair.caption!r}"
            )
    side = 1.15
    left, inches = side + 2 * GAP, PAGE - side - 3 * GAP
    captions = [wrap(pair.caption, inches, 7.0, 3, "bold") for pair in pairs]
    blocks = [_flow(pair.words, inches) for pair in pairs]
    heights = [
        max(side, text_height(caption, 7.0) + 2 * _block_height(places)) + 2 * GAP
        for caption, places in zip(captions, blocks, strict=True)
    ]
    scale = Normalize(0, max(np.asarray(side).max() for pair in pairs for side in pair[3:]))
    figure = blank_page(PAGE, sum(heights) + GAP + _BAR)
    top = GAP
    for pair, caption, places, height in zip(pairs, captions, blocks, heights, strict=True):
        show_picture(axes_at(figure, GAP, top, side, side), pair.picture)
        write(figure, left, top, caption, fontsize=7.0, fontweight="bold")
        below = top + text_height(caption, 7.0) + 0.03
        sides = {"the picture (CLS)": pair.from_image, "the caption (EOT)": pair.from_text}
        for asker, weights in sides.items():
            write(figure, left, below, f"{asker} reads", fontsize=_POINTS, color=GREY)
            _colour_words(figure, left, below, pair.words, places, scale(np.asarray(weights)))
            below += _block_height(places)
        top += height
    _colour_bar(figure, scale, "attention of a word (%)")
    return figure


def plot_patch_attention(pairs: Sequence[SeenPicture], names: Sequence[str] = ()) -> Figure:
    """A row a pair: its picture, then the same under each image expert's attention.

    Patches are shown as large as they are, on one colour scale for all. `names` are the experts'.
    Raises ValueError for no pairs and for maps of another shape than [n, h, w] or in other numbers.
    """
    shapes = {np.shape(pair.maps) for pair in pairs}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ValueError(f"pairs need maps [n, h, w], alike for all; got {sorted(shapes)}")
    (experts, _, _) = next(iter(shapes))
    names = list(names) or [f"image {i + 1}" for i in range(experts)]
    text = 1.25
    size = min(1.3, (PAGE - text - GAP * (experts + 3)) / (experts + 1))
    height, head = size + GAP, 0.2
    scale = Normalize(0, max(np.asarray(pair.maps).max() for pair in pairs))
    figure = blank_page(PAGE, head + height * len(pairs) + GAP + _BAR)
    for row, pair in enumerate(pairs):
        top = head + GAP / 2 + row * height
        caption = wrap(pair.caption, text, 7.0, int(size / line_height(7.0)))
        write(figure, GAP, top, caption, fontsize=7.0)
        lefts = (text + 2 * GAP + i * (size + GAP) for i in range(experts + 1))
        axes = [axes_at(figure, left, top, size, size) for left in lefts]
        show_picture(axes[0], pair.picture)
        for axis, weights in zip(axes[1:], np.asarray(pair.maps), strict=True):
            show_picture(axis, _under_heat(pair.picture, weights, scale))
        if row == 0:
            for axis, name in zip(axes, ["picture", *names], strict=True):
                axis.set_title(name, fontsize=7, color=GREY, pad=3)
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


def _flow(words: Sequence[str], inches: float) -> list[tuple[int, float, float]]:
    """(line, left, width) in inches of each word, filled into lines like prose."""
    space = 0.3 * _POINTS * POINT
    places, line, left = [], 0, 0.0
    for word in words:
        width = text_width(word, _POINTS) + space
        if left and left + width > inches:
            line, left = line + 1, 0.0
        places.append((line, left, width))
        left += width
    return places


def _block_height(places: list[tuple[int, float, float]]) -> float:
    lines = places[-1][0] + 1
    return line_height(_POINTS) + 0.04 + lines * _POINTS * _LINE * POINT + 0.04


def _colour_words(
    figure: Figure, left: float, top: float, words: Sequence[str],
    places: list[tuple[int, float, float]], shares: np.ndarray,
) -> None:  # fmt: skip
    """Words below their asker's line, each on its colour; `shares` from 0 to 1 of the scale."""
    page, long = figure.get_size_inches()
    height = _POINTS * _LINE * POINT
    start = top + line_height(_POINTS) + 0.04
    for word, (line, right, width), share in zip(words, places, shares, strict=True):
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
            parse_math=False,
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
        if len(maps) != len(pictures) or not pictures:
            raise ValueError(f"{len(maps)} maps of {name!r} for {len(pictures)} pictures")
    rows, size = 1 + len(cams), (PAGE - 0.4) / max(len(pictures), 1)
    figure, axes = panels(rows, len(pictures), 0.75 + rows * min(size, _COLUMN))
    for column, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        axes[0, column].set_title(wrap(text, min(size, _COLUMN), 6.5, 5), fontsize=6.5)
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


def space_table(planes: Mapping[str, Any]) -> pd.DataFrame:
    """The points of all planes (`evaluation.inspection.plane`), with their title as `model`."""
    parts = [seen.points.assign(model=title) for title, seen in planes.items()]
    return pd.concat(parts, ignore_index=True)[["model", "kind", "pair", "label", "x", "y"]]


def space_numbers(planes: Mapping[str, Any]) -> pd.DataFrame:
    """A row a plane: `model`, `alignment`, `uniformity_images`, `uniformity_texts`."""
    names = ("alignment", "uniformity_images", "uniformity_texts")
    return pd.DataFrame(
        [{"model": title} | {n: getattr(seen, n) for n in names} for title, seen in planes.items()]
    )


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


def _space_numbers(seen: Any) -> str:
    return (
        f"alignment {seen.alignment:.2f}, uniformity {seen.uniformity_images:.2f} (pictures), "
        f"{seen.uniformity_texts:.2f} (captions)"
    )


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
