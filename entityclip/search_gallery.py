"""A page of search results as a figure: pictures best first, each with its place and score."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from entityclip.datasets.decode import decode
from entityclip.datasets.pair import Pair
from entityclip.page import GAP, axes_at, blank_page, show_picture, text_height, write
from entityclip.search import Collection, Page, Query
from entityclip.style import GREEN, GREY, PAGE, wrap

_HEAD = 0.17  # inches above a picture for its place and score


def plot_page(collection: Collection, page: Page, columns: int = 6) -> Figure:
    """The hits of a page in rows of `columns`; a pair's own picture is framed and ticked.

    Raises ImageError for a picture that was deleted meanwhile.
    """
    size = (PAGE - GAP * (columns + 1)) / columns
    rows = -(-len(page.hits) // columns)
    query = _as_picture(page.query)
    title = wrap(title_of(page), PAGE - 2 * GAP - (size if query else 0), 8.0, 3, "bold")
    top = GAP + max(text_height(title, 8.0), size if query else 0) + GAP / 2
    figure = blank_page(PAGE, top + rows * (size + _HEAD + GAP))
    left = GAP
    if query:
        show_picture(axes_at(figure, GAP, GAP, size, size), query, GREY)
        left += size + GAP
    write(figure, left, GAP, title, fontsize=8.0, fontweight="bold")
    for number, hit in enumerate(page.hits):
        row, column = divmod(number, columns)
        axis = axes_at(
            figure,
            GAP + column * (size + GAP),
            top + _HEAD + row * (size + _HEAD + GAP),
            size,
            size,
        )
        show_picture(axis, collection.picture(hit.id), GREEN if hit.true else None)
        label = f"{hit.place}{' ✓' if hit.true else ''}   {hit.score:.3f}"
        axis.set_title(label, fontsize=7, color=GREEN if hit.true else GREY, pad=3)
    return figure


def title_of(page: Page) -> str:
    """What was asked, and which page this is."""
    asked = "pictures like this one"
    if isinstance(page.query, (str, Pair)):
        asked = f"“{page.query.caption if isinstance(page.query, Pair) else page.query}”"
    return f"{asked} – page {page.number + 1} of {page.pages}"


def describe_page(page: Page) -> str:
    """The page in a sentence, for who does not see the pictures."""
    best = page.hits[0]
    true = next((hit.place for hit in page.hits if hit.true), None)
    found = f"; its own picture is at place {true}" if true else ""
    return (
        f"Search for {title_of(page)}: {len(page.hits)} pictures, places {best.place} to "
        f"{page.hits[-1].place}, scores {best.score:.3f} to {page.hits[-1].score:.3f}{found}"
    )


def _as_picture(query: Query) -> Image.Image | None:
    if isinstance(query, (str, Pair)):
        return None
    return query if isinstance(query, Image.Image) else decode(Path(query))
