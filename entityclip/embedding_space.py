"""Alignment and uniformity of a joint space (Wang and Isola, ICML 2020, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**22  # distances in memory at once: 16 MiB


def alignment(images: Tensor, texts: Tensor, image_of: Tensor, alpha: float = 2.0) -> float:
    """Mean distance to the power `alpha` of each text from its own picture; 0 is best, at most 4.

    `images` [M, d] and `texts` [N, d] are normalised; `image_of` [N] is each text's picture row.
    """
    return (texts - images[image_of]).norm(dim=1).pow(alpha).mean().item()


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t · squared distance) over all pairs; the lower, the more spread out.

    `features` [N, d] are normalised. 0 means that all are the same point. Raises ValueError for
    fewer than 2.
    """
    n = len(features)
    if n < 2:
        raise ValueError(f"{n} features; uniformity is over pairs of them")
    total, size = 0.0, max(1, _AT_ONCE // n)
    for start in range(0, n, size):
        block = features[start : start + size].double()
        squared = (2 - 2 * block @ features.T.double()).clamp_min(0)
        total += torch.exp(-t * squared).sum().item()
    return torch.tensor((total - n) / (n * (n - 1)), dtype=torch.float64).log().item()
