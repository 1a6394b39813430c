"""Weighted F1 of predicted relations, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from entityclip.datasets.record import Pair
from entityclip.datasets.tweets import relation_labels
from entityclip.metrics import as_clusters, resample_weights

Classes = dict[str, NDArray[np.int64]]  # "text", "image", "combined": a class a pair, [N]
CLASSES = {"text": 2, "image": 2, "combined": 4}


class Score(NamedTuple):
    """Weighted F1 in percent with its 95 % interval over the pairs judged."""

    value: float
    low: float
    high: float


def relation_classes(pairs: Sequence[Pair]) -> Classes:
    """The labels of pairs: is the text represented, does the image add, and 2 · text + image.

    Raises ValueError naming the first pair without a label.
    """
    lacking = [pair.id for pair in pairs if pair.section not in ("0", "1", "2", "3")]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs have no relation label, the first is "
            f"{lacking[0]!r}; take a labelled split"
        )
    both = np.array([relation_labels(str(pair.section)) for pair in pairs]).reshape(-1, 2)
    return {"text": both[:, 0], "image": both[:, 1], "combined": 2 * both[:, 0] + both[:, 1]}


def weighted_f1(
    predicted: NDArray[np.int64], true: NDArray[np.int64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """F1 of each class, averaged by the classes' true counts; as scikit-learn's, many at once.

    `predicted` and `true` [N] hold classes; `weights` [R, N] how often each of R resamples holds
    each pair. Returns [R], from 0 to 1.
    """
    total = np.zeros(len(weights))
    for label in np.unique(true):
        hit = weights @ ((predicted == label) & (true == label))
        support = weights @ (true == label)
        named = weights @ (predicted == label)
        total += support * 2 * hit / np.maximum(support + named, 1)
    return total / weights.sum(axis=1)


def score(predicted: Classes, true: Classes, *, n_resamples: int, seed: int) -> dict[str, Score]:
    """Weighted F1 of each label, with percentile bootstrap intervals over the pairs.

    The intervals hold the luck of the pairs judged, not that of a training seed. Raises ValueError
    for predictions of another number of pairs.
    """
    scores = {}
    for name, found in predicted.items():
        if found.shape != true[name].shape:
            raise ValueError(f"{len(found)} predictions of {name!r} for {len(true[name])} pairs")
        cluster = as_clusters(None, len(found))
        drawn = [
            weighted_f1(found, true[name], weights)
            for weights in resample_weights(cluster, n_resamples, np.random.default_rng(seed))
        ]
        value = weighted_f1(found, true[name], np.ones((1, len(found)), np.int64))[0]
        low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
        scores[name] = Score(*(100 * float(number) for number in (value, low, high)))
    return scores
