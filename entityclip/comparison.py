"""Two models on the same queries: a paired bootstrap of the difference, and a sentence about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from entityclip.metrics import as_clusters, as_ranks, resample_weights

_COLUMNS = [
    *("dataset", "split", "direction", "variant", "first", "second"),
    *("metric", "value", "low", "high", "seeds", "n_queries"),
]


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
    keys = ["dataset", "split", "direction", "seed"]
    table, compared = [], []
    by_variant, nothing = dict(list(rank_rows.groupby("variant"))), rank_rows.iloc[:0]
    for first, second in pairs:
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
            compared.append((as_clusters(group["clusters_x"].iloc[0], each.shape[1]), each))
            table.append(
                dict(zip(keys, names, strict=False))
                | {"variant": f"{first} minus {second}", "first": first, "second": second}
                | {"metric": metric, "value": float(each.mean())}
                | {"seeds": len(each), "n_queries": each.shape[1]}
            )
    for row, (low, high) in zip(table, _intervals(compared, n_resamples, seed), strict=True):
        row |= {"low": low, "high": high}
    return pd.DataFrame(table, columns=_COLUMNS if table else None)


def _intervals(
    compared: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], n_resamples: int, seed: int
) -> list[tuple[float, float]]:
    """95 % intervals of the means of (clusters [Q], differences [S, Q]), both axes resampled.

    What is measured on the same queries shares their resamples, which take the most time to draw.
    """
    alike: dict[bytes, list[int]] = {}
    for place, (cluster, _) in enumerate(compared):
        alike.setdefault(cluster.tobytes(), []).append(place)
    found: dict[int, tuple[float, float]] = {}
    for places in alike.values():
        cluster, every = compared[places[0]][0], np.concatenate([compared[p][1] for p in places])
        blocks = [
            (weights @ every.T) / weights.sum(axis=1, keepdims=True)
            for weights in resample_weights(cluster, n_resamples, np.random.default_rng(seed))
        ]
        of_seeds = np.concatenate(blocks)  # [resamples, seeds of all]
        ends = np.cumsum([len(compared[p][1]) for p in places])
        for place, of_seed in zip(places, np.split(of_seeds, ends[:-1], axis=1), strict=True):
            rng = np.random.default_rng([seed, 1])  # seeds are drawn apart from the queries
            chosen = rng.integers(0, of_seed.shape[1], of_seed.shape)
            means = np.take_along_axis(of_seed, chosen, axis=1).mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            found[place] = float(low), float(high)
    return [found[place] for place in range(len(compared))]


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
