"""A million VisualNews-shaped rows: ``python -m benchmarks.index [--rows 1000000]``.

Writes a train.json of that many rows (captions of 5 to 40 words, some not ASCII) and, as real
folders, a file for every picture; then loads it in a fresh process and serves it with two workers.
Prints seconds to load, the process's resident peak and the memory each worker adds (its private
pages after it has read 20,000 random rows). With --explanations the same with one explanation of
30 to 80 words a row.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.turns import options, timed

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
    pairs, taken = timed(lambda: load_pairs("visualnews", "train", root=root))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    explained = pairs[7].explanation is not None
    rows = range(0, len(pairs), len(pairs) // 10_000 or 1)
    served, reading = timed(lambda: [int(pairs[row].id) for row in rows])
    assert served == list(rows)
    each = reading.wall / len(rows) * 1e6
    print(
        f"{len(pairs)} pairs, explanations {explained}: loaded in {taken.wall:.1f} s "
        f"({taken.processor:.1f} s of processor time), resident peak {peak:.0f} MiB "
        f"(imports alone {imports:.0f}), columns {pairs.nbytes / 2**20:.0f} MiB, "
        f"{each:.0f} µs a pair"
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
    args = options(__doc__, rows=1_000_000, explanations=False, measure=None)
    if args.measure:  # in the fresh process: the folder
        measure(Path(args.measure))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.rows, args.explanations)
        size = (Path(folder) / "train.json").stat().st_size / 2**20
        print(f"train.json: {size:.0f} MiB")
        # a fresh process: the writer's memory must not count
        command = [sys.executable, "-m", "benchmarks.index", "--measure", folder]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
