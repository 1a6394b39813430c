"""AsCL's objective: L = ½ L_I(I, T) + ½ L_II&III(I, T⁺) (section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(
    similarity: Tensor, same: Tensor, scale: Tensor | float, wrong: Tensor | None = None
) -> Tensor:
    """NT-Xent both ways over similarities [B, B] (rows pictures, columns texts), a mean.

    `scale` is 1 / temperature. `same` [B, B] marks other rows of the same picture: their texts are
    true of it too and leave the denominators. `wrong` [B], each picture's similarity with its
    generated wrong text, joins the picture → text denominator, unless it is more similar than the
    true text: then it is a false negative and left out.
    """
    logits = (scale * similarity).masked_fill(same, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_text = logits
    if wrong is not None:
        extra = (scale * wrong).masked_fill(false_negatives(similarity, wrong), -torch.inf)
        to_text = torch.cat([logits, extra[:, None]], dim=1)
    return (F.cross_entropy(to_text, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def false_negatives(similarity: Tensor, wrong: Tensor) -> Tensor:
    """Which wrong texts [B] are more similar to their picture than its true text."""
    return wrong > similarity.diagonal()


def same_picture(image_keys: Tensor | None, n: int, device: torch.device) -> Tensor:
    """[n, n]: which rows show the same picture as another row; the diagonal is False."""
    if image_keys is None:
        return torch.zeros(n, n, dtype=torch.bool, device=device)
    equal = image_keys[:, None] == image_keys
    return equal & ~torch.eye(n, dtype=torch.bool, device=device)
