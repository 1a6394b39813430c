"""EntityCLIP's loss terms (section 3.4), tensors in and a scalar out.

L = VTC(I*, T*) + λ VTC(V*, T*_moe) + η L_GI-ITM; `EntityCLIP.losses` weighs and adds them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def vtc_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Vision-text contrastive loss: symmetric InfoNCE over the batch, as CLIP's.

    `image` and `text` [B, d] are normalised; `logit_scale` is the factor itself, not its log. Pairs
    of rows that `left_out` [B, B] marks, off its diagonal, count in no denominator.
    """
    logits = logit_scale * image @ text.T  # [B, B]
    if left_out is not None:
        logits = logits.masked_fill(left_out, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def related(siblings: Tensor, draw: str) -> Tensor:
    """Which pairs of rows [B, B] are no negatives of each other; no row is related to itself.

    `siblings` [B, K] are ids, of article, caption and picture: rows that share one are related.
    With `draw` "random" the relation is that of a random order of the rows: as many, none of them
    for a reason, which is what would refute it.
    """
    same = (siblings[:, None] == siblings[None]).any(dim=2)
    if draw == "random":
        order = torch.randperm(len(same), device=same.device)
        same = same[order][:, order]
    return same.fill_diagonal_(False)


def itm_loss(logits: Tensor, valid: Tensor) -> Tensor:
    """Matching loss of GI-ITM (section 3.3): the mean of its three terms.

    `logits` [3, B, 2] are those of the true pairs, of (image, negative text) and of (negative
    image, text). Pairs without a negative (`valid` [B] False) count in the first term only.
    """
    target = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    target[0] = 1
    per_pair = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")  # [3, B]
    weight = torch.stack([torch.ones_like(valid), valid, valid]).to(per_pair.dtype)
    return ((per_pair * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)).mean()


@torch.no_grad()
def itm_accuracy(logits: Tensor, valid: Tensor) -> Tensor:
    """Share of pairs, true and negative, that the matching head classifies rightly."""
    found = logits.argmax(-1)
    right = torch.stack([found[0] == 1, found[1] == 0, found[2] == 0])
    counted = torch.stack([torch.ones_like(valid), valid, valid])
    return (right & counted).sum() / counted.sum()
