"""GI-ITM's hard negatives (EntityCLIP, section 3.3): which pairs may be one, and the draw."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from entityclip.models.gather import Peers

_COMPARED = 1 << 26  # tokens


class Negatives(NamedTuple):
    """For each pair of a batch, the row of its negative text and of its negative image, each [B].

    `valid` [B] is False where a pair has none: all others show its picture or repeat its caption.
    """

    text: Tensor
    image: Tensor
    valid: Tensor


def same_pairs(captions: Tensor, image_keys: Tensor | None) -> Tensor:
    """Which pairs of a batch can't be negatives of each other, [B, B], the diagonal included.

    They are those with equal caption tokens [B, L] or equal `image_keys` [B].
    """
    rows = max(1, _COMPARED // captions.numel())  # at a time, for the sake of memory
    same = torch.cat([(some[:, None] == captions).all(dim=-1) for some in captions.split(rows)])
    if image_keys is not None:
        same |= image_keys[:, None] == image_keys
    return same


@torch.no_grad()
def draw_negatives(logits: Tensor, same: Tensor) -> Negatives:
    """Draw negatives from softmax(logits) [B, B] (rows: images), never where `same` [B, B].

    The model's logits make them hard; constant logits make them uniform.

    The draw is the Gumbel-max form of a multinomial one: what is excluded has score -inf, not a
    probability that rounds to 0, so a pair is never its own negative; and nothing waits for a GPU.
    """
    scores = logits.float().masked_fill(same, -torch.inf)
    # -log(Exp(1)) is a standard Gumbel draw
    texts = (scores - torch.empty_like(scores).exponential_().log()).argmax(dim=1)
    images = (scores.T - torch.empty_like(scores).exponential_().log()).argmax(dim=1)
    return Negatives(texts, images, ~same.all(dim=1))


def draw_in_batch(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    captions: Tensor,
    image_keys: Tensor | None,
    uniform: bool,
    peers: Peers | None,
) -> Negatives:
    """Negatives of this process's rows, given its features [b, d], captions [b, L] and keys [b].

    All processes draw the whole batch's, from one seed. `uniform` is an ablation's draw.
    """
    image, text = image.detach(), text.detach()
    if peers is not None:
        image, text, captions = map(peers.gather, (image, text, captions))
        image_keys = None if image_keys is None else peers.gather(image_keys)
    same, local = same_pairs(captions, image_keys), peers is not None and peers.negatives == "local"
    if local:
        same |= peers.apart(same.device)
    logits = (
        torch.zeros_like(same, dtype=image.dtype) if uniform else scale.detach() * image @ text.T
    )
    drawn = draw_negatives(logits, same)
    if peers is None:
        return drawn
    texts, images, valid = (x[peers.own] for x in drawn)
    if local:  # they number this process's rows; one that is not valid may lie elsewhere
        start, end = peers.own.start, peers.own.stop
        texts, images = (x.clamp(start, end - 1) - start for x in (texts, images))
    return Negatives(texts, images, valid)
