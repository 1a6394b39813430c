"""MMAE, the multimodal attentive experts (EntityCLIP, section 3.2), on one query row each.

An expert is a pre-norm residual attention block of its own weights::

    z = x + Attn(LN1(x), LN1(y), LN1(y));    z + MLP(LN2(z))

Only the CLS or EOT row of its output is ever used, so x is that one row. With one query a head h,
keys and values need not exist either. Write ŷ for y normalised without scale and shift, γ and β for
LN1's, and q_h for the head's query:

    score_j = q_h · (W_k (γ ŷ_j + β) + b_k)  =  (γ ⊙ W_kᵀ q_h) · ŷ_j  +  a constant over j
    Σ_j a_j (W_v (γ ŷ_j + β) + b_v)          =  W_v (γ ⊙ Σ_j a_j ŷ_j + β) + b_v

Softmax drops the constant, so W_k folds into the query, W_v waits until after the weighted sum, and
ONE ŷ serves all experts of all groups. tests/literal.py holds the textbook form this must equal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import Tokens
from entityclip.models.gather import Pool
from entityclip.models.negatives import Negatives


def normalize_tokens(tokens: Tensor) -> Tensor:
    """Zero mean and unit variance over the last axis, without scale and shift: LN1's ŷ."""
    return F.layer_norm(tokens, tokens.shape[-1:])


