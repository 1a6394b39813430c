"""AsCL (arXiv 2405.10029): generated samples, hierarchical fusion, NT-Xent, on our backbone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from entityclip.config import AsCLConfig
from entityclip.models.clip import Backbone, DualEncoder, Lengths, Tokens

_AT_ONCE = 2**27  # attention weights in memory at once: 512 MiB
# one head's attention weights at once where no gradient is asked for: what a core's cache holds,
# and enough to keep a GPU busy
_TILE = {"cpu": 2**19, "cuda": 2**25}
_TILE_TOKENS = 512  # of the texts in a tile, about; below, products with them get slower


class Side(NamedTuple):
    """All that one side, B pictures of L regions or B texts of L words, brings to a similarity.

    `query` and `key` [B, L, d], `value` [B, L, d], `unit` [B, L, d] (tokens of length 1), `valid`
    [B, L] (False is padding), `pooled` [B, d] (the global feature, length 1).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    unit: Tensor
    valid: Tensor
    pooled: Tensor

    def rows(self, index: slice) -> Side:
        """Some of the B."""
        return Side(*(part[index] for part in self))

    def gram(self) -> Tensor:
        """G = Y Yᵀ [B, L, L] of each item's values, in full precision."""
        with torch.autocast(self.value.device.type, enabled=False):
            return self.value @ self.value.mT


