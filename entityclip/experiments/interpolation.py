"""WiSE-FT: weights between the start and the end of fine-tuning (Wortsman et al. 2022).

How far between is chosen where nothing is tested: by R@1, text to image, over validation splits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from entityclip.config import EntityCLIPConfig
from entityclip.datasets.dataset import PairDataset
from entityclip.evaluation.retrieval import evaluate_embeddings
from entityclip.models.clip import Backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.variants import NO_EXPERTS

ALPHAS = tuple(step / 10 for step in range(11))  # 0: the start, 1: the end


def between(start: Backbone, end: Backbone, alpha: float) -> Backbone:
    """Towers with weights (1 - alpha) · start + alpha · end; what is no float is the end's."""
    towers, first = copy.deepcopy(end), start.state_dict()
    mixed = {
        name: first[name].to(value.device).lerp(value, alpha)
        if value.is_floating_point()
        else value
        for name, value in end.state_dict().items()
    }
    towers.load_state_dict(mixed)
    return towers


def interpolate(
    start: Backbone, end: Backbone, validated: Sequence[PairDataset]
) -> tuple[Backbone, float]:
    """The towers between start and end that find most of the validated pairs, and their alpha.

    The mean R@1, text to image, over the sets counts; of equals the one nearer to the end. Raises
    ValueError for no set to choose by.
    """
    if not validated:
        raise ValueError("no validation split to choose weights by")

    def found(alpha: float) -> float:
        model = EntityCLIP(between(start, end, alpha), EntityCLIPConfig(**NO_EXPERTS)).eval()
        ranks = [evaluate_embeddings(model, pairs, progress=False) for pairs in validated]
        return sum(float((of.text_to_image == 1).mean()) for of in ranks) / len(ranks)

    with torch.no_grad():
        alpha = max(reversed(ALPHAS), key=found)
        return between(start, end, alpha), alpha
