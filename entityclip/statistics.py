"""Numbers of ranks and their intervals: one bootstrap, paired differences, Student's t over seeds.

Recall@K, mean rank, RSUM, accuracy and paired differences of them are means of per-query values;
median rank and F1 are other functions of which queries were drawn. `interval` bootstraps them all
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
            if values is not None and not isinstance(values, (_Ranked, Mapping)):
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
    pictures show (evaluation.distractors).
    """

    image_of: NDArray[np.int64]
    by_article: ByArticle | None = None
    beaten: Mapping[str, NDArray[np.float64]] | None = None

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
            found[int(seed)] = Retrieval(texts["ranks"], pictures["ranks"], image_of)
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
    seeds_apart: bool = True,
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of a statistic of queries, by default their mean.

    `per_query` [..., S, Q] are values of Q queries under S training seeds ([Q] is one seed). Each
    resample draws Q queries with replacement or, where `clusters` [Q] (integer ids, e.g. the
    picture several captions share) are given, as many whole clusters as there are: queries of one
    cluster are not independent. It also draws S of the seeds, the same for all leading places,
    whose statistics are averaged. A handful of seeds makes an interval rather too narrow.

    `statistic` is a `Statistic`; a resample where it is NaN does not count. Deterministic by
    `seed`; memory does not grow with `n_resamples`. Seeds are drawn from a generator of their own,
    unless `seeds_apart` is False. Returns the statistic's quantiles `ends`, [...] each. Raises
    ValueError where there are fewer than 2 independent queries to draw from.
    """
    values = np.atleast_2d(np.asarray(per_query, float))
    n_seeds, rng = values.shape[-2], np.random.default_rng(seed)
    seeds_rng = np.random.default_rng([seed, 1]) if seeds_apart else rng
    drawn = []
    for weights in resample_weights(as_clusters(clusters, values.shape[-1]), n_resamples, rng):
        found = (statistic or mean)(weights, values)
        chosen = seeds_rng.integers(0, n_seeds, (len(weights), n_seeds))
        chosen = chosen.reshape(len(weights), *(1,) * (found.ndim - 2), n_seeds)
        drawn.append(np.take_along_axis(found, chosen, axis=-1).mean(axis=-1))
    resamples = np.concatenate(drawn)
    quantile = np.nanquantile if np.isnan(resamples).any() else np.quantile  # the latter is faster
    low, high = quantile(resamples, ends, axis=0)
    return low, high


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
    values, names, tail = as_ranks(ranks), tuple(names), (1 - level) / 2
    each = np.stack([values if name == "MedR" else per_query(values, name) for name in names])

    def statistic(weights: Array, rows: Array) -> Array:
        found = mean(weights, rows)
        if "MedR" in names:
            found[:, names.index("MedR")] = median(weights, values[None])
        return found

    low, high = interval(
        each[:, None], clusters, statistic,
        n_resamples=n_resamples, seed=seed, ends=(tail, 1 - tail),
    )  # fmt: skip
    return dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _paired(first: ArrayLike, second: ArrayLike, metric: str) -> NDArray[np.float64]:
    a, b = per_query(first, metric), per_query(second, metric)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} ranks against {len(b)}: a paired test needs the same queries")
    return a - b


def difference_table(
    rank_rows: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    metric: str = "R@1",
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """First minus second for pairs of variants, from stored ranks, over the seeds that both have.

    `rank_rows` are the stored rows of kind "ranks"; `metric` is "R@<k>" (percentage points) or
    "MeanR" (ranks). A row a pair, data set, split and direction: `variant` ("a minus b"), `first`,
    `second`, `value`, `low`, `high`, `seeds`, `n_queries`. The 95 % interval is a paired bootstrap
    (Koehn 2004, section 4) over queries, drawn alike for both, so that what makes one hard for both
    cancels out, and over seeds where there are several. A pair without a common seed has no row.
    Raises ValueError for another metric and where different data or queries would be compared.
    """
    keys = ["dataset", "split", "direction", "seed"]
    table: list[dict[str, Any]] = []
    alike: dict[tuple, list[tuple[dict[str, Any], Array]]] = {}  # by clusters and [S, Q]
    by_variant, nothing = dict(list(rank_rows.groupby("variant"))), rank_rows.iloc[:0]
    for first, second in pairs:
        both = by_variant.get(first, nothing).merge(by_variant.get(second, nothing), on=keys)
        # neither rows nor intervals depend on what was measured first: resamples draw by place
        both = both.sort_values(keys, kind="stable")
        for names, group in both.groupby(keys[:3], sort=False):
            if (group["data_fingerprint_x"] != group["data_fingerprint_y"]).any():
                raise ValueError(f"{first} and {second} were measured on different data: {names}")
            ranks = zip(group["ranks_x"], group["ranks_y"], strict=True)
            each = np.stack([_paired(a, b, metric) for a, b in ranks])
            row = dict(zip(keys, names, strict=False))
            row |= {"variant": f"{first} minus {second}", "first": first, "second": second}
            row |= {"metric": metric, "value": float(each.mean()), "low": None, "high": None}
            table.append(row | {"seeds": len(each), "n_queries": each.shape[1]})
            clusters = group["clusters_x"].iloc[0]
            key = None if clusters is None else tuple(clusters), each.shape
            alike.setdefault(key, []).append((table[-1], each))
    # what was asked alike shares its resamples, which take the most time to draw
    for (clusters, _), found in alike.items():
        each = np.stack([each for _, each in found])
        ends = interval(each, clusters, n_resamples=n_resamples, seed=seed)
        for (row, _), low, high in zip(found, *ends, strict=True):
            row |= {"low": float(low), "high": float(high)}
    return pd.DataFrame(table)


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


# ---------------------------------------------------------------------------- training seeds, RSUM


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


def rsum_interval(
    seeds: Sequence[Retrieval],
    minus: Sequence[Retrieval] = (),
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """RSUM of a model's ranks, one `Retrieval` a training seed: the mean and its 95 % interval.

    With `minus`, what another model's ranks have less, seed by seed and query by query. Whole
    pictures are drawn, each as a query and with all its captions. Raises ValueError for no seeds,
    for another number of seeds in `minus`, and for seeds asked about different pictures.
    """
    if not seeds:
        raise ValueError("no ranks of any seed; measure first")
    if minus and len(minus) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds against {len(minus)}: they are compared in pairs")
    image_of, n_pictures = np.asarray(seeds[0].image_of), len(seeds[0].image_to_text)
    if any(not np.array_equal(image_of, found.image_of) for found in (*seeds, *minus)):
        raise ValueError("ranks of different pictures or captions cannot be set side by side")
    each = _rsum_parts(seeds) - (_rsum_parts(minus) if minus else 0)
    texts, pictures = slice(len(image_of)), slice(len(image_of), None)

    def statistic(weights: Array, values: Array) -> Array:
        return sum(mean(weights[:, side], values[:, side]) for side in (texts, pictures))

    low, high = interval(
        each, np.concatenate([image_of, np.arange(n_pictures)]), statistic,
        n_resamples=n_resamples, seed=seed, seeds_apart=False,
    )  # fmt: skip
    value = each[:, texts].mean() + each[:, pictures].mean()
    return Estimate(float(value), float(low), float(high))


def rsum_numbers(seeds: Sequence[Retrieval]) -> dict[str, float]:
    """`rsum_interval` as columns of a table: RSUM, low, high, seeds."""
    value, low, high = rsum_interval(seeds)
    return {"RSUM": value, "low": low, "high": high, "seeds": len(seeds)}


def _rsum_parts(seeds: Sequence[Retrieval]) -> NDArray[np.float64]:
    """What each caption and each picture adds under each seed [S, N + M], from 0 to 300."""
    every = [np.concatenate([found.ranks(d) for d in DIRECTIONS]) for found in seeds]
    return np.stack([sum(per_query(ranks, f"R@{k}") for k in RSUM_AT) for ranks in every])
