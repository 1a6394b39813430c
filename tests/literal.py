"""EntityCLIP's training objective in its textbook form: slow, on all tokens, four full passes.

Independent of the package's modules: standard nn.MultiheadAttention blocks over whole sequences,
each of the four pairs of sequences computed anew, rows picked at the very end. The package must
equal it in loss and in every gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

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


class LiteralEntityCLIP(nn.Module):
    def __init__(self, width: int, image: int, text: int, explanation: int, heads: int):
        super().__init__()
        self.image = nn.ModuleList(Expert(width, heads) for _ in range(image))
        self.text = nn.ModuleList(Expert(width, heads) for _ in range(text))
        self.explanation = nn.ModuleList(Expert(width, heads) for _ in range(explanation))
        self.image_gate = nn.Linear(width, image + explanation) if image + explanation else None
        self.text_gate = nn.Linear(width, text + explanation) if text + explanation else None
        self.fusion_gate = nn.Linear(2 * width, image + text + 2 * explanation)
        self.head = nn.Linear(width, 2)

    def vectors(self, s: Sides) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        rows = torch.arange(len(s.image))
        v = [e(s.image, s.image, None)[:, 0] for e in self.image]
        ve = [e(s.image, s.explanation, s.explanation_padding)[:, 0] for e in self.explanation]
        te = [
            e(s.text, s.explanation, s.explanation_padding)[rows, s.eot] for e in self.explanation
        ]
        t = [e(s.text, s.text, s.text_padding)[rows, s.eot] for e in self.text]
        return v, ve, te, t

    def match(self, s: Sides) -> Tensor:
        v, ve, te, t = self.vectors(s)
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
        lambda_moe: float,
        eta_itm: float,
        compat: bool,
    ) -> dict[str, Tensor]:
        """Three terms and their weighted sum; `compat` pools negatives at the positive's EOT."""
        rows = torch.arange(len(s.image))
        pooled_image, pooled_text = s.image[:, 0], s.text[rows, s.eot]
        v, ve, te, t = self.vectors(s)  # full pass 1
        mixed_image = mix(self.image_gate, pooled_image, [*v, *ve])
        mixed_text = mix(self.text_gate, pooled_text, [*t, *te])

        def pick(x: Tensor | None, rows: Tensor) -> Tensor | None:
            return None if x is None else x[rows]

        other_text = Sides(
            s.image,
            s.text[negative_text],
            pick(s.text_padding, negative_text),
            s.eot if compat else s.eot[negative_text],
            s.explanation[negative_text],
            pick(s.explanation_padding, negative_text),
        )
        other_image = Sides(
            s.image[negative_image], s.text, s.text_padding, s.eot, s.explanation,
            s.explanation_padding,
        )  # fmt: skip
        itm = itm_term(self.match(s), 1, torch.ones_like(has_negative))  # full pass 2
        itm = itm + itm_term(self.match(other_text), 0, has_negative)  # full pass 3
        itm = (itm + itm_term(self.match(other_image), 0, has_negative)) / 3  # full pass 4
        vtc = contrast(pooled_image, pooled_text, logit_scale)
        vtc_moe = contrast(mixed_image, mixed_text, logit_scale)
        loss = vtc + lambda_moe * vtc_moe + eta_itm * itm
        return {"loss": loss, "vtc": vtc, "vtc_moe": vtc_moe, "itm": itm}


def mix(gate: nn.Linear | None, pooled: Tensor, vectors: list[Tensor]) -> Tensor:
    if gate is None:
        return pooled
    weights = gate(pooled).softmax(-1)
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
