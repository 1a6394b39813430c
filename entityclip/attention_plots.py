"""Attention to look at: explanation words coloured by it, patches of a picture under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from entityclip.page import (
    GAP,
    POINT,
    axes_at,
    blank_page,
    line_height,
    show_picture,
    text_height,
    write,
)
from entityclip.style import GREY, HEAT, PAGE, text_width, wrap

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
