"""Controls for the search and the explorer in JupyterLab; elsewhere the plain cells do the same.

A stored widget is an empty box without its kernel, so papermill, nbval and the web get none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from IPython.display import Markdown, display
from PIL import Image

from entityclip.datasets.decode import decode
from entityclip.explorer import Explorer
from entityclip.galleries import plot_retrieval_gallery
from entityclip.search import Collection, Query
from entityclip.search_gallery import describe_page, plot_page
from entityclip.style import preview

_PLAIN = "*Controls appear here in JupyterLab; the cells above show the same without them.*"
_SHOWN = 200  # queries in the explorer's list


def interactive() -> bool:
    """Whether a person sits at this kernel: JupyterLab names its session, papermill has none.

    ``ENTITYCLIP_WIDGETS`` set to 0 or 1 decides otherwise.
    """
    chosen = os.environ.get("ENTITYCLIP_WIDGETS")
    return chosen == "1" if chosen else "JPY_SESSION_NAME" in os.environ


def show_page(collection: Collection, query: Query, page: int = 0, per_page: int = 12) -> Any:
    """A page of hits as a picture for a notebook, with its description."""
    found = collection.search(query, page=page, per_page=per_page)
    return preview(plot_page(collection, found), quality=55, alt=describe_page(found))


def search_controls(collection: Collection, text: str, per_page: int = 12) -> None:
    """A line to search by text, a button to search by your own picture, and pages to turn."""
    widgets = _widgets()
    if widgets is None:
        return
    line = widgets.Text(text, description="Text", continuous_update=False, layout={"width": "70%"})
    upload = widgets.FileUpload(accept="image/*", description="Picture")
    before, after = widgets.Button(description="‹ Page"), widgets.Button(description="Page ›")
    output, state = widgets.Output(), {"query": lambda: text, "page": 0}

    def draw(**change: Any) -> None:
        state.update(change)
        pages = -(-len(collection) // per_page)
        before.disabled, after.disabled = state["page"] == 0, state["page"] == pages - 1
        # an upload is decoded in there, so that what is wrong with it is shown
        _redraw(output, lambda: show_page(collection, state["query"](), state["page"], per_page))

    line.observe(lambda _: draw(query=lambda: line.value, page=0), "value")
    upload.observe(lambda _: draw(query=lambda: _uploaded(upload), page=0), "value")
    before.on_click(lambda _: draw(page=max(0, state["page"] - 1)))
    after.on_click(lambda _: draw(page=state["page"] + 1))
    draw()
    display(widgets.VBox([widgets.HBox([line, upload]), widgets.HBox([before, after]), output]))


def explorer_controls(explorer: Explorer) -> None:
    """A list of queries, those that the compared variants disagree on first, and a variant."""
    widgets = _widgets()
    if widgets is None:
        return
    rows = explorer.table.head(_SHOWN)
    names = [f"{row.disagreement:+.1f}  {row.caption}" for row in rows.itertuples()]
    options = list(zip(names, rows["query"].tolist(), strict=True))
    query = widgets.Dropdown(options=options, description="Query", layout={"width": "90%"})
    variant = widgets.Dropdown(options=explorer.variants, value=explorer.variants[-1],
                               description="Variant")  # fmt: skip
    output = widgets.Output()

    def draw(_: Any = None) -> None:
        _redraw(output, lambda: show_query(explorer, query.value, [variant.value]))

    query.observe(draw, "value")
    variant.observe(draw, "value")
    draw()
    display(widgets.VBox([query, variant, output]))


def show_query(explorer: Explorer, query: int, variants: list[str] | None = None) -> Any:
    """A query's caption, its ranks, and what each variant puts first, as a picture."""
    ranks = explorer.ranks(query)
    caption = explorer.experiment.pairs(explorer.split)[query].caption
    said = ", ".join(f"{variant} {rank}" for variant, rank in ranks.items())
    display(Markdown(f"**{caption}** – rank of its picture: {said}"))
    chosen = list(variants or explorer.variants)
    found = [explorer.hardest_negatives(query, variant) for variant in chosen]
    alt = f"What {', '.join(chosen)} find for “{caption}”; ranks of the right picture: {said}"
    return preview(plot_retrieval_gallery(found), quality=55, alt=alt)


def _widgets() -> Any:
    """ipywidgets, or None after saying that controls are left out."""
    if interactive():
        try:
            import ipywidgets
        except ImportError:
            display(Markdown("*No controls: `pip install 'entityclip[notebooks]'`.*"))
            return None
        return ipywidgets
    display(Markdown(_PLAIN))
    return None


def _redraw(output: Any, show: Callable[[], Any]) -> None:
    """Put what `show` gives, or what is wrong with the input, into an output widget."""
    output.clear_output(wait=True)
    with output:  # also what `show` displays by itself
        try:
            display(show())
        except (ValueError, OSError) as error:
            display(Markdown(f"**{error}**"))


def _uploaded(upload: Any) -> Image.Image:
    return decode(bytes(upload.value[-1]["content"]))
