"""One query under every variant: its rank, what stood before its picture, what the gates gave.

Ranks come from stored rows; only looking at pictures or gates loads a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from PIL import Image

from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.pair import Pair, decode
from entityclip.evaluation import inspection
from entityclip.evaluation.retrieval import RankedPictures
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure
from entityclip.models.entityclip import EntityCLIP
from entityclip.reporting.pictures import (
    GAP,
    axes_at,
    blank_page,
    plot_retrieval_gallery,
    plot_word_attention,
    read_pairs,
    show_picture,
    text_height,
    write,
)
from entityclip.reporting.style import GREEN, GREY, PAGE, preview, wrap
from entityclip.search.collection import Collection, Page, Query
from entityclip.variants import VARIANT_LABELS, label


class Explorer:
    """Text queries of a split under some variants, text to image.

    `table` has a row a query: `query` (its number in the split), `caption`, a rank a variant, and
    `disagreement`, log2 of the ratio of the ranks of the two `compared` variants: +1 means that the
    second puts the picture twice as high as the first. The rows with the largest absolute value
    stand first.
    """

    def __init__(
        self,
        experiment: Experiment,
        split: str,
        variants: Sequence[str] = ("zero-shot", "clip", "entityclip"),
        compared: tuple[str, str] = ("clip", "entityclip"),
    ) -> None:
        """Raises ValueError for compared variants that are not among `variants`."""
        if not set(compared) <= set(variants):
            raise ValueError(f"compared {compared} must be among {', '.join(variants)}")
        self.experiment, self.split = experiment, split
        self.variants, self.compared = tuple(variants), compared
        self._models: dict[str, EntityCLIP] = {}
        self._collections: dict[str, Collection] = {}

    @cached_property
    def table(self) -> pd.DataFrame:
        """The queries, those first where the compared variants disagree most."""
        found = measure(self.experiment, self.variants, [self.split], shipped=True)
        captions = [pair.caption for pair in self.experiment.pairs(self.split)]
        ranks = {v: found[v, self.split].text_to_image for v in self.variants}
        first, second = (ranks[variant].astype(float) for variant in self.compared)
        table = pd.DataFrame({"query": range(len(captions)), "caption": captions, **ranks})
        table["disagreement"] = np.log2(first / second)
        order = table["disagreement"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order].reset_index(drop=True)

    def ranks(self, query: int) -> dict[str, int]:
        """The rank of a query's picture under each variant."""
        row = self.table.set_index("query").loc[query]
        return {variant: int(row[variant]) for variant in self.variants}

    def hardest_negatives(self, query: int, variant: str, k: int = 5) -> RankedPictures:
        """The k pictures that a variant puts first, the query's own marked if it is among them."""
        pair = self.experiment.pairs(self.split)[query]
        collection = self._collection(variant)
        hits = collection.search(pair, per_page=min(k, len(collection))).hits
        true = next((number for number, hit in enumerate(hits) if hit.true), None)
        pictures = [collection.picture(hit.id) for hit in hits]
        rank = self.ranks(query)[variant]
        return RankedPictures(
            label(variant, VARIANT_LABELS), pictures, true, pair.load_image(), rank
        )

    def gates(self, query: int, variant: str = "entityclip") -> pd.DataFrame:
        """What each gate of a variant gave to each expert for the query's pair, largest first.

        Columns gate, expert, weight. Raises ValueError for a variant without experts.
        """
        data = self.experiment.dataset(self.split)
        weights = inspection.gate_weights(self._model(variant), [data.collate([data[query]])])
        weights = weights.sort_values(["gate", "weight"], ascending=[True, False], kind="stable")
        return weights[["gate", "expert", "weight"]].reset_index(drop=True)

    def _model(self, variant: str) -> EntityCLIP:
        if variant not in self._models:
            self._models[variant] = self.experiment.load(variant)
        return self._models[variant]

    def _collection(self, variant: str) -> Collection:
        if variant not in self._collections:
            cache = self.experiment.profile.runs / "embeddings"
            self._collections[variant] = Collection.build(
                self._model(variant), self.experiment.pairs(self.split), cache=cache, progress=False
            )
        return self._collections[variant]


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


def explain_hits(
    model: EntityCLIP, collection: Collection, query: Pair, hits: Sequence[str]
) -> tuple[Figure, pd.DataFrame]:
    """The attention of found pictures (their ids) over the explanation of the query's caption.

    Experts read explanations in training only, so this tells what a picture was taught to look for
    in the text, not how the search scored it. The table is `inspection.word_table`'s, with the
    pictures' ids as `pair`. Raises ValueError for a caption without an explanation, for a model
    without explanation experts and for no hits.
    """
    if not query.explanation:
        raise ValueError(f"{query.id!r} has no explanation to look into")
    # the same caption and explanation beside each picture, under the picture's id
    pairs = [replace(query, id=name, image=collection.pictures[name]) for name in hits]
    backbone = model.backbone
    data = PairDataset(
        pairs, backbone.preprocess, backbone.tokenize, with_explanations=True, cache=False
    )
    batch = data.collate([data[row] for row in range(len(pairs))])
    table = inspection.word_table(backbone, batch, inspection.explanation_attention(model, batch))
    pictures = inspection.as_pictures(backbone, batch.images)
    captions = [f"{query.caption}  [{name}]" for name in hits]
    return plot_word_attention(read_pairs(table, captions, pictures)), table
