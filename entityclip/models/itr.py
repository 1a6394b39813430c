"""ITR's model: two towers, and a head a clustering task."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from entityclip.config import ITRConfig
from entityclip.datasets.dataset import Batch
from entityclip.models.clip import Backbone
from entityclip.models.losses import vtc_loss

Sides = dict[str, Tensor]  # "text", "image" and, where clustered, "generated": features [B, w]

# clustering task -> what is clustered together with the text; a head always reads text and image
PARTNER = {"cluster_image": "image", "cluster_generated": "generated"}


class ITRModel(nn.Module):
    """The towers of `backbone` with a head a clustering task; only the towers are kept.

    As in the authors' code, clusters and heads see features before CLIP's projections, and the
    contrast goes through these projections.
    """

    def __init__(self, backbone: Backbone, config: ITRConfig):
        super().__init__()
        self.backbone, self.config = backbone, config
        width = sum(backbone.unprojected_widths)
        self.heads = nn.ModuleDict(
            {task: nn.Linear(width, config.clusters) for task in config.clustering}
        )

    def encode(self, batch: Batch, *, generated: bool = False) -> Sides:
        """Features of each side before projection, picture [B, w_v] and text [B, w_t].

        `generated` adds those of the generated captions, which only clustering reads. Raises
        ValueError for a batch without any.
        """
        captions, *explanations = batch.lengths or [None, None]
        image, text = self.backbone.unprojected(batch.images, batch.captions, captions)
        sides = {"image": image, "text": text}
        if generated:
            if batch.explanations is None:
                raise ValueError("cluster_generated needs generated captions; the batch has none")
            generated = self.backbone.unprojected_text(batch.explanations, *explanations)
            sides["generated"] = generated
        return sides

    def text_lengths(
        self, captions: Tensor, explanations: Tensor | None, others: Tensor | None = None
    ) -> list[int]:
        """Tokens of the longest caption and generated caption, found before a batch is sent."""
        sides = (captions, explanations)
        return [self.backbone.longest(side) for side in sides if side is not None]

    def reset_heads(self) -> None:
        """Draw the heads anew: cluster numbers of one iteration mean nothing in the next."""
        for head in self.heads.values():
            head.reset_parameters()

    def losses(self, sides: Sides, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named scalar terms: a contrast, a cross-entropy a task in `labels` ([B] int64), `loss`.

        `loss` is the weighted sum to minimise, the others are unweighted. A task whose clusters
        collapsed into one is left out of `labels`. Raises ValueError where no task is left.
        """
        terms = {}
        if "contrast" in self.config.tasks:
            terms["contrast"] = self.contrast(sides)
        for task, label in labels.items():
            terms[task] = F.cross_entropy(self.heads[task](joint(sides, "image")), label)
        if not terms:
            raise ValueError("no task is left to train on")
        loss = sum(self.config.weight(task) * term for task, term in terms.items())
        return {"loss": loss, **terms}

    def contrast(self, sides: Sides) -> Tensor:
        """Symmetric InfoNCE of CLIP's own normalised projections, at a fixed temperature."""
        projected = self.backbone.project(sides["image"], sides["text"])
        image, text = (F.normalize(side, dim=-1) for side in projected)
        return vtc_loss(image, text, image.new_tensor(1 / self.config.temperature))


def joint(sides: Sides, partner: str) -> Tensor:
    """Text and its partner's features side by side, [B, w_t + w]."""
    return torch.cat([sides["text"], sides[partner]], dim=-1)


_RESTARTS = 10  # the best of so many starts is kept
_MINI_BATCH = 4096


def cluster(
    features: NDArray[np.float32], k: int, *, seed: int, mini_batch_above: int = 20_000
) -> NDArray[np.int64]:
    """Pseudo-labels [N] of features [N, D]: 0, 1, … of the clusters that are not empty, at most k.

    Larger sets than `mini_batch_above` are clustered by mini-batch k-means. Clusters stay empty
    where there are fewer distinct features than k. Raises ValueError for k below 2 or above N and
    for features that are not finite.
    """
    # slow to import, and only ITR needs them
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if features.ndim != 2 or not 2 <= k <= len(features):
        raise ValueError(
            f"k is {k} for features of shape {features.shape}; it must be from 2 to the number of "
            "pairs: lower `clusters` or take a larger `subset`"
        )
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(f"{len(rows)} of {len(features)} embeddings are not finite: row {rows[0]}")
    options = {"random_state": seed, "n_init": _RESTARTS}
    large = len(features) > mini_batch_above
    kind = MiniBatchKMeans(k, batch_size=_MINI_BATCH, **options) if large else KMeans(k, **options)
    # one thread: sums in another order can move a pair to another cluster
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than k
        labels = kind.fit_predict(features)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
