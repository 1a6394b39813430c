"""What a data set holds: lengths, names and sizes, and the rows that its splits share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from entityclip.datasets import DATASETS, DRAWN, LOADERS
from entityclip.datasets.manifest import Entry
from entityclip.datasets.pair import ImageError, Pair
from entityclip.datasets.table import Report

_CAPTIONS = 20_000  # of a split that a summary looks at

# runs of capitalised words, joined by "of", "the" … as in "Bank of England"
_NAME = r"[^\W\d_a-z][\w'’.-]*"
_NAMES = re.compile(rf"\b{_NAME}(?:\s+(?:(?:of|the|de|da|van|von|al)\s+)*{_NAME})*")


class Overlap(NamedTuple):
    """What stands in both of two splits, in numbers of distinct values, with the first few ids."""

    first: str
    second: str
    ids: int
    pictures: int
    captions: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} share {self.ids} ids, {self.pictures} pictures and "
            f"{self.captions} captions (e.g. {', '.join(self.examples)})"
        )


def overlaps(splits: Mapping[str, Sequence[Pair]]) -> list[Overlap]:
    """Every two splits that share an id, a picture's path or a caption, in the order given.

    Agencies' short captions may recur for good reasons: a shared one alone is a hint and no fault.
    """
    hashed = {name: _hashes(pairs) for name, pairs in splits.items()}
    found = []
    for first, second in itertools.combinations(splits, 2):
        columns = zip(hashed[first], hashed[second], strict=True)
        where = [np.intersect1d(*both, return_indices=True)[1] for both in columns]
        rows = sorted({row for shared in where for row in shared[:3].tolist()})[:3]
        if rows:
            examples = tuple(splits[first][row].id for row in rows)
            found.append(Overlap(first, second, *map(len, where), examples))
    return found


def _hashes(pairs: Sequence[Pair]) -> np.ndarray:
    """64-bit hashes of ids, pictures and captions, [3, n] uint64."""
    texts = ([pair.id, pair.image_key, pair.caption] for pair in pairs)
    digests = (blake2b(text.encode(), digest_size=8).digest() for row in texts for text in row)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 3).T


@dataclass
class SplitSummary:
    """One split: what its load left out, and one value a (sampled) pair."""

    split: str
    loaded: Sequence[Pair]
    report: Report
    words: np.ndarray  # [n] words a caption
    names: np.ndarray  # [n] runs of capitalised words a caption, see `count_names`
    sizes: np.ndarray  # [m, 2] width and height in pixels of the readable pictures sampled
    broken: int  # of the pictures sampled
    samples: list[Pair]  # up to 8 of those whose pictures are readable


def summarise(
    dataset: str, root: Path | None, *, splits: Sequence[str] | None = None, pictures: int = 500
) -> list[SplitSummary]:
    """Every split found below root: captions of up to 20,000 pairs, sizes of `pictures` of them.

    Splits whose files are missing are passed over unless `splits` names them. Raises ValueError and
    OSError as the loaders do, and FileNotFoundError where no split is found.
    """
    loaded = found_splits(dataset, root, splits or DATASETS[dataset], required=bool(splits))
    found = [_summary(*split, pictures) for split in loaded if len(split[1])]
    if not found:
        raise FileNotFoundError(f"no usable split of {dataset} below {root}; run verify to see why")
    return found


def found_splits(
    dataset: str, root: Path | None, splits: Sequence[str], *, required: bool
) -> Iterator[tuple[str, Sequence[Pair], Report]]:
    """Each split with its pairs and what was left out; unless `required`, missing ones are not.

    Of a drawn data set, no more pairs than are looked at.
    """
    for split in splits:
        if dataset in DRAWN:
            size = DRAWN[dataset].size(split)
            yield split, DRAWN[dataset].pairs(split, min(_CAPTIONS, size)), Report(rows=size)
            continue
        try:
            pairs, report = LOADERS[dataset](root, split)
        except FileNotFoundError:
            if required:
                raise
            continue  # a set may be fetched in parts
        yield split, pairs, report


def count_names(caption: str) -> int:
    """Runs of capitalised words, the caption's first word set aside unless it goes on capitalised.

    A proxy for entities that needs no model: it misses lower-case names and counts capitalised
    words that name nothing.
    """
    first = caption.split(" ", 1)[0] if caption else ""
    runs = [match.group() for match in _NAMES.finditer(caption)]
    return len(runs) - bool(runs and runs[0] == first.rstrip(".,:;"))


def summary_table(summaries: Sequence[SplitSummary]) -> pd.DataFrame:
    """One row a split."""
    rows = []
    for part in summaries:
        low, median, high = np.percentile(part.words, [5, 50, 95])
        width, height = np.median(part.sizes, axis=0) if len(part.sizes) else (np.nan, np.nan)
        rows.append({
            "split": part.split, "pairs": len(part.loaded), **part.report.counts,
            "words_p5": low, "words_median": median, "words_p95": high,
            "names_mean": float(part.names.mean()),
            "pictures_sampled": len(part.sizes) + part.broken, "pictures_broken": part.broken,
            "width_median": width, "height_median": height,
        })  # fmt: skip
    return pd.DataFrame(rows)


def shared_rows(summaries: Sequence[SplitSummary], entry: Entry) -> list[Overlap]:
    """What the splits share that should share nothing; `entry` says which contain one another."""
    return shared_pairs({part.split: part.loaded for part in summaries}, entry)


def shared_pairs(loaded: Mapping[str, Sequence[Pair]], entry: Entry) -> list[Overlap]:
    """`overlaps` of all splits but those that contain others by intent."""
    return overlaps({k: v for k, v in loaded.items() if not entry.splits[k].contains_others})


def _summary(split: str, pairs: Sequence[Pair], report: Report, pictures: int) -> SplitSummary:
    order = np.random.default_rng(0).permutation(len(pairs))
    chosen = [pairs[int(row)] for row in order[:_CAPTIONS]]
    sizes, samples = [], []
    for pair in chosen[:pictures]:
        with suppress(ImageError):
            sizes.append(pair.load_image().size)
            samples = [*samples, pair][:8]
    return SplitSummary(
        split, pairs, report,
        words=np.array([len(pair.caption.split()) for pair in chosen]),
        names=np.array([count_names(pair.caption) for pair in chosen]),
        sizes=np.array(sizes).reshape(-1, 2),
        broken=len(chosen[:pictures]) - len(sizes),
        samples=samples,
    )  # fmt: skip
