"""Figures to look at: pairs with their explanations, and what a model retrieves."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from entityclip.page import GAP, axes_at, blank_page, line_height, show_picture, text_height, write
from entityclip.style import GREEN, GREY, PAGE, VERMILLION, wrap

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
