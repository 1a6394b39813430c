"""EntityCLIP: CLIP's two towers, the experts (MMAE) and the matching (GI-ITM) that train them.

Inference uses only the two towers, `encode_image` and `encode_text`: experts and matching cost
nothing at test time (section 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from entityclip.config import EntityCLIPConfig
from entityclip.models.bridges import bridge_loss, context_loss, crossed_loss
from entityclip.models.clip import Backbone, DualEncoder, Lengths, Tokens
from entityclip.models.experts import MMAE, Gate, PairVectors
from entityclip.models.gather import Peers, Pool
from entityclip.models.losses import itm_accuracy, itm_loss, related, vtc_loss
from entityclip.models.negatives import Negatives, draw_in_batch


class GatedMatching(nn.Module):
    """A gate fuses ALL vectors of a pair, given both pooled features; a linear head classifies.

    GI-ITM's head (section 3.3). Without the gate (an ablation) the fusion is the vectors' mean.
    """

    def __init__(self, width: int, vectors: int, gated: bool = True):
        super().__init__()
        self.gate = Gate(2 * width, vectors) if gated else None
        self.head = nn.Linear(width, 2)

    def forward(self, image: Tensor, text: Tensor, vectors: PairVectors) -> Tensor:
        """Logits [B, 2] (no match, match) from pooled features [B, d] and the pairs' vectors."""
        joined = torch.cat(tuple(vectors), dim=1)  # [B, n_v + 2 n_e + n_t, d]
        if self.gate is None:
            return self.head(joined.mean(dim=1))
        return self.head(self.gate(torch.cat([image, text], dim=-1), joined))


@dataclass
class Outputs:
    """What a training forward pass yields; features are normalised.

    `image`, `text` [B, d]; `logit_scale` []; `image_moe`, `text_moe` [B, d] (V* and T*_moe);
    `itm_logits` [3, B, 2] with `itm_valid` [B]; `explanation` [B, d] (E*, for bridge and context);
    `image_plain`, `text_plain` [B, d] (V* and T* mixed without explanation experts, for `crossed`);
    `siblings` [B, K], ids that rows share which are no negatives of each other.
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
    siblings: Tensor | None = None


class Encoded(NamedTuple):
    """What the towers make of a batch; a row's tokens follow from its own pair alone."""

    image: Tokens
    text: Tokens
    explanation: Tokens | None


