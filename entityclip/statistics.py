"""Numbers of ranks and their intervals: one bootstrap over queries and seeds, Student's t.

Recall@K, mean rank, RSUM, accuracy and paired differences of them are means of per-query values;
median rank and F1 are other functions of which queries were drawn. `resampled` bootstraps them all
(Efron and Tibshirani 1993, chapter 13). Ranks start at 1, shares are percent, and nothing here
needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

DIRECTIONS = ("text_to_image", "image_to_text")
RECALL_AT = (1, 5, 10, 50, 100)
METRICS = (*(f"R@{k}" for k in RECALL_AT), "MRR", "MedR", "MeanR")
LOW_IS_GOOD = ("MedR", "MeanR")
RSUM_AT = (1, 5, 10)
PERCENT = (0.0, 100.0)  # where a share can lie

_WEIGHTS_AT_ONCE = 2**21  # 16 MiB of int64

Array = NDArray[Any]
# (how often each of R resamples holds each query [R, Q], values [..., S, Q]) -> [R, ..., S]
Statistic = Callable[[Array, Array], Array]


class Estimate(NamedTuple):
    """A value and its 95 % interval, in the metric's unit."""

    value: float
    low: float
    high: float


class Draw(NamedTuple):
    """One draw of the data: values [..., S, Q] of its queries under its seeds, their clusters."""

    values: Array
    clusters: ArrayLike | None = None


# ----------------------------------------------------------------------------- numbers of ranks


