"""Figures to look at: pairs with their explanations, and what a model retrieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from entityclip.reporting.style import (
    GREEN,
    GREY,
    HEAT,
    PAGE,
    PALETTE,
    VERMILLION,
    text_width,
    wrap,
)

GAP = 0.12  # inches between pictures


POINT = 1 / 72  # inch


_PAGE_LINE = 1.25  # line height, of the font size


_PIXELS = 320  # a photograph is shrunk to this, enough at 200 dpi


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place of the page."""
    page, long = figure.get_size_inches()
    return figure.add_axes((left / page, 1 - (top + height) / long, width / page, height / long))


def show_picture(axis: Axes, picture: Image.Image, frame: str | None = None) -> None:
    """A picture in its own pixels, framed in a colour or not at all."""
    picture = picture.convert("RGB")
    if max(picture.size) > _PIXELS:
        picture = ImageOps.contain(picture, (_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
    # own pixels, not resampled again: a drawn 64 px picture stays small in the file
    axis.imshow(picture, interpolation="none")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=frame is not None, edgecolor=frame, linewidth=2.5)


def write(figure: Figure, left: float, top: float, text: str, **style: object) -> None:
    """Text as it stands, its upper left corner at a place of the page."""
    width, height = figure.get_size_inches()
    # parse_math: captions hold dollar signs
    figure.text(
        left / width,
        1 - top / height,
        text,
        va="top",
        linespacing=_PAGE_LINE,
        parse_math=False,
        **style,
    )


def text_height(text: str, points: float) -> float:
    """Inches that wrapped text takes."""
    return (text.count("\n") + 1) * line_height(points) if text else 0.0


def line_height(points: float) -> float:
    """Inches from one line to the next."""
    return points * _PAGE_LINE * POINT


def blank_page(width: float, height: float) -> Figure:
    """A figure without a layout engine: everything stands where it is put."""
    return plt.figure(figsize=(width, height))


Pair = tuple[str, str | None, Image.Image]  # caption, explanation, picture


Retrieved = tuple[str, Sequence[Image.Image], int | None, Image.Image, int]


def plot_gallery(items: Sequence[Pair], columns: int = 4) -> Figure:
    """Pictures with caption (bold) and explanation (grey) underneath, `columns` to a row.

    An item is (caption, explanation or None, picture). Long texts are wrapped and cut with "…".
    Raises ValueError for no items.
    """
    if not items or columns < 1:
        raise ValueError(f"nothing to show: {len(items)} items in {columns} columns")
    size = (PAGE - GAP * (columns + 1)) / columns
    captions = [wrap(caption, size, 7.0, 5, "bold") for caption, _, _ in items]
    explanations = [wrap(text or "", size, 6.5, 9) for _, text, _ in items]
    rows = [
        range(start, min(start + columns, len(items))) for start in range(0, len(items), columns)
    ]
    # a row is as high as its longest text needs
    heights = [
        size
        + 2.5 * GAP
        + max(text_height(captions[i], 7.0) + text_height(explanations[i], 6.5) for i in row)
        for row in rows
    ]
    figure = blank_page(PAGE, sum(heights) + GAP)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left, below = GAP + column * (size + GAP), top + size + GAP * 0.6
            show_picture(axes_at(figure, left, top, size, size), items[i][2])
            write(figure, left, below, captions[i], fontsize=7.0, fontweight="bold")
            below += text_height(captions[i], 7.0) + 0.03
            write(figure, left, below, explanations[i], fontsize=6.5, color="0.35")
        top += height
    return figure


def plot_retrieval_gallery(queries: Sequence[Retrieved]) -> Figure:
    """A row a query: its caption and the right picture's rank, the pictures found, best first.

    A query is (caption, pictures best first, which of them is right or None, the right picture, its
    rank), as `evaluation.best_pictures` gives. The right one has a green frame and "✓", a wrong
    first one a vermillion frame and "✗"; a right one that was not found stands at the row's end.
    Raises ValueError for no queries and for a place outside the pictures.
    """
    if not queries:
        raise ValueError("nothing to show: no queries")
    for caption, pictures, true, _, _ in queries:
        if true is not None and not 0 <= true < len(pictures):
            raise ValueError(f"picture {true} of {len(pictures)} is right for {caption!r}?")
    shown = max(len(pictures) for _, pictures, _, _, _ in queries)
    text = 1.55
    extra = any(true is None for _, _, true, _, _ in queries)
    gaps = GAP * (shown + 2 + 3 * extra)
    size = (PAGE - text - gaps) / (shown + extra)
    height = size + 0.32
    figure = blank_page(PAGE, height * len(queries) + GAP)
    for i, query in enumerate(queries):
        _query(figure, query, top=GAP + i * height, size=size, text=text, shown=shown)
    return figure


def _query(
    figure: Figure, query: Retrieved, *, top: float, size: float, text: float, shown: int
) -> None:
    caption, pictures, true, answer, rank = query
    head = 0.17
    lines = int((size + head - 0.2) / line_height(7.0))
    caption = wrap(caption, text, 7.0, max(1, lines))
    write(figure, GAP, top + head, caption, fontsize=7.0)
    below = top + head + text_height(caption, 7.0) + 0.05
    write(figure, GAP, below, f"right picture: rank {rank}", fontsize=6.5, color=GREY)
    for place, picture in enumerate(pictures):
        frame = GREEN if place == true else VERMILLION if place == 0 else None
        sign = " ✓" if place == true else " ✗" if place == 0 else ""
        axis = axes_at(figure, text + GAP * (place + 2) + size * place, top + head, size, size)
        show_picture(axis, picture, frame)
        axis.set_title(f"{place + 1}{sign}", fontsize=7, color=frame or GREY, pad=3)
    if true is None:
        axis = axes_at(figure, text + GAP * (shown + 4) + size * shown, top + head, size, size)
        show_picture(axis, answer, GREEN)
        axis.set_title(f"{rank} ✓", fontsize=7, color=GREEN, pad=3)


_POINTS = 6.5  # of words and labels


_LINE = 1.55  # line height of coloured words, of the font size


_BAR = 0.42  # inches at the foot for the colour bar


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
        for asker, weights in (
            ("the picture (CLS) reads", pair.from_image),
            ("the caption (EOT) reads", pair.from_text),
        ):
            write(figure, left, below, asker, fontsize=_POINTS, color=GREY)
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
        axes = [
            axes_at(figure, text + 2 * GAP + i * (size + GAP), top, size, size)
            for i in range(experts + 1)
        ]
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
    figure: Figure,
    left: float,
    top: float,
    words: Sequence[str],
    places: list[tuple[int, float, float]],
    shares: np.ndarray,
) -> None:
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
            (x + width / 2) / page,
            1 - (y + height / 2) / long,
            word,
            color="white" if dark else "black",
            ha="center",
            va="center_baseline",
            fontsize=_POINTS,
            parse_math=False,
        )


