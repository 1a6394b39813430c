"""GI-ITM, gated integrative image-text matching (EntityCLIP, section 3.3); its hard negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from entityclip.mmae import Gate, PairVectors

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


class GatedMatching(nn.Module):
    """A gate fuses ALL vectors of a pair, given both pooled features; a linear head classifies.

    Without the gate (`gated=False`, an ablation) the fusion is their mean.
    """

    def __init__(self, width: int, vectors: int, *, gated: bool = True):
        super().__init__()
        self.gate = Gate(2 * width, vectors) if gated else None
        self.head = nn.Linear(width, 2)

    def forward(self, image: Tensor, text: Tensor, vectors: PairVectors) -> Tensor:
        """Logits [B, 2] (no match, match) from pooled features [B, d] and the pairs' vectors."""
        joined = torch.cat(tuple(vectors), dim=1)
        if self.gate is None:
            return self.head(joined.mean(dim=1))
        return self.head(self.gate(torch.cat([image, text], dim=-1), joined))
