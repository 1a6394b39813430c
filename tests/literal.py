"""EntityCLIP's training objective in its textbook form: slow, on all tokens, four full passes.

Independent of the package's modules: standard nn.MultiheadAttention blocks over whole sequences,
each of the four pairs of sequences computed anew, rows picked at the very end. The package must
equal it in loss and in every gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass
class Choices:
    """The objective's weights, the paper's choices and what ablations put in their place."""

    lambda_moe: float = 0.1
    eta_itm: float = 0.1
    bridge: float = 0.0
    reference_compat: bool = False  # pools negatives at the positive's EOT
    matching: str = "gated"
    negative_explanation: str = "own"
    shared: bool = True
    crossed: bool = False
    detach: bool = False


class LiteralEntityCLIP(nn.Module):
    def __init__(
        self,
        width: int,
        image: int,
        text: int,
        explanation: int,
        heads: int,
        choices: Choices | None = None,
    ):
        super().__init__()
        self.choices = choices = choices or Choices()
        self.image = nn.ModuleList(Expert(width, heads) for _ in range(image))
        self.text = nn.ModuleList(Expert(width, heads) for _ in range(text))
        self.explanation = nn.ModuleList(Expert(width, heads) for _ in range(explanation))
        self.explanation_text = (
            self.explanation
            if choices.shared
            else nn.ModuleList(Expert(width, heads) for _ in range(explanation))
        )
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
        if self.choices.matching == "mean":
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
        choices = self.choices
        rows = torch.arange(len(s.image))
        pooled_image, pooled_text = s.image[:, 0], s.text[rows, s.eot]
        if choices.detach:
            s = replace(s, explanation=s.explanation.detach())
        v, ve, te, t = self.vectors(s)  # full pass 1
        mixed_image = mix(self.image_gate, pooled_image, [*v, *ve])
        mixed_text = mix(self.text_gate, pooled_text, [*t, *te])
        terms = {"vtc": contrast(pooled_image, pooled_text, logit_scale)}
        if choices.crossed:
            plain_image = mix(self.image_gate, pooled_image, v)
            plain_text = mix(self.text_gate, pooled_text, t)
            terms["vtc_moe"] = 0.5 * contrast(mixed_image, plain_text, logit_scale)
            terms["vtc_moe"] += 0.5 * contrast(plain_image, mixed_text, logit_scale)
        else:
            terms["vtc_moe"] = contrast(mixed_image, mixed_text, logit_scale)
        loss = terms["vtc"] + choices.lambda_moe * terms["vtc_moe"]
        if choices.matching != "none":
            terms["itm"] = self.itm(s, negative_text, negative_image, has_negative)
            loss = loss + choices.eta_itm * terms["itm"]
        if choices.bridge:
            terms["bridge"] = 0.5 * contrast(pooled_image, pooled_explanation, logit_scale)
            terms["bridge"] += 0.5 * contrast(pooled_text, pooled_explanation, logit_scale)
            loss = loss + choices.bridge * terms["bridge"]
        return {"loss": loss, **terms}

    def itm(
        self, s: Sides, negative_text: Tensor, negative_image: Tensor, has_negative: Tensor
    ) -> Tensor:
        def pick(x: Tensor | None, rows: Tensor) -> Tensor | None:
            return None if x is None else x[rows]

        own = self.choices.negative_explanation == "own"
        brought = negative_text if own else torch.arange(len(s.image))
        other_text = Sides(
            s.image,
            s.text[negative_text],
            pick(s.text_padding, negative_text),
            s.eot if self.choices.reference_compat else s.eot[negative_text],
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


def load_experts(literal: nn.ModuleList, stacked: nn.Module | None) -> None:
    """Copy an ExpertGroup's stacked weights into literal experts (its key bias: 0)."""
    for i, expert in enumerate(literal):
        parts = (stacked.query_weight[i], stacked.key_weight[i], stacked.value_weight[i])
        bias = (stacked.query_bias[i], torch.zeros(stacked.width), stacked.value_bias[i])
        copies = {
            expert.ln1.weight: stacked.ln1_weight[i],
            expert.ln1.bias: stacked.ln1_bias[i],
            expert.attn.in_proj_weight: torch.cat(parts),
            expert.attn.in_proj_bias: torch.cat(bias),
            expert.attn.out_proj.weight: stacked.out_weight[i],
            expert.attn.out_proj.bias: stacked.out_bias[i],
            expert.ln2.weight: stacked.ln2_weight[i],
            expert.ln2.bias: stacked.ln2_bias[i],
            expert.fc.weight: stacked.fc_weight[i],
            expert.fc.bias: stacked.fc_bias[i],
            expert.proj.weight: stacked.proj_weight[i],
            expert.proj.bias: stacked.proj_bias[i],
        }
        for target, source in copies.items():
            target.data.copy_(source.data)


def stacked_gradients(literal: nn.ModuleList) -> dict[str, Tensor]:
    """The literal experts' gradients under the stacked names."""
    width = literal[0].ln1.weight.shape[0]
    rows = {
        "query": slice(0, width),
        "key": slice(width, 2 * width),
        "value": slice(2 * width, None),
    }
    out = {
        f"{name}_weight": torch.stack([e.attn.in_proj_weight.grad[rows[name]] for e in literal])
        for name in rows
    }
    for name in ("query", "value"):
        out[f"{name}_bias"] = torch.stack([e.attn.in_proj_bias.grad[rows[name]] for e in literal])
    for ours, pick in {
        "ln1": lambda e: e.ln1, "ln2": lambda e: e.ln2, "fc": lambda e: e.fc,
        "proj": lambda e: e.proj, "out": lambda e: e.attn.out_proj,
    }.items():  # fmt: skip
        out[f"{ours}_weight"] = torch.stack([pick(e).weight.grad for e in literal])
        out[f"{ours}_bias"] = torch.stack([pick(e).bias.grad for e in literal])
    return out