def recall_at_k(ranks: ArrayLike, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Percent of queries whose best positive is among the first k: ``{"R@1": …}`` for ranks [N]."""
    values = as_ranks(ranks)
    return {f"R@{_as_k(k)}": 100.0 * float(np.mean(values <= k)) for k in ks}


def retrieval_metrics(ranks: ArrayLike) -> dict[str, float]:
    """All of METRICS for ranks [N]: R@1, R@5, R@10, R@50, R@100, MRR in percent, MedR, MeanR.

    MRR is the mean of 1 / rank (Voorhees 1999). MedR of an even N is the mean of the middle two.
    """
    values = as_ranks(ranks)
    reciprocal = float(per_query(values, "MRR").mean())
    mean_and_median = {"MedR": float(np.median(values)), "MeanR": float(np.mean(values))}
    return recall_at_k(values) | {"MRR": reciprocal} | mean_and_median


def rsum(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """RSUM: the sum of R@1, R@5 and R@10 over both directions, at most 600.

    `metrics` are those of each direction, as ``Retrieval.metrics()`` gives.
    """
    return sum(found[f"R@{k}"] for found in metrics.values() for k in RSUM_AT)


def per_query(ranks: ArrayLike, metric: str) -> NDArray[np.float64]:
    """What each query adds to a mean: ranks [N] for "MeanR", 0 or 100 for "R@<k>", 100 / rank for
    "MRR".

    Raises ValueError for another metric and for what is no rank.
    """
    values = as_ranks(ranks)
    if metric == "MeanR":
        return values.astype(float)
    if metric == "MRR":
        return 100.0 / values
    prefix, _, k = metric.partition("@")
    if prefix != "R" or not k.isdecimal():
        raise ValueError(
            f"no metric {metric!r} is a mean over queries; there are R@<k>, MRR and MeanR"
        )
    return 100.0 * (values <= _as_k(int(k)))


def as_ranks(ranks: ArrayLike) -> NDArray[np.int64]:
    """Checked ranks [N] as int64. Raises ValueError for none, another shape, and ranks below 1."""
    values = np.asarray(ranks)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"ranks have shape {values.shape}; expected one rank or more, [N]")
    if values.dtype.kind not in "iu" or values.min() < 1:
        raise ValueError("ranks must be integers from 1 on")
    return values.astype(np.int64)


def _as_k(k: int) -> int:
    if k < 1 or k != int(k):
        raise ValueError(f"k is {k}; Recall@K needs an integer K from 1 on")
    return int(k)


BY_ARTICLE = ", by article"  # ends the metric's name where any picture of an article is right


@dataclass(frozen=True)
class _Ranked:
    """Ranks both ways, int64 and 1 being best. Lists and tensors on the CPU become arrays."""

    text_to_image: NDArray[np.int64]
    image_to_text: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if values is not None and not isinstance(values, (_Ranked, Mapping, str)):
                object.__setattr__(self, name, np.asarray(values))  # as frozen ones are set

    def ranks(self, direction: str) -> NDArray[np.int64]:
        """The ranks of one direction's queries."""
        return {d: getattr(self, d) for d in DIRECTIONS}[direction]

    def sizes(self, direction: str) -> dict[str, int]:
        """How many queries and candidates there are."""
        sizes = {d: len(self.ranks(d)) for d in DIRECTIONS}
        return {"n_queries": sizes.pop(direction), "n_candidates": sum(sizes.values())}

    def metrics(self) -> dict[str, dict[str, float]]:
        """R@1/5/10/50/100 in percent, MedR and MeanR for each direction."""
        return {d: retrieval_metrics(self.ranks(d)) for d in DIRECTIONS}


@dataclass(frozen=True)
class ByArticle(_Ranked):
    """The rank of the best of a query's article: `text_to_image` [N] and `image_to_text` [M].

    `text_article` [N] and `image_article` [M] number the queries' articles.
    """

    text_article: NDArray[np.int64]
    image_article: NDArray[np.int64]

    def clusters(self, direction: str) -> NDArray[np.int64]:
        """Queries of one article are not independent."""
        return self.text_article if direction == "text_to_image" else self.image_article


@dataclass(frozen=True)
class Retrieval(_Ranked):
    """Ranks of a split: `text_to_image` [N] and `image_to_text` [M].

    `image_of` [N] is each caption's picture, a place in `image_to_text`. `by_article` is there
    where articles have several pictures, `beaten` ([N] by metric, percent) where it is known what
    pictures show (evaluation.distractors). `data` is the fingerprint of the pairs, if known.
    """

    image_of: NDArray[np.int64]
    by_article: ByArticle | None = None
    beaten: Mapping[str, NDArray[np.float64]] | None = None
    data: str | None = None

    def clusters(self, direction: str) -> NDArray[np.int64] | None:
        """Which captions share a picture and so are not independent; None for picture queries."""
        return self.image_of if direction == "text_to_image" else None


def retrievals(rank_rows: pd.DataFrame) -> dict[int, Retrieval]:
    """Stored ranks of one variant on one split, by seed, of the seeds that have both directions.

    `image_of` is the rows' own or, in those that lack it, their `clusters`; without either, each
    caption has a picture of its own, in the captions' order.
    """
    found = {}
    for seed, rows in rank_rows.groupby("seed"):
        by_direction = {row["direction"]: row for row in rows.to_dict("records")}
        if set(by_direction) == set(DIRECTIONS):
            texts, pictures = (by_direction[d] for d in DIRECTIONS)
            known = [texts.get(name) for name in ("image_of", "clusters")]
            alone = range(len(texts["ranks"]))
            image_of = next((ids for ids in known if isinstance(ids, list)), alone)
            data = texts.get("data_fingerprint")
            found[int(seed)] = Retrieval(texts["ranks"], pictures["ranks"], image_of, data=data)
    return found


# -------------------------------------------------------------------------------- the bootstrap


def interval(
    per_query: ArrayLike,
    clusters: ArrayLike | None = None,
    statistic: Statistic | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    ends: tuple[float, float] = (0.025, 0.975),
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of a statistic of one draw's queries, by default their mean.

    `per_query` [..., S, Q] are values of Q queries under S training seeds ([Q] is one seed), drawn
    as `resampled` says. A resample where the statistic is NaN does not count. Returns the
    statistic's quantiles `ends`, [...] each. Raises ValueError as `resampled` does.
    """
    draws = [Draw(np.asarray(per_query), clusters)]
    return quantiles(resampled(draws, statistic, n_resamples=n_resamples, seed=seed), ends)


def resampled(
    draws: Sequence[Draw],
    statistic: Statistic | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Bootstrap resamples [n_resamples, ...] of a `Statistic`, by default the mean over queries.

    Of each draw of the data, a resample draws its Q queries with replacement or, where `clusters`
    [Q] (integer ids, e.g. the picture several captions share) are given, as many whole clusters as
    there are: queries of one cluster are not independent. It also draws S of its seeds, the same
    for all leading places, whose statistics are averaged. Draws are drawn apart from each other and
    weigh what they have seeds, as in a mean over all seeds. A handful of seeds understates their
    own spread; what is neither a query's nor a seed's own is overstated (Owen 2007, the pigeonhole
    bootstrap). Deterministic by `seed`. Raises ValueError
    where a draw has fewer than 2 independent queries to draw from.
    """
    parts, weights = [], []
    for number, (values, clusters) in enumerate(draws):
        values = np.atleast_2d(np.asarray(values, float))
        rng, seeds_rng = (np.random.default_rng([seed, 2 * number + i]) for i in (0, 1))
        n_seeds, drawn = values.shape[-2], []
        for counts in resample_weights(as_clusters(clusters, values.shape[-1]), n_resamples, rng):
            found = (statistic or mean)(counts, values)
            chosen = seeds_rng.integers(0, n_seeds, (len(counts), n_seeds))
            chosen = chosen.reshape(len(counts), *(1,) * (found.ndim - 2), n_seeds)
            drawn.append(np.take_along_axis(found, chosen, axis=-1).mean(axis=-1))
        parts.append(np.concatenate(drawn))
        weights.append(n_seeds)
    return np.average(parts, axis=0, weights=weights)


def quantiles(resamples: Array, ends: tuple[float, float] = (0.025, 0.975)) -> tuple[Array, Array]:
    """Two quantiles over resamples [R, ...], of those that are not NaN; [...] each."""
    quantile = np.nanquantile if np.isnan(resamples).any() else np.quantile  # the latter is faster
    low, high = quantile(resamples, ends, axis=0)
    return low, high


def draws_of(rank_rows: pd.DataFrame, values: Callable[[Mapping[str, Any]], Array]) -> list[Draw]:
    """The draws of one measurement's stored ranks, a row a seed, in the rows' order.

    Seeds belong together that have one data_fingerprint, which is one set of queries. `values` says
    what each query of a row is worth, [..., Q].
    """
    draws = []
    for _, rows in rank_rows.groupby("data_fingerprint", sort=False):
        clusters = rows["clusters"].iloc[0]
        each = np.stack([values(row) for row in rows.to_dict("records")], axis=-2)
        draws.append(Draw(each, clusters if isinstance(clusters, list) else None))
    return draws


def mean(weights: Array, values: Array) -> NDArray[np.float64]:
    """The mean of each resample, a `Statistic`."""
    found = (weights @ values.reshape(-1, values.shape[-1]).T) / weights.sum(axis=1, keepdims=True)
    return found.reshape(len(weights), *values.shape[:-1])


def median(weights: Array, values: Array) -> NDArray[np.float64]:
    """The median of each resample, a `Statistic`; of an even number, the mean of the middle two."""
    found = []
    for row in values.reshape(-1, values.shape[-1]):
        order = np.argsort(row, kind="stable")
        counts = np.cumsum(weights[:, order], axis=1)  # drawn among the i + 1 smallest
        middle = [(counts < (counts[:, -1:] + end) // 2).sum(axis=1) for end in (1, 2)]
        found.append(row[order[middle]].mean(axis=0))
    return np.stack(found, axis=1).reshape(len(weights), *values.shape[:-1])


def resample_weights(
    cluster: NDArray[np.int64], n_resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """How often each resample holds each query: [resamples of this block, N], block after block."""
    n_clusters = int(cluster.max()) + 1
    block = max(1, _WEIGHTS_AT_ONCE // n_clusters)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        drawn = rng.integers(0, n_clusters, (size, n_clusters))
        drawn += n_clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_clusters)
        yield counts.reshape(size, n_clusters)[:, cluster]


def as_clusters(clusters: ArrayLike | None, n: int) -> NDArray[np.int64]:
    """Cluster numbers 0, 1, … of n queries; None makes each its own. Raises ValueError for < 2."""
    ids = np.arange(n) if clusters is None else np.asarray(clusters)
    if ids.shape != (n,):
        raise ValueError(f"clusters have shape {ids.shape}; expected one id a rank, ({n},)")
    ids = np.unique(ids, return_inverse=True)[1]
    if n < 2 or ids.max() < 1:
        raise ValueError(
            "a bootstrap needs at least 2 independent queries (or clusters) to draw from"
        )
    return ids


# ------------------------------------------------------------------------------------ intervals


def bootstrap_interval(
    ranks: ArrayLike,
    names: Iterable[str] = METRICS,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """``{name: (low, high)}``: `interval` of metrics of ranks [N], "R@<k>", "MedR" or "MeanR".

    The intervals hold the sampling of test queries only, not the training seed's.
    """
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"n_resamples={n_resamples}, level={level}: need >= 1 and a share of 1")
    names, tail = tuple(names), (1 - level) / 2
    low, high = interval(
        _each(ranks, names)[:, None], clusters, _statistic(names),
        n_resamples=n_resamples, seed=seed, ends=(tail, 1 - tail),
    )  # fmt: skip
    return dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def level_intervals(
    rank_rows: pd.DataFrame,
    names: Iterable[str] = METRICS,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """``{name: (low, high)}`` of a model's metrics: 95 %, over test queries and seeds together.

    `rank_rows` are its stored ranks of one split and direction, a row a seed; seeds may have been
    measured on several draws of the data. Queries and seeds are drawn as `resampled` says.
    """
    names, rows = tuple(names), rank_rows.sort_values("seed", kind="stable")
    draws = draws_of(rows, lambda row: _each(row["ranks"], names))
    low, high = quantiles(resampled(draws, _statistic(names), n_resamples=n_resamples, seed=seed))
    return dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _each(ranks: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
    """What queries are worth by each metric [M, Q]: by MedR, their ranks."""
    values = as_ranks(ranks)
    return np.stack([values if name == "MedR" else per_query(values, name) for name in names])


def _statistic(names: Sequence[str]) -> Statistic:
    """The metrics of resamples of `_each` [M, S, Q]."""

    def statistic(weights: Array, values: Array) -> Array:
        found = mean(weights, values)
        if "MedR" in names:
            place = names.index("MedR")
            found[:, place] = median(weights, values[place])
        return found

    return statistic


# ---------------------------------------------------------------------------------- training seeds


def over_seeds(rows: pd.DataFrame, bounds: tuple[float, float] = PERCENT) -> Estimate:
    """Value, low and high of one metric from its rows, one a seed, in the metric's unit.

    One seed has its row's own interval, a bootstrap over queries; several have their mean and
    Student's t interval over seeds, cut at the `bounds` of what the metric can be.
    """
    if len(rows) == 1:
        return Estimate(*rows[["value", "low", "high"]].to_numpy(float)[0].tolist())
    value, low, high = mean_over_seeds(rows["value"].to_numpy(float))
    return Estimate(value, *np.clip([low, high], *bounds))


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """Mean of values [S], one a seed, and its 95 % interval by Student's t; NaN where S < 2."""
    values = np.asarray(values, float)
    value = values.mean() if len(values) else np.nan
    if len(values) < 2:
        return Estimate(value, np.nan, np.nan)
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5
    return Estimate(value, value - half, value + half)