class EntityCLIP(DualEncoder):
    """A backbone with experts and matching head; with no experts, plain CLIP."""

    splits_batches = True

    def __init__(self, backbone: Backbone, config: EntityCLIPConfig):
        super().__init__(backbone, config)
        for name, parameter in backbone.clip.named_parameters():
            tower = "image" if name.startswith("visual.") else "text"
            if config.frozen == tower and name != "logit_scale":
                parameter.requires_grad_(False)
        self.needs_explanations = config.reads_explanations
        self.mmae = self.matching = None
        if config.experts:
            self.mmae = MMAE(backbone.width, config)
            if config.matching != "none":
                vectors = config.experts + config.explanation_experts  # E is read from both sides
                self.matching = GatedMatching(backbone.width, vectors, config.matching == "gated")

    def forward(
        self,
        images: Tensor,
        captions: Tensor,
        explanations: Tensor | None = None,
        image_keys: Tensor | None = None,
        lengths: Lengths = None,
        peers: Peers | None = None,
        chunk: int | None = None,
        siblings: Tensor | None = None,
    ) -> Outputs:
        """Encode a training batch: images [B, 3, H, W], token ids [B, context_length].

        `image_keys` [B] tell which rows show the same picture, `siblings` [B, K] (`losses.related`)
        which are no negatives of each other. `lengths` are `text_lengths`, found
        before the batch went to a GPU. Where several processes share the batch, `peers` says how,
        each gives its own rows, and the outputs are the whole batch's. With `chunk`, the towers
        hold the activations of so many rows at a time, to the same gradient.

        Raises ValueError for a batch of fewer than 2 pairs, or without explanations where needed.
        """
        if (rows := len(images) if peers is None else peers.total) < 2:
            raise ValueError(f"a batch of {rows}: contrastive losses need at least 2 pairs")
        if self.needs_explanations and explanations is None:
            raise ValueError("this model trains on explanations, and the batch has none")
        encoded = self._encode_in_chunks((images, captions, explanations), lengths, chunk)
        outputs = self.compare(encoded, captions, image_keys, peers=peers)
        outputs.siblings = siblings
        return outputs if peers is None else peers.joined(outputs, turned=("itm_logits",))

    def encode(
        self, images: Tensor, captions: Tensor, explanations: Tensor | None, lengths: Lengths = None
    ) -> Encoded:
        """The first half of `forward`, the towers: a row's tokens depend on no other row."""
        image, trim = self.backbone.image_tokens(images), not self.config.sees_padding
        if not self.needs_explanations:
            length = None if lengths is None else lengths[0]
            text = self.backbone.text_tokens(captions, trim=trim, length=length)
            return Encoded(image, text, None)
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
        """The second half of `forward`: experts, negatives (drawn unless given) and matching."""
        image, text, explanation = encoded
        scale = self.backbone.clip.logit_scale.exp()
        outputs = Outputs(_unit(image.pooled), _unit(text.pooled), scale)
        if self.config.bridge or self.config.context:
            outputs.explanation = _unit(explanation.pooled)
        if self.mmae is None:
            return outputs
        if negatives is None and self.matching is not None:
            draw = self.config.negatives
            negatives = draw_in_batch(
                outputs.image, outputs.text, scale, captions, image_keys, draw, peers
            )
        pool = Pool(peers)
        true, *others = self.mmae(image, text, explanation, negatives, pool)
        outputs.image_moe, outputs.text_moe = map(_unit, self.mmae.mix(image, text, true))
        if self.config.crossed:
            none = true.image_explanation[:, :0]
            plain = true._replace(image_explanation=none, text_explanation=none)
            outputs.image_plain, outputs.text_plain = map(_unit, self.mmae.mix(image, text, plain))
        if self.matching is not None:
            outputs.itm_logits = self._match(image, text, negatives, pool, true, *others)
            outputs.itm_valid = negatives.valid
        return outputs

    def losses(self, outputs: Outputs) -> dict[str, Tensor]:
        """The objective's named scalar terms (section 3.4).

        `loss` is the weighted sum to minimise, the others are unweighted: `vtc` and, where the
        model has them, `vtc_moe`, `itm`, `bridge`, `context`. `itm_accuracy` carries no gradient.
        """
        o, config, scale, left_out = outputs, self.config, outputs.logit_scale, None
        if o.siblings is not None:
            left_out = related(o.siblings, config.false_negatives)
        terms = {"vtc": vtc_loss(o.image, o.text, scale, left_out)}
        loss = terms["vtc"]
        if o.image_plain is not None:
            sides = o.image_moe, o.text_plain, o.image_plain, o.text_moe
            terms["vtc_moe"] = crossed_loss(*sides, scale, left_out)
        elif o.image_moe is not None:
            terms["vtc_moe"] = vtc_loss(o.image_moe, o.text_moe, scale, left_out)
        if "vtc_moe" in terms:
            loss = loss + config.lambda_moe * terms["vtc_moe"]
        if o.itm_logits is not None:
            matched = o.itm_logits, o.itm_valid
            terms |= {"itm": itm_loss(*matched), "itm_accuracy": itm_accuracy(*matched)}
            loss = loss + config.eta_itm * terms["itm"]
        for name, beyond in (("bridge", bridge_loss), ("context", context_loss)):
            if weight := getattr(config, name):
                terms[name] = beyond(o.image, o.text, o.explanation, scale, left_out)
                loss = loss + weight * terms[name]
        return {"loss": loss, **terms}

    def text_lengths(self, captions: Tensor, explanations: Tensor | None, *_: Any) -> list[int]:
        """Tokens of the longest caption and explanation: cheap on the CPU, a wait on a GPU."""
        sides = [captions, explanations] if self.needs_explanations else [captions]
        return [self.backbone.longest(side) for side in sides]

    def _encode_in_chunks(
        self, sides: tuple[Tensor | None, ...], lengths: Lengths, chunk: int | None
    ) -> Encoded:
        """`encode`, `chunk` rows at a time, which the backward pass encodes anew."""
        if chunk is None:
            return self.encode(*sides, lengths)
        lengths = lengths or self.text_lengths(*sides[1:])

        def encode(*rows: Tensor) -> Encoded:
            encoded = self.encode(*rows, lengths=lengths)
            if self.mmae is not None:
                return encoded
            # without experts nothing but the pooled features is read
            return Encoded(*(side and side._replace(tokens=side.tokens[:, :0]) for side in encoded))

        chunks = zip(*(side.split(chunk) for side in sides if side is not None), strict=True)
        parts = [checkpoint(encode, *rows, use_reentrant=False) for rows in chunks]
        joined = [
            side[0] and Tokens(*map(torch.cat, zip(*side, strict=True)))
            for side in zip(*parts, strict=True)
        ]
        return Encoded(*joined)

    def _match(
        self, image: Tokens, text: Tokens, negatives: Negatives, pool: Pool, *pairs: PairVectors
    ) -> Tensor:
        """GI-ITM logits [3, B, 2] of the three kinds of pairs, in one pass of gate and head."""
        rows = torch.arange(len(image.pooled), device=image.pooled.device)
        images = torch.cat([image.pooled, image.pooled, pool(image.pooled)[negatives.image]])
        # in this order, which is that in which gradients are summed: it decides the last bits
        first = text.tokens[rows, text.at]
        if self.config.reference_compat:  # the authors read a negative text at the POSITIVE's EOT
            negative = pool(text.tokens, sequences=True)[negatives.text, text.at]
        elif pool.spans:  # pooled is the row at EOT: the other tokens can stay where they are
            negative = pool(text.pooled)[negatives.text]
        else:
            negative = text.tokens[negatives.text, text.at[negatives.text]]
        texts = torch.cat([first, negative, text.tokens[rows, text.at]])
        vectors = PairVectors(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        return _at_least_fp32(self.matching(images, texts, vectors)).view(3, len(rows), 2)


def _at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32 even where autocast ran the towers in bf16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_at_least_fp32(x), dim=-1)
