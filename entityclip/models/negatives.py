"""GI-ITM's hard negatives (EntityCLIP, section 3.3): which pairs may be one, and the draw."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from entityclip.hyperparameters import NegativeDraw
from entityclip.models.gather import Peers

_COMPARED = 1 << 26  # tokens
FLOOR = 1e-5  # what the authors' code adds to every probability of its draw


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
def draw_negatives(logits: Tensor, excluded: Tensor, floor: float = 0.0) -> Negatives:
    """Draw negatives from softmax(logits) [B, B] (rows: images), never where `excluded` [B, B].

    The model's logits make them hard; constant logits make them uniform. With a `floor`, as the
    authors' code draws: the pair itself takes part in the softmax and leaves it with probability
    0, and then `floor` is added to every entry, the pair's own too.

    The draw is the Gumbel-max form of a multinomial one: what is excluded has score -inf, not a
    probability that rounds to 0, so it is never drawn; and nothing waits for a GPU.
    """
    texts, images = (_draw(side, excluded, floor) for side in (logits, logits.T))
    return Negatives(texts, images, ~excluded.all(dim=1))


def draw_scores(logits: Tensor, excluded: Tensor, floor: float = 0.0) -> Tensor:
    """The draw's log-probabilities [B, B], up to a constant a row; `excluded` is symmetric."""
    scores = logits.float().masked_fill(excluded, -torch.inf)
    if floor:
        scores = scores.softmax(dim=1).fill_diagonal_(0.0).add_(floor).log_()
        scores = scores.masked_fill(excluded, -torch.inf)
    return scores


def _draw(logits: Tensor, excluded: Tensor, floor: float) -> Tensor:
    scores = draw_scores(logits, excluded, floor)
    noise = torch.empty_like(scores, memory_format=torch.contiguous_format).exponential_()
    return (scores - noise.log()).argmax(dim=1)  # -log(Exp(1)) is a standard Gumbel draw


def draw_in_batch(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    captions: Tensor,
    image_keys: Tensor | None,
    draw: NegativeDraw,
    peers: Peers | None,
) -> Negatives:
    """Negatives of this process's rows, given its features [b, d], captions [b, L] and keys [b].

    All processes draw the whole batch's, from one seed. `draw`: "hard" is the paper's, without a
    pair's repeats; "uniform" an ablation's; "floored" the authors' code's, which excludes nothing.
    """
    image, text = image.detach(), text.detach()
    if peers is not None:
        image, text, captions = map(peers.gather, (image, text, captions))
        image_keys = None if image_keys is None else peers.gather(image_keys)
    local = peers is not None and peers.negatives == "local"
    if draw == "floored":
        excluded = torch.zeros(len(text), len(text), dtype=torch.bool, device=text.device)
    else:
        excluded = same_pairs(captions, image_keys)
    if local:
        excluded |= peers.apart(excluded.device)
    uniform = draw == "uniform"
    logits = image.new_zeros(excluded.shape) if uniform else scale.detach() * image @ text.T
    drawn = draw_negatives(logits, excluded, FLOOR if draw == "floored" else 0.0)
    if peers is None:
        return drawn
    texts, images, valid = (x[peers.own] for x in drawn)
    if local:  # they number this process's rows; one that is not valid may lie elsewhere
        start, end = peers.own.start, peers.own.stop
        texts, images = (x.clamp(start, end - 1) - start for x in (texts, images))
    return Negatives(texts, images, valid)
