"""The rank of each query's best positive, both ways and block by block, by features or scores.

Evaluation of EntityCLIP (section 4): N captions against N pictures, R@1/5/10/50/100, MedR, MeanR.

Tie rule: ties count against the query. A query's rank is 1 + the number of candidates that are not
its positives and are at least as similar as its best positive. So a model that gives every
candidate the same similarity ranks last everywhere and scores R@K = 0 for K < N: never above
chance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = {"cpu": 2**9, "cuda": 2**13}  # of a block: 1 MiB lies in a CPU's cache, a GPU wants 256

_TILE = 64  # a multiple of every BLAS kernel's width, so that a place in a block rounds like others

Positives = tuple[Tensor, Tensor] | None
# scores of some queries (by number), then of some candidates: a block [queries, candidates]
Scores = Callable[[Tensor], Callable[[Tensor], Tensor]]


@torch.no_grad()
def both_ranks(
    queries: Tensor, candidates: Tensor, positives: Positives = None, *, side: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rank of each query's best positive among all candidates, 1 being best, and the other way.

    queries [Nq, d] and candidates [Nc, d] lie on one device and are compared by dot product in
    float32 (normalise first for cosine); the ranks of both, [Nq] and [Nc], are int64 on the CPU.
    positives None pairs query i with candidate i; else it is (query_groups [Nq], candidate_groups
    [Nc]), integer ids, and every candidate of the query's group is a positive. Each score is
    computed once for both. Memory beyond the features is a few blocks of `side` rows; by default
    512 on a CPU and 8,192 on a GPU.

    Ties count against the query (see the module). Raises ValueError for shapes that do not fit,
    anything without a positive, and a NaN or infinite similarity, naming the first such query.
    """
    _check_features(queries, candidates)
    shape = len(queries), len(candidates)
    rows, columns = _sides(positives, shape, queries[:0].float(), side)
    # an enclosing autocast would quietly compare in half precision and invent ties
    with torch.autocast(queries.device.type, enabled=False):
        # |q·c| <= |q| |c|: no score is NaN or infinite where the longest rows' product is finite
        if not torch.isfinite(_longest(queries) * _longest(candidates)):
            for start in range(0, len(queries), _TILE):
                part = queries[start : start + _TILE].float() @ candidates.float().T
                _refuse_non_finite(part, start)
        scores = _products(queries, candidates, rows.size, columns.size)
        return _count_blocks(rows, columns, scores)


@torch.no_grad()
def similarity_ranks(
    similarity: Tensor, positives: Positives = None, *, side: int | None = None
) -> tuple[Tensor, Tensor]:
    """`both_ranks` by given similarities [Nq, Nc], for scores that are no dot product."""
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"similarities have shape {tuple(similarity.shape)}; expected [Nq, Nc]")
    rows, columns = _sides(positives, similarity.shape, similarity[:0], side)
    _refuse_non_finite(similarity)

    def scores(of: Tensor) -> Callable[[Tensor], Tensor]:
        part = similarity[of]
        return lambda candidates: part[:, candidates]

    return _count_blocks(rows, columns, scores)


def _products(queries: Tensor, candidates: Tensor, n_rows: int, n_columns: int) -> Scores:
    """Dot products in blocks of one size: the same kernel rounds every score."""
    found = torch.empty(n_rows, n_columns, device=queries.device)

    def block(features: Tensor, of: Tensor, size: int) -> Tensor:
        return F.pad(features[of].float(), (0, 0, 0, size - len(of)))

    def scores(of: Tensor) -> Callable[[Tensor], Tensor]:
        left = block(queries, of, n_rows)

        def product(to: Tensor) -> Tensor:
            right = block(candidates, to, n_columns)
            return torch.mm(left, right.T, out=found)[: len(of), : len(to)]

        return product

    return scores