class HierarchicalFusion(nn.Module):
    """Local and global similarity of pictures and texts of `width` d, with H = `heads`."""

    def __init__(self, width: int, heads: int, local_weight: float):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide the embedding width {width}")
        self.width, self.heads, self.local_weight = width, heads, local_weight
        # regions look at words with to_words, words at regions with to_regions
        self.to_words, self.to_regions = _projections(width), _projections(width)
        self.region_query = _identity(width)
        self.gate = nn.Linear(2 * width, width)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 2.0)  # t = 0.88: at first nearly the CLS feature

    def image_side(self, image: Tokens) -> Side:
        """Regions are all tokens but CLS; the global feature is gated with an attended one.

        The gate: t ⊙ v1 + (1 - t) ⊙ v2, with v1 the CLS feature, v2 the regions' mean as v1 attends
        to them, and t = σ(W [v1; v2] + b).
        """
        regions, cls = image.tokens[:, 1:].float(), self._scaled(image.pooled.float())
        scaled = self._scaled(regions)
        query = self.region_query(cls) / math.sqrt(self.width)
        attention = (scaled @ query[..., None]).softmax(dim=1)  # [B, R, 1]
        attended = (attention * scaled).sum(dim=1)
        gate = self.gate(torch.cat([cls, attended], dim=-1)).sigmoid()
        pooled = F.normalize(gate * cls + (1 - gate) * attended, dim=-1)
        return self._side(scaled, image.valid[:, 1:], pooled, self.to_words, self.to_regions)

    def text_side(self, text: Tokens, words: Tensor) -> Side:
        """`words` [B, L] are the tokens to compare; the global feature is EOT's."""
        pooled = F.normalize(text.pooled.float(), dim=-1)
        scaled = self._scaled(text.tokens.float())
        return self._side(scaled, words, pooled, self.to_regions, self.to_words)

    def forward(self, image: Side, text: Side) -> Tensor:
        """S [I, J] of all I pictures with all J texts, in stretches of texts of bounded memory.

        Without gradients, in tiles of pictures and texts whose attention stays in a core's cache.
        """
        if not torch.is_grad_enabled():
            return self._tiled(image, text)
        size = max(1, _AT_ONCE // (image.valid.numel() * text.valid.shape[1] * self.heads))
        parts = [text.rows(slice(s, s + size)) for s in range(0, len(text.pooled), size)]
        if len(parts) == 1:
            return self._similarity(image, text)
        # the backward pass computes a stretch anew, or all attention weights would be kept
        rerun = [checkpoint(self._similarity, image, p, use_reentrant=False) for p in parts]
        return torch.cat(rerun, dim=1)

    def _tiled(self, image: Side, text: Side) -> Tensor:
        pictures, regions = image.valid.shape
        texts, words = text.valid.shape
        at_once = _TILE.get(image.pooled.device.type, _TILE["cuda"])
        width = min(texts, max(1, _TILE_TOKENS // words))
        height = max(1, at_once // (regions * words * width))
        grams = image.gram(), text.gram()
        found = image.pooled.new_empty(pictures, texts)
        for row, column in itertools.product(range(0, pictures, height), range(0, texts, width)):
            tile = i, j = slice(row, row + height), slice(column, column + width)
            found[tile] = self._similarity(image.rows(i), text.rows(j), grams[0][i], grams[1][j])
        return found

    def _similarity(
        self, image: Side, text: Side, of_image: Tensor | None = None, of_text: Tensor | None = None
    ) -> Tensor:
        # an enclosing autocast would attend in half precision
        with torch.autocast(image.pooled.device.type, enabled=False):
            local = self._local(image, text, of_text) + self._local(text, image, of_image).T
            return self._mix(local / 2, image.pooled @ text.pooled.T)

    def _mix(self, local: Tensor, whole: Tensor) -> Tensor:
        return self.local_weight * local + (1 - self.local_weight) * whole

    def _local(self, looking: Side, seen: Side, gram: Tensor | None) -> Tensor:
        """Mean cosine [I, J] of I items' tokens with their contexts out of J items (`gram`)."""
        items, length, width = looking.unit.shape
        unit = looking.unit.reshape(-1, width)
        others, tokens = seen.valid.shape
        attention = self._mean_attention(looking.query, seen)  # [I·R, J, L]
        dot = attention * (unit @ seen.value.reshape(-1, width).T).view(-1, others, tokens)
        by_item = attention.transpose(0, 1)  # [J, I·R, L]
        gram = seen.gram() if gram is None else gram
        square = ((by_item @ gram) * by_item).sum(dim=-1).T  # a context's length is √(aᵀ G a)
        cosine = dot.sum(dim=-1) * square.clamp_min(1e-12).rsqrt()
        weight = looking.valid / looking.valid.sum(dim=1, keepdim=True)
        return (cosine.view(items, length, others) * weight[..., None]).sum(dim=1)

    def _mean_attention(self, query: Tensor, seen: Side) -> Tensor:
        others, tokens = seen.valid.shape
        mask = torch.zeros_like(seen.valid, dtype=query.dtype).masked_fill(~seen.valid, -torch.inf)
        total: Tensor | int = 0
        queries = query.reshape(-1, self.width).chunk(self.heads, dim=1)
        keys = seen.key.reshape(-1, self.width).chunk(self.heads, dim=1)
        for q, k in zip(queries, keys, strict=True):
            scores = torch.addmm(mask.view(-1), q, k.T)
            total = total + scores.view(-1, others, tokens).softmax(dim=-1)
        return total / self.heads

    def _side(self, scaled: Tensor, valid: Tensor, pooled: Tensor, own, other) -> Side:
        with torch.autocast(scaled.device.type, enabled=False):
            query = own["query"](scaled) / math.sqrt(self.width / self.heads)
            key, value = other["key"](scaled), other["value"](scaled)
        return Side(query, key, value, F.normalize(scaled, dim=-1), valid, pooled)

    def _scaled(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * math.sqrt(self.width)


def _projections(width: int) -> nn.ModuleDict:
    """W_q, W_k and W_v of one way of looking; a key bias would drop out of the softmax."""
    return nn.ModuleDict(
        {name: _identity(width, name != "key") for name in ("query", "key", "value")}
    )


def _identity(width: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(width, width, bias=bias)
    nn.init.eye_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def nt_xent(
    similarity: Tensor, same: Tensor, scale: Tensor | float, wrong: Tensor | None = None
) -> Tensor:
    """NT-Xent both ways over similarities [B, B] (rows pictures, columns texts), a mean.

    `scale` is 1 / temperature. `same` [B, B] marks other rows of the same picture: their texts are
    true of it too and leave the denominators. `wrong` [B, B], of pictures with the wrong texts made
    of all captions, joins the picture → text denominator; of these, a text more similar than the
    picture's true one is a false negative and left out (the authors' code keeps it there at
    similarity 0).
    """
    logits = (scale * similarity).masked_fill(same, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_text = logits
    if wrong is not None:
        extra = (scale * wrong).masked_fill(false_negatives(similarity, wrong), -torch.inf)
        to_text = torch.cat([logits, extra], dim=1)
    return (F.cross_entropy(to_text, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def false_negatives(similarity: Tensor, wrong: Tensor) -> Tensor:
    """Which wrong texts are more similar to a picture than its true text [B, B]."""
    return wrong > similarity.diagonal()[:, None]


def same_picture(image_keys: Tensor | None, n: int, device: torch.device) -> Tensor:
    """[n, n]: which rows show the same picture as another row; the diagonal is False."""
    if image_keys is None:
        return torch.zeros(n, n, dtype=torch.bool, device=device)
    equal = image_keys[:, None] == image_keys
    return equal & ~torch.eye(n, dtype=torch.bool, device=device)


Rng = Generator | None
WRONG_KINDS = ("noise", "dropout", "shuffle", "token", "channel")


def word_mask(at: Tensor, length: int) -> Tensor:
    """Which of `length` tokens are words [B, length]: all between start and end.

    A text without words keeps its end token as the only one, so that nothing is empty.
    """
    position, at = torch.arange(length, device=at.device), at[:, None]
    return ((position >= 1) & (position < at)) | ((position == at) & (at <= 1))


def poorer_text(text: Tensor, at: Tensor) -> Tensor:
    """The first half of each text's words, rounded up (asymmetry: text says less)."""
    end = 1 + torch.div(at, 2, rounding_mode="floor")  # at - 1 words, of which at // 2 stay
    return _ended(text, torch.minimum(end, at), text.gather(1, at[:, None]))


def richer_text(first: Tensor, first_at: Tensor, second: Tensor, second_at: Tensor) -> Tensor:
    """The words of `first`, then those of `second`, cut at L tokens (asymmetry: text says more)."""
    length = first.shape[1]
    position = torch.arange(length, device=first.device)
    source = (position - first_at[:, None] + 1).clamp(0, length - 1)
    joined = torch.where(position < first_at[:, None], first, second.gather(1, source))
    end = (first_at + second_at - 1).clamp(max=length - 1)
    return _ended(joined, end, first.gather(1, first_at[:, None]))


def wrong_embeddings(
    embeddings: Tensor,
    words: Tensor,
    *,
    noise: float = 1.0,
    dropout: float = 0.5,
    cutoff: float = 0.2,
    kinds: Tensor | None = None,
    generator: Rng = None,
) -> Tensor:
    """Each text of `embeddings` [B, L, w] made wrong in one way, drawn at random.

    `words` [B, L] marks what may change. `kinds` [B] (numbers of WRONG_KINDS) is drawn unless
    given. `noise`, `dropout` and `cutoff` are those of the functions below.
    """
    given, device = (embeddings, words), embeddings.device
    if kinds is None:
        size = (len(embeddings),)
        kinds = torch.randint(len(WRONG_KINDS), size, generator=generator, device=device)
    changed = [
        add_noise(*given, noise, generator), drop_entries(*given, dropout, generator),
        shuffle_words(*given, generator), zero_words(*given, cutoff, generator),
        zero_channels(*given, cutoff, generator),
    ]  # fmt: skip
    return torch.stack(changed)[kinds, torch.arange(len(embeddings), device=device)]


def add_noise(x: Tensor, words: Tensor, scale: float, rng: Rng = None) -> Tensor:
    """Gaussian noise on every word, its deviation `scale` times the words' root mean square."""
    power = torch.where(words[..., None], x.detach(), 0.0).square().sum()
    rms = (power / (words.sum() * x.shape[-1])).sqrt()
    drawn = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    return torch.where(words[..., None], x + scale * rms * drawn, x)


def drop_entries(x: Tensor, words: Tensor, share: float, rng: Rng = None) -> Tensor:
    """Dropout: each entry of a word is zeroed with probability `share`, the rest scaled up."""
    kept = torch.rand(x.shape, generator=rng, device=x.device) >= share
    return torch.where(words[..., None], x * kept / (1 - share), x)


def shuffle_words(x: Tensor, words: Tensor, rng: Rng = None) -> Tensor:
    """The words in another order: at random, then moved on by one if nothing has moved."""
    key = torch.rand(words.shape, generator=rng, device=x.device)
    position = torch.arange(words.shape[1], device=x.device).expand_as(words)
    places = torch.where(words, position, words.shape[1]).argsort(dim=1, stable=True)
    drawn = torch.where(words, key, torch.inf).argsort(dim=1, stable=True)
    count = words.sum(dim=1, keepdim=True)
    unmoved = (drawn == places).logical_or(position >= count).all(dim=1, keepdim=True)
    along = (position + unmoved.long()) % count.clamp_min(1)
    drawn = torch.where(position < count, drawn.gather(1, along), places)
    source = torch.empty_like(places).scatter_(1, places, drawn)
    return x.gather(1, source[..., None].expand_as(x))


def zero_words(x: Tensor, words: Tensor, share: float, rng: Rng = None) -> Tensor:
    """`share` of each text's words zeroed, at least one."""
    key = torch.rand(words.shape, generator=rng, device=x.device)
    rank = torch.where(words, key, torch.inf).argsort(dim=1).argsort(dim=1)
    count = (share * words.sum(dim=1, keepdim=True)).round().clamp_min(1)
    return x.masked_fill(((rank < count) & words)[..., None], 0.0)


def zero_channels(x: Tensor, words: Tensor, share: float, rng: Rng = None) -> Tensor:
    """`share` of the channels zeroed in every word of a text, at least one."""
    key = torch.rand((len(x), x.shape[-1]), generator=rng, device=x.device)
    off = key.argsort(dim=1).argsort(dim=1) < max(1, round(share * x.shape[-1]))
    return x.masked_fill(words[..., None] & off[:, None], 0.0)


def _ended(text: Tensor, end: Tensor, end_token: Tensor) -> Tensor:
    """`text` ended at place `end` [B] by `end_token` [B, 1], zeros after it."""
    after = torch.arange(text.shape[1], device=text.device) - end[:, None]
    return torch.where(after == 0, end_token, text).masked_fill(after > 0, 0)


@dataclass
class AsCLOutputs:
    """What a training forward pass yields; what the configuration leaves out is None."""

    similarity: Tensor  # [B, B] of pictures (rows) with captions
    same: Tensor  # [B, B]: which other rows show a row's picture
    scale: Tensor | float  # 1 / temperature
    wrong: Tensor | None = None  # [B, B] of pictures with the wrong texts made of all captions
    positive: Tensor | None = None  # [B, B] of pictures with generated true texts
    positive_wrong: Tensor | None = None  # [B, B], with the wrong texts made of the generated ones


class AsCL(DualEncoder):
    """A backbone with hierarchical fusion and generated samples.

    With `fusion` and all samples off and no `temperature`, it is CLIP's own contrastive loss, in
    which other captions of a picture are no negatives: the comparison.
    """

    has_vtc = False

    def __init__(self, backbone: Backbone, config: AsCLConfig):
        super().__init__(backbone, config)
        self.needs_others = config.richer
        self.fusion = None
        if config.fusion:
            self.fusion = HierarchicalFusion(backbone.width, config.heads, config.local_weight)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised global picture features [B, d], gated where there is fusion."""
        return self.image_side(images).pooled

    def image_side(self, images: Tensor) -> Side:
        """What pictures [B, 3, H, W] bring to `similarity`."""
        tokens = self.backbone.image_tokens(images)
        return self.fusion.image_side(tokens) if self.fusion else _global_side(tokens.pooled)

    def text_side(self, text: Tensor, *, wrong: bool = False, length: int | None = None) -> Side:
        """What texts [B, context_length] bring to `similarity`, each made wrong if `wrong`.

        None is longer than `length` tokens, where given: a GPU need not be asked.
        """
        at = self.backbone.eot(text)
        if length is None or text.device.type == "cpu":  # where asking costs nothing
            length = int(at.max()) + 1
        words = word_mask(at, length)
        strengths = {name: getattr(self.config, name) for name in ("noise", "dropout", "cutoff")}
        change = partial(wrong_embeddings, words=words, **strengths) if wrong else None
        tokens = self.backbone.text_tokens(text[:, :length], length=length, change=change)
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
        lengths: Lengths = None,
    ) -> AsCLOutputs:
        """Encode a training batch: images [B, 3, H, W], token ids [B, context_length].

        `others` are second captions of the same pictures, `image_keys` [B] tell which rows share
        one, `lengths` are `text_lengths`; explanations are not read. Raises ValueError for fewer
        than 2 pairs and where richer texts need `others` and there are none.
        """
        if len(images) < 2:
            raise ValueError(f"a batch of {len(images)}: contrastive losses need at least 2 pairs")
        image = self.image_side(images)
        same = same_picture(image_keys, len(images), images.device)
        longest = None if lengths is None else lengths[0]
        similarity, wrong = self._compare(image, captions, longest)
        temperature = self.config.temperature
        scale = 1 / temperature if temperature else self.backbone.clip.logit_scale.exp()
        outputs = AsCLOutputs(similarity, same, scale, wrong)
        generated = self._generated(captions, others)
        if generated is not None:
            joined = None if lengths is None else min(sum(lengths), captions.shape[1])
            outputs.positive, outputs.positive_wrong = self._compare(image, generated, joined)
        return outputs

    def losses(self, outputs: AsCLOutputs) -> dict[str, Tensor]:
        """`loss` to minimise, its parts, and the share of wrong texts dropped as too similar."""
        same, scale = outputs.same, outputs.scale
        terms = {"ascl_pairs": nt_xent(outputs.similarity, same, scale, outputs.wrong)}
        loss = terms["ascl_pairs"]
        if outputs.positive is not None:
            terms["ascl_generated"] = nt_xent(outputs.positive, same, scale, outputs.positive_wrong)
            loss = (loss + terms["ascl_generated"]) / 2
        if outputs.wrong is not None:
            dropped = false_negatives(outputs.similarity, outputs.wrong).float()
            terms["wrong_dropped"] = dropped.mean()
        return {"loss": loss, **terms}

    def text_lengths(
        self, captions: Tensor, explanations: Tensor | None, others: Tensor | None = None
    ) -> list[int]:
        """Tokens of the longest caption and second caption, found before a batch is sent."""
        return [self.backbone.longest(side) for side in (captions, others) if side is not None]

    def _compare(
        self, image: Side, text: Tensor, length: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """S with all texts, and with the wrong texts made of all of them, [B, B] each."""
        similarity = self.similarity(image, self.text_side(text, length=length))
        if self.config.wrong == "none":
            return similarity, None
        wrong = self.text_side(text, wrong=True, length=length)
        return similarity, self.similarity(image, wrong)

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


def _global_side(pooled: Tensor) -> Side:
    """A side without tokens: there is nothing local to compare."""
    unit = F.normalize(pooled.float(), dim=-1)
    none = unit[:, None, :0]
    return Side(none, none, none, none, none.new_ones(len(unit), 1, dtype=torch.bool), unit)
