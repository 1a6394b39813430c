"""A million VisualNews-shaped rows: ``python -m benchmarks.index [--rows 1000000]``.

Writes a train.json of that many rows (captions of 5 to 40 words, some not ASCII) and, as real
folders, a file for every picture; then loads it in a fresh process and serves it with two workers.
Prints seconds to load, the process's resident peak and the memory each worker adds (its private
pages after it has read 20,000 random rows). With --explanations the same with one explanation of
30 to 80 words a row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCES = ("guardian", "bbc", "usa_today", "washington_post")
WORDS = [
    *("minister", "talks", "London", "crowd", "election", "Zoë", "stadium", "police", "Berlin"),
    *("win", "harbour", "after", "president", "café", "summit", "Nairobi", "match", "with", "in"),
    *("at", "the", "of", "and", "leader", "São Paulo", "protest", "team"),
]
A_FOLDER = 1000  # pictures


def write(root: Path, rows: int, explanations: bool) -> None:
    rng = random.Random(0)
    with (root / "train.json").open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "id": number,
                "caption": " ".join(rng.choices(WORDS, k=rng.randint(5, 40))),
                "topic": f"topic_{number % 200}",
                "source": SOURCES[number % 4],
                "image_path": f"./{picture(number)}",
                "article_path": f"./{SOURCES[number % 4]}/articles/{number}.txt",
            }
            file.write(("[" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=number % 2))
        file.write("]")
    for number in range(rows):
        path = root / "images" / picture(number)
        if number // 4 % A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    if explanations:
        with (root / "CapDsc_mistral_train.json").open("w", encoding="utf-8") as file:
            for number in range(rows):
                text = " ".join(rng.choices(WORDS, k=rng.randint(30, 80)))
                key = f"/home/someone/origin/{picture(number)}"
                file.write(("{" if number == 0 else ",\n") + f"{json.dumps(key)}: ")
                file.write(json.dumps(text))
            file.write("}")


def picture(number: int) -> str:
    """Rows of a folder are not neighbours in the file, as in the release."""
    return f"{SOURCES[number % 4]}/images/{number // 4 // A_FOLDER:04d}/{number}.jpg"


def private_mib() -> float:
    """This process's pages that no other process shares, MiB (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return (int(values["Private_Dirty"]) + int(values["Private_Clean"])) / 1024


def read_rows(pairs, seed: int, queue) -> None:
    before = private_mib()
    rng = random.Random(seed)
    characters = sum(len(pairs[rng.randrange(len(pairs))].caption) for _ in range(20_000))
    queue.put((private_mib(), private_mib() - before, characters))


def measure(root: Path) -> None:
    from entityclip.datasets import load_pairs

    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, processor = time.perf_counter(), time.process_time()
    pairs = load_pairs("visualnews", "train", root=root)
    taken, processor = time.perf_counter() - start, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    explained = pairs[7].explanation is not None
    start = time.perf_counter()
    for row in range(0, len(pairs), len(pairs) // 10_000 or 1):
        assert pairs[row].id == str(row)
    each = (time.perf_counter() - start) / 1e4 * 1e6
    print(
        f"{len(pairs)} pairs, explanations {explained}: loaded in {taken:.1f} s ({processor:.1f} s "
        f"of processor time), resident peak {peak:.0f} MiB (imports alone {imports:.0f}), columns "
        f"{pairs.nbytes / 2**20:.0f} MiB, {each:.0f} µs a pair"
    )
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=read_rows, args=(pairs, n, queue)) for n in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        private, added, _ = queue.get()
        print(f"worker: {private:.0f} MiB private, {added:.0f} of them from reading 20,000 rows")
    for worker in workers:
        worker.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--explanations", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.rows, options.explanations)
        size = (Path(folder) / "train.json").stat().st_size / 2**20
        print(f"train.json: {size:.0f} MiB")
        # a fresh process: the writer's memory must not count
        command = [sys.executable, "-m", "benchmarks.index", "--measure", folder]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