class _Side:
    """One side's rows sorted by group, in blocks of one size, and what is known of each row."""

    def __init__(self, groups: Tensor, side: int, dtype: torch.dtype) -> None:
        self.groups, self.order = groups.sort(stable=True)
        self.size = min(-(-side // _TILE), -(-len(groups) // _TILE)) * _TILE
        self.blocks = [
            slice(start, min(start + self.size, len(groups)))
            for start in range(0, len(groups), self.size)
        ]
        # the best positive's score. It is read out of the same product as its rivals': computed
        # apart, it could differ in the last bit and win or lose against an equal candidate
        self.best = torch.full_like(self.order, -torch.inf, dtype=dtype)
        self.best_count = torch.zeros_like(self.order)  # positives as good as the best
        self.above = torch.zeros_like(self.order)  # candidates as good or better, all kinds

    def add_positives(self, rows: slice, scores: Tensor, positive: Tensor) -> None:
        """Take note of positives: scores and mask are [rows, others]."""
        own = scores.masked_fill(~positive, -torch.inf)
        best = own.amax(dim=1)
        count = ((own == best[:, None]) & positive).sum(dim=1)
        before, as_good = self.best[rows], self.best_count[rows]
        kept = torch.where(best < before, as_good, as_good + count)
        self.best_count[rows] = torch.where(best > before, count, kept)
        self.best[rows] = torch.maximum(best, before)

    def ranks(self) -> Tensor:
        ranks = torch.empty_like(self.above)
        ranks[self.order] = 1 + self.above - self.best_count
        return ranks.cpu()


def _count_blocks(rows: _Side, columns: _Side, scores: Scores) -> tuple[Tensor, Tensor]:
    """Both sides' ranks: first their best positives, then the number of their rivals."""
    device = rows.order.device
    as_good = torch.empty(rows.size, columns.size, device=device)  # floats add up faster than bools
    ones = torch.ones(rows.size, device=device)
    ends = [(int(columns.groups[at][0]), int(columns.groups[at][-1])) for at in columns.blocks]
    for down in rows.blocks:
        groups, score = rows.groups[down], scores(rows.order[down])
        first, last = int(groups[0]), int(groups[-1])
        for across, (low, high) in zip(columns.blocks, ends, strict=True):
            if low <= last and first <= high:
                part = score(columns.order[across])
                positive = groups[:, None] == columns.groups[across]
                rows.add_positives(down, part, positive)
                columns.add_positives(across, part.T, positive.T)
    for down in rows.blocks:
        score, best = scores(rows.order[down]), rows.best[down, None]
        for across in columns.blocks:
            part = score(columns.order[across])
            marks = as_good[: part.shape[0], : part.shape[1]]
            rows.above[down] += torch.ge(part, best, out=marks).sum(dim=1).long()
            torch.ge(part, columns.best[across], out=marks)
            columns.above[across] += (ones[: len(part)] @ marks).long()  # faster than sum(0)
    return rows.ranks(), columns.ranks()


# --------------------------------------------------------------------------------------- checks


def _check_features(queries: Tensor, candidates: Tensor) -> None:
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


def _sides(
    positives: Positives, shape: tuple[int, int], scores: Tensor, side: int | None
) -> tuple[_Side, _Side]:
    """The groups checked and sorted; of `scores` only device and dtype count."""
    side = _SIDE.get(scores.device.type, _SIDE["cpu"]) if side is None else side
    if side < 1:
        raise ValueError(f"side is {side}; a block must have at least 1 row")
    if positives is None:
        if shape[0] != shape[1]:
            raise ValueError(
                f"{shape[0]} queries and {shape[1]} candidates cannot be paired one to one; "
                "give positives=(query_groups, candidate_groups)"
            )
        positives = torch.arange(shape[0]), torch.arange(shape[0])
    groups = [torch.as_tensor(ids, device=scores.device) for ids in positives]
    for name, ids, n in zip(("query_groups", "candidate_groups"), groups, shape, strict=True):
        if ids.shape != (n,) or ids.is_floating_point() or ids.is_complex():
            raise ValueError(
                f"{name} are {ids.dtype} of shape {tuple(ids.shape)}; expected {n} integers"
            )
    for own, other in (groups, groups[::-1]):
        lonely = (~torch.isin(own, other)).nonzero()
        if len(lonely):
            raise ValueError(
                f"query {int(lonely[0])} (group {int(own[lonely[0]])}) has no positive: no "
                "candidate is in its group"
            )
    rows, columns = (_Side(ids, side, scores.dtype) for ids in groups)
    return rows, columns


def _longest(features: Tensor) -> Tensor:
    return torch.stack([part.float().norm(dim=1).max() for part in features.split(2**12)]).max()


def _refuse_non_finite(similarity: Tensor, start: int = 0) -> None:
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
