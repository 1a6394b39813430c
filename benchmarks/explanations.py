"""How fast explanations come: ``python -m benchmarks.explanations [server] [cache]``.

``server``: captions a second through `explain` and `OpenAIChat` (cache, checks and all) from a fake
server in a process of its own that takes 50 ms an answer, 64 at a time: one worker, and the same
extraction sharded over two. The goal is 800 on two cores; 64 / 0.05 s = 1,280 is the most there is.

``cache``: seconds and memory to open a cache of 1,000,000 rows (about 0.5 GB below the system's
temporary folder) and find what of 1,000,100 captions is missing, against parsing every line, on one
core. The goals are 10 s and 1 GB.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from entityclip.datasets.pair import Pair
from entityclip.explanations import (
    ExplanationCache,
    OpenAIChat,
    Sampling,
    Source,
    explain,
    merge_caches,
    shard,
)
from entityclip.explanations.cache import Explanation, cache_keys, encode_row, text_sha

DELAY_S, CONCURRENCY, CAPTIONS = 0.05, 64, 12_000
ROWS, MISSING = 1_000_000, 100


def caption(number: int) -> str:
    return f"Envoys from Nairobi and Berlin meet in room {number} over the treaty talks on Monday"


def pairs(count: int) -> list[Pair]:
    return [Pair(str(n), Path("none.jpg"), caption(n)) for n in range(count)]


def worker(url: str, index: int, count: int, path: str) -> None:
    """Explain one shard; prints seconds since the epoch at start and end, and CPU seconds."""
    llm = OpenAIChat("fake", url, concurrency=CONCURRENCY // count)
    part = shard(pairs(CAPTIONS), index, count)
    explain(part[:64], llm, path, progress=False)  # imports and first connections
    print("ready", flush=True)
    sys.stdin.readline()
    start, busy = time.time(), time.process_time()
    rows = explain(part, llm, path, progress=False)
    print(start, time.time(), time.process_time() - busy, flush=True)
    assert all(row.ok for row in rows)


def sharded(url: str, count: int) -> tuple[float, float]:
    """Captions a second and CPU milliseconds each with `count` workers, from pairs to rows."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        parts = [Path(folder) / f"part{index}.jsonl" for index in range(count)]
        command = [sys.executable, "-m", "benchmarks.explanations", "worker", url]
        workers = [
            stack.enter_context(_process([*command, str(index), str(count), str(part)]))
            for index, part in enumerate(parts)
        ]
        for process in workers:
            assert process.stdout.readline() == "ready\n"
        for process in workers:
            print(file=process.stdin, flush=True)
        starts, ends, busy = zip(
            *(map(float, process.stdout.readline().split()) for process in workers), strict=True
        )
        asked = CAPTIONS - 64 * count
        assert merge_caches(parts, Path(folder) / "whole.jsonl")["added"] == CAPTIONS
    return asked / (max(ends) - min(starts)), sum(busy) * 1000 / asked


def _process(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def server() -> None:
    with _process([sys.executable, "-m", "tests.fake_llm_server", str(DELAY_S)]) as process:
        url = process.stdout.readline().strip()
        (one, one_ms), (two, two_ms) = sharded(url, 1), sharded(url, 2)
        process.stdin.close()
        _, status, spent = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    server_ms = (spent.ru_utime + spent.ru_stime) * 1000 / (2 * CAPTIONS)
    print(f"server: 1 worker  {one:.0f} captions/s, {one_ms:.2f} ms CPU each")
    print(f"server: 2 workers {two:.0f} captions/s, {two_ms:.2f} ms CPU each; {two / one:.2f} x")
    print(f"server: the fake server itself took {server_ms:.2f} ms CPU a caption")


SOURCE = Source("fake", "entities-v1", Sampling())


def write_cache(path: Path) -> None:
    """A million rows as `explain` writes them."""
    text = "Nairobi is the capital of Kenya; its flag shows black, red and green bands. " * 2
    row = Explanation(
        *("0", text, *SOURCE, "stop", text_sha(text), (), 1, "2026-01-01T00:00:00+00:00")
    )
    head, tail = encode_row(b"\0" * 16, row).split(b"0" * 32)
    captions = (caption(n) for n in range(ROWS))
    with path.open("wb") as file:
        while block := list(islice(captions, 10_000)):
            keys = cache_keys(block, SOURCE)
            file.writelines(head + key.hex().encode() + tail for key in keys)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cache() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.jsonl"
        write_cache(path)
        captions = [caption(n) for n in range(ROWS + MISSING)]
        before, start = peak_mb(), time.perf_counter()
        with ExplanationCache(path) as opened:
            missing = opened.missing(cache_keys(captions, SOURCE))
        seconds, after = time.perf_counter() - start, peak_mb()
        assert len(missing) == MISSING
        start = time.perf_counter()
        with path.open("rb") as file:
            parsed = {json.loads(line)["key"] for line in file}
        naive = time.perf_counter() - start
        assert len(parsed) == ROWS
    print(
        f"cache: {seconds:.1f} s for {ROWS:,} rows, parsing alone {naive / seconds:.1f} x that; "
        f"peak {after:.0f} MB with all captions held, {before:.0f} MB of it before"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        for part in sys.argv[1:] or ("server", "cache"):
            {"server": server, "cache": cache}[part]()
