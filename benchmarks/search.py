"""Exact search over stored vectors: ``python -m benchmarks.search``.

    python -m benchmarks.search [--n 1000000] [--d 512] [--queries 20] [--k 10] [--folder DIR]

Writes n random unit vectors to a file (for a while, in DIR), and times one query after the other
over it, as a person asks them: the package's `nearest`, and the literal product and full sort that
it must agree with. Printed are medians, their ratio, and this process's peak memory.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.turns import options, timed
from entityclip.evaluation.provenance import peak_memory_mb
from entityclip.search.collection import nearest


def write_vectors(path: Path, n: int, d: int) -> None:
    """n unit vectors [n, d] float32, written in pieces."""
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    rng = np.random.default_rng(0)
    for start in range(0, n, 16_384):
        part = rng.standard_normal((min(16_384, n - start), d), np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    vectors.flush()


def literal(query: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Every score, sorted; of equal ones the lower row first."""
    scores = (vectors @ query[0]).astype(np.float32)
    return np.argsort(-scores, kind="stable")[:k]


def main() -> None:
    args = options(__doc__, n=1_000_000, d=512, queries=20, k=10, folder=None)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        path = Path(name) / "vectors.npy"
        write_vectors(path, args.n, args.d)
        vectors = np.load(path, mmap_mode="r")
        rng = np.random.default_rng(1)
        rows = rng.integers(0, args.n, args.queries)
        noise = 0.5 * args.d**-0.5 * rng.standard_normal((args.queries, args.d))
        queries = (vectors[rows] + noise).astype(np.float32)
        nearest(queries[:1], vectors, args.k)  # reads the file once
        times = {"nearest": [], "literal": []}
        for query in queries[:, None]:
            expected, taken = timed(literal, query, vectors, args.k)
            times["literal"].append(1000 * taken.wall)
            (_, found), taken = timed(nearest, query, vectors, args.k)
            times["nearest"].append(1000 * taken.wall)
            assert found[0].tolist() == expected.tolist(), "other pictures are found"
        peak = peak_memory_mb()
    median = {way: statistics.median(values) for way, values in times.items()}
    print(f"{args.n} vectors of width {args.d}, one query at a time, best {args.k}:")
    for way, ms in median.items():
        ratio = median["literal"] / ms
        print(f"  {way:8} {ms:8.1f} ms a query (slowest {max(times[way]):.1f})  {ratio:5.2f}")
    print(
        f"peak memory {peak:.0f} MiB, of which {vectors.nbytes / 2**20:.0f} MiB are the mapped file"
    )


if __name__ == "__main__":
    main()
