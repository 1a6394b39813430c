"""Exact search over stored vectors: ``python -m benchmarks.search``.

    python -m benchmarks.search [--n 1000000] [--d 512] [--queries 20] [--k 10] [--folder DIR]

Writes n random unit vectors to a file, and times one query after the other over it, as a person
asks them: the package's `nearest`, and the literal product and full sort that it must agree with.
Printed are medians, their ratio, and this process's peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.turns import timed
from entityclip.provenance import peak_memory_mb
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=1_000_000, help="stored vectors")
    parser.add_argument("--d", type=int, default=512, help="their width")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the vectors' file goes for a while")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "vectors.npy"
        write_vectors(path, options.n, options.d)
        vectors = np.load(path, mmap_mode="r")
        rng = np.random.default_rng(1)
        rows = rng.integers(0, options.n, options.queries)
        noise = 0.5 * options.d**-0.5 * rng.standard_normal((options.queries, options.d))
        queries = (vectors[rows] + noise).astype(np.float32)
        nearest(queries[:1], vectors, options.k)  # reads the file once
        times = {"nearest": [], "literal": []}
        for query in queries[:, None]:
            expected, seconds = timed(literal, query, vectors, options.k)
            times["literal"].append(1000 * seconds)
            (_, found), seconds = timed(nearest, query, vectors, options.k)
            times["nearest"].append(1000 * seconds)
            assert found[0].tolist() == expected.tolist(), "other pictures are found"
        peak = peak_memory_mb()
    median = {way: statistics.median(values) for way, values in times.items()}
    print(f"{options.n} vectors of width {options.d}, one query at a time, best {options.k}:")
    for way, ms in median.items():
        ratio = median["literal"] / ms
        print(f"  {way:8} {ms:8.1f} ms a query (slowest {max(times[way]):.1f})  {ratio:5.2f}")
    print(
        f"peak memory {peak:.0f} MiB, of which {vectors.nbytes / 2**20:.0f} MiB are the mapped file"
    )


if __name__ == "__main__":
    main()
