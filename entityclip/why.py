"""Why this picture? How it and the caption read the caption's explanation, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from entityclip import inspection
from entityclip.attention_plots import plot_word_attention, read_pairs
from entityclip.datasets.pair import Pair, PairDataset
from entityclip.model import EntityCLIP
from entityclip.search import Collection


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
