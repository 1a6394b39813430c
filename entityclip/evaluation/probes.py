"""Questions to a trained model's experts: is V*·T* agreement real, and does the head match?

The leak question: in training V* and T* both attend to the same explanation E, so they may agree
because both copy E. Put another explanation in E's place at test: what survives of their agreement
when BOTH sides read the same wrong E was never about picture and caption.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from entityclip.datasets.dataset import Batch, PairDataset, whole_batch
from entityclip.models.entityclip import EntityCLIP

_BATCH = 100


@torch.inference_mode()
def mixed_embeddings(
    model: EntityCLIP, dataset: PairDataset, image_reads: Tensor, text_reads: Tensor
) -> tuple[Tensor, Tensor]:
    """V* and T*_moe of a split, [N, d] each and normalised, reading given pairs' explanations.

    `image_reads` and `text_reads` [N] say whose explanation (row) each side's experts attend to.
    Rows keep the split's order; both tensors are float32 on the model's device (section 3.2 with
    another E).
    Raises ValueError for a model without explanation experts, ImageError for a broken picture.
    """
    if not model.config.explanation_experts:
        raise ValueError("the model has no explanation experts whose reading could be changed")
    images, texts, trim = [], [], not model.config.sees_padding
    for rows, batch in batches_of(dataset, model.device):
        image = model.backbone.image_tokens(batch.images)
        text = model.backbone.text_tokens(batch.captions, trim=trim)
        sides = []
        for reads in (image_reads, text_reads):
            ids = dataset.explanations[reads[rows]].to(batch.captions.device)
            explanation = model.backbone.text_tokens(ids, trim=trim)
            vectors, *_ = model.mmae(image, text, explanation)
            sides.append(model.mmae.mix(image, text, vectors))
        images.append(F.normalize(sides[0][0].float(), dim=-1))
        texts.append(F.normalize(sides[1][1].float(), dim=-1))
    return torch.cat(images), torch.cat(texts)


def batches_of(dataset: PairDataset, device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """Rows and batches of a split in order, of some 100 pairs, as training reads them.

    Raises ImageError naming pair and file for a broken picture.
    """
    rows = torch.arange(len(dataset))
    parts = list(rows.split(_BATCH))
    if len(parts) > 1 and len(parts[-1]) == 1:  # a batch of one has no negatives
        parts[-2:] = [torch.cat(parts[-2:])]
    for part in parts:
        batch = whole_batch(dataset.collate([dataset[i] for i in part.tolist()]))
        yield part, batch.to(device)
