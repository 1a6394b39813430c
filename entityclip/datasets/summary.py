"""What is in a data set: lengths, counts and sizes, as a table, histograms and samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from entityclip.datasets import DATASETS, DRAWN, LOADERS
from entityclip.datasets.builder import Report
from entityclip.datasets.decode import ImageError
from entityclip.datasets.duplicates import Overlap, overlaps
from entityclip.datasets.manifest import Entry
from entityclip.datasets.pair import Pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = r"[^\W\d_a-z][\w'’.-]*"
# runs of capitalised words, joined by "of", "the" … as in "Bank of England"
_NAMES = re.compile(rf"\b{_NAME}(?:\s+(?:(?:of|the|de|da|van|von|al)\s+)*{_NAME})*")


@dataclass
class SplitSummary:
    """One split: what its load left out, and one value a (sampled) pair."""

    split: str
    pairs: int
    report: Report
    words: np.ndarray  # [n] words a caption
    names: np.ndarray  # [n] runs of capitalised words a caption, see `count_names`
    sizes: np.ndarray  # [m, 2] width and height in pixels of the readable pictures sampled
    broken: int  # of the pictures sampled
    samples: list[Pair]  # up to 8 of those whose pictures are readable
    loaded: Sequence[Pair]  # all of them

    def row(self) -> dict[str, float | int | str]:
        """This split's line of the table."""
        low, median, high = np.percentile(self.words, [5, 50, 95])
        width, height = np.median(self.sizes, axis=0) if len(self.sizes) else (np.nan, np.nan)
        return {
            "split": self.split,
            "pairs": self.pairs,
            **asdict(self.report),
            "words_p5": low,
            "words_median": median,
            "words_p95": high,
            "names_mean": float(self.names.mean()),
            "pictures_sampled": len(self.sizes) + self.broken,
            "pictures_broken": self.broken,
            "width_median": width,
            "height_median": height,
        }


def summarise(
    dataset: str,
    root: Path | None,
    *,
    splits: Sequence[str] | None = None,
    limit: int = 20_000,
    pictures: int = 500,
    seed: int = 0,
) -> list[SplitSummary]:
    """Every split found below root: captions of `limit` pairs, sizes of `pictures` of them.

    Splits whose files are missing are passed over unless `splits` names them. Raises ValueError and
    OSError as the loaders do, and FileNotFoundError where no split is found.
    """
    found = []
    for split in splits or DATASETS[dataset]:
        try:
            pairs, report = _load(dataset, split, root, limit)
        except FileNotFoundError:
            if splits:
                raise
            continue
        if len(pairs):
            found.append(_summary(split, pairs, report, limit, pictures, seed))
    if not found:
        raise FileNotFoundError(f"no usable split of {dataset} below {root}; run verify to see why")
    return found


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
    return pd.DataFrame([summary.row() for summary in summaries])


def shared_rows(summaries: Sequence[SplitSummary], entry: Entry) -> list[Overlap]:
    """What the splits share that should share nothing; `entry` says which contain one another."""
    separate = {
        summary.split: summary.loaded
        for summary in summaries
        if not entry.splits[summary.split].contains_others
    }
    return overlaps(separate)


def draw_summary(summaries: Sequence[SplitSummary]) -> Figure:
    """Histograms of caption lengths and names a caption, and picture sizes, one colour a split."""
    import matplotlib.pyplot as plt

    from entityclip.style import PAGE, apply_style

    apply_style()
    figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.3), layout="constrained")
    for number, (name, unit) in enumerate((("words", "words"), ("names", "capitalised names"))):
        highest = max(int(np.percentile(getattr(s, name), 99)) for s in summaries)
        bins = np.arange(highest + 3) - 0.5
        for summary in summaries:
            values = np.minimum(getattr(summary, name), highest + 1)
            axes[number].hist(values, bins, density=True, histtype="step", label=summary.split)
        axes[number].set(xlabel=f"{unit} a caption", ylabel="share" if number == 0 else "")
    for summary in summaries:
        if len(summary.sizes):
            axes[2].scatter(*summary.sizes.T, s=5, alpha=0.4, linewidths=0, label=summary.split)
    for axis in axes[:2]:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[2].set(xlabel="width (pixels)", ylabel="height (pixels)")
    axes[0].legend()
    plt.close(figure)  # the caller shows or saves it
    return figure


def _load(dataset: str, split: str, root: Path | None, limit: int) -> tuple[Sequence[Pair], Report]:
    if dataset in DRAWN:
        size = DRAWN[dataset].size(split)
        return DRAWN[dataset].pairs(split, min(limit, size)), Report(rows=size)
    if root is None:
        raise ValueError(f"{dataset} needs the folder it lies in: give --root")
    return LOADERS[dataset](root, split)


def _summary(
    split: str, pairs: Sequence[Pair], report: Report, limit: int, pictures: int, seed: int
) -> SplitSummary:
    order = np.random.default_rng(seed).permutation(len(pairs))
    chosen = [pairs[int(row)] for row in order[:limit]]
    sizes, broken, samples = [], 0, []
    for pair in chosen[:pictures]:
        try:
            sizes.append(pair.load_image().size)
        except ImageError:
            broken += 1
        else:
            samples = [*samples, pair][:8]
    return SplitSummary(
        split,
        len(pairs),
        report,
        np.array([len(pair.caption.split()) for pair in chosen]),
        np.array([count_names(pair.caption) for pair in chosen]),
        np.array(sizes).reshape(-1, 2),
        broken,
        samples,
        pairs,
    )
