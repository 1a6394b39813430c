"""Search and stored results to look at: pages of hits, and one query under every variant.

Ranks come from stored rows; only looking at pictures or gates loads a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.pair import Pair, decode
from entityclip.evaluation import inspection
from entityclip.evaluation.retrieval import RankedPictures
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure
from entityclip.models.entityclip import EntityCLIP
from entityclip.reporting.inspection import plot_word_attention
from entityclip.reporting.markup import markdown, one_line
from entityclip.reporting.pictures import plot_retrieval_gallery, show_picture
from entityclip.reporting.style import GREEN, GREY, PAGE, panels, preview, wrap
from entityclip.search.collection import Collection, Page, Query
from entityclip.variants import VARIANT_LABELS, label

_LISTED = 200  # queries in the explorer's list


# ---------------------------------------------------------------------------------- pages of hits


def show_page(collection: Collection, query: Query, page: int = 0, per_page: int = 12) -> Any:
    """A page of hits as a picture for a notebook, with its description."""
    found = collection.search(query, page=page, per_page=per_page)
    return preview(plot_page(collection, found), quality=55, alt=describe_page(found))


def plot_page(collection: Collection, page: Page, columns: int = 6) -> Figure:
    """The hits of a page in rows of `columns`; a pair's own picture is framed and ticked.

    A picture that was searched by stands in a row above them. Raises ImageError for a picture that
    was deleted meanwhile.
    """
    asked = [] if isinstance(page.query, (str, Pair)) else [page.query]
    rows, size = len(asked) - (-len(page.hits) // columns), PAGE / columns
    figure, axes = panels(rows, columns, 0.2 + rows * (size + 0.1))
    title = wrap(title_of(page), PAGE, 8.0, 3, "bold")
    figure.suptitle(title, x=0.01, ha="left", fontsize=8, fontweight="bold")
    for query in asked:
        picture = decode(Path(query)) if isinstance(query, (str, Path)) else query
        show_picture(axes[0, 0], picture, GREY)
    for cell, hit in zip(axes[len(asked) :].flat, page.hits, strict=False):
        colour = GREEN if hit.true else None
        show_picture(cell, collection.picture(hit.id), colour)
        said = f"{hit.place}{' ✓' if hit.true else ''}   {hit.score:.3f}"
        cell.set_title(said, fontsize=7, color=colour or GREY, pad=3)
    for cell in axes.flat:
        if not cell.images:
            cell.remove()
    return figure


def title_of(page: Page) -> str:
    """What was asked, and which page this is."""
    asked = "pictures like this one"
    if isinstance(page.query, (str, Pair)):
        asked = f"“{one_line(getattr(page.query, 'caption', page.query))}”"
    return f"{asked} – page {page.number + 1} of {page.pages}"


def describe_page(page: Page) -> str:
    """The page in a sentence, for who does not see the pictures."""
    best, last = page.hits[0], page.hits[-1]
    true = next((hit.place for hit in page.hits if hit.true), None)
    found = f"; its own picture is at place {true}" if true else ""
    return (
        f"Search for {title_of(page)}: {len(page.hits)} pictures, places {best.place} to "
        f"{last.place}, scores {best.score:.3f} to {last.score:.3f}{found}"
    )


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
    return plot_word_attention(table, captions, pictures), table


# ------------------------------------------------------------------------------- stored results


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
        self.model: Callable[[str], EntityCLIP] = cache(experiment.load)
        self.collection: Callable[[str], Collection] = cache(self._embed)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The queries, those first where the compared variants disagree most."""
        found = measure(self.experiment, self.variants, [self.split], shipped=True)
        captions = [one_line(pair.caption) for pair in self.experiment.pairs(self.split)]
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
        pair, collection = self.experiment.pairs(self.split)[query], self.collection(variant)
        hits = collection.search(pair, per_page=min(k, len(collection))).hits
        true = next((number for number, hit in enumerate(hits) if hit.true), None)
        pictures = [collection.picture(hit.id) for hit in hits]
        name, rank = label(variant, VARIANT_LABELS), self.ranks(query)[variant]
        return RankedPictures(name, pictures, true, pair.load_image(), rank)

    def gates(self, query: int, variant: str = "entityclip") -> pd.DataFrame:
        """What each gate of a variant gave to each expert for the query's pair, largest first.

        Columns gate, expert, weight. Raises ValueError for a variant without experts.
        """
        data = self.experiment.dataset(self.split)
        weights = inspection.gate_weights(self.model(variant), [data.collate([data[query]])])
        weights = weights.sort_values(["gate", "weight"], ascending=[True, False], kind="stable")
        return weights[["gate", "expert", "weight"]].reset_index(drop=True)

    def show(self, query: int, variants: Sequence[str] | None = None) -> Any:
        """A query's caption, its ranks, and what each variant puts first, as a picture."""
        caption = one_line(self.experiment.pairs(self.split)[query].caption)
        said = ", ".join(f"{variant} {rank}" for variant, rank in self.ranks(query).items())
        display(Markdown(f"**{markdown(caption)}** – rank of its picture: {markdown(said)}"))
        chosen = variants or self.variants
        found = [self.hardest_negatives(query, variant) for variant in chosen]
        alt = f"What {', '.join(chosen)} find for “{caption}”; ranks of the right picture: {said}"
        return preview(plot_retrieval_gallery(found), quality=55, alt=alt)

    def controls(self) -> None:
        """In JupyterLab a list of queries, the largest disagreements first, and a variant."""
        widgets = _widgets()
        if widgets is None:
            return
        rows = self.table.head(_LISTED)
        names = [f"{row.disagreement:+.1f}  {row.caption}" for row in rows.itertuples()]
        options, wide = list(zip(names, rows["query"].tolist(), strict=True)), {"width": "90%"}
        query = widgets.Dropdown(options=options, description="Query", layout=wide)
        variant = widgets.Dropdown(options=self.variants, value=self.variants[-1])
        _interact(
            widgets,
            lambda query, variant: self.show(query, [variant]),
            query=query,
            variant=variant,
        )

    def _embed(self, variant: str) -> Collection:
        folder = self.experiment.profile.runs / "embeddings"
        pairs = self.experiment.pairs(self.split)
        return Collection.build(self.model(variant), pairs, cache=folder, progress=False)


