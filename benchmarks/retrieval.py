"""Ranks in blocks against the literal argsort loop: ``python -m benchmarks.retrieval``.

    python -m benchmarks.retrieval [--n 20000] [--d 128] [--literal 500] [--repeats 3]
    python -m benchmarks.retrieval --n 200000 --repeats 1

Ranks N captions against N pictures of width d, both directions. The literal loop sorts one query's
candidates at a time, as the authors' code does, so it runs on a sample of the queries, on which
both must agree, and its time is scaled to N. A third way computes the similarities alone: each of
the N x N once, by blocks as ours, and looks at none. The three take turns. Printed are the medians,
the ratios to ours and the peak memory. Goals: 50 x faster than the literal loop and at most 2 x
the time of the similarities at N = 20,000, 2 GB at N = 200,000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.turns import medians, options, take_turns
from entityclip.evaluation.provenance import peak_memory_mb
from entityclip.evaluation.ranks import both_ranks
from entityclip.statistics import retrieval_metrics


def literal_ranks(queries: Tensor, candidates: Tensor, true: Tensor) -> Tensor:
    """Sort each query's candidates and look the true one up."""
    ranks = [
        (query @ candidates.T).argsort(descending=True).eq(own).nonzero()[0, 0] + 1
        for query, own in zip(queries, true, strict=True)
    ]
    return torch.stack(ranks)


def products_alone(queries: Tensor, candidates: Tensor, side: int = 512) -> None:
    """Each similarity once, in blocks of the size that `both_ranks` has on a CPU."""
    for left in queries.split(side):
        for right in candidates.split(side):
            torch.mm(left, right.T)


def main() -> None:
    args = options(__doc__, n=20_000, d=128, literal=500, repeats=3)
    n, sample = args.n, min(args.literal, args.n)

    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    images = unit(torch.randn(n, args.d, generator=generator), dim=-1)
    noise = 2.5 * args.d**-0.5 * torch.randn(n, args.d, generator=generator)
    texts = unit(images + noise, dim=-1)
    chosen = torch.randperm(n, generator=generator)[:sample]

    before = peak_memory_mb()
    both_ranks(texts[:2048], images[:2048])  # warms up
    ways = {
        "ours": lambda: (both_ranks(texts, images), peak_memory_mb()),
        "literal": lambda: (
            literal_ranks(texts[chosen], images, chosen),
            literal_ranks(images[chosen], texts, chosen),
        ),
        "products": lambda: products_alone(texts, images),
    }
    found, taken = take_turns(ways, args.repeats)
    (ranks, peak), sampled, _ = found.values()
    ours, literal, alone = (medians(rounds).wall for rounds in taken.values())
    literal *= n / sample
    # a sum in another order may decide a near tie differently, by a place
    differ = sum(
        int((a[chosen] - b).abs().gt(1).sum()) for a, b in zip(ranks, sampled, strict=True)
    )

    print(f"N = {n}, d = {args.d}, {torch.get_num_threads()} threads, both directions")
    print("text to image:", {k: round(v, 1) for k, v in retrieval_metrics(ranks[0]).items()})
    print(f"blocks:  {ours:7.2f} s, {peak - before:.0f} MiB or less added to the peak")
    print(f"literal: {literal:7.2f} s, scaled from {sample} queries each way")
    print(f"ratio:   {literal / ours:7.1f}")
    print(f"alone:   {alone:7.2f} s for the products; ours takes {ours / alone:.2f} x as long")
    print(f"peak:    {peak_memory_mb():7.0f} MiB (an N x N matrix alone: {n * n * 4 / 2**20:.0f})")
    print(f"ranks of the sample that differ by more than a near tie: {differ} of {2 * sample}")
    if differ:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
