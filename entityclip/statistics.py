"""Two models on the same queries: a paired bootstrap of the difference, and a sentence about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit
from torch import Tensor

DIRECTIONS = ("text_to_image", "image_to_text")


RECALL_AT = (1, 5, 10, 50, 100)


METRICS = (*(f"R@{k}" for k in RECALL_AT), "MedR", "MeanR")


_WEIGHTS_AT_ONCE = 2**21  # 16 MiB of int64


# ----------------------------------------------------------------------------- numbers of ranks


def recall_at_k(ranks: Tensor | ArrayLike, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Percent of queries whose best positive is among the first k: ``{"R@1": …}`` for ranks [N]."""
    values = as_ranks(ranks)
    return {f"R@{_as_k(k)}": 100.0 * float(np.mean(values <= k)) for k in ks}


def median_rank(ranks: Tensor | ArrayLike) -> float:
    """Median of ranks [N]; with an even N, the mean of the middle two."""
    return float(np.median(as_ranks(ranks)))


def mean_rank(ranks: Tensor | ArrayLike) -> float:
    """Mean of ranks [N]."""
    return float(np.mean(as_ranks(ranks)))


def retrieval_metrics(ranks: Tensor | ArrayLike) -> dict[str, float]:
    """All of METRICS for ranks [N]: R@1, R@5, R@10, R@50, R@100 in percent, MedR, MeanR."""
    values = as_ranks(ranks)
    return recall_at_k(values) | {"MedR": median_rank(values), "MeanR": mean_rank(values)}


def rsum(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """RSUM: the sum of R@1, R@5 and R@10 over both directions, at most 600.

    `metrics` are those of each direction, as ``Retrieval.metrics()`` gives.
    """
    return sum(found[f"R@{k}"] for found in metrics.values() for k in (1, 5, 10))


def as_ranks(ranks: Tensor | ArrayLike) -> NDArray[np.int64]:
    """Checked ranks [N] as int64. Raises ValueError for none, another shape, and ranks below 1."""
    values = np.asarray(ranks.cpu() if isinstance(ranks, Tensor) else ranks)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"ranks have shape {values.shape}; expected one rank or more, [N]")
    if values.dtype.kind not in "iu" or values.min() < 1:
        raise ValueError("ranks must be integers from 1 on")
    return values.astype(np.int64)


def _as_k(k: int) -> int:
    if k < 1 or k != int(k):
        raise ValueError(f"k is {k}; Recall@K needs an integer K from 1 on")
    return int(k)


# ------------------------------------------------------------------------------------ intervals