# -------------------------------------------------------------------------------------- controls


def search_controls(collection: Collection, text: str, per_page: int = 12) -> None:
    """In JupyterLab a line to search by text, a button for your own picture, pages to turn."""
    widgets = _widgets()
    if widgets is None:
        return

    def found(query: str | tuple, page: int) -> Any:
        if query == ():  # nothing is uploaded yet
            return None
        if isinstance(query, tuple):
            query = decode(bytes(query[-1]["content"]))
        return show_page(collection, query, page - 1, per_page)

    pages = -(-len(collection) // per_page)
    line = widgets.Text(text, description="Text", continuous_update=False)
    for query in (line, widgets.FileUpload(accept="image/*", description="Picture")):
        page = widgets.BoundedIntText(1, min=1, max=pages, description="Page")
        # heard before the search hears it: a new query starts on its first page
        query.observe(lambda _, page=page: setattr(page, "value", 1), "value")
        _interact(widgets, found, query=query, page=page)


def _widgets() -> Any:
    """ipywidgets where a person sits at this kernel; else None, after saying why."""
    said = "Controls appear here in JupyterLab; the cells above show the same without them."
    if "JPY_SESSION_NAME" in os.environ:  # JupyterLab names its session, papermill has none
        try:
            import ipywidgets
        except ImportError:
            said = "No controls: `pip install 'entityclip[notebooks]'`."
        else:
            return ipywidgets
    display(Markdown(f"*{said}*"))
    return None


def _interact(widgets: Any, show: Callable[..., Any], **controls: Any) -> None:
    """Controls that redraw what `show` gives, or what is wrong with the input, below them."""

    def shown(**values: Any) -> Any:
        try:
            return show(**values)
        except (ValueError, OSError) as error:
            return Markdown(f"**{markdown(str(error))}**")

    widgets.interact(shown, **controls)
