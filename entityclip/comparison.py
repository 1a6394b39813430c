"""Two models on the same queries: a paired bootstrap of the difference, and a sentence about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from entityclip.metrics import as_clusters, as_ranks, resample_weights


class Difference(NamedTuple):
    """First minus second, in the metric's unit, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(
    first: Tensor | ArrayLike,
    second: Tensor | ArrayLike,
    metric: str = "R@1",
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    clusters: Tensor | ArrayLike | None = None,
) -> Difference:
    """Paired bootstrap (Koehn 2004, section 4) of a metric of two models' ranks [N].

    `metric` is "R@<k>" (percentage points) or "MeanR" (ranks). Each resample draws the same queries
    for both models, whole `clusters` [N] where given, so what makes a query hard for both cancels
    out. The interval holds the sampling of queries, not that of training seeds. Raises ValueError
    for another metric and for ranks of different queries.
    """
    a, b = as_ranks(first), as_ranks(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} ranks against {len(b)}: a paired test needs the same queries")
    each = _per_query(a, metric) - _per_query(b, metric)
    cluster = as_clusters(clusters, len(each))
    drawn = [
        (weights @ each) / weights.sum(axis=1)
        for weights in resample_weights(cluster, n_resamples, np.random.default_rng(seed))
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Difference(float(each.mean()), float(low), float(high))


def describe(row: Mapping[str, Any]) -> str:
    """A difference row in words: which is better, or that this test cannot tell.

    `row` holds `variant` ("a minus b"), `split`, `direction`, `metric`, `value`, `low` and `high`.
    """
    first, _, second = row["variant"].partition(" minus ")
    direction = row["direction"].replace("_", " ")
    low, high = row["low"], row["high"]
    if low <= 0 <= high:
        verdict = f"{first} is not separable from {second}"
    else:
        higher_is_better = row["metric"].startswith("R@")
        verdict = (
            f"{first} is {'better' if (low > 0) == higher_is_better else 'worse'} than {second}"
        )
    return (
        f"{row['split']}, {direction}: {verdict} by {row['metric']} "
        f"(difference {row['value']:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
    )


def _per_query(ranks: NDArray[np.int64], metric: str) -> NDArray[np.float64]:
    if metric == "MeanR":
        return ranks.astype(np.float64)
    prefix, _, k = metric.partition("@")
    if prefix != "R" or not k.isdigit() or int(k) < 1:
        raise ValueError(f"no paired test of {metric!r}; there are R@<k> and MeanR")
    return 100.0 * (ranks <= int(k))