def bootstrap_interval(
    ranks: Tensor | ArrayLike,
    names: Iterable[str] = METRICS,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    clusters: Tensor | ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13) of metrics of ranks.

    ranks [N]; names are "R@<k>", "MedR" or "MeanR". Each resample draws N queries with replacement
    or, where clusters [N] (integer ids, e.g. the picture several captions share) are given, as many
    whole clusters as there are: queries of one cluster are not independent. Deterministic by seed;
    memory does not grow with n_resamples. Returns ``{name: (low, high)}`` in the metric's unit.

    The interval holds the sampling of test queries only, not the training seed's. Raises ValueError
    for an unknown name and where there are fewer than 2 independent queries to draw from.
    """
    values, names = as_ranks(ranks), tuple(names)
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"n_resamples={n_resamples}, level={level}: need >= 1 and a share of 1")
    order = np.argsort(values, kind="stable")
    cluster = as_clusters(clusters, len(values))[order]
    values = values[order]
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for weights in resample_weights(cluster, n_resamples, np.random.default_rng(seed)):
        # cumulative[b, i]: how many drawn queries have a rank among the i + 1 smallest of the data
        cumulative = np.cumsum(weights, axis=1)
        for name in names:
            drawn[name].append(_statistic(name, values, weights, cumulative))
    tail = (1 - level) / 2
    intervals = {}
    for name, parts in drawn.items():
        low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
        intervals[name] = (float(low), float(high))
    return intervals


def resample_weights(
    cluster: NDArray[np.int64], n_resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """How often each resample holds each query: [resamples of this block, N], block after block."""
    n_clusters = int(cluster.max()) + 1
    block = max(1, _WEIGHTS_AT_ONCE // len(cluster))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        drawn = rng.integers(0, n_clusters, (size, n_clusters))
        drawn += n_clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_clusters)
        yield counts.reshape(size, n_clusters)[:, cluster]


def _statistic(
    name: str,
    values: NDArray[np.int64],
    weights: NDArray[np.int64],
    cumulative: NDArray[np.int64],
) -> NDArray[np.float64]:
    """One metric of every resample: values [N] sorted, weights and cumulative [R, N] -> [R]."""
    total = cumulative[:, -1]
    if name == "MeanR":
        return weights @ values / total
    if name == "MedR":
        middle = [
            [np.searchsorted(row, (row[-1] - 1) // 2 + 1), np.searchsorted(row, row[-1] // 2 + 1)]
            for row in cumulative
        ]
        return values[np.array(middle)].mean(axis=1)
    prefix, _, k = name.partition("@")
    if prefix != "R" or not k.isdecimal():
        raise ValueError(f"no metric {name!r}; there are R@<k>, MedR and MeanR")
    hits = int(np.searchsorted(values, _as_k(int(k)), side="right"))
    return 100.0 * cumulative[:, hits - 1] / total if hits else np.zeros(len(total))


def as_clusters(clusters: Tensor | ArrayLike | None, n: int) -> NDArray[np.int64]:
    """Cluster numbers 0, 1, … of n queries; None makes each its own. Raises ValueError for < 2."""
    if clusters is None:
        ids = np.arange(n)
    else:
        ids = np.asarray(clusters.cpu() if isinstance(clusters, Tensor) else clusters)
        if ids.shape != (n,):
            raise ValueError(f"clusters have shape {ids.shape}; expected one id a rank, ({n},)")
        ids = np.unique(ids, return_inverse=True)[1]
    if n < 2 or ids.max() < 1:
        raise ValueError(
            "a bootstrap needs at least 2 independent queries (or clusters) to draw from"
        )
    return ids


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


PERCENT = (0.0, 100.0)  # where a share can lie


def over_seeds(
    rows: pd.DataFrame, bounds: tuple[float, float] = PERCENT
) -> tuple[float, float, float]:
    """Value, low and high of one metric from its rows, one a seed, in the metric's unit.

    One seed has its row's own interval, a bootstrap over queries; several have their mean and
    Student's t interval over seeds, cut at the `bounds` of what the metric can be.
    """
    if len(rows) == 1:
        return tuple(rows[["value", "low", "high"]].to_numpy(float)[0].tolist())
    mean, low, high = mean_over_seeds(rows["value"].to_numpy(float))
    low, high = np.clip([low, high], *bounds)
    return mean, low, high


def mean_over_seeds(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of values [S], one a seed, and its 95 % interval by Student's t; NaN where S < 2."""
    values = np.asarray(values, float)
    mean = values.mean() if len(values) else np.nan
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Retrieval:
    """Ranks of a split: `text_to_image` [N] and `image_to_text` [M], 1 being best."""

    text_to_image: Tensor
    image_to_text: Tensor
    image_of: Tensor

    def ranks(self, direction: str) -> Tensor:
        """The ranks of one direction's queries."""
        return {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text}[direction]

    def clusters(self, direction: str) -> Tensor | None:
        """Which captions share a picture and so are not independent; None for picture queries."""
        return self.image_of if direction == "text_to_image" else None

    def sizes(self, direction: str) -> dict[str, int]:
        """How many queries and candidates there are."""
        texts, pictures = len(self.text_to_image), len(self.image_to_text)
        queries = (texts, pictures) if direction == "text_to_image" else (pictures, texts)
        return dict(zip(("n_queries", "n_candidates"), queries, strict=True))

    def metrics(self) -> dict[str, dict[str, float]]:
        """R@1/5/10/50/100 in percent, MedR and MeanR for each direction."""
        return {d: retrieval_metrics(self.ranks(d)) for d in DIRECTIONS}


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
