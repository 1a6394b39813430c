"""Controls that the paper lacks: the same training on explanations that say something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from entityclip.datasets.pair import Pair
from entityclip.variants import Explanations


def replace_explanations(pairs: Sequence[Pair], kind: Explanations, *, seed: int = 0) -> list[Pair]:
    """The same pairs with other explanations; `own` leaves them as they are.

    `shuffled`: each pair has another pair's (a cyclic shift of a random order, so no pair keeps its
    row). `random`: as many words as its own has, drawn from all explanations' words as often as
    they occur. `caption`: the caption once more. A function of (pairs, kind, seed) alone. Raises
    ValueError for another kind, a pair without an explanation, and fewer than 2 pairs to shuffle.
    """
    if kind == "own":
        return list(pairs)
    lacking = [pair.id for pair in pairs if not pair.explanation]
    if lacking and kind != "caption":
        raise ValueError(f"{len(lacking)} pairs have no explanation, the first is {lacking[0]!r}")
    rng = np.random.default_rng(seed)
    if kind == "shuffled":
        if len(pairs) < 2:
            raise ValueError("one pair has nobody to swap its explanation with")
        order = rng.permutation(len(pairs))
        source = np.empty_like(order)
        source[order] = np.roll(order, 1)
        texts = [pairs[row].explanation for row in source]
    elif kind == "random":
        words = [pair.explanation.split() for pair in pairs]
        drawn = iter(rng.permutation([word for text in words for word in text]).tolist())
        texts = [" ".join(next(drawn) for _ in text) for text in words]
    elif kind == "caption":
        texts = [pair.caption for pair in pairs]
    else:
        raise ValueError(f"no control {kind!r}; there are own, shuffled, random and caption")
    return [replace(pair, explanation=text) for pair, text in zip(pairs, texts, strict=True)]
