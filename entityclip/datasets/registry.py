"""Every data set by name: its splits, and who loads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from entityclip.datasets.newsroom import outlet_a, outlet_b
from entityclip.datasets.pair import Pair
from entityclip.datasets.prepared import use_prepared
from entityclip.datasets.reading import known
from entityclip.datasets.sources import folder, goodnews, karpathy, n24news, tweets, visualnews
from entityclip.datasets.table import PairTable, Report

# data set -> its splits
DATASETS: dict[str, tuple[str, ...]] = {
    "newsroom": outlet_a.SPLITS,
    "newsroom-b": outlet_b.SPLITS,
    "n24news": n24news.SPLITS,
    "visualnews": visualnews.SPLITS,
    "goodnews": goodnews.SPLITS,
    "flickr30k": karpathy.FLICKR30K_SPLITS,
    "mscoco": karpathy.MSCOCO_SPLITS,
    "tweets": tweets.RELATION_SPLITS,
    "twitter100k": tweets.TWITTER100K_SPLITS,
    "folder": folder.SPLITS,
}


class Drawn(NamedTuple):
    """A data set that is drawn on the spot and needs no files."""

    pairs: Callable[..., list[Pair]]  # (split, n, seed=, image_size=)
    size: Callable[[str], int]  # pairs of a split before one repeats a fact


DRAWN = {
    "newsroom": Drawn(outlet_a.newsroom_pairs, outlet_a.newsroom_size),
    "newsroom-b": Drawn(outlet_b.newsroom_b_pairs, outlet_b.newsroom_b_size),
}

# every data set that lies in files: (root, split, limit=, seed=) -> pairs and what was left out
LOADERS: dict[str, Callable[..., tuple[PairTable, Report]]] = {
    "n24news": n24news.n24news_pairs,
    "visualnews": visualnews.visualnews_pairs,
    "goodnews": goodnews.goodnews_pairs,
    "flickr30k": partial(karpathy.karpathy_pairs, dataset="flickr30k"),
    "mscoco": partial(karpathy.karpathy_pairs, dataset="mscoco"),
    "tweets": tweets.relation_pairs,
    "twitter100k": tweets.twitter100k_pairs,
    "folder": folder.folder_pairs,
}


@lru_cache(maxsize=16)
def _drawn(dataset: str, split: str, n: int, seed: int, image_size: int) -> tuple[Pair, ...]:
    # a table asks for the same thousands of pairs again and again; their pictures are not drawn yet
    return tuple(DRAWN[dataset].pairs(split, n, seed=seed, image_size=image_size))


def load_pairs(
    dataset: str,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    image_size: int = 224,
    root: Path | None = None,
    prepared: Path | None = None,
) -> Sequence[Pair]:
    """The pairs of a split: all of them, or `limit` chosen by `seed`.

    Args:
        dataset: a key of `DATASETS`.
        split: one of that data set's splits.
        limit: how many pairs at most. The drawn newsrooms have no end: they repeat facts with other
            pictures and words once ``DRAWN[dataset].size(split)`` is passed.
        seed: what a drawn newsroom draws, or which subset `limit` takes.
        image_size: side of a drawn newsroom's pictures in pixels; real data keep their own size.
        root: where the data lie; the drawn newsrooms need none.
        prepared: a folder that ``entityclip data prepare`` made, to take the pictures
            from; pairs whose picture is not in it are left out and logged.

    Raises ValueError for an unknown data set or split, a limit below 1, a missing root and an empty
    result; FileNotFoundError for missing files; ValueError naming file, row and field for bad ones.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; there are {', '.join(DATASETS)}")
    known(dataset, split, DATASETS[dataset])
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; ask for at least one pair")
    if dataset in DRAWN:
        if prepared is not None:
            raise ValueError(f"{dataset} is drawn at any size; it has no prepared copy")
        count = limit or DRAWN[dataset].size(split)
        return list(_drawn(dataset, split, count, seed, image_size))
    if root is None:
        raise ValueError(f"{dataset} needs the folder it lies in: set `data_root`")
    pairs, report = LOADERS[dataset](Path(root), split, limit=limit, seed=seed)
    if not pairs:
        raise ValueError(f"{dataset} {split} below {root} holds no usable pair: {report}")
    return pairs if prepared is None else use_prepared(pairs, Path(prepared), dataset)
