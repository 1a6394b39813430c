"""Retrieval metrics: ranks in chunks, Recall@K, median and mean rank, bootstrap intervals.

Evaluation of EntityCLIP (section 4): N captions against N pictures, R@1/5/10/50/100, MedR, MeanR.

Tie rule: ties count against the query. A query's rank is 1 + the number of candidates that are not
its positives and are at least as similar as its best positive. So a model that gives every
candidate the same similarity ranks last everywhere and scores R@K = 0 for K < N: never above
chance.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# similarities in memory at once: a CPU's cache holds 8 MiB of them, a GPU wants 256 MiB to be busy
_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}


_ROWS_AT_ONCE = 16  # at least; single rows would not use the matrix kernels


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


_SIDE = {"cpu": 2**10, "cuda": 2**13}  # of a block: 4 MiB lie in a CPU's cache, a GPU wants 256


_TILE = 64  # a multiple of every BLAS kernel's width, so that a place in a block rounds like others


@torch.no_grad()
def both_ranks(
    queries: Tensor,
    candidates: Tensor,
    positives: tuple[Tensor, Tensor] | None = None,
    *,
    side: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`retrieval_ranks` of the queries [Nq] and, with roles exchanged, of the candidates [Nc].

    Arguments, tie rule and errors are those of `retrieval_ranks`; every candidate must have a
    positive too. `side` is that of a block, in rows. Memory beyond the features is a few blocks.
    """
    check_features(queries, candidates)
    groups = check_positives(positives, queries, candidates)
    if groups is None:
        groups = 2 * (torch.arange(len(queries), device=queries.device),)
    device = queries.device.type
    side = side or _SIDE.get(device, _SIDE["cpu"])
    rows, columns = (
        _Side(features, ids, side)
        for features, ids in zip((queries, candidates), groups, strict=True)
    )
    # an enclosing autocast would quietly compare in half precision and invent ties
    with torch.autocast(device, enabled=False):
        # |q·c| <= |q| |c|: no score is NaN or infinite where the longest rows' product is finite
        finite = bool(torch.isfinite(rows.longest() * columns.longest()))
        if finite:
            _count_blocks(rows, columns)
    if not finite or not rows.found() or not columns.found():
        # the plain way says which row it is
        turned = None if positives is None else positives[::-1]
        ranks = retrieval_ranks(queries, candidates, positives)
        return ranks, retrieval_ranks(candidates, queries, turned)
    return rows.ranks(), columns.ranks()


class _Side:
    """One side's rows sorted by group, in blocks of one size, and what is known of each row."""

    def __init__(self, features: Tensor, groups: Tensor, side: int) -> None:
        self.groups, self.order = groups.sort(stable=True)
        self.features = features
        self.size = min(-(-side // _TILE), -(-len(features) // _TILE)) * _TILE
        like = dict(device=features.device)
        self.best = torch.full((len(features),), -torch.inf, **like)  # its best positive's score
        self.best_count = torch.zeros(len(features), dtype=torch.int64, **like)  # positives as good
        self.above = torch.zeros_like(self.best_count)  # candidates as good or better, all kinds

    def blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.features), self.size):
            yield slice(start, min(start + self.size, len(self.features)))

    def block(self, rows: slice) -> Tensor:
        """Features [size, d] in float32; rows of zeros fill the last block up."""
        part = self.features[self.order[rows]].float()
        return F.pad(part, (0, 0, 0, self.size - len(part)))

    def holds(self, rows: slice) -> tuple[int, int]:
        return int(self.groups[rows.start]), int(self.groups[rows.stop - 1])

    def add_positives(self, rows: slice, scores: Tensor, positive: Tensor) -> None:
        """Take note of positives: scores and mask are [rows, others]."""
        own = scores.masked_fill(~positive, -torch.inf)
        best = own.amax(dim=1)
        count = ((own == best[:, None]) & positive).sum(dim=1)
        before, as_good = self.best[rows], self.best_count[rows]
        kept = torch.where(best < before, as_good, as_good + count)
        self.best_count[rows] = torch.where(best > before, count, kept)
        self.best[rows] = torch.maximum(best, before)

    def longest(self) -> Tensor:
        return torch.stack([self.block(at).norm(dim=1).max() for at in self.blocks()]).max()

    def found(self) -> bool:
        return bool((self.best_count > 0).all())

    def ranks(self) -> Tensor:
        ranks = torch.empty_like(self.above)
        ranks[self.order] = 1 + self.above - self.best_count
        return ranks.cpu()


def _count_blocks(rows: _Side, columns: _Side) -> None:
    """Fill in both sides' best positives and the number of their rivals."""
    like = dict(device=rows.best.device)
    scores = torch.empty(rows.size, columns.size, **like)
    as_good = torch.empty_like(scores)  # 0 and 1: floats add up faster than booleans
    ones = torch.ones(rows.size, **like)

    def product(left: Tensor, at: slice) -> Tensor:
        # always of whole blocks: the same kernel rounds every score
        return torch.mm(left, columns.block(at).T, out=scores)

    spans = [(at, columns.holds(at)) for at in columns.blocks()]
    for down in rows.blocks():
        left, (first, last) = rows.block(down), rows.holds(down)
        for across, (low, high) in spans:
            if low <= last and first <= high:
                part = product(left, across)[: _length(down), : _length(across)]
                positive = rows.groups[down, None] == columns.groups[across]
                rows.add_positives(down, part, positive)
                columns.add_positives(across, part.T, positive.T)
    for down in rows.blocks():
        left, best = rows.block(down), rows.best[down, None]
        for across, _ in spans:
            here = slice(_length(down)), slice(_length(across))
            part, marks = product(left, across)[here], as_good[here]
            rows.above[down] += torch.ge(part, best, out=marks).sum(dim=1).long()
            torch.ge(part, columns.best[across], out=marks)
            columns.above[across] += (ones[: len(part)] @ marks).long()  # faster than sum(dim=0)


def _length(at: slice) -> int:
    return at.stop - at.start
