"""VisualNews' and GoodNews' size from generated lists, and whether pictures keep a GPU busy.

    python -m benchmarks.scale [--explanations] [--share 1.0] [--step 0.35]

Lists of 1,080,000 rows (VisualNews) and 466,000 (GoodNews) are written in their layouts, with an
empty file for every picture; each is then loaded in a process of its own. Printed are seconds and
MiB of the index (columns and the process's peak), of an epoch's shuffling, of all captions'
tokens, and what a worker process adds after it has read 20,000 random rows. --explanations: the
same with an explanation of 30 to 80 words a row; --share 0.1: a tenth of the rows.

Then the reading rate: pictures of about 1000 x 700 pixels a second and core, decoded exactly,
drafted, and from the prepared copy, against what a GPU takes that trains a batch of 192 in --step
seconds. No GPU was at hand: 0.35 s is an assumption, to be replaced by what `benchmarks.step
--device cuda --batch 192` prints on yours.
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
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks import data as pictures
from benchmarks.turns import options, timed
from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.prepare import prepare
from entityclip.datasets.prepared import use_prepared
from entityclip.models.clip import library
from entityclip.training.loop import epoch_batches

ROWS = {"visualnews": 1_080_000, "goodnews": 466_000}
BATCH = 192

SOURCES = ("guardian", "bbc", "usa_today", "washington_post")
WORDS = [
    *("minister", "talks", "London", "crowd", "election", "Zoë", "stadium", "police", "Berlin"),
    *("win", "harbour", "after", "president", "café", "summit", "Nairobi", "match", "with", "in"),
    *("at", "the", "of", "and", "leader", "São Paulo", "protest", "team"),
]
A_FOLDER = 1000  # pictures


def write(dataset: str, root: Path, rows: int, explanations: bool) -> None:
    """A list in the data set's layout, and an empty file for each picture."""
    rng, places = random.Random(0), _PLACES[dataset]
    with (root / places.list).open("w", encoding="utf-8") as file:
        for number in range(rows):
            caption = " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))
            row = places.row(number, caption)
            file.write(("[" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=number % 2))
        file.write("]")
    made = set()
    for number in range(rows):
        path = root / places.folder / places.picture(number)
        if path.parent not in made:
            path.parent.mkdir(parents=True)
            made.add(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    if explanations:
        path = root / places.explanations
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for number in range(rows):
                text = " ".join(rng.choices(WORDS, k=rng.randint(30, 80)))
                key = f"/home/someone/{places.folder}/{places.picture(number)}"
                file.write(("{" if number == 0 else ",\n") + f"{json.dumps(key)}: ")
                file.write(json.dumps(text))
            file.write("}")


class _Visualnews:
    list, folder, explanations = "train.json", "images", "CapDsc_mistral_train.json"

    @staticmethod
    def picture(number: int) -> str:
        """Rows of a folder are not neighbours in the file, as in the release."""
        return f"{SOURCES[number % 4]}/images/{number // 4 // A_FOLDER:04d}/{number}.jpg"

    @classmethod
    def row(cls, number: int, caption: str) -> dict[str, object]:
        source = SOURCES[number % 4]
        return {
            "id": number, "caption": caption, "topic": f"topic_{number % 200}", "source": source,
            "image_path": f"./{cls.picture(number)}",
            "article_path": f"./{source}/articles/{number}.txt",
        }  # fmt: skip


class _Goodnews:
    list, folder = "new_goodnews_capim_train.json", "resized"
    explanations = "train_cap_individual/New_Corr_CapDsc_mistral_train.json"

    @staticmethod
    def picture(number: int) -> str:
        return f"{number // 2:024x}_{number % 2}.jpg"

    @classmethod
    def row(cls, number: int, caption: str) -> dict[str, object]:
        image_id = cls.picture(number).removesuffix(".jpg")
        return {"image_id": image_id, "captioning": f"{caption}\r\n", "title": "A headline"}


_PLACES = {"visualnews": _Visualnews, "goodnews": _Goodnews}


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


def measure(dataset: str, root: Path) -> None:
    """In a fresh process: what the lists take."""
    peak = _peak()
    pairs, taken = timed(lambda: load_pairs(dataset, "train", root=root))
    print(
        f"{dataset}: {len(pairs):,} pairs, explanations {pairs[7].explanation is not None}\n"
        f"  index       {taken.wall:6.1f} s, columns {pairs.nbytes / 2**20:5.0f} MiB, "
        f"process at its peak {_peak():.0f} MiB (before {peak:.0f})"
    )
    rows = range(0, len(pairs), len(pairs) // 10_000 or 1)
    served, reading = timed(lambda: [pairs[row].id for row in rows])
    assert len(set(served)) == len(rows)
    print(f"  reading     {reading.wall / len(rows) * 1e6:6.0f} µs a pair")
    before = private_mib()
    batches, shuffling = timed(epoch_batches, len(pairs), BATCH, 0, 0)
    added = private_mib() - before
    print(f"  shuffling   {shuffling.wall:6.1f} s, {added:.0f} MiB, {len(batches):,} batches")
    tokenize = library().get_tokenizer("ViT-B-32")
    some = [pair.caption for pair in (pairs[row] for row in rows)]
    tokens, tokenizing = timed(tokenize, some)
    scale = len(pairs) / len(some)
    size = tokens[0].numel() * tokens.element_size() * len(pairs) / 2**20
    print(
        f"  tokens      {tokenizing.wall * scale:6.1f} s, {size:.0f} MiB for all captions, from "
        f"{len(some):,}; made in training: {1000 * tokenizing.wall / len(some) * BATCH:.0f} ms a "
        f"batch"
    )
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=read_rows, args=(pairs, n, queue)) for n in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        private, added, _ = queue.get()
        print(f"  a worker    {private:.0f} MiB private, {added:.0f} of them from 20,000 rows")
    for worker in workers:
        worker.join()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rates(count: int) -> Iterator[tuple[str, float]]:
    """Pictures a second that one process on one core decodes, each way."""
    with tempfile.TemporaryDirectory() as folder:
        table, home = pictures.draw(Path(folder), count), Path(folder) / "prepared"
        prepare("drawn", [table], home, progress=False)
        for name, pairs, decoding in (
            ("exact", table, "exact"),
            ("drafted", table, "draft"),
            ("prepared copy, 256 pixels", use_prepared(table, home), "exact"),
        ):
            served = PairDataset(
                pairs, pictures.PREPROCESS, pictures.tokenize, decoding=decoding
            )  # fmt: skip
            loader = DataLoader(served, 64, num_workers=1, collate_fn=served.collate)
            _, taken = timed(deque, loader, 0)
            yield name, count / taken.wall


def main() -> None:
    args = options(
        __doc__, explanations=False, share=1.0, step=0.35, pictures=1000, dataset=None, root=None
    )  # fmt: skip
    if args.dataset:  # in the fresh process
        measure(args.dataset, Path(args.root))
        return
    for dataset, rows in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(dataset, Path(folder), round(rows * args.share), args.explanations)
            # a fresh process: the writer's memory must not count
            command = [sys.executable, "-m", "benchmarks.scale", "--dataset", dataset]
            subprocess.run([*command, "--root", folder], check=True)
    torch.set_num_threads(1)
    needed = BATCH / args.step
    print(
        f"reading, for {BATCH} pairs in {args.step:g} s (assumed): {needed:.0f} pictures a second"
    )
    for name, rate in rates(args.pictures):
        print(f"  {name:27} {rate:5.0f} a second and core: {needed / rate:.1f} cores")


if __name__ == "__main__":
    main()
