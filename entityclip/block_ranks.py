"""Ranks of both directions at once: every similarity is computed once, in blocks a cache holds.

`metrics.retrieval_ranks` ranks one direction; two calls would multiply the same features twice.
Here rows and columns are sorted by group, so the blocks that hold positives are few: a first pass
over those finds each side's best positives, a second over all blocks counts their rivals.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from entityclip.metrics import check_features, check_positives, retrieval_ranks

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
            _count(rows, columns)
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


def _count(rows: _Side, columns: _Side) -> None:
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
