"""Figures to look at: pairs with their explanations, and what a model retrieves."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from entityclip.reporting.style import GREEN, GREY, PAGE, VERMILLION, Page, wrap

GAP = 0.12  # inches between pictures
POINT = 1 / 72  # inch
_PAGE_LINE = 1.25  # line height, of the font size
_PIXELS = 320  # a photograph is shrunk to this, enough at 200 dpi
_SIGNS = {GREEN: " ✓", VERMILLION: " ✗", None: ""}  # by the frame's colour

Pair = tuple[str, str | None, Image.Image]  # caption, explanation, picture
Retrieved = tuple[str, Sequence[Image.Image], int | None, Image.Image, int]


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
    axis.spines[:].set(visible=frame is not None, edgecolor=frame, linewidth=2.5)


def write(figure: Figure, left: float, top: float, text: str, **style: object) -> None:
    """Text as it stands, its upper left corner at a place of the page."""
    width, height = figure.get_size_inches()
    style = {"va": "top", "linespacing": _PAGE_LINE} | style
    figure.text(left / width, 1 - top / height, text, **style)


def text_height(text: str, points: float) -> float:
    """Inches that wrapped text takes."""
    return (text.count("\n") + 1) * line_height(points) if text else 0.0


def line_height(points: float) -> float:
    """Inches from one line to the next."""
    return points * _PAGE_LINE * POINT


def blank_page(width: float, height: float) -> Figure:
    """A figure without a layout engine: everything stands where it is put."""
    return plt.figure(figsize=(width, height), FigureClass=Page)


def plot_gallery(items: Sequence[Pair], columns: int = 4) -> Figure:
    """Pictures with caption (bold) and explanation (grey) underneath, `columns` to a row.

    An item is (caption, explanation or None, picture). Long texts are wrapped and cut with "…".
    Raises ValueError for no items.
    """
    if not items:
        raise ValueError("nothing to show: no items")
    size = (PAGE - GAP * (columns + 1)) / columns
    wrapped = [
        (wrap(caption, size, 7.0, 5, "bold"), wrap(explanation or "", size, 6.5, 9), picture)
        for caption, explanation, picture in items
    ]
    rows = [wrapped[start : start + columns] for start in range(0, len(items), columns)]
    heights = [  # a row is as high as its longest text needs
        size + 2.5 * GAP + max(text_height(a, 7.0) + text_height(b, 6.5) for a, b, _ in row)
        for row in rows
    ]
    figure = blank_page(PAGE, sum(heights) + GAP)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, explanation, picture) in enumerate(row):
            left, below = GAP + column * (size + GAP), top + size + GAP * 0.6
            show_picture(axes_at(figure, left, top, size, size), picture)
            write(figure, left, below, caption, fontsize=7.0, fontweight="bold")
            below += text_height(caption, 7.0) + 0.03
            write(figure, left, below, explanation, fontsize=6.5, color="0.35")
        top += height
    return figure


def plot_retrieval_gallery(queries: Sequence[Retrieved]) -> Figure:
    """A row a query: its caption and the right picture's rank, the pictures found, best first.

    A query is (caption, pictures best first, which of them is right or None, the right picture, its
    rank), as `evaluation.retrieval.best_pictures` gives. The right one has a green frame and "✓", a
    wrong first one a vermillion frame and "✗"; a right one not found stands at the row's end.
    Raises ValueError for no queries.
    """
    if not queries:
        raise ValueError("nothing to show: no queries")
    shown = max(len(pictures) for _, pictures, _, _, _ in queries)
    extra = any(true is None for _, _, true, _, _ in queries)
    text, head = 1.55, 0.17
    size = (PAGE - text - GAP * (shown + 2 + 3 * extra)) / (shown + extra)
    height = size + 0.32
    lines = max(1, int((size + head - 0.2) / line_height(7.0)))
    figure = blank_page(PAGE, height * len(queries) + GAP)
    for row, (caption, pictures, true, answer, rank) in enumerate(queries):
        top = GAP + row * height + head
        caption = wrap(caption, text, 7.0, lines)
        write(figure, GAP, top, caption, fontsize=7.0)
        below = top + text_height(caption, 7.0) + 0.05
        write(figure, GAP, below, f"right picture: rank {rank}", fontsize=6.5, color=GREY)
        frames = {0: VERMILLION, true: GREEN}  # the right one may be the first
        found = [(i, i + 1, picture, frames.get(i)) for i, picture in enumerate(pictures)]
        if true is None:
            found.append((shown, rank, answer, GREEN))
        for place, number, picture, frame in found:
            left = text + GAP * (place + (4 if place == shown else 2)) + size * place
            axis = axes_at(figure, left, top, size, size)
            show_picture(axis, picture, frame)
            axis.set_title(f"{number}{_SIGNS[frame]}", fontsize=7, color=frame or GREY, pad=3)
    return figure
