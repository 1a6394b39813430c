"""EntityCLIP's training objective in its textbook form: slow, on all tokens, four full passes.

Independent of the package's modules: standard nn.MultiheadAttention blocks over whole sequences,
each of the four pairs of sequences computed anew, rows picked at the very end. The package must
equal it in loss and in every gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Expert(nn.Module):
    """One residual attention block with its own weights, evaluated on every token."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, y: Tensor, padding: Tensor | None) -> Tensor:
        q, kv = self.ln1(x), self.ln1(y)
        z = x + self.attn(q, kv, kv, key_padding_mask=padding, need_weights=False)[0]
        h = self.fc(self.ln2(z))
        return z + self.proj(h * torch.sigmoid(1.702 * h))


@dataclass
class Sides:
    """All tokens [B, L, d] of one kind of pair, with padding masks and the rows to keep."""

    image: Tensor
    text: Tensor
    text_padding: Tensor | None
    eot: Tensor
    explanation: Tensor
    explanation_padding: Tensor | None

    @classmethod
    def of(cls, image: Any, text: Any, explanation: Any, *, images: Any = ..., texts: Any = ...):
        """From the package's `Tokens`; some rows of the pictures, and of the texts."""
        return cls(
            image.tokens[images], text.tokens[texts], ~text.valid[texts], text.at[texts],
            explanation.tokens[texts], ~explanation.valid[texts],
        )  # fmt: skip


