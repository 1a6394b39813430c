"""GI-ITM's hard negatives (EntityCLIP, section 3.3): which pairs may be one, and the draw.

They may be rows that other processes hold: those are gathered, with their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class Peers:
    """What the processes hold of one batch: rows by rank, and the longest text among them all."""

    rank: int
    sizes: tuple[int, ...]
    length: int  # tokens of the longest caption or explanation
    negatives: Literal["global", "local"] = "global"

    @property
    def total(self) -> int:
        """Rows of the whole batch."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This process's rows within the whole batch."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def gather(self, x: Tensor) -> Tensor:
        """Rows [b, …] of every process, joined to [B, …] in the order of ranks.

        The gradient of a row is the sum of what all processes send back to it. Every process must
        call this, and go backward through it, in the same order.
        """
        if len(x) != self.sizes[self.rank]:
            raise ValueError(
                f"{len(x)} rows, but process {self.rank} announced {self.sizes[self.rank]}"
            )
        if not x[0].numel():  # the vectors of a group without experts
            return x.new_zeros(self.total, *x.shape[1:])
        if x.dtype == torch.bool:
            return self.gather(x.byte()).bool()
        return _GatherRows.apply(x, self)

    def gather_sequences(self, x: Tensor) -> Tensor:
        """`gather` for [b, L, …] whose L differs; shorter ones end in zeros (False: not valid)."""
        missing = max(self.length - x.shape[1], 0)
        return self.gather(F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)))

    def apart(self, device: torch.device) -> Tensor:
        """Which pairs of rows lie on different processes, [B, B]."""
        apart = torch.ones(self.total, self.total, dtype=torch.bool, device=device)
        for rank in range(len(self.sizes)):
            rows = replace(self, rank=rank).own
            apart[rows, rows] = False
        return apart


class Pool:
    """The rows that negatives are taken from: this process's, or all processes', gathered once."""

    def __init__(self, peers: Peers | None = None):
        self._peers = peers if peers is not None and peers.negatives == "global" else None
        self.spans = self._peers is not None  # whether negatives may be rows of other processes
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}  # by id; the key tensor stays alive

    def __call__(self, x: Tensor, *, sequences: bool = False) -> Tensor:
        """All rows that a negative's number may name, given this process's x [b, …]."""
        if self._peers is None:
            return x
        if id(x) not in self._gathered:
            gather = self._peers.gather_sequences if sequences else self._peers.gather
            self._gathered[id(x)] = x, gather(x)
        return self._gathered[id(x)][1]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.own = peers.own
        # all_gather wants equal shapes
        padded = torch.cat([x, x.new_zeros(max(peers.sizes) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in peers.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, peers.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None
