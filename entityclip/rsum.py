"""RSUM, the sum of R@1, R@5 and R@10 both ways (at most 600), with its interval.

Both directions ask about the same pictures, so a resample draws pictures: each brings its own query
and all of its captions'. With several seeds of training, seeds are drawn too, as for differences
(`comparison.difference_table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from entityclip.comparison import Difference
from entityclip.evaluation import Retrieval
from entityclip.metrics import as_clusters, as_ranks, resample_weights

KS = (1, 5, 10)


class _Scores(NamedTuple):
    """What each query adds: `texts` [S, N] and `pictures` [S, M] of S seeds, in percent."""

    texts: NDArray[np.float64]
    pictures: NDArray[np.float64]

    @property
    def rsum(self) -> float:
        return float(self.texts.mean() + self.pictures.mean())


def rsum_interval(
    seeds: Sequence[Retrieval], *, n_resamples: int = 2000, seed: int = 0
) -> Difference:
    """RSUM of a model's ranks, one `Retrieval` a training seed: the mean and its 95 % interval.

    Raises ValueError for no seeds and for seeds that were asked about different pictures.
    """
    image_of = _image_of(seeds)
    return _interval(_scores(seeds), image_of, n_resamples, seed)


def rsum_difference(
    first: Sequence[Retrieval],
    second: Sequence[Retrieval],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """RSUM of `first` minus that of `second`, seed by seed and query by query, with its interval.

    Raises ValueError for another number of seeds and for different pictures.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} seeds against {len(second)}: they are compared in pairs")
    image_of = _image_of([*first, *second])
    a, b = _scores(first), _scores(second)
    each = _Scores(a.texts - b.texts, a.pictures - b.pictures)
    return _interval(each, image_of, n_resamples, seed)


def rsum_numbers(seeds: Sequence[Retrieval]) -> dict[str, float]:
    """`rsum_interval` as columns of a table: RSUM, low, high, seeds."""
    value, low, high = rsum_interval(seeds)
    return {"RSUM": value, "low": low, "high": high, "seeds": len(seeds)}


def _scores(seeds: Sequence[Retrieval]) -> _Scores:
    def hits(ranks) -> NDArray[np.float64]:
        return 100.0 * (as_ranks(ranks)[:, None] <= KS).sum(axis=1)

    return _Scores(
        np.stack([hits(found.text_to_image) for found in seeds]),
        np.stack([hits(found.image_to_text) for found in seeds]),
    )


def _image_of(seeds: Sequence[Retrieval]) -> NDArray[np.int64]:
    if not seeds:
        raise ValueError("no ranks of any seed; measure first")
    first = seeds[0].image_of
    for other in seeds[1:]:
        if other.image_of.shape != first.shape or (other.image_of != first).any():
            raise ValueError("ranks of different pictures or captions cannot be set side by side")
    return as_clusters(first, len(first))


def _interval(
    each: _Scores, image_of: NDArray[np.int64], n_resamples: int, seed: int
) -> Difference:
    rng, drawn = np.random.default_rng(seed), []
    every = np.arange(each.pictures.shape[1])
    for of_pictures in resample_weights(every, n_resamples, rng):
        of_texts = of_pictures[:, image_of]
        of_seed = sum(
            (weights @ scores.T) / weights.sum(axis=1, keepdims=True)
            for weights, scores in ((of_texts, each.texts), (of_pictures, each.pictures))
        )  # [resamples, seeds]
        chosen = rng.integers(0, of_seed.shape[1], of_seed.shape)
        drawn.append(np.take_along_axis(of_seed, chosen, axis=1).mean(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Difference(each.rsum, float(low), float(high))
