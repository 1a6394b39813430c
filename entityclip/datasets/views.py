"""What a training step reads in place of texts, drawn anew each epoch: name views, alias swaps.

*Name views*: some pairs' explanations are read as names alone. An explanation says the look of a
flag in words that pretraining knows, so a model need never read the capital beside them, and the
capital gets no gradient. Where the look is missing now and then, the name must carry the picture.
*Alias swaps* bring the names that explanations alone hold into captions. What a row is read as
follows from the epoch's seed and the row alone: it is the same on any number of processes, and
after a resume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from entityclip.datasets.dataset import Batch, ChangedPairs, PairDataset, key63
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
        dataset: PairDataset | ChangedPairs,
        tokenize: Callable[[list[str]], Tensor],
        names: Sequence[Names],
        share: float,
        of: ViewsOf = "names",
    ) -> None:
        if len(names) != len(dataset):
            raise ValueError(f"names of {len(names)} rows for {len(dataset)} pairs")
        super().__init__(dataset, tokenize)
        self._names, self._share, self._of = names, share, of

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


Swaps = Sequence[
    tuple[str, tuple[str, ...]]
]  # names of a caption, and what else each may be told by


def alias_swaps(names: Names, sentences: Sequence[Names]) -> list[tuple[str, tuple[str, ...]]]:
    """The names of a caption that stand in a sentence of its explanation, and that one's others.

    What a sentence names is one entity by several names: "Peru (Peruvian, capital Lima) flies …".
    """
    found = []
    for name in names:
        others = [other for told in sentences if name in told for other in told if other != name]
        if others:
            found.append((name, tuple(dict.fromkeys(others))))
    return found


class AliasSwaps(ChangedPairs):
    """Another dataset, of whose captions a `share` tells one name by one of the row's `swaps` [n].

    A row without a swap keeps its caption.
    """

    def __init__(
        self,
        dataset: PairDataset | ChangedPairs,
        tokenize: Callable[[list[str]], Tensor],
        swaps: Sequence[Swaps],
        share: float,
    ) -> None:
        if len(swaps) != len(dataset):
            raise ValueError(f"swaps of {len(swaps)} rows for {len(dataset)} pairs")
        super().__init__(dataset, tokenize)
        self._swaps, self._share = swaps, share

    def change(self, batch: Batch, rows: list[int]) -> None:
        """Put the swapped captions into the captions' place."""
        swapped = {place: text for place, row in enumerate(rows) if (text := self.swapped(row))}
        if swapped:
            batch.captions[list(swapped)] = self._tokenize(list(swapped.values()))

    def swapped(self, row: int) -> str | None:
        """What stands for a row's caption in this epoch; None: itself."""
        draw, swaps = np.random.default_rng([self._seed, row, 1]), self._swaps[row]
        if draw.random() >= self._share or not swaps:
            return None
        name, others = swaps[draw.integers(len(swaps))]
        other = others[draw.integers(len(others))]
        return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: other,
                      str(self.pairs[row].caption), count=1)  # fmt: skip


class Siblings(ChangedPairs):
    """Another dataset, whose batches say which rows are of one article, caption or picture."""

    def change(self, batch: Batch, rows: list[int]) -> None:
        """Add the ids: an article's where a pair has one, the caption's, the picture's."""
        pairs = [self.pairs[row] for row in rows]
        articles = [key63(f"article {p.group}" if p.group else f"pair {p.id}") for p in pairs]
        captions = [key63(f"caption {pair.caption}") for pair in pairs]
        ids = torch.tensor([articles, captions]).T
        batch.siblings = torch.cat([ids, batch.image_keys[:, None]], dim=1)