class ExpertGroup(nn.Module):
    """`n` experts with stacked weights, evaluated together as batched matmuls.

    There is no key bias: softmax ignores it. `attend` and `finish` are the two halves of the block,
    apart so that several queries on different sequences share one `finish`. Weights and keys stand
    left in their products with features: their gradients then have their layout and need no copy.
    """

    def __init__(self, n: int, width: int, heads: int = 1):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide the embedding width {width}")
        self.n, self.width, self.heads = n, width, heads
        self.ln1_weight = nn.Parameter(torch.ones(n, width))
        self.ln1_bias = nn.Parameter(torch.zeros(n, width))
        self.query_weight = nn.Parameter(torch.empty(n, width, width))
        self.query_bias = nn.Parameter(torch.zeros(n, width))
        self.key_weight = nn.Parameter(torch.empty(n, width, width))
        self.value_weight = nn.Parameter(torch.empty(n, width, width))
        self.value_bias = nn.Parameter(torch.zeros(n, width))
        self.out_weight = nn.Parameter(torch.empty(n, width, width))
        self.out_bias = nn.Parameter(torch.zeros(n, width))
        self.ln2_weight = nn.Parameter(torch.ones(n, width))
        self.ln2_bias = nn.Parameter(torch.zeros(n, width))
        self.fc_weight = nn.Parameter(torch.empty(n, 4 * width, width))
        self.fc_bias = nn.Parameter(torch.empty(n, 4 * width))
        self.proj_weight = nn.Parameter(torch.empty(n, width, 4 * width))
        self.proj_bias = nn.Parameter(torch.empty(n, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each expert as nn.MultiheadAttention and nn.Linear draw theirs."""
        in_projection = math.sqrt(6 / (4 * self.width))  # Xavier over the joint [3d, d] matrix
        for weight in (self.query_weight, self.key_weight, self.value_weight):
            nn.init.uniform_(weight, -in_projection, in_projection)
        for weight, bias in (
            (self.out_weight, None),
            (self.fc_weight, self.fc_bias),
            (self.proj_weight, self.proj_bias),
        ):
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def fold_query(self, query: Tensor) -> Tensor:
        """Normalised query rows x̂ [B, d] to folded queries u [B, n·heads, d] for `attend`."""
        x = query * self.ln1_weight[:, None] + self.ln1_bias[:, None]  # [n, B, d]
        q = torch.baddbmm(self.query_bias[..., None], self.query_weight, x.mT)  # [n, d, B]
        # a head's own, [n, h, d/h, B] and [n, h, d/h, d]
        q, key = (whole.unflatten(1, (self.heads, -1)) for whole in (q, self.key_weight))
        scale = self.ln1_weight[:, None, None] / math.sqrt(self.width // self.heads)
        return (q.mT @ key * scale).flatten(0, 1).transpose(0, 1)  # of [n, h, B, d]

    def attend(self, folded: Tensor, keys: Tensor, valid: Tensor | None) -> Tensor:
        """Weighted sums [B, m, d] of normalised tokens `keys` [B, L, d], one a folded query."""
        return self.attention(folded, keys, valid) @ keys

    @staticmethod
    def attention(folded: Tensor, keys: Tensor, valid: Tensor | None) -> Tensor:
        """Attention weights [B, m, L]; tokens that are not `valid` [B, L] get none."""
        scores = (keys @ folded.mT).mT
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None], -torch.inf)
        return scores.softmax(dim=-1)

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """Rest of the block: residual rows x [B, d] and `context` [B, n·heads, d] to [B, n, d]."""
        context = context.unflatten(1, (self.n, self.heads)).permute(1, 2, 0, 3)
        y = context * self.ln1_weight[:, None, None] + self.ln1_bias[:, None, None]  # [n, h, B, d]
        value = self.value_weight.unflatten(1, (self.heads, -1))  # [n, h, d/h, d]
        v = (value @ y.mT).flatten(1, 2) + self.value_bias[..., None]  # [n, d, B]
        z = x + torch.baddbmm(self.out_bias[..., None], self.out_weight, v).mT  # [n, B, d]
        h = normalize_tokens(z) * self.ln2_weight[:, None] + self.ln2_bias[:, None]
        h = torch.baddbmm(self.fc_bias[..., None], self.fc_weight, h.mT)  # [n, 4d, B]
        h = h * torch.sigmoid(1.702 * h)  # QuickGELU
        out = torch.baddbmm(self.proj_bias[..., None], self.proj_weight, h).mT
        return (z + out).transpose(0, 1)

    def forward(self, x: Tensor, x_hat: Tensor, keys: Tensor, valid: Tensor | None) -> Tensor:
        """Rows x [B, d] (normalised: `x_hat`) over `keys` [B, L, d] to expert vectors [B, n, d]."""
        return self.finish(x, self.attend(self.fold_query(x_hat), keys, valid))


class Gate(nn.Module):
    """Softmax(Linear(features)) over expert vectors; the weighted sum is the mixture V* or T*."""

    def __init__(self, width: int, vectors: int):
        super().__init__()
        self.linear = nn.Linear(width, vectors)

    def weights(self, features: Tensor, first: int | None = None) -> Tensor:
        """Weight of each vector [B, vectors], given `features` [B, width]; of the `first` few."""
        return self.linear(features)[:, :first].softmax(dim=-1)

    def forward(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Mix `vectors` [B, n, d] into [B, d]; fewer than the gate's are its first n."""
        return (self.weights(features, vectors.shape[1])[:, None] @ vectors)[:, 0]


class PairVectors(NamedTuple):
    """Expert vectors of B image-text pairs; a group without experts has 0 vectors.

    Shapes: [B, n_v, d], [B, n_e, d], [B, n_e, d] and [B, n_t, d].
    """

    image: Tensor
    image_explanation: Tensor
    text_explanation: Tensor
    text: Tensor


class MMAE(nn.Module):
    """The three expert groups and the two gates that mix an image's and a text's vectors (3.2).

    The explanation experts are one set of weights, queried from CLS and from EOT. An ablation gives
    each side its own: `explanation` the image's, `explanation_text` the text's.
    """

    def __init__(self, width: int, config: EntityCLIPConfig):
        super().__init__()
        self.config = config
        image, text, explanation = config.groups
        counts = image, text, explanation, 0 if config.shared_explanation_experts else explanation
        self.image, self.text, self.explanation, self.explanation_text = (
            ExpertGroup(n, width, config.heads) if n else None for n in counts
        )
        self.image_gate = Gate(width, image + explanation) if image + explanation else None
        self.text_gate = Gate(width, text + explanation) if text + explanation else None

    def forward(
        self,
        image: Tokens,
        text: Tokens,
        explanation: Tokens | None,
        negatives: Negatives | None = None,
        pool: Pool | None = None,
    ) -> tuple[PairVectors, ...]:
        """Expert vectors of the true pairs and, given `negatives`, of the pairs of GI-ITM.

        These are (image, negative text with its own explanation) and (negative image, text). A
        negative is another row of the batch, so its own vectors are gathered. New work is only the
        image's CLS on its negative's explanation, and the negative image's CLS on the explanation.
        `pool` gives the rows that negatives number where other processes hold some of them.
        """
        every, masked = pool or Pool(), not self.config.sees_padding
        image_keys = _Keys(image, False, every)
        text_keys, explanation_keys = (_Keys(side, masked, every) for side in (text, explanation))
        of_image = [_Query(image.pooled, normalize_tokens(image.pooled))]
        of_text = [_Query(text.pooled, normalize_tokens(text.pooled))]
        image_vectors = _vectors(self.image, of_image[0], image_keys)
        text_vectors = _vectors(self.text, of_text[0], text_keys)
        if negatives is None:
            (on_image,), (on_text,) = self._explain(explanation_keys, of_image, of_text)
            return (PairVectors(image_vectors, on_image, on_text, text_vectors),)

        other_text, other_image = negatives.text, negatives.image
        # an ablation: the negative text meets the explanation of the pair that it was drawn for
        brought = other_text if self.config.negative_explanation == "own" else None
        of_image.append(_Query(*(every(x)[other_image] for x in of_image[0][:2])))
        if brought is not None:
            of_image.append(_Query(*of_image[0][:2], brought))
        if self.config.reference_compat:  # the authors read it at the POSITIVE text's EOT
            row = every(text.tokens, sequences=True)[other_text, text.at]
            of_text.append(_Query(row, normalize_tokens(row), brought))
        elif brought is None:
            of_text.append(_Query(*(every(x)[other_text] for x in of_text[0][:2])))
        on_image, on_text = self._explain(explanation_keys, of_image, of_text)
        negative_text = PairVectors(
            image_vectors,
            on_image[0] if brought is None else on_image[2],
            on_text[1] if len(on_text) > 1 else every(on_text[0])[other_text],
            _vectors(self.text, of_text[1]._replace(rows=other_text), text_keys)
            if self.config.reference_compat
            else every(text_vectors)[other_text],
        )
        return (
            PairVectors(image_vectors, on_image[0], on_text[0], text_vectors),
            negative_text,
            PairVectors(every(image_vectors)[other_image], on_image[1], on_text[0], text_vectors),
        )

    def mix(self, image: Tokens, text: Tokens, vectors: PairVectors) -> tuple[Tensor, Tensor]:
        """V* and T*_moe, each [B, d]. A side without any expert keeps its pooled feature."""
        of_image = torch.cat([vectors.image, vectors.image_explanation], dim=1)  # [B, n_v + n_e, d]
        of_text = torch.cat([vectors.text, vectors.text_explanation], dim=1)  # [B, n_t + n_e, d]
        return (
            self.image_gate(image.pooled, of_image) if of_image.shape[1] else image.pooled,
            self.text_gate(text.pooled, of_text) if of_text.shape[1] else text.pooled,
        )

    def _explain(
        self, keys: _Keys, of_image: list[_Query], of_text: list[_Query]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Explanation experts' vectors of queries from the image's side and from the text's."""
        if self.explanation_text is None:
            both = _all_vectors(self.explanation, [*of_image, *of_text], keys)
            return both[: len(of_image)], both[len(of_image) :]
        on_image = _all_vectors(self.explanation, of_image, keys)
        return on_image, _all_vectors(self.explanation_text, of_text, keys)


class _Query(NamedTuple):
    """Rows x [B, d], normalised x̂ [B, d], and which rows' tokens each reads (None: its own)."""

    x: Tensor
    x_hat: Tensor
    rows: Tensor | None = None


class _Keys:
    """A side's tokens as keys ŷ [B, L, d]: normalised when first read, and only once."""

    def __init__(self, side: Tokens | None, masked: bool, every: Pool):
        self._side, self._masked, self._every = side, masked, every
        self._normalized: Tensor | None = None

    def of(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Keys of these rows and which of them are valid [B, L]; None: all are."""
        if self._side is None:
            raise ValueError("the explanation experts need the batch's explanations; it has none")
        if self._normalized is None:
            self._normalized = normalize_tokens(self._side.tokens)
        keys, valid = self._normalized, self._side.valid if self._masked else None
        if rows is None:
            return keys, valid
        keys = self._every(keys, sequences=True)[rows]
        return keys, None if valid is None else self._every(valid, sequences=True)[rows]


def _vectors(group: ExpertGroup | None, query: _Query, keys: _Keys) -> Tensor:
    if group is None:
        return query.x.new_zeros(len(query.x), 0, query.x.shape[1])
    return group(query.x, query.x_hat, *keys.of(query.rows))


def _all_vectors(group: ExpertGroup | None, queries: list[_Query], keys: _Keys) -> list[Tensor]:
    """Vectors [B, n, d] a query: one `attend` a set of keys, one `finish` for all."""
    if group is None:
        return [_vectors(None, query, keys) for query in queries]
    batch, width = queries[0].x.shape
    folded = group.fold_query(torch.cat([query.x_hat for query in queries])).split(batch)
    contexts: dict[int, Tensor] = {}
    for rows in {id(query.rows): query.rows for query in queries}.values():
        mine = [i for i, query in enumerate(queries) if query.rows is rows]
        context = group.attend(torch.cat([folded[i] for i in mine], dim=1), *keys.of(rows))
        contexts |= zip(mine, context.chunk(len(mine), dim=1), strict=True)
    joined = torch.cat([contexts[i] for i in range(len(queries))])
    out = group.finish(torch.cat([query.x for query in queries]), joined)
    return list(out.view(len(queries), batch, group.n, width))
