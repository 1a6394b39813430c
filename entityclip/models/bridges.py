"""Losses beyond the paper: the explanation contrasted itself, not only read by experts.

Tensors in and a scalar out; all are symmetric InfoNCE over the batch (`losses.vtc_loss`), of which
pairs of rows may be `left_out` [B, B].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from entityclip.models.losses import vtc_loss


def crossed_loss(
    image_moe: Tensor, text_plain: Tensor, image_plain: Tensor, text_moe: Tensor, scale: Tensor,
    left_out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """½·VTC(V*, T* without E) + ½·VTC(V* without E, T*_moe), so that neither side can copy E.

    All [B, d], normalised. Not in the paper: it stands in for VTC(V*, T*_moe).
    """
    one = vtc_loss(image_moe, text_plain, scale, left_out)
    return (one + vtc_loss(image_plain, text_moe, scale, left_out)) / 2


def bridge_loss(
    image: Tensor, text: Tensor, explanation: Tensor, scale: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """The explanation as a third view, without experts: ½·VTC(I*, E*) + ½·VTC(T*, E*).

    All [B, d], normalised. Not in the paper: a control, and the start of what may beat it.
    """
    one = vtc_loss(image, explanation, scale, left_out)
    return (one + vtc_loss(text, explanation, scale, left_out)) / 2


def context_loss(
    image: Tensor, text: Tensor, explanation: Tensor, scale: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """VTC(I*, norm(T* + E*)): the explanation beside the caption, which keeps the scene.

    All [B, d], normalised. It matters where explanations, or views of them, tell no event.
    """
    return vtc_loss(image, F.normalize(text + explanation, dim=-1), scale, left_out)
