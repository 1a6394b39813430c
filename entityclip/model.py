"""EntityCLIP: CLIP's two towers, the experts (MMAE) and the matching (GI-ITM) that train them.

Inference uses only the two towers: :meth:`EntityCLIP.encode_image` and
:meth:`EntityCLIP.encode_text`. Experts and matching cost nothing at test time (section 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.backbone import Backbone, Tokens
from entityclip.config import EntityCLIPConfig
from entityclip.losses import entityclip_loss
from entityclip.matching import GatedMatching, Negatives, draw_hard_negatives, same_pairs
from entityclip.mmae import MMAE, PairVectors


@dataclass
class Outputs:
    """What a training forward pass yields; features are normalised.

    `image`, `text` [B, d]; `logit_scale` []; `image_moe`, `text_moe` [B, d] (V* and T*_moe);
    `itm_logits` [3, B, 2] with `itm_valid` [B]. Without experts the last four are None.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    image_moe: Tensor | None = None
    text_moe: Tensor | None = None
    itm_logits: Tensor | None = None
    itm_valid: Tensor | None = None


class EntityCLIP(nn.Module):
    """A backbone with experts and matching head; with no experts, plain CLIP."""

    def __init__(self, backbone: Backbone, config: EntityCLIPConfig):
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.mmae = self.matching = None
        if config.experts:
            counts = config.image_experts, config.text_experts, config.explanation_experts
            self.mmae = MMAE(backbone.width, *counts, heads=config.heads)
            vectors = config.image_experts + config.text_experts + 2 * config.explanation_experts
            self.matching = GatedMatching(backbone.width, vectors)

    @property
    def needs_explanations(self) -> bool:
        """Whether training reads explanations at all."""
        return self.config.explanation_experts > 0

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised picture embeddings [B, d] for images [B, 3, H, W]."""
        return F.normalize(self.backbone.encode_image(images), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """Normalised text embeddings [B, d] for token ids [B, context_length]."""
        return F.normalize(self.backbone.encode_text(text), dim=-1)

    def forward(
        self,
        images: Tensor,
        captions: Tensor,
        explanations: Tensor | None = None,
        image_keys: Tensor | None = None,
        negatives: Negatives | None = None,
    ) -> Outputs:
        """Encode a training batch: images [B, 3, H, W], token ids [B, context_length].

        `image_keys` [B] tell which rows show the same picture. `negatives` are drawn unless given.
        Raises ValueError for a batch of fewer than 2 pairs, or without explanations where needed.
        """
        if len(images) < 2:
            raise ValueError(f"a batch of {len(images)}: contrastive losses need at least 2 pairs")
        if self.needs_explanations and explanations is None:
            raise ValueError("the explanation experts need explanations, and the batch has none")
        image, text, explanation = self._encode(images, captions, explanations)
        outputs = Outputs(
            _unit(image.pooled),
            _unit(text.pooled),
            self.backbone.clip.logit_scale.exp(),
        )
        if self.mmae is None:
            return outputs
        if negatives is None:
            logits = outputs.logit_scale.detach() * outputs.image.detach() @ outputs.text.detach().T
            negatives = draw_hard_negatives(logits, same_pairs(captions, image_keys))
        true, negative_text, negative_image = self.mmae(
            image, text, explanation, negatives, reference_compat=self.config.reference_compat
        )
        mixed = self.mmae.mix(image, text, true)
        outputs.image_moe, outputs.text_moe = (_unit(x) for x in mixed)
        outputs.itm_logits = self._match(
            image, text, negatives, true, negative_text, negative_image
        )
        outputs.itm_valid = negatives.valid
        return outputs

    def losses(self, outputs: Outputs) -> dict[str, Tensor]:
        """The named terms of the objective; `loss` is what to minimise."""
        return entityclip_loss(outputs, self.config.lambda_moe, self.config.eta_itm)

    def clip_state_dict(self) -> dict[str, Tensor]:
        """The two towers' weights, loadable into plain open_clip."""
        return self.backbone.clip.state_dict()

    def _encode(
        self, images: Tensor, captions: Tensor, explanations: Tensor | None
    ) -> tuple[Tokens, Tokens, Tokens | None]:
        image = self.backbone.image_tokens(images)
        trim = not self.config.reference_compat  # their experts also see the padding up to 77
        if not self.needs_explanations:
            return image, self.backbone.text_tokens(captions, trim=trim), None
        return image, *self.backbone.texts_tokens(captions, explanations, trim=trim)

    def _match(
        self, image: Tokens, text: Tokens, negatives: Negatives, *pairs: PairVectors
    ) -> Tensor:
        """GI-ITM logits [3, B, 2] of the three kinds of pairs, in one pass of gate and head."""
        rows = torch.arange(len(image.pooled), device=image.pooled.device)
        at = text.at if self.config.reference_compat else text.at[negatives.text]
        images = torch.cat([image.pooled, image.pooled, image.pooled[negatives.image]])
        texts = torch.cat(
            [text.tokens[r, a] for r, a in ((rows, text.at), (negatives.text, at), (rows, text.at))]
        )
        vectors = PairVectors(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        return _at_least_fp32(self.matching(images, texts, vectors)).view(3, len(rows), 2)


def _at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32 even where autocast ran the towers in bf16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_at_least_fp32(x), dim=-1)
