"""EntityCLIP's objective: L = VTC(I*, T*) + λ VTC(V*, T*_moe) + η L_GI-ITM (section 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from entityclip.config import EntityCLIPConfig
    from entityclip.model import Outputs


def vtc_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Vision-text contrastive loss: symmetric InfoNCE over the batch, as CLIP's.

    `image` and `text` [B, d] are normalised; `logit_scale` is the factor itself, not its log.
    """
    logits = logit_scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def itm_loss(logits: Tensor, valid: Tensor) -> Tensor:
    """Matching loss of GI-ITM: the mean of its three terms.

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
    right = torch.stack(
        [logits[0].argmax(-1) == 1, logits[1].argmax(-1) == 0, logits[2].argmax(-1) == 0]
    )
    counted = torch.stack([torch.ones_like(valid), valid, valid])
    return (right & counted).sum() / counted.sum()


def bridge_loss(outputs: Outputs) -> Tensor:
    """The explanation as a third view, without experts: ½·VTC(I*, E*) + ½·VTC(T*, E*). Not in the
    paper: a control, and the start of what may beat it.
    """
    scale, explanation = outputs.logit_scale, outputs.explanation
    return (
        vtc_loss(outputs.image, explanation, scale) + vtc_loss(outputs.text, explanation, scale)
    ) / 2


def moe_loss(outputs: Outputs) -> Tensor:
    """VTC(V*, T*_moe); `crossed`, each side with E against the other side without it."""
    scale = outputs.logit_scale
    if outputs.image_plain is None:
        return vtc_loss(outputs.image_moe, outputs.text_moe, scale)
    return (
        vtc_loss(outputs.image_moe, outputs.text_plain, scale)
        + vtc_loss(outputs.image_plain, outputs.text_moe, scale)
    ) / 2


def entityclip_loss(
    outputs: Outputs, config: EntityCLIPConfig, progress: float = 1.0
) -> dict[str, Tensor]:
    """Named scalar terms `loss`, `vtc` and, where the model has them, `vtc_moe`, `itm`, `bridge`.

    `loss` is the sum to minimise, weighted by the config's λ at this share (`progress`, 0 to 1) of
    the training, `eta_itm` and `bridge`; the others are unweighted. `itm_accuracy` carries no
    gradient.
    """
    terms = {"vtc": vtc_loss(outputs.image, outputs.text, outputs.logit_scale)}
    loss = terms["vtc"]
    if outputs.image_moe is not None:
        terms["vtc_moe"] = moe_loss(outputs)
        loss = loss + config.lambda_at(progress) * terms["vtc_moe"]
    if outputs.itm_logits is not None:
        terms["itm"] = itm_loss(outputs.itm_logits, outputs.itm_valid)
        terms["itm_accuracy"] = itm_accuracy(outputs.itm_logits, outputs.itm_valid)
        loss = loss + config.eta_itm * terms["itm"]
    if outputs.explanation is not None:
        terms["bridge"] = bridge_loss(outputs)
        loss = loss + config.bridge * terms["bridge"]
    return {"loss": loss, **terms}
