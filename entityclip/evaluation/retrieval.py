"""Retrieval as the paper evaluates it: N captions against N pictures, both ways (section 4.2).

Only the two CLIP towers run. A caption's positives are all rows that show its picture; each
picture is one candidate however many captions it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from entityclip.console import progress_bar
from entityclip.datasets.dataset import PairDataset, whole_batch
from entityclip.datasets.pair import Pair, data_fingerprint
from entityclip.devices import doubled
from entityclip.evaluation.distractors import Shown, beaten, shown_by
from entityclip.evaluation.provenance import provenance
from entityclip.evaluation.ranks import both_ranks, similarity_ranks
from entityclip.models.ascl import AsCL, Side, poorer_text
from entityclip.models.entityclip import EntityCLIP
from entityclip.results import Row, measurement_rows
from entityclip.statistics import BY_ARTICLE, ByArticle, Retrieval, bootstrap_interval, interval


@dataclass(frozen=True)
class Embeddings:
    """A split in the joint space, normalised: N captions and M pictures, M <= N.

    `texts` [N, d]; `images` [M, d]; `image_of` [N], the picture row of each caption; `first` [M],
    the pair that first shows each picture.
    """

    texts: Tensor
    images: Tensor
    image_of: Tensor
    first: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode, with no gradients; gives the device of its CLIP."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield getattr(model, "backbone", model).device
    finally:
        model.train(was_training)


def distinct_pictures(image_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Number the pictures of N pairs: each pair's picture [N], and each picture's first pair [M].

    `image_keys` [N] are equal where pairs share a picture.
    """
    keys, image_of = image_keys.unique(return_inverse=True)
    pairs = torch.arange(len(image_keys))
    first = torch.full((len(keys),), len(pairs)).scatter_reduce(0, image_of, pairs, "amin")
    return image_of, first


