"""AsCL on the project's backbone, with the interface that the training loop asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.backbone import Backbone
from entityclip.baselines.ascl.config import AsCLConfig
from entityclip.baselines.ascl.fusion import HierarchicalFusion, Side
from entityclip.baselines.ascl.losses import false_negatives, nt_xent, same_picture
from entityclip.baselines.ascl.samples import (
    poorer_text,
    richer_text,
    word_mask,
    wrong_embeddings,
)


@dataclass
class AsCLOutputs:
    """What a training forward pass yields.

    `similarity` [B, B] of pictures (rows) with captions and `positive` [B, B] with generated true
    texts; `wrong` and `positive_wrong` [B], each picture's with the wrong text made of its caption
    and of its generated text. `same` [B, B] marks other rows of a row's picture. `scale` is
    1 / temperature. What the configuration leaves out is None.
    """

    similarity: Tensor
    same: Tensor
    scale: Tensor | float
    wrong: Tensor | None = None
    positive: Tensor | None = None
    positive_wrong: Tensor | None = None


class AsCL(nn.Module):
    """A backbone with hierarchical fusion and generated samples.

    With `fusion` and all samples off and no `temperature`, it is CLIP fine-tuned by its own
    contrastive loss, in which other captions of a picture are no negatives: the comparison.
    """

    needs_explanations = False

    def __init__(self, backbone: Backbone, config: AsCLConfig):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.fusion = (
            HierarchicalFusion(backbone.width, config.heads, config.local_weight)
            if config.fusion
            else None
        )

    @property
    def needs_others(self) -> bool:
        """Whether training reads a second caption of each picture."""
        return self.config.richer

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised global picture features [B, d], gated where there is fusion."""
        return self.image_side(images).pooled

    def encode_text(self, text: Tensor) -> Tensor:
        """Normalised global text features [B, d] for token ids [B, context_length]."""
        return F.normalize(self.backbone.encode_text(text), dim=-1)

    def image_side(self, images: Tensor) -> Side:
        """What pictures [B, 3, H, W] bring to `similarity`."""
        tokens = self.backbone.image_tokens(images)
        return self.fusion.image_side(tokens) if self.fusion else _global_side(tokens.pooled)

    def text_side(self, text: Tensor, *, wrong: bool = False) -> Side:
        """What texts [B, context_length] bring to `similarity`, each made wrong if `wrong`."""
        at = self.backbone.eot(text)
        length = int(at.max()) + 1
        words = word_mask(at, length)
        change = None
        if wrong:
            c = self.config
            strengths = {"noise": c.noise, "dropout": c.dropout, "cutoff": c.cutoff}
            change = partial(wrong_embeddings, words=words, **strengths)
        tokens = self.backbone.text_tokens(text[:, :length], change=change)
        return self.fusion.text_side(tokens, words) if self.fusion else _global_side(tokens.pooled)

    def similarity(self, image: Side, text: Side) -> Tensor:
        """S(I, T) [I, J] of all pictures with all texts."""
        return self.fusion(image, text) if self.fusion else image.pooled @ text.pooled.T

    def forward(
        self,
        images: Tensor,
        captions: Tensor,
        explanations: Tensor | None = None,
        image_keys: Tensor | None = None,
        others: Tensor | None = None,
    ) -> AsCLOutputs:
        """Encode a training batch: images [B, 3, H, W], token ids [B, context_length].

        `others` are second captions of the same pictures, `image_keys` [B] tell which rows share
        one; explanations are not read. Raises ValueError for fewer than 2 pairs and where richer
        texts need `others` and there are none.
        """
        if len(images) < 2:
            raise ValueError(f"a batch of {len(images)}: contrastive losses need at least 2 pairs")
        image = self.image_side(images)
        same = same_picture(image_keys, len(images), images.device)
        similarity, wrong = self._compare(image, captions)
        outputs = AsCLOutputs(similarity, same, self._scale(), wrong)
        generated = self._generated(captions, others)
        if generated is not None:
            outputs.positive, outputs.positive_wrong = self._compare(image, generated)
        return outputs

    def losses(self, outputs: AsCLOutputs, progress: float = 1.0) -> dict[str, Tensor]:
        """`loss` to minimise, its parts, and the share of wrong texts dropped as too similar.

        Nothing depends on `progress`, which what trains it tells every model.
        """
        same, scale = outputs.same, outputs.scale
        terms = {"ascl_pairs": nt_xent(outputs.similarity, same, scale, outputs.wrong)}
        loss = terms["ascl_pairs"]
        if outputs.positive is not None:
            terms["ascl_generated"] = nt_xent(outputs.positive, same, scale, outputs.positive_wrong)
            loss = (loss + terms["ascl_generated"]) / 2
        if outputs.wrong is not None:
            dropped = false_negatives(outputs.similarity, outputs.wrong)
            terms["wrong_dropped"] = dropped.float().mean()
        return {"loss": loss, **terms}

    def _compare(self, image: Side, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """S with all texts [B, B], and with the wrong text made of each picture's own [B]."""
        similarity = self.similarity(image, self.text_side(text))
        if not self.config.wrong:
            return similarity, None
        return similarity, self._paired(image, self.text_side(text, wrong=True))

    def _generated(self, captions: Tensor, others: Tensor | None) -> Tensor | None:
        """The true texts T⁺, one a row: richer or poorer, whichever is drawn."""
        config, at = self.config, self.backbone.eot(captions)
        if config.richer and others is None:
            raise ValueError(
                "richer texts join two captions of a picture and the batch has no second one; "
                "use `datasets.captions.SeveralCaptions` or set `richer: false`"
            )
        if not config.richer:
            return poorer_text(captions, at) if config.poorer else None
        richer = richer_text(captions, at, others, self.backbone.eot(others))
        if not config.poorer:
            return richer
        first = torch.rand(len(captions), 1, device=captions.device) < 0.5
        return torch.where(first, richer, poorer_text(captions, at))

    def _paired(self, image: Side, text: Side) -> Tensor:
        if self.fusion:
            return self.fusion.paired(image, text)
        return (image.pooled * text.pooled).sum(dim=-1)

    def _scale(self) -> Tensor | float:
        if self.config.temperature is None:
            return self.backbone.clip.logit_scale.exp()
        return 1 / self.config.temperature


def _global_side(pooled: Tensor) -> Side:
    """A side without tokens: there is nothing local to compare."""
    unit = F.normalize(pooled.float(), dim=-1)
    none = unit[:, None, :0]
    return Side(none, none, none, none, none.new_ones(len(unit), 1, dtype=torch.bool), unit)
