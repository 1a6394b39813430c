"""ITR's model: two towers, projections to contrast, and a head a clustering task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.backbone import Backbone
from entityclip.baselines.itr.config import ITRConfig
from entityclip.datasets.pair import Batch
from entityclip.losses import vtc_loss

# clustering task -> what is clustered together with the text
PARTNER = {"cluster_image": "image", "cluster_generated": "generated"}

Sides = dict[str, Tensor]  # "text", "image" and, where read, "generated": embeddings [B, d]


class ITRModel(nn.Module):
    """The towers of `backbone` with what ITR's pretraining needs; only the towers are kept."""

    def __init__(self, backbone: Backbone, config: ITRConfig):
        super().__init__()
        self.backbone = backbone
        self.config = config
        sides = ("text", "image") if "contrast" in config.tasks else ()
        self.projections = nn.ModuleDict(
            {side: nn.Linear(backbone.width, config.projection) for side in sides}
        )
        self.heads = nn.ModuleDict(
            {task: nn.Linear(2 * backbone.width, config.clusters) for task in config.clustering}
        )

    def encode(self, batch: Batch) -> Sides:
        """Embeddings [B, d] of each side, as the towers give them. Not normalised."""
        sides = {
            "image": self.backbone.encode_image(batch.images),
            "text": self.backbone.encode_text(batch.captions),
        }
        if self.config.needs_generated:
            if batch.explanations is None:
                raise ValueError("cluster_generated needs generated captions; the batch has none")
            sides["generated"] = self.backbone.encode_text(batch.explanations)
        return sides

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
            terms[task] = F.cross_entropy(self.heads[task](joint(sides, task)), label)
        if not terms:
            raise ValueError("no task is left to train on")
        loss = sum(self.config.weight(task) * term for task, term in terms.items())
        return {"loss": loss, **terms}

    def contrast(self, sides: Sides) -> Tensor:
        """Symmetric InfoNCE of the normalised projections, at a fixed temperature."""
        image, text = (
            F.normalize(self.projections[side](sides[side]), dim=-1) for side in ("image", "text")
        )
        return vtc_loss(image, text, image.new_tensor(1 / self.config.temperature))


def joint(sides: Sides, task: str) -> Tensor:
    """What a task clusters and its head reads: text and partner, concatenated [B, 2d]."""
    return torch.cat([sides["text"], sides[PARTNER[task]]], dim=-1)
