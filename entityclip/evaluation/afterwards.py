"""Ways to ask a trained model that need no other training: two towers, other queries or scores.

Query expansion adds what a language model would say of a query, an upper bound of what explanations
can give at test. The dual softmax reads all test queries at once, which a search engine cannot.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.datasets.dataset import PairDataset
from entityclip.devices import doubled
from entityclip.evaluation.distractors import beaten, shown_by
from entityclip.evaluation.ranks import similarity_ranks
from entityclip.evaluation.retrieval import encode_pairs, evaluating, retrieve
from entityclip.models.entityclip import EntityCLIP
from entityclip.statistics import Retrieval

LARGEST = 20_000  # queries, and candidates, of a whole matrix of scores


def rank_expanded(
    model: EntityCLIP, dataset: PairDataset, *, workers: int = 0, progress: bool = True
) -> Retrieval:
    """Ranks by norm(T* + E*): each caption asks together with its explanation in `dataset`.

    Raises ValueError for a pair without one.
    """
    found = encode_pairs(model, dataset, workers=workers, progress=progress)
    lacking = [pair.id for pair in dataset.pairs if not pair.explanation]
    if lacking:
        raise ValueError(f"{len(lacking)} pairs have no explanation to ask with, as {lacking[0]!r}")
    told = _encoded(model, [str(pair.explanation) for pair in dataset.pairs])
    shown = shown_by([dataset.pairs[row] for row in found.first.tolist()])
    return retrieve(replace(found, texts=F.normalize(found.texts + told, dim=-1)), shown=shown)


def rank_dual_softmax(
    model: EntityCLIP, dataset: PairDataset, *, workers: int = 0, progress: bool = True
) -> Retrieval:
    """Ranks by the `dual_softmax` of cosines, over the queries of either direction.

    Raises ValueError above LARGEST queries or candidates, whose matrix would not fit.
    """
    found = encode_pairs(model, dataset, workers=workers, progress=progress)
    if max(len(found.texts), len(found.images)) > LARGEST:
        raise ValueError(
            f"the dual softmax needs all {len(found.texts)} × {len(found.images)} scores at once; "
            f"lower test_pairs to {LARGEST}"
        )
    similarity = doubled(found.texts) @ doubled(found.images).T
    scale = model.backbone.clip.logit_scale.detach().exp().item()
    to_image = dual_softmax(similarity, scale)
    to_text = dual_softmax(similarity.T, scale)
    groups = found.image_of, torch.arange(len(found.images))
    text_to_image, _ = similarity_ranks(to_image, groups)
    image_to_text, _ = similarity_ranks(to_text, groups[::-1])
    shown = shown_by([dataset.pairs[row] for row in found.first.tolist()])
    lost = beaten(lambda at: to_image[at], found.image_of, shown) if shown else None
    return Retrieval(text_to_image, image_to_text, found.image_of, beaten=lost)


def dual_softmax(similarity: Tensor, scale: float) -> Tensor:
    """Log of the softmax over candidates times that over queries, of cosines [Nq, Nc], scaled.

    A candidate that many queries like is worth less to each (Cheng et al. 2021, CAMoE). Only the
    order within a row counts, so what is the same for a row's candidates is left out.
    """
    logits = scale * similarity
    return logits + logits.log_softmax(dim=0)


def _encoded(model: nn.Module, texts: list[str], batch_size: int = 256) -> Tensor:
    """Normalised features [N, d] of texts."""
    parts = []
    with evaluating(model) as device:
        for start in range(0, len(texts), batch_size):
            tokens = model.backbone.tokenize(texts[start : start + batch_size])
            parts.append(model.encode_text(tokens.to(device)).float())
    return torch.cat(parts)
