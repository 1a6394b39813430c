"""What a query is mistaken for: pictures of its scene, with one of its flags, with both.

R@1 on a small set saturates or lies on a floor; these say which part of a caption was read. They
need to know what each picture shows, so they are measured on drawn pictures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entityclip.datasets.newsroom.outlet_a import DrawnPicture
from entityclip.datasets.pair import Pair
from entityclip.variants import IN_SCENE, ONE_FLAG, SAME_FLAGS

_QUERIES = 512  # at once


class Shown(NamedTuple):
    """What M pictures tell of: `scene` [M], numbered, and `countries` [M, C], which of C."""

    scene: Tensor
    countries: Tensor


def shown_by(pairs: Sequence[Pair]) -> Shown | None:
    """What these pairs' pictures tell of; None where they are not drawn."""
    pictures = [pair.image for pair in pairs]
    if not all(isinstance(picture, DrawnPicture) for picture in pictures):
        return None
    facts = [picture.facts() for picture in pictures]
    scenes = {scene: number for number, scene in enumerate(sorted({f.scene for f in facts}))}
    names = sorted({country.name for f in facts for country in f.countries})
    told = [{country.name for country in f.countries} for f in facts]
    return Shown(
        torch.tensor([scenes[f.scene] for f in facts]),
        torch.tensor([[name in of for name in names] for of in told]),
    )


@torch.no_grad()
def beaten(
    scores: Callable[[slice], Tensor], image_of: Tensor, shown: Shown
) -> dict[str, NDArray[np.float64]]:
    """Of N queries the percent of distractors that their own picture beats, [N] by metric.

    `scores` gives the similarity [n, M] of a slice of queries with M pictures; `image_of` [N] is
    each query's own. Ties count against it. NaN where a query has no such distractor. "in-scene
    percentile" is the percent of the scene's other pictures that are as good or better: 0 is best,
    50 is what knowing the scene alone gives.
    """
    overlap = shown.countries.float() @ shown.countries.float().T  # [M, M]
    scene = shown.scene[:, None] == shown.scene[None, :]
    parts: dict[str, list[Tensor]] = {IN_SCENE: [], ONE_FLAG: [], SAME_FLAGS: []}
    for start in range(0, len(image_of), _QUERIES):
        at = slice(start, start + _QUERIES)
        own, found = image_of[at], scores(at).cpu()
        lost = found >= found.gather(1, own[:, None])
        here, flags = scene[own], overlap[own]
        others = torch.ones_like(here).scatter_(1, own[:, None], False)
        parts[IN_SCENE].append(_share(lost, here & others))
        parts[ONE_FLAG].append(_share(~lost, here & (flags == 1)))
        parts[SAME_FLAGS].append(_share(~lost, ~here & (flags == 2)))
    return {name: torch.cat(part).double().numpy() for name, part in parts.items()}


def _share(marks: Tensor, among: Tensor) -> Tensor:
    """Percent of `among` [n, M] that is marked, [n]; NaN for none."""
    return 100 * (marks & among).sum(1).float() / among.sum(1)


def scene_floor(shown: Shown, at: Sequence[int]) -> dict[str, float]:
    """What ranking a query's scene first, in random order, gives: whoever knows scenes, no names.

    Expectations over that order of R@K for each K of `at`, MRR (percent), MedR and MeanR, one query
    a picture; the median is that of all queries' ranks together.
    """
    sizes = torch.bincount(shown.scene)[shown.scene].double().numpy()  # of each query's scene
    ranks = np.arange(1, int(sizes.max()) + 1)
    within = ranks[None, :] <= sizes[:, None]  # [N, ranks], each as likely as the others
    reached = np.minimum(ranks[None, :], sizes[:, None]) / sizes[:, None]
    found = {f"R@{k}": 100 * float(np.minimum(k / sizes, 1).mean()) for k in at}
    found["MRR"] = 100 * float(((within / ranks).sum(1) / sizes).mean())
    found["MedR"] = float(ranks[np.argmax(reached.mean(0) >= 0.5)])
    found["MeanR"] = float(((sizes + 1) / 2).mean())
    return found
