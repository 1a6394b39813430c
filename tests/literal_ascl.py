"""AsCL's fusion in its textbook form: one caption at a time, every context written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attended(weights: nn.ModuleDict, heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Contexts [B, Lq, d] of `queries` [B, Lq, d] over `keys` [B, Lk, d], no padding."""
    q, k, v = (weights[name](x) for name, x in
               (("query", queries), ("key", keys), ("value", keys)))  # fmt: skip
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return attention.mean(dim=1) @ v


def local_similarity(fusion: nn.Module, regions: Tensor, words: list[Tensor]) -> Tensor:
    """[I, J]: `regions` [I, R, d] with each caption's own words [L_j, d], caption after caption."""
    columns = []
    for own in words:
        caption = own.expand(len(regions), -1, -1)
        context = attended(fusion.to_words, fusion.heads, regions, caption)
        by_region = F.cosine_similarity(regions, context, dim=-1).mean(dim=1)
        context = attended(fusion.to_regions, fusion.heads, caption, regions)
        by_word = F.cosine_similarity(caption, context, dim=-1).mean(dim=1)
        columns.append((by_region + by_word) / 2)
    return torch.stack(columns, dim=1)


def global_image(fusion: nn.Module, cls: Tensor, regions: Tensor) -> Tensor:
    """The gated global feature of one picture, `cls` [d] and `regions` [R, d]."""
    query = fusion.region_query(cls)
    weights = torch.stack([query @ region for region in regions]) / cls.shape[-1] ** 0.5
    second = sum(w * region for w, region in zip(weights.softmax(0), regions, strict=True))
    t = torch.sigmoid(fusion.gate(torch.cat([cls, second])))
    return F.normalize(t * cls + (1 - t) * second, dim=-1)


def similarity(fusion: nn.Module, image, text, words: Tensor) -> Tensor:
    """S [I, J] of two `Tokens`, `words` [J, L] marking what is compared."""
    d = image.pooled.shape[-1]
    scaled = [F.normalize(x, dim=-1) * d**0.5 for x in (image.tokens, text.tokens)]
    regions = scaled[0][:, 1:]
    own = [tokens[mask] for tokens, mask in zip(scaled[1], words, strict=True)]
    cls = F.normalize(image.pooled, dim=-1) * d**0.5
    pictures = torch.stack([global_image(fusion, *one) for one in zip(cls, regions, strict=True)])
    u = fusion.local_weight
    whole = pictures @ F.normalize(text.pooled, dim=-1).T
    return u * local_similarity(fusion, regions, own) + (1 - u) * whole


def nt_xent(similarity, same, scale, wrong=None, dropped: float | None = None) -> Tensor:
    """The contrastive loss, picture by picture and caption by caption.

    Wrong texts more similar than the true one are left out, or stay with the similarity `dropped`.
    """
    n, total = len(similarity), 0.0
    for i in range(n):
        kept = [j for j in range(n) if not same[i, j]]
        to_text = [torch.exp(scale * similarity[i, j]) for j in kept]
        to_image = [torch.exp(scale * similarity[j, i]) for j in kept]
        for j in range(n if wrong is not None else 0):
            if wrong[i, j] <= similarity[i, i]:
                to_text.append(torch.exp(scale * wrong[i, j]))
            elif dropped is not None:
                to_text.append(torch.exp(scale * torch.tensor(dropped)))
        true = torch.exp(scale * similarity[i, i])
        total = total - torch.log(true / sum(to_text)) - torch.log(true / sum(to_image))
    return total / (2 * n)