def encode_pairs(
    model: EntityCLIP,
    dataset: PairDataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: bool = True,
) -> Embeddings:
    """Embed every caption and every distinct picture of `dataset` on the model's device.

    Raises ImageError naming pair and file for a picture that cannot be read: leaving a candidate
    out would change every number.
    """
    image_of, first = distinct_pictures(dataset.image_keys)
    seen = torch.zeros(len(dataset), dtype=torch.bool)
    seen[first] = True
    texts, images, start = [], [], 0
    with evaluating(model) as device:
        loader = DataLoader(
            dataset, batch_size, collate_fn=dataset.collate, num_workers=workers,
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        for batch in progress_bar(loader, desc="encode", show=progress, leave=False):
            batch = whole_batch(batch)
            new = seen[start : start + len(batch)]
            start += len(batch)
            texts.append(model.encode_text(batch.captions.to(device)).float())
            if new.any():
                images.append(model.encode_image(batch.images[new].to(device)).float())
        # pictures were encoded in order of first appearance, `first` is in order of key
        order = first.argsort().argsort()
        return Embeddings(torch.cat(texts), torch.cat(images)[order.to(device)], image_of, first)


def articles_of(pairs: Sequence[Pair]) -> Tensor | None:
    """The number of each pair's article (`Pair.group`) [N]; None where none has several pictures.

    A pair without a group is an article of its own.
    """
    names = [(pair.group is None, pair.id if pair.group is None else pair.group) for pair in pairs]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    pictures = {(name, pair.image_key) for name, pair in zip(names, pairs, strict=True)}
    return torch.tensor([numbers[n] for n in names]) if len(pictures) > len(numbers) else None


def retrieve(
    embeddings: Embeddings, articles: Tensor | None = None, shown: Shown | None = None
) -> Retrieval:
    """Rank all pictures for each caption and all captions for each picture.

    With `articles` [N], also with all pictures, and captions, of a query's article as right ones:
    GoodNews has several pictures an article, and its captions often suit more than one. With what
    the M pictures show, also which distractors are `beaten`.
    """
    texts, images = embeddings.texts, embeddings.images
    groups = embeddings.image_of, torch.arange(len(images))
    ranks = both_ranks(texts, images, groups)
    lost = beaten(lambda at: texts[at] @ images.T, embeddings.image_of, shown) if shown else None
    if articles is None:
        return Retrieval(*ranks, embeddings.image_of, beaten=lost)
    groups = articles, articles[embeddings.first]
    by_article = ByArticle(*both_ranks(texts, images, groups), *groups)
    return Retrieval(*ranks, embeddings.image_of, by_article, lost)


def evaluate_embeddings(
    model: EntityCLIP, dataset: PairDataset, *, workers: int = 0, progress: bool = True
) -> Retrieval:
    """Ranks by the cosine of the two towers' embeddings, by article too where that differs."""
    embeddings = encode_pairs(model, dataset, workers=workers, progress=progress)
    shown = shown_by([dataset.pairs[row] for row in embeddings.first.tolist()])
    return retrieve(embeddings, articles_of(dataset.pairs), shown)


def evaluate_retrieval(
    model: EntityCLIP,
    dataset: PairDataset,
    *,
    variant: str,
    dataset_name: str,
    split: str,
    config: Any,
    seed: int,
    bootstrap: int = 1000,
    workers: int = 0,
    progress: bool = True,
    rank: Callable[..., Retrieval] = evaluate_embeddings,
) -> tuple[Retrieval, list[Row]]:
    """Encode, rank and measure one split: its ranks, and a result row a metric and direction.

    `rank` is how this model compares pictures with captions; by default as CLIP does. Intervals are
    95 % bootstrap intervals over `bootstrap` resamples of the queries (whole pictures where several
    captions share one); they hold no variance between training seeds. Rows by article, "R@1, by
    article" and so on, resample whole articles.
    """
    start = time.perf_counter()
    retrieval = rank(model, dataset, workers=workers, progress=progress)
    origin = provenance(
        config=config, seed=seed, data_fingerprint=data_fingerprint(dataset.pairs),
        device=model.backbone.device, wall_time_s=time.perf_counter() - start,
    )  # fmt: skip
    found = {"": retrieval, BY_ARTICLE: retrieval.by_article}
    rows: list[Row] = []
    for suffix, ranks in found.items():
        for direction, metrics in ranks.metrics().items() if ranks else ():
            intervals = bootstrap_interval(
                ranks.ranks(direction), n_resamples=bootstrap, seed=seed,
                clusters=ranks.clusters(direction),
            )  # fmt: skip
            rows += measurement_rows(
                {f"{metric}{suffix}": value for metric, value in metrics.items()},
                {f"{metric}{suffix}": ends for metric, ends in intervals.items()},
                variant=variant, dataset=dataset_name, split=split,
                direction=direction, provenance=origin, **ranks.sizes(direction),
            )  # fmt: skip
    for metric, each in (retrieval.beaten or {}).items():
        known = ~np.isnan(each)  # the others have no such distractor
        if known.sum() > 1:
            ends = interval(each[known], n_resamples=bootstrap, seed=seed)
            rows += measurement_rows(
                {metric: float(each[known].mean())}, {metric: tuple(map(float, ends))},
                variant=variant, dataset=dataset_name, split=split, direction="text_to_image",
                n_queries=int(known.sum()), n_candidates=len(retrieval.image_to_text),
                provenance=origin,
            )  # fmt: skip
    return retrieval, rows


class RankedPictures(NamedTuple):
    """A query caption and what a model found for it, to be shown."""

    caption: str
    pictures: list[Image.Image]  # best first
    true: int | None  # which of them is right; None: none
    answer: Image.Image  # the right picture
    rank: int  # of the right picture


@torch.inference_mode()
def best_pictures(
    dataset: PairDataset, embeddings: Embeddings, ranks: Tensor, queries: Sequence[int], k: int = 5
) -> list[RankedPictures]:
    """The k pictures that rank first for each of some query captions (pair numbers)."""
    similarity = embeddings.texts[list(queries)] @ embeddings.images.T
    top = embeddings.first[similarity.topk(min(k, similarity.shape[1])).indices.cpu()]
    found = []
    for query, best in zip(queries, top.tolist(), strict=True):
        pair, pictures = dataset.pairs[query], [dataset.pairs[row] for row in best]
        keys, shown = [p.image_key for p in pictures], [p.load_image() for p in pictures]
        true = keys.index(pair.image_key) if pair.image_key in keys else None
        answer, rank = pair.load_image(), int(ranks[query])
        found.append(RankedPictures(pair.caption, shown, true, answer, rank))
    return found


def similarities(
    model: AsCL,
    dataset: PairDataset,
    *,
    short_queries: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """S(I, T) [M, N] of M distinct pictures with N captions, and each caption's picture [N].

    `short_queries` keeps the first half of every caption. `batch_size` captions are compared at
    once. Both returned tensors lie on the CPU. Raises ImageError naming pair and file for a picture
    that cannot be read.
    """
    image_of, first = distinct_pictures(dataset.image_keys)
    loader = DataLoader(
        dataset, batch_sampler=[rows.tolist() for rows in first.split(batch_size)],
        collate_fn=dataset.collate, num_workers=workers,
    )  # fmt: skip
    found = torch.empty(len(first), len(dataset))
    with evaluating(model) as device:
        sides = [model.image_side(whole_batch(batch).images.to(device)) for batch in loader]
        images = Side(*(torch.cat(parts) for parts in zip(*sides, strict=True)))
        starts = range(0, len(dataset), batch_size)
        for start in progress_bar(starts, desc="similarity", show=progress, leave=False):
            text = dataset.captions[start : start + batch_size]
            if short_queries:
                text = poorer_text(text, model.backbone.eot(text))
            columns = model.similarity(images, model.text_side(text.to(device)))
            found[:, start : start + batch_size] = columns.cpu()
    return found, image_of


def evaluate_similarity(
    model: AsCL, dataset: PairDataset, *, workers: int = 0, progress: bool = True
) -> Retrieval:
    """Ranks by S(I, T) of a model's own fusion: `evaluate_embeddings` for AsCL."""
    similarity, image_of = similarities(model, dataset, workers=workers, progress=progress)
    first = distinct_pictures(dataset.image_keys)[1]
    return retrieve_ascl(similarity, image_of, shown_by([dataset.pairs[i] for i in first.tolist()]))


def retrieve_ascl(similarity: Tensor, image_of: Tensor, shown: Shown | None = None) -> Retrieval:
    """Ranks both ways of similarities [M, N]; `image_of` [N] is each caption's picture."""
    to_text, to_image = similarity_ranks(similarity, (torch.arange(len(similarity)), image_of))
    lost = beaten(lambda at: similarity.T[at], image_of, shown) if shown else None
    return Retrieval(to_image, to_text, image_of, beaten=lost)


def retrieve_reranked(
    similarity: Tensor, image_of: Tensor, *, k_text: int = 15, k_image: int = 20
) -> Retrieval:
    """`retrieve_ascl` after each query's top `k_text` captions or `k_image` pictures are reordered.

    A candidate of the top moves by the rank that it gives the query back, and by its old rank where
    that is equal; the others stay behind in their order.
    """
    of_pictures, of_texts = positions(similarity), positions(similarity.T)  # [M, N], [N, M]
    to_text = reordered(of_pictures, of_texts.T, k_text)
    to_image = reordered(of_texts, of_pictures.T, k_image)
    groups = image_of, torch.arange(len(similarity))
    text_to_image, _ = similarity_ranks(-to_image, groups)
    image_to_text, _ = similarity_ranks(-to_text, groups[::-1])
    return Retrieval(text_to_image, image_to_text, image_of)


def positions(similarity: Tensor) -> Tensor:
    """Rank [Nq, Nc] of every candidate for every query: how many are at least as similar."""
    similarity = similarity.contiguous()  # what searchsorted wants
    ordered = similarity.sort(dim=1).values
    fewer = torch.searchsorted(ordered, similarity)  # strictly less similar
    return similarity.shape[1] - fewer


def reordered(position: Tensor, back: Tensor, k: int) -> Tensor:
    """Keys [Nq, Nc] whose ascending order is the re-ranked one; exact in float64."""
    most = position.shape[1] + 1
    beyond = back.max() + 1
    return doubled(torch.where(position <= k, back, beyond) * most + position)
