"""AsCL's hierarchical fusion: regions against words, pictures against texts (section 3.2).

    S(I, T) = u S_local(I, T) + (1 - u) S_global(I, T)

Local, for every region v (and likewise, the roles exchanged, for every word): H heads look from v
at the words w_l of one caption; their mean attention ā gathers values y_l = W_v w_l into a context,

    a^h = softmax_l(W_q^h v · W_k^h w_l / √(d/H)),   ā = Σ_h a^h / H,   c = Σ_l ā_l y_l,

and S_local is the mean of cos(v, c) over all regions and over all words. For B pictures and B texts
that is B² sets of contexts, which need not exist. With v of unit length,

    cos(v, c) = Σ_l ā_l (v · y_l) / √(āᵀ G ā),   G = Y Yᵀ: one small matrix a caption,

so one product of all regions with all words serves every pair. The heads are averaged before values
are gathered, with no matrix after them: contexts then lie in the joint space, where a cosine with v
means something. tests/literal_ascl.py holds the loop over captions this must equal.

Tokens are scaled to length √d and W_q, W_k, W_v start as identity: at first a head looks by cosine
and contexts are means of words, so a pretrained CLIP is not thrown away.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from entityclip.backbone import Tokens

_AT_ONCE = 2**27  # attention weights in memory at once: 512 MiB
# one head's attention weights at once where no gradient is asked for: what a core's cache holds,
# and enough to keep a GPU busy
_TILE = {"cpu": 2**19, "cuda": 2**25}
_TILE_TOKENS = 512  # of the texts in a tile, about; below, products with them get slower


class Side(NamedTuple):
    """All that one side, B pictures of L regions or B texts of L words, brings to a similarity.

    `query` and `key` [B, L, d], `value` [B, L, d], `unit` [B, L, d] (tokens of length 1), `valid`
    [B, L] (False is padding), `pooled` [B, d] (the global feature, length 1).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    unit: Tensor
    valid: Tensor
    pooled: Tensor

    def rows(self, index: slice) -> Side:
        """Some of the B."""
        return Side(*(part[index] for part in self))


