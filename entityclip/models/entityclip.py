"""EntityCLIP: CLIP's two towers, the experts (MMAE) and the matching (GI-ITM) that train them.

Inference uses only the two towers: :meth:`EntityCLIP.encode_image` and
:meth:`EntityCLIP.encode_text`. Experts and matching cost nothing at test time (section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import Backbone, Tokens
from entityclip.models.experts import MMAE, Gate, PairVectors
from entityclip.models.losses import itm_accuracy, itm_loss, vtc_loss
from entityclip.models.negatives import Negatives, Peers, Pool, draw_negatives, same_pairs


def bridge_loss(outputs: Outputs) -> Tensor:
    """The explanation as a third view, without experts: ½·VTC(I*, E*) + ½·VTC(T*, E*). Not in the
    paper: a control, and the start of what may beat it.
    """
    scale, explanation = outputs.logit_scale, outputs.explanation
    return (
        vtc_loss(outputs.image, explanation, scale) + vtc_loss(outputs.text, explanation, scale)
    ) / 2


def moe_loss(outputs: Outputs) -> Tensor:
    """VTC(V*, T*_moe); `crossed`, each side with E against the other side without it."""
    scale = outputs.logit_scale
    if outputs.image_plain is None:
        return vtc_loss(outputs.image_moe, outputs.text_moe, scale)
    return (
        vtc_loss(outputs.image_moe, outputs.text_plain, scale)
        + vtc_loss(outputs.image_plain, outputs.text_moe, scale)
    ) / 2


def entityclip_loss(
    outputs: Outputs, config: EntityCLIPConfig, progress: float = 1.0
) -> dict[str, Tensor]:
    """Named scalar terms `loss`, `vtc` and, where the model has them, `vtc_moe`, `itm`, `bridge`.

    `loss` is the sum to minimise, weighted by the config's λ at this share (`progress`, 0 to 1) of
    the training, `eta_itm` and `bridge`; the others are unweighted. `itm_accuracy` carries no
    gradient.
    """
    terms = {"vtc": vtc_loss(outputs.image, outputs.text, outputs.logit_scale)}
    loss = terms["vtc"]
    if outputs.image_moe is not None:
        terms["vtc_moe"] = moe_loss(outputs)
        loss = loss + config.lambda_at(progress) * terms["vtc_moe"]
    if outputs.itm_logits is not None:
        terms["itm"] = itm_loss(outputs.itm_logits, outputs.itm_valid)
        terms["itm_accuracy"] = itm_accuracy(outputs.itm_logits, outputs.itm_valid)
        loss = loss + config.eta_itm * terms["itm"]
    if outputs.explanation is not None:
        terms["bridge"] = bridge_loss(outputs)
        loss = loss + config.bridge * terms["bridge"]
    return {"loss": loss, **terms}


class GatedMatching(nn.Module):
    """A gate fuses ALL vectors of a pair, given both pooled features; a linear head classifies.

    Without the gate (`gated=False`, an ablation) the fusion is their mean.
    """

    def __init__(self, width: int, vectors: int, *, gated: bool = True):
        super().__init__()
        self.gate = Gate(2 * width, vectors) if gated else None
        self.head = nn.Linear(width, 2)

    def forward(self, image: Tensor, text: Tensor, vectors: PairVectors) -> Tensor:
        """Logits [B, 2] (no match, match) from pooled features [B, d] and the pairs' vectors."""
        joined = torch.cat(tuple(vectors), dim=1)
        if self.gate is None:
            return self.head(joined.mean(dim=1))
        return self.head(self.gate(torch.cat([image, text], dim=-1), joined))