def _colour_bar(figure: Figure, scale: Normalize, what: str) -> None:
    _, long = figure.get_size_inches()
    axis = axes_at(figure, PAGE - 2.2 - GAP, long - _BAR + 0.06, 2.2, 0.08)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 100 * scale.vmax), HEAT), cax=axis, orientation="horizontal"
    )
    bar.outline.set_linewidth(0.4)
    axis.tick_params(labelsize=_POINTS, length=2, pad=1.5)
    write(figure, PAGE - 2.3 - GAP, long - _BAR + 0.04, what, fontsize=_POINTS, ha="right")


_LABELS = {"text": "text\nrepresented", "image": "image\nadds", "combined": "both\n(4 classes)"}


_BAR_COLOURS = (GREY, *PALETTE)  # the start weights come first


_COLUMN = 1.6  # inches of a picture's column


def plot_cams(
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    cams: Mapping[str, NDArray[np.float32]],
) -> Figure:
    """Pictures in a row, and below them Grad-CAM maps [N, H, W] of each of several models.

    Raises ValueError for no pictures and for maps of another number of them.
    """
    for name, maps in cams.items():
        if len(maps) != len(pictures) or not pictures:
            raise ValueError(f"{len(maps)} maps of {name!r} for {len(pictures)} pictures")
    rows, size = 1 + len(cams), (PAGE - 0.4) / max(len(pictures), 1)
    figure, axes = plt.subplots(
        rows, len(pictures), figsize=(PAGE, 0.75 + rows * min(size, _COLUMN)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
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
