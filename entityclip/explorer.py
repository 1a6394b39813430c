"""One query under every variant: its rank, what stood before its picture, what the gates gave.

Ranks come from stored rows; only looking at pictures or gates loads a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from entityclip import inspection
from entityclip.evaluation import RankedPictures
from entityclip.experiments import Experiment
from entityclip.measure import measure
from entityclip.model import EntityCLIP
from entityclip.search import Collection
from entityclip.style import VARIANTS, label


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
        ranks = {v: found[v, self.split].text_to_image.numpy() for v in self.variants}
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
        return RankedPictures(label(variant, VARIANTS), pictures, true, pair.load_image(), rank)

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