class HierarchicalFusion(nn.Module):
    """Local and global similarity of pictures and texts of `width` d, with H = `heads`."""

    def __init__(self, width: int, heads: int, local_weight: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide the embedding width {width}")
        self.width, self.heads, self.local_weight = width, heads, local_weight
        # regions look at words with to_words, words at regions with to_regions
        self.to_words = _projections(width)
        self.to_regions = _projections(width)
        self.region_query = _identity(width)
        self.gate = nn.Linear(2 * width, width)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 2.0)  # t = 0.88: at first nearly the CLS feature

    def image_side(self, image: Tokens) -> Side:
        """Regions are all tokens but CLS; the global feature is gated with an attended one.

        The gate: t ⊙ v1 + (1 - t) ⊙ v2, with v1 the CLS feature, v2 the regions' mean as v1 attends
        to them, and t = σ(W [v1; v2] + b).
        """
        regions, cls = image.tokens[:, 1:].float(), self._scaled(image.pooled.float())
        scaled = self._scaled(regions)
        query = self.region_query(cls) / math.sqrt(self.width)
        attention = (scaled @ query[..., None]).softmax(dim=1)  # [B, R, 1]
        attended = (attention * scaled).sum(dim=1)
        gate = self.gate(torch.cat([cls, attended], dim=-1)).sigmoid()
        pooled = F.normalize(gate * cls + (1 - gate) * attended, dim=-1)
        valid = image.valid[:, 1:]
        return self._side(scaled, valid, pooled, own=self.to_words, other=self.to_regions)

    def text_side(self, text: Tokens, words: Tensor) -> Side:
        """`words` [B, L] are the tokens to compare; the global feature is EOT's."""
        pooled = F.normalize(text.pooled.float(), dim=-1)
        scaled = self._scaled(text.tokens.float())
        return self._side(scaled, words, pooled, own=self.to_regions, other=self.to_words)

    def forward(self, image: Side, text: Side) -> Tensor:
        """S [I, J] of all I pictures with all J texts, in stretches of texts of bounded memory.

        Without gradients, in tiles of pictures and texts whose attention stays in a core's cache.
        """
        if not torch.is_grad_enabled():
            return self._tiled(image, text)
        weights = image.query.shape[0] * image.query.shape[1] * text.query.shape[1] * self.heads
        size = max(1, _AT_ONCE // weights)
        parts = [text.rows(slice(s, s + size)) for s in range(0, len(text.pooled), size)]
        if len(parts) == 1:
            return self._similarity(image, text)
        # the backward pass computes a stretch anew, or all attention weights would be kept
        rerun = [checkpoint(self._similarity, image, p, use_reentrant=False) for p in parts]
        return torch.cat(rerun, dim=1)

    def _tiled(self, image: Side, text: Side) -> Tensor:
        pictures, regions = image.valid.shape
        texts, words = text.valid.shape
        at_once = _TILE.get(image.pooled.device.type, _TILE["cuda"])
        width = min(texts, max(1, _TILE_TOKENS // words))
        height = max(1, at_once // (regions * words * width))
        with torch.autocast(image.pooled.device.type, enabled=False):
            grams = gram(image), gram(text)
        found = image.pooled.new_empty(pictures, texts)
        for row, column in itertools.product(range(0, pictures, height), range(0, texts, width)):
            tile = slice(row, row + height), slice(column, column + width)
            found[tile] = self._similarity(
                *(side.rows(at) for side, at in zip((image, text), tile, strict=True)),
                *(every[at] for every, at in zip(grams, tile, strict=True)),
            )
        return found

    def paired(self, image: Side, text: Side) -> Tensor:
        """S [B] of each picture with its own text: the diagonal of `forward`, and no more."""
        to_words = self._paired_local(image, text)
        to_regions = self._paired_local(text, image)
        return self._mix((to_words + to_regions) / 2, (image.pooled * text.pooled).sum(dim=-1))

    def _similarity(
        self, image: Side, text: Side, of_image: Tensor | None = None, of_text: Tensor | None = None
    ) -> Tensor:
        # an enclosing autocast would attend in half precision
        with torch.autocast(image.pooled.device.type, enabled=False):
            local = self._local(image, text, of_text) + self._local(text, image, of_image).T
            local = local / 2
            return self._mix(local, image.pooled @ text.pooled.T)

    def _mix(self, local: Tensor, whole: Tensor) -> Tensor:
        return self.local_weight * local + (1 - self.local_weight) * whole

    def _local(self, looking: Side, seen: Side, of_seen: Tensor | None = None) -> Tensor:
        """Mean cosine [I, J] of I items' tokens with their contexts out of J items.

        `of_seen` is `gram(seen)`, where it is known.
        """
        items, length, width = looking.unit.shape
        unit = looking.unit.reshape(-1, width)
        others, tokens = seen.valid.shape
        attention = self._mean_attention(looking.query, seen)  # [I·R, J, L]
        dot = attention * (unit @ seen.value.reshape(-1, width).T).view(-1, others, tokens)
        by_item = attention.transpose(0, 1)  # [J, I·R, L]
        of_seen = gram(seen) if of_seen is None else of_seen
        square = ((by_item @ of_seen) * by_item).sum(dim=-1).T
        cosine = dot.sum(dim=-1) * square.clamp_min(1e-12).rsqrt()
        weight = looking.valid / looking.valid.sum(dim=1, keepdim=True)
        return (cosine.view(items, length, others) * weight[..., None]).sum(dim=1)

    def _mean_attention(self, query: Tensor, seen: Side) -> Tensor:
        others, tokens = seen.valid.shape
        mask = torch.zeros_like(seen.valid, dtype=query.dtype).masked_fill(~seen.valid, -torch.inf)
        total: Tensor | int = 0
        queries = query.reshape(-1, self.width).chunk(self.heads, dim=1)
        keys = seen.key.reshape(-1, self.width).chunk(self.heads, dim=1)
        for q, k in zip(queries, keys, strict=True):
            scores = torch.addmm(mask.view(-1), q, k.T)
            total = total + scores.view(-1, others, tokens).softmax(dim=-1)
        return total / self.heads

    def _paired_local(self, looking: Side, seen: Side) -> Tensor:
        heads = (looking.query.unflatten(-1, (self.heads, -1)).transpose(1, 2),
                 seen.key.unflatten(-1, (self.heads, -1)).transpose(1, 2))  # fmt: skip
        scores = heads[0] @ heads[1].mT  # [B, H, R, L]
        scores = scores.masked_fill(~seen.valid[:, None, None], -torch.inf)
        context = scores.softmax(dim=-1).mean(dim=1) @ seen.value
        cosine = (looking.unit * F.normalize(context, dim=-1, eps=1e-6)).sum(dim=-1)
        return (cosine * looking.valid).sum(dim=1) / looking.valid.sum(dim=1)

    def _side(
        self, scaled: Tensor, valid: Tensor, pooled: Tensor, own: nn.ModuleDict,
        other: nn.ModuleDict,
    ) -> Side:  # fmt: skip
        with torch.autocast(scaled.device.type, enabled=False):
            query = own["query"](scaled) / math.sqrt(self.width / self.heads)
            key, value = other["key"](scaled), other["value"](scaled)
        return Side(query, key, value, F.normalize(scaled, dim=-1), valid, pooled)

    def _scaled(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * math.sqrt(self.width)


def gram(side: Side) -> Tensor:
    """G = Y Yᵀ [B, L, L] of each item's values."""
    return side.value @ side.value.mT


def _projections(width: int) -> nn.ModuleDict:
    """W_q, W_k and W_v of one way of looking; a key bias would drop out of the softmax."""
    return nn.ModuleDict(
        {
            "query": _identity(width),
            "key": _identity(width, bias=False),
            "value": _identity(width),
        }
    )


def _identity(width: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(width, width, bias=bias)
    nn.init.eye_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
