"""Two models on the same queries: a paired bootstrap of the difference, and a sentence about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
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


def difference_table(
    rank_rows: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    metric: str = "R@1",
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """First minus second for pairs of variants, from stored ranks, over the seeds that both have.

    `rank_rows` are the stored rows of kind "ranks". A row a pair, data set, split and direction:
    `variant` ("a minus b"), `first`, `second`, `value`, `low`, `high`, `seeds`, `n_queries`. The 95
    % interval is a paired bootstrap over queries and, with several seeds, over seeds too, which a
    handful of seeds makes rather too narrow than too wide. A pair without a common seed has no row.
    Raises ValueError where ranks of different data would be compared.
    """
    table, by_variant = [], dict(list(rank_rows.groupby("variant")))
    nothing = rank_rows.iloc[:0]
    for first, second in pairs:
        keys = ["dataset", "split", "direction", "seed"]
        both = by_variant.get(first, nothing).merge(by_variant.get(second, nothing), on=keys)
        # neither rows nor intervals depend on what was measured first: resamples draw by place
        both = both.sort_values(keys, kind="stable")
        for names, group in both.groupby(keys[:3], sort=False):
            if (group["data_fingerprint_x"] != group["data_fingerprint_y"]).any():
                raise ValueError(f"{first} and {second} were measured on different data: {names}")
            each = np.stack(
                [
                    _per_query(as_ranks(a), metric) - _per_query(as_ranks(b), metric)
                    for a, b in zip(group["ranks_x"], group["ranks_y"], strict=True)
                ]
            )
            cluster = as_clusters(group["clusters_x"].iloc[0], each.shape[1])
            low, high = _interval(each, cluster, n_resamples, seed)
            table.append(
                dict(zip(keys, names, strict=False))
                | {"variant": f"{first} minus {second}", "first": first, "second": second}
                | {"metric": metric, "value": float(each.mean()), "low": low, "high": high}
                | {"seeds": len(each), "n_queries": each.shape[1]}
            )
    return pd.DataFrame(table)


def _interval(
    each: NDArray[np.float64], cluster: NDArray[np.int64], n_resamples: int, seed: int
) -> tuple[float, float]:
    """95 % interval of the mean of differences [seeds, queries], both resampled."""
    rng, drawn = np.random.default_rng(seed), []
    for weights in resample_weights(cluster, n_resamples, rng):
        of_seed = (weights @ each.T) / weights.sum(axis=1, keepdims=True)  # [resamples, seeds]
        chosen = rng.integers(0, len(each), of_seed.shape)
        drawn.append(np.take_along_axis(of_seed, chosen, axis=1).mean(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return float(low), float(high)


def describe(row: Mapping[str, Any]) -> str:
    """A difference row in words: which is better, or that this test cannot tell.

    `row` holds `variant` ("a minus b"), `split`, `direction`, `metric`, `value`, `low` and `high`.
    """
    first, _, second = row["variant"].partition(" minus ")
    direction = row["direction"].replace("_", " ")
    low, high = row["low"], row["high"]
    found = verdict(low, high, higher_is_better=row["metric"].startswith("R@"))
    return (
        f"{row['split']}, {direction}: {first} is {found} {second} by {row['metric']} "
        f"(difference {row['value']:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
    )


def verdict(low: float, high: float, *, higher_is_better: bool = True) -> str:
    """How the first compares with the second, by the interval of first minus second.

    "better than", "worse than", or "not separable from" where 0 lies within or there is none (NaN).
    """
    if low > 0 or high < 0:
        return "better than" if (low > 0) == higher_is_better else "worse than"
    return "not separable from"


def _per_query(ranks: NDArray[np.int64], metric: str) -> NDArray[np.float64]:
    if metric == "MeanR":
        return ranks.astype(np.float64)
    prefix, _, k = metric.partition("@")
    if prefix != "R" or not k.isdigit() or int(k) < 1:
        raise ValueError(f"no paired test of {metric!r}; there are R@<k> and MeanR")
    return 100.0 * (ranks <= int(k))