class LiteralEntityCLIP(nn.Module):
    """Experts, gates and head as `config` says, by the names of the package's EntityCLIPConfig."""

    def __init__(self, width: int, config: Any):
        super().__init__()
        self.config = config
        image, text, explanation = (
            config.image_experts, config.text_experts, config.explanation_experts,
        )  # fmt: skip

        def experts(n: int) -> nn.ModuleList:
            return nn.ModuleList(Expert(width, config.heads) for _ in range(n))

        self.image, self.text, self.explanation = map(experts, (image, text, explanation))
        shared = config.shared_explanation_experts
        self.explanation_text = self.explanation if shared else experts(explanation)
        self.image_gate = nn.Linear(width, image + explanation) if image + explanation else None
        self.text_gate = nn.Linear(width, text + explanation) if text + explanation else None
        self.fusion_gate = nn.Linear(2 * width, image + text + 2 * explanation)
        self.head = nn.Linear(width, 2)

    def vectors(self, s: Sides) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        rows = torch.arange(len(s.image))
        v = [e(s.image, s.image, None)[:, 0] for e in self.image]
        ve = [e(s.image, s.explanation, s.explanation_padding)[:, 0] for e in self.explanation]
        te = [
            e(s.text, s.explanation, s.explanation_padding)[rows, s.eot]
            for e in self.explanation_text
        ]
        t = [e(s.text, s.text, s.text_padding)[rows, s.eot] for e in self.text]
        return v, ve, te, t

    def match(self, s: Sides) -> Tensor:
        v, ve, te, t = self.vectors(s)
        if self.config.matching == "mean":
            return self.head(torch.stack([*v, *ve, *te, *t]).mean(0))
        pooled_text = s.text[torch.arange(len(s.text)), s.eot]
        weights = self.fusion_gate(torch.cat([s.image[:, 0], pooled_text], -1)).softmax(-1)
        fused = sum(weights[:, i : i + 1] * x for i, x in enumerate([*v, *ve, *te, *t]))
        return self.head(fused)

    def forward(
        self,
        s: Sides,
        logit_scale: Tensor,
        negative_text: Tensor,
        negative_image: Tensor,
        has_negative: Tensor,
        pooled_explanation: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms and their weighted sum."""
        config = self.config
        rows = torch.arange(len(s.image))
        pooled_image, pooled_text = s.image[:, 0], s.text[rows, s.eot]
        v, ve, te, t = self.vectors(s)  # full pass 1
        mixed_image = mix(self.image_gate, pooled_image, [*v, *ve])
        mixed_text = mix(self.text_gate, pooled_text, [*t, *te])
        terms = {"vtc": contrast(pooled_image, pooled_text, logit_scale)}
        if config.crossed:
            plain_image = mix(self.image_gate, pooled_image, v)
            plain_text = mix(self.text_gate, pooled_text, t)
            terms["vtc_moe"] = 0.5 * contrast(mixed_image, plain_text, logit_scale)
            terms["vtc_moe"] += 0.5 * contrast(plain_image, mixed_text, logit_scale)
        else:
            terms["vtc_moe"] = contrast(mixed_image, mixed_text, logit_scale)
        loss = terms["vtc"] + config.lambda_moe * terms["vtc_moe"]
        if config.matching != "none":
            terms["itm"] = self.itm(s, negative_text, negative_image, has_negative)
            loss = loss + config.eta_itm * terms["itm"]
        if config.bridge:
            terms["bridge"] = 0.5 * contrast(pooled_image, pooled_explanation, logit_scale)
            terms["bridge"] += 0.5 * contrast(pooled_text, pooled_explanation, logit_scale)
            loss = loss + config.bridge * terms["bridge"]
        if config.context:
            both = F.normalize(pooled_text, dim=-1), F.normalize(pooled_explanation, dim=-1)
            joined = both[0] + both[1]
            terms["context"] = contrast(pooled_image, joined, logit_scale)
            loss = loss + config.context * terms["context"]
        return {"loss": loss, **terms}

    def itm(
        self, s: Sides, negative_text: Tensor, negative_image: Tensor, has_negative: Tensor
    ) -> Tensor:
        def pick(x: Tensor | None, rows: Tensor) -> Tensor | None:
            return None if x is None else x[rows]

        own = self.config.negative_explanation == "own"
        brought = negative_text if own else torch.arange(len(s.image))
        other_text = Sides(
            s.image,
            s.text[negative_text],
            pick(s.text_padding, negative_text),
            s.eot if self.config.reference_compat else s.eot[negative_text],
            s.explanation[brought],
            pick(s.explanation_padding, brought),
        )
        other_image = replace(s, image=s.image[negative_image])
        itm = itm_term(self.match(s), 1, torch.ones_like(has_negative))  # full pass 2
        itm = itm + itm_term(self.match(other_text), 0, has_negative)  # full pass 3
        return (itm + itm_term(self.match(other_image), 0, has_negative)) / 3  # full pass 4


def mix(gate: nn.Linear | None, pooled: Tensor, vectors: list[Tensor]) -> Tensor:
    if not vectors:
        return pooled
    weights = gate(pooled)[:, : len(vectors)].softmax(-1)  # fewer than the gate's: its first ones
    return sum(weights[:, i : i + 1] * x for i, x in enumerate(vectors))


def contrast(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    rows = torch.arange(len(image))
    to_text = -(scale * image @ text.T).log_softmax(1)[rows, rows].mean()
    to_image = -(scale * text @ image.T).log_softmax(1)[rows, rows].mean()
    return (to_text + to_image) / 2


def itm_term(logits: Tensor, label: int, counted: Tensor) -> Tensor:
    """Mean cross-entropy over the pairs that count, one by one; 0 if none does."""
    each = [-logits[i].log_softmax(-1)[label] for i in range(len(logits)) if counted[i]]
    return torch.stack(each).mean() if each else logits.sum() * 0


def twin_of(mmae: nn.Module, matching: nn.Module | None, config: Any) -> LiteralEntityCLIP:
    """The literal form of the package's MMAE and matching head, with their weights."""
    width = next(group.width for _, group, _ in groups(mmae))
    twin = LiteralEntityCLIP(width, config)
    for _, group, experts in groups(mmae, twin):
        load_experts(experts, group)
    for ours, theirs in linears(mmae, matching, twin):
        theirs.load_state_dict(ours.state_dict())
    return twin


def load_experts(literal: nn.ModuleList, group: nn.Module) -> None:
    """Copy an ExpertGroup's stacked weights into literal experts."""
    for i, expert in enumerate(literal):
        for name, parameter in stacked(expert, lambda p: p.data).items():
            parameter.copy_(getattr(group, name).data[i])


def groups(mmae: nn.Module, twin: LiteralEntityCLIP | None = None) -> list[tuple]:
    """(name, the package's group, the twin's experts) of each group that there is."""
    names = ("image", "text", "explanation", "explanation_text")
    there = [(name, getattr(mmae, name)) for name in names]
    return [(name, g, getattr(twin, name, None)) for name, g in there if g is not None]


def linears(
    mmae: nn.Module, matching: nn.Module | None, twin: LiteralEntityCLIP
) -> list[tuple[nn.Linear, nn.Linear]]:
    """Gates and head, the package's and the twin's."""
    gates = [(mmae.image_gate, twin.image_gate), (mmae.text_gate, twin.text_gate)]
    if matching is not None:
        gates.append((matching.gate, twin.fusion_gate))
    pairs = [(gate.linear, theirs) for gate, theirs in gates if gate is not None]
    return pairs + ([] if matching is None else [(matching.head, twin.head)])


def stacked(expert: Expert, take: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What `take` gives of an expert's parameters, by the names of the package's stacked ones.

    A key's bias has none: softmax ignores it, and torch starts it at 0.
    """
    query, key, value = take(expert.attn.in_proj_weight).chunk(3)
    query_bias, _, value_bias = take(expert.attn.in_proj_bias).chunk(3)
    found = {"query_weight": query, "key_weight": key, "value_weight": value,
             "query_bias": query_bias, "value_bias": value_bias}  # fmt: skip
    parts = {"ln1": expert.ln1, "ln2": expert.ln2, "fc": expert.fc, "proj": expert.proj,
             "out": expert.attn.out_proj}  # fmt: skip
    for name, part in parts.items():
        found |= {f"{name}_weight": take(part.weight), f"{name}_bias": take(part.bias)}
    return found
