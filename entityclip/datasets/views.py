"""Views of explanations: in a training step some pairs' are read as names alone.

An explanation says the look of a flag in words that pretraining knows, so a model need never read
the capital beside them, and the capital gets no gradient. Where the look is missing now and then,
the name must carry the picture. What a row is read as follows from the epoch's seed and the row
alone: it is the same on any number of processes, and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from entityclip.datasets.dataset import Batch, ChangedPairs, PairDataset
from entityclip.datasets.names import Names
from entityclip.hyperparameters import ViewsOf


class NameViews(ChangedPairs):
    """Another dataset, of whose explanations a `share` is read as some of the row's `names` [n].

    Each name is kept with chance one half, one at least, in its order; a row without names keeps
    its explanation. `of` says whose names the caller gave, but for "words": then as many words of
    the explanation stand there as it has names kept, any of them, in their order.
    """

    def __init__(
        self,
        dataset: PairDataset,
        tokenize: Callable[[list[str]], Tensor],
        names: Sequence[Names],
        share: float,
        of: ViewsOf = "names",
    ) -> None:
        if len(names) != len(dataset):
            raise ValueError(f"names of {len(names)} rows for {len(dataset)} pairs")
        super().__init__(dataset, tokenize)
        self._names, self._share, self._of = names, share, of
        self._seed = 0

    def begin(self, seed: int) -> None:
        """Draw the views of an epoch; called before its batches are made."""
        self._seed = seed

    def change(self, batch: Batch, rows: list[int]) -> None:
        """Put the views into the explanations' place."""
        views = {place: view for place, row in enumerate(rows) if (view := self.view(row))}
        if views:
            batch.explanations[list(views)] = self._tokenize(list(views.values()))

    def view(self, row: int) -> str | None:
        """What stands for a row's explanation in this epoch; None: itself."""
        draw, names = np.random.default_rng([self._seed, row]), self._names[row]
        if draw.random() >= self._share or not names:
            return None
        kept = draw.random(len(names)) < 0.5
        kept[draw.integers(len(names))] |= not kept.any()
        if self._of != "words":
            return " ".join(name for name, keep in zip(names, kept, strict=True) if keep)
        count = sum(len(n.split()) for n, keep in zip(names, kept, strict=True) if keep)
        words = str(self.pairs[row].explanation).split()
        chosen = np.sort(draw.permutation(len(words))[:count])
        return " ".join(words[place] for place in chosen)
