"""How fast pictures are read: ``python -m benchmarks.data [--workers 2]``.

2,000 JPEGs of about 1000 x 700 pixels are drawn, then served once by

- plain: ``PIL.Image.open`` + open_clip's evaluation transform in a default DataLoader,
- ours, exact: `PairDataset` on the originals; bit for bit the same pixels (checked),
- ours, draft: the same with ``decoding="draft"``, where libjpeg halves each side; pixels differ
  (by how much is printed),
- ours, prepared: `PairDataset` on the prepared copy (256 pixels, JPEG q90); pixels differ.

Each of ours takes turns with plain (A B A B …, with the same workers) on parts of the pictures, so
that whatever else the machine does disturbs both alike; the ratio is the median over the turns, and
its spread is printed. The ratio of processor seconds is what a machine with nothing else to do
gives, since both are bound by it. Files come from the page cache, so this measures decoding, not
the disk. Goals: 1.2 x plain from originals (training may draft), 2 x from the prepared copy.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.turns import Taken, medians, options, timed
from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.prepare import prepare
from entityclip.datasets.prepared import use_prepared
from entityclip.datasets.table import COLUMNS, PairTable, TextColumn

BATCH, SIDE = 64, 224
PREPROCESS = image_transform(SIDE, is_train=False)


class Plain(Dataset):
    """What one writes in five minutes."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return PREPROCESS(Image.open(self.paths[index]))


def draw(root: Path, count: int) -> PairTable:
    """`count` JPEGs with the detail and noise of a photograph, 900-1100 x 630-770, quality 90."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 6, (900, 1300, 3)).astype(np.float32)
    names = []
    for number in range(count):
        width, height = int(rng.integers(900, 1101)), int(rng.integers(630, 771))
        coarse = Image.fromarray(rng.integers(0, 256, (14, 20, 3), np.uint8))
        fine = Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8))
        scene = Image.blend(coarse.resize((width, height), 3), fine.resize((width, height), 3), 0.2)
        y, x = rng.integers(0, 900 - height), rng.integers(0, 1300 - width)
        pixels = np.asarray(scene, np.float32) + noise[y : y + height, x : x + width]
        names.append(f"images/{number}.jpg")
        path = root / names[-1]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    texts = {
        "id": map(str, range(count)),
        "image": names,
        "caption": (f"A caption of picture {number}" for number in range(count)),
    }
    columns = {name: TextColumn(texts.get(name, [None] * count)) for name in COLUMNS}
    return PairTable(root, columns, np.arange(count))


def tokenize(texts: list[str]) -> torch.Tensor:
    """No tokenizer: the plain loader has none either."""
    return torch.zeros(len(texts), 1, dtype=torch.int64)


def turns(plain: Plain, dataset: PairDataset, rounds: int, workers: int) -> list[list[Taken]]:
    """What plain and ours take for each of `rounds` equal parts, one after the other."""
    size = len(plain) // rounds
    taken: list[list[Taken]] = [[], []]
    for number in range(rounds):
        rows = range(number * size, (number + 1) * size)
        for which in (0, 1) if number % 2 == 0 else (1, 0):  # neither gains by being second
            data, collate = ((plain, None), (dataset, dataset.collate))[which]
            loader = DataLoader(Subset(data, rows), BATCH, num_workers=workers, collate_fn=collate)
            taken[which].append(timed(deque, loader, 0)[1])
    return taken


def levels(dataset: PairDataset, exact: PairDataset, count: int = 50) -> float:
    """Mean absolute difference to exact pixels, of 255 levels."""
    pairs = ((dataset[row].image, exact[row].image) for row in range(count))
    return statistics.mean((a.float() - b.float()).abs().mean().item() for a, b in pairs)


def main() -> None:
    args = options(__doc__, workers=2, pictures=2000, rounds=8)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = draw(Path(folder), args.pictures)
        home = Path(folder) / "prepared"
        _, once = timed(lambda: prepare("drawn", [table], home, progress=False))
        print(f"prepare: {args.pictures / once.wall:.0f} pictures/s, once")
        prepared = use_prepared(table, home)
        exact = PairDataset(table, PREPROCESS, tokenize)
        ours = {
            "ours, exact": exact,
            "ours, draft": PairDataset(table, PREPROCESS, tokenize, decoding="draft"),
            "ours, prepared": PairDataset(prepared, PREPROCESS, tokenize),
        }
        plain = Plain([pair.image for pair in table])
        same = all(
            torch.equal(exact.collate([exact[n]]).images[0], plain[n])
            for n in range(0, len(plain), max(1, len(plain) // 50))
        )
        print(f"exact pixels equal open_clip's: {same}; {args.workers} workers, {SIDE} pixels")
        for name, dataset in ours.items():
            theirs, mine = turns(plain, dataset, args.rounds, args.workers)
            pairs = list(zip(theirs, mine, strict=True))
            ratios = sorted(a.wall / b.wall for a, b in pairs)
            processor = statistics.median(a.processor / b.processor for a, b in pairs)
            rates = [args.pictures // args.rounds / medians(side).wall for side in (theirs, mine)]
            print(
                f"plain {rates[0]:4.0f} pictures/s, {name:14s} {rates[1]:4.0f}: "
                f"{statistics.median(ratios):.2f} x plain ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
                f"by processor time {processor:.2f} x; "
                f"pixels off by {levels(dataset, exact):.2f} levels"
            )


if __name__ == "__main__":
    main()