@dataclass
class Outputs:
    """What a training forward pass yields; features are normalised.

    `image`, `text` [B, d]; `logit_scale` []; `image_moe`, `text_moe` [B, d] (V* and T*_moe);
    `itm_logits` [3, B, 2] with `itm_valid` [B]; `explanation` [B, d] (E*, for the bridge);
    `image_plain`, `text_plain` [B, d] (V* and T* mixed without explanation experts, for `crossed`).
    What the configuration leaves out is None.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    image_moe: Tensor | None = None
    text_moe: Tensor | None = None
    itm_logits: Tensor | None = None
    itm_valid: Tensor | None = None
    explanation: Tensor | None = None
    image_plain: Tensor | None = None
    text_plain: Tensor | None = None

    def joined(self, peers: Peers) -> Outputs:
        """The whole batch's, from every process's part: on each of them, and with gradients."""
        found = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name == "itm_logits" and value is not None:
                found[name] = peers.gather(value.transpose(0, 1)).transpose(0, 1)
            elif value is not None and value.ndim:
                found[name] = peers.gather(value)
        return replace(self, **found)


class Encoded(NamedTuple):
    """What the towers make of a batch; each row follows from its own pair alone."""

    image: Tokens
    text: Tokens
    explanation: Tokens | None


class EntityCLIP(nn.Module):
    """A backbone with experts and matching head; with no experts, plain CLIP."""

    def __init__(self, backbone: Backbone, config: EntityCLIPConfig):
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.mmae = self.matching = None
        if config.experts:
            counts = config.image_experts, config.text_experts, config.explanation_experts
            shared = config.shared_explanation_experts
            self.mmae = MMAE(backbone.width, *counts, heads=config.heads, shared=shared)
            if config.matching != "none":
                vectors = config.experts + config.explanation_experts  # E is read from both sides
                gated = config.matching == "gated"
                self.matching = GatedMatching(backbone.width, vectors, gated=gated)

    @property
    def needs_explanations(self) -> bool:
        """Whether training reads explanations at all."""
        return self.config.explanation_experts > 0 or self.config.bridge > 0

    @property
    def device(self) -> torch.device:
        """Where the weights are, and batches must be."""
        return self.backbone.device

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
        lengths: Sequence[int] | None = None,
        peers: Peers | None = None,
    ) -> Outputs:
        """Encode a training batch: images [B, 3, H, W], token ids [B, context_length].

        `image_keys` [B] tell which rows show the same picture. `negatives` are drawn unless given.
        `lengths` are `text_lengths`, found before the batch went to a GPU. Where several processes
        share the batch, `peers` says how, and the outputs are this process's rows; their `joined`
        is what `losses` takes.

        Raises ValueError for a batch of fewer than 2 pairs, or without explanations where needed.
        """
        rows = len(images) if peers is None else peers.total
        if rows < 2:
            raise ValueError(f"a batch of {rows}: contrastive losses need at least 2 pairs")
        if self.training and self.config.explanation_dropout and explanations is not None:
            explanations = self._with_captions(explanations, captions, rows, peers)
        encoded = self.encode(images, captions, explanations, lengths)
        return self.compare(encoded, captions, image_keys, negatives, peers)

    def encode(
        self,
        images: Tensor,
        captions: Tensor,
        explanations: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoded:
        """The first half of `forward`, the towers: a row's tokens depend on no other row."""
        if self.needs_explanations and explanations is None:
            raise ValueError("this model trains on explanations, and the batch has none")
        image = self.backbone.image_tokens(images)
        trim = not self.config.sees_padding
        if not self.needs_explanations:
            length = None if lengths is None else lengths[0]
            return Encoded(
                image, self.backbone.text_tokens(captions, trim=trim, length=length), None
            )
        texts = self.backbone.texts_tokens(captions, explanations, trim=trim, lengths=lengths)
        return Encoded(image, *texts)

    def compare(
        self,
        encoded: Encoded,
        captions: Tensor,
        image_keys: Tensor | None = None,
        negatives: Negatives | None = None,
        peers: Peers | None = None,
    ) -> Outputs:
        """The second half of `forward`: experts, negatives and matching on what is encoded."""
        image, text, explanation = encoded
        outputs = Outputs(
            _unit(image.pooled),
            _unit(text.pooled),
            self.backbone.clip.logit_scale.exp(),
        )
        if self.config.bridge:
            outputs.explanation = _unit(explanation.pooled)
        if self.mmae is None:
            return outputs
        if self.config.detach_explanation:
            explanation = explanation._replace(tokens=explanation.tokens.detach())
        if negatives is None and self.matching is not None:
            negatives = self._draw(outputs, captions, image_keys, peers)
        pool = Pool(peers)
        true, *others = self.mmae(
            image,
            text,
            explanation,
            negatives,
            masked=not self.config.sees_padding,
            negative_explanation=self.config.negative_explanation,
            reference_eot=self.config.reference_compat,
            pool=pool,
        )
        outputs.image_moe, outputs.text_moe = map(_unit, self.mmae.mix(image, text, true))
        if self.config.crossed:
            plain = true._replace(
                image_explanation=true.image_explanation[:, :0],
                text_explanation=true.text_explanation[:, :0],
            )
            outputs.image_plain, outputs.text_plain = map(_unit, self.mmae.mix(image, text, plain))
        if self.matching is not None:
            outputs.itm_logits = self._match(image, text, negatives, pool, true, *others)
            outputs.itm_valid = negatives.valid
        return outputs

    def text_lengths(self, captions: Tensor, explanations: Tensor | None) -> list[int]:
        """Tokens of the longest caption and explanation: cheap on the CPU, a wait on a GPU."""
        sides = [captions, explanations] if self.needs_explanations else [captions]
        lengths = [self.backbone.longest(side) for side in sides]
        # any caption may stand in for its explanation
        return [lengths[0], max(lengths)] if self.config.explanation_dropout else lengths

    def losses(self, outputs: Outputs, progress: float = 1.0) -> dict[str, Tensor]:
        """The named terms of the objective after a share of the training; minimise `loss`."""
        return entityclip_loss(outputs, self.config, progress)

    def clip_state_dict(self) -> dict[str, Tensor]:
        """The two towers' weights, loadable into plain open_clip."""
        return self.backbone.clip.state_dict()

    def _with_captions(
        self, explanations: Tensor, captions: Tensor, rows: int, peers: Peers | None
    ) -> Tensor:
        """Explanations of which some drawn ones are their captions: nobody can lean on them.

        The whole batch's draws on every process, so that all stay at one place of their streams.
        """
        dropped = torch.rand(rows, device=captions.device) < self.config.explanation_dropout
        dropped = dropped if peers is None else dropped[peers.own]
        return torch.where(dropped[:, None], captions, explanations)

    def _draw(
        self,
        outputs: Outputs,
        captions: Tensor,
        image_keys: Tensor | None,
        peers: Peers | None,
    ) -> Negatives:
        """Negatives for this process's rows; all processes draw the whole batch's from one seed."""
        image, text = outputs.image.detach(), outputs.text.detach()
        if peers is not None:
            image, text, captions = map(peers.gather, (image, text, captions))
            image_keys = None if image_keys is None else peers.gather(image_keys)
        same = same_pairs(captions, image_keys)
        if peers is not None and peers.negatives == "local":
            same |= peers.apart(same.device)
        logits = (
            torch.zeros_like(same, dtype=image.dtype)
            if self.config.negatives == "uniform"
            else outputs.logit_scale.detach() * image @ text.T
        )
        negatives = draw_negatives(logits, same)
        return negatives if peers is None else peers.part(negatives)

    def _match(
        self, image: Tokens, text: Tokens, negatives: Negatives, pool: Pool, *pairs: PairVectors
    ) -> Tensor:
        """GI-ITM logits [3, B, 2] of the three kinds of pairs, in one pass of gate and head."""
        rows = torch.arange(len(image.pooled), device=image.pooled.device)
        images = torch.cat([image.pooled, image.pooled, pool(image.pooled)[negatives.image]])
        # in this order, which is that in which gradients are summed: it decides the last bits
        first = text.tokens[rows, text.at]
        negative = self._negative_texts(text, negatives, pool)
        texts = torch.cat([first, negative, text.tokens[rows, text.at]])
        vectors = PairVectors(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        return _at_least_fp32(self.matching(images, texts, vectors)).view(3, len(rows), 2)

    def _negative_texts(self, text: Tokens, negatives: Negatives, pool: Pool) -> Tensor:
        """Negative texts' features [B, d], at their own EOT; `reference_compat`: the positive's."""
        if self.config.reference_compat:
            return pool(text.tokens, sequences=True)[negatives.text, text.at]
        if pool.spans:  # pooled is the row at EOT: the other tokens can stay where they are
            return pool(text.pooled)[negatives.text]
        return text.tokens[negatives.text, text.at[negatives.text]]


def _at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32 even where autocast ran the towers in bf16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_at_least_fp32(x), dim=-1)
