"""Retrieval by S(I, T): similarities in bounded memory, ranks, and re-ranking.

Pictures and captions pass their towers once. Similarities are then made for a stretch of captions
at a time, so memory beyond the [M, N] similarities does not grow with the number of captions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from entityclip.baselines.ascl.fusion import Side
from entityclip.baselines.ascl.model import AsCL
from entityclip.baselines.ascl.samples import poorer_text
from entityclip.datasets.images import ImageTextDataset, whole_batch
from entityclip.datasets.pair import PairDataset
from entityclip.evaluation import Retrieval, distinct_pictures
from entityclip.metrics import similarity_ranks
from entityclip.progress import progress_bar


@torch.inference_mode()
def similarities(
    model: AsCL,
    dataset: PairDataset | ImageTextDataset,
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
    device = model.backbone.device
    was_training = model.training
    model.eval()
    image_of, first = distinct_pictures(dataset.image_keys)
    loader = DataLoader(
        dataset, batch_sampler=[rows.tolist() for rows in first.split(batch_size)],
        collate_fn=dataset.collate, num_workers=workers,
    )  # fmt: skip
    sides = [model.image_side(whole_batch(batch).images.to(device)) for batch in loader]
    images = Side(*(torch.cat(parts) for parts in zip(*sides, strict=True)))
    found = torch.empty(len(first), len(dataset))
    starts = range(0, len(dataset), batch_size)
    for start in progress_bar(starts, desc="similarity", show=progress, leave=False):
        text = dataset.captions[start : start + batch_size]
        if short_queries:
            text = poorer_text(text, model.backbone.eot(text))
        columns = model.similarity(images, model.text_side(text.to(device)))
        found[:, start : start + batch_size] = columns.cpu()
    model.train(was_training)
    return found, image_of


def evaluate_similarity(
    model: AsCL, dataset: PairDataset | ImageTextDataset, *, workers: int = 0, progress: bool = True
) -> Retrieval:
    """Ranks by S(I, T) of a model's own fusion: `evaluation.evaluate_embeddings` for AsCL."""
    return retrieve(*similarities(model, dataset, workers=workers, progress=progress))


def retrieve(similarity: Tensor, image_of: Tensor) -> Retrieval:
    """Ranks both ways of similarities [M, N]; `image_of` [N] is each caption's picture."""
    pictures = torch.arange(len(similarity))
    return Retrieval(
        similarity_ranks(similarity.T, (image_of, pictures)),
        similarity_ranks(similarity, (pictures, image_of)),
        image_of,
    )


def retrieve_reranked(
    similarity: Tensor, image_of: Tensor, *, k_text: int = 15, k_image: int = 20
) -> Retrieval:
    """`retrieve` after each query's top `k_text` captions or `k_image` pictures are reordered.

    A candidate of the top moves by the rank that it gives the query back, and by its old rank where
    that is equal; the others stay behind in their order.
    """
    pictures = torch.arange(len(similarity))
    of_pictures, of_texts = positions(similarity), positions(similarity.T)  # [M, N], [N, M]
    to_text = _reordered(of_pictures, of_texts.T, k_text)
    to_image = _reordered(of_texts, of_pictures.T, k_image)
    return Retrieval(
        similarity_ranks(-to_image, (image_of, pictures)),
        similarity_ranks(-to_text, (pictures, image_of)),
        image_of,
    )


def positions(similarity: Tensor) -> Tensor:
    """Rank [Nq, Nc] of every candidate for every query: how many are at least as similar."""
    similarity = similarity.contiguous()  # what searchsorted wants
    ordered = similarity.sort(dim=1).values
    fewer = torch.searchsorted(ordered, similarity)  # strictly less similar
    return similarity.shape[1] - fewer


def _reordered(position: Tensor, back: Tensor, k: int) -> Tensor:
    """Keys [Nq, Nc] whose ascending order is the re-ranked one; exact in float64."""
    most = position.shape[1] + 1
    beyond = back.max() + 1
    return (torch.where(position <= k, back, beyond) * most + position).double()
