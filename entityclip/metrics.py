"""Retrieval metrics: ranks in chunks, Recall@K, median and mean rank, bootstrap intervals.

Evaluation of EntityCLIP (section 4): N captions against N pictures, R@1/5/10/50/100, MedR, MeanR.

Tie rule: ties count against the query. A query's rank is 1 + the number of candidates that are not
its positives and are at least as similar as its best positive. So a model that gives every
candidate the same similarity ranks last everywhere and scores R@K = 0 for K < N: never above
chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

RECALL_AT = (1, 5, 10, 50, 100)
METRICS = (*(f"R@{k}" for k in RECALL_AT), "MedR", "MeanR")
# similarities in memory at once: a CPU's cache holds 8 MiB of them, a GPU wants 256 MiB to be busy
_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
_ROWS_AT_ONCE = 16  # at least; single rows would not use the matrix kernels
_TILE = 64  # columns; a multiple of every BLAS kernel's width
_WEIGHTS_AT_ONCE = 2**21  # 16 MiB of int64


# ---------------------------------------------------------------------------------------- ranks


@torch.no_grad()
def retrieval_ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: tuple[Tensor, Tensor] | None = None,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Rank of each query's best positive among all candidates, 1 being best.

    queries [Nq, d] and candidates [Nc, d] lie on one device and are compared by dot product in
    float32 (normalise first for cosine). positives None pairs query i with candidate i; else it is
    (query_groups [Nq], candidate_groups [Nc]), integer ids, and every candidate of the query's
    group is a positive. chunk is the number of queries compared at once; by default 8 MiB of
    similarities on a CPU and 256 MiB on a GPU, but 16 queries at least. Returns int64 [Nq] on the
    CPU.

    Ties count against the query (see the module). Raises ValueError for shapes that do not fit, a
    query without a positive, and a NaN or infinite similarity, naming the first such query.
    """
    check_features(queries, candidates)
    groups = check_positives(positives, queries, candidates)
    if chunk is None:
        at_once = _AT_ONCE.get(queries.device.type, _AT_ONCE["cpu"])
        chunk = max(_ROWS_AT_ONCE, at_once // len(candidates))
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 query")
    n_candidates = len(candidates)
    # BLAS rounds the columns of a last, partial tile differently, which would break ties between
    # identical candidates by their place; empty candidates fill that tile up
    padded = F.pad(candidates.float(), (0, 0, 0, -n_candidates % _TILE)).T
    ranks = torch.empty(len(queries), dtype=torch.int64)
    # an enclosing autocast would quietly compare in half precision and invent ties
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), chunk):
            rows = slice(start, min(start + chunk, len(queries)))
            similarity = (queries[rows].float() @ padded)[:, :n_candidates]
            _refuse_non_finite(similarity, start)
            ranks[rows] = _ranks_of_rows(similarity, rows, groups).cpu()
    return ranks


@torch.no_grad()
def similarity_ranks(
    similarity: Tensor, positives: tuple[Tensor, Tensor], *, chunk: int | None = None
) -> Tensor:
    """`retrieval_ranks` of given similarities [Nq, Nc], for scores that are no dot product.

    `positives` is (query_groups [Nq], candidate_groups [Nc]). Same tie rule, same errors; returns
    int64 [Nq] on the CPU.
    """
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"similarities have shape {tuple(similarity.shape)}; expected [Nq, Nc]")
    groups = check_positives(positives, similarity, similarity.T)
    chunk = chunk or max(_ROWS_AT_ONCE, _AT_ONCE["cpu"] // similarity.shape[1])
    ranks = torch.empty(len(similarity), dtype=torch.int64)
    for start in range(0, len(similarity), chunk):
        rows = slice(start, min(start + chunk, len(similarity)))
        _refuse_non_finite(similarity[rows], start)
        ranks[rows] = _ranks_of_rows(similarity[rows], rows, groups).cpu()
    return ranks


def _ranks_of_rows(similarity: Tensor, rows: slice, groups: tuple[Tensor, Tensor] | None) -> Tensor:
    # The positive's similarity is read out of the same product as its rivals': computed apart, by
    # another kernel, it could differ in the last bit and win or lose against an equal candidate.
    if groups is None:
        own = torch.arange(rows.start, rows.stop, device=similarity.device)[:, None]
        best = similarity.gather(1, own)
        return _count(similarity >= best)  # counts the positive itself: the 1 of the rank
    positive = groups[0][rows, None] == groups[1]
    without = ~positive.any(dim=1)
    if without.any():
        row = int(without.nonzero()[0])
        raise ValueError(
            f"query {rows.start + row} (group {int(groups[0][rows][row])}) has no positive: "
            "no candidate is in its group"
        )
    best = similarity.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + _count((similarity >= best) & ~positive)


def _count(marks: Tensor) -> Tensor:
    """True values a row; summed as booleans they would take ten times as long."""
    return marks.view(torch.uint8).sum(dim=1, dtype=torch.int32)


def _refuse_non_finite(similarity: Tensor, start: int) -> None:
    # one pass suffices as a rule: a finite sum has only finite terms
    if torch.isfinite(similarity.sum(dim=1)).all():
        return
    bad = (~torch.isfinite(similarity)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"the similarity of query {start + row} and candidate {column} is "
            f"{similarity[row, column].item()}; look for NaN, inf or huge values in their features"
        )


def check_features(queries: Tensor, candidates: Tensor) -> None:
    """Raise ValueError unless both are [N, d] of one width."""
    for name, features in (("queries", queries), ("candidates", candidates)):
        if features.ndim != 2 or features.shape[0] == 0 or features.shape[1] == 0:
            raise ValueError(
                f"{name} have shape {tuple(features.shape)}; expected [N, d] with N and d >= 1"
            )
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"queries are {queries.shape[1]} wide and candidates {candidates.shape[1]}; "
            "both must come from one joint space"
        )


def check_positives(
    positives: tuple[Tensor, Tensor] | None, queries: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The groups on the features' device, None for pairs. Raises ValueError for odd shapes."""
    if positives is None:
        if len(queries) != len(candidates):
            raise ValueError(
                f"{len(queries)} queries and {len(candidates)} candidates cannot be paired one to "
                "one; give positives=(query_groups, candidate_groups)"
            )
        return None
    groups = tuple(torch.as_tensor(ids, device=queries.device) for ids in positives)
    for name, ids, features in zip(
        ("query_groups", "candidate_groups"), groups, (queries, candidates), strict=True
    ):
        if ids.shape != (len(features),) or ids.is_floating_point() or ids.is_complex():
            raise ValueError(
                f"{name} are {ids.dtype} of shape {tuple(ids.shape)}; "
                f"expected {len(features)} integers"
            )
    return groups


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
