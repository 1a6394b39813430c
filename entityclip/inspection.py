"""What a trained model's experts and gates look at (EntityCLIP, the attention figures).

Experts run in training only, so everything here reads a batch as training would. The numbers are
training's own: folded queries on normalised tokens, `ExpertGroup.attention`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from entityclip.backbone import Backbone, Tokens
from entityclip.datasets.pair import Batch
from entityclip.mmae import MMAE, ExpertGroup, Gate, normalize_tokens
from entityclip.model import EntityCLIP


class ExplanationAttention(NamedTuple):
    """How the explanation experts spread over an explanation's tokens; padding gets 0.

    `image` [B, n_e, heads, L] as asked by each picture's CLS, `text` the same by each caption's
    EOT. Each row sums to 1.
    """

    image: Tensor
    text: Tensor


class Word(NamedTuple):
    """A word and its tokens' places, from `start` up to `stop`."""

    text: str
    start: int
    stop: int


@torch.inference_mode()
def explanation_attention(model: EntityCLIP, batch: Batch) -> ExplanationAttention:
    """Attention of the explanation experts over each pair's own explanation (section 3.2).

    L is the longest explanation of the batch. Raises ValueError for a model without explanation
    experts and for a batch without explanations.
    """
    mmae = _experts(model, "explanation")
    if batch.explanations is None:
        raise ValueError("the batch has no explanations; make its dataset with_explanations=True")
    batch = batch.to(model.device)
    trim = not model.config.sees_padding
    image = model.backbone.image_tokens(batch.images)
    text, explanation = model.backbone.texts_tokens(batch.captions, batch.explanations, trim=trim)
    valid = explanation.valid if trim else None
    of_text = mmae.explanation if mmae.explanation_text is None else mmae.explanation_text
    return ExplanationAttention(
        *(
            _attention(group, side, normalize_tokens(explanation.tokens), valid)
            for group, side in ((mmae.explanation, image), (of_text, text))
        )
    )


@torch.inference_mode()
def image_attention(model: EntityCLIP, batch: Batch) -> Tensor:
    """Attention [B, n_v, heads, h, w] of the image experts over patches, as CLS asks.

    What an expert gives to the CLS token itself lies on no patch: a map sums to 1 minus that.
    Raises ValueError for a model without image experts.
    """
    mmae = _experts(model, "image")
    image = model.backbone.image_tokens(batch.images.to(model.device))
    weights = _attention(mmae.image, image, normalize_tokens(image.tokens), None)
    return weights[..., 1:].unflatten(-1, model.backbone.clip.visual.grid_size)


@torch.inference_mode()
def gate_weights(model: EntityCLIP, batches: Iterable[Batch]) -> pd.DataFrame:
    """What each gate gives to each expert, pair by pair.

    Columns: `pair` (its id), `gate` ("image", "text" or "fusion"), `expert` ("image 1", …,
    "explanation 4"; the fusion gate has the explanation experts' vectors twice, "explanation 1 from
    image" and "… from text") and `weight`; one pair's weights of one gate sum to 1. Raises
    ValueError for a model without experts and for no batches.
    """
    names = expert_names(model)
    frames = []
    for batch in batches:
        moved = batch.to(model.device)
        for gate, weights in _gates(model, moved).items():
            table = pd.DataFrame(weights.float().cpu().numpy(), columns=names[gate])
            table = table.assign(pair=batch.ids, gate=gate)
            frames.append(table.melt(["pair", "gate"], var_name="expert", value_name="weight"))
    if not frames:
        raise ValueError("there are no batches to weigh")
    return pd.concat(frames, ignore_index=True)


def expert_names(model: EntityCLIP) -> dict[str, list[str]]:
    """The experts' names, by gate and in the order of its weights; a gate without any is absent.

    Raises ValueError for a model without experts.
    """
    if model.mmae is None:
        raise ValueError("this model has no experts: it is plain CLIP")
    config = model.config

    def numbered(name: str, count: int, end: str = "") -> list[str]:
        return [f"{name} {i + 1}{end}" for i in range(count)]

    image, text = numbered("image", config.image_experts), numbered("text", config.text_experts)
    explanation = numbered("explanation", config.explanation_experts)
    of_both = [
        *numbered("explanation", config.explanation_experts, " from image"),
        *numbered("explanation", config.explanation_experts, " from text"),
    ]
    names = {
        "image": [*image, *explanation],
        "text": [*text, *explanation],
        "fusion": [*image, *of_both, *text],
    }
    return {gate: names[gate] for gate in _gate_modules(model)}


def token_words(backbone: Backbone, ids: Tensor | Sequence[int]) -> list[Word]:
    """The words that one text's token ids [L] spell, start and end markers included, padding not.

    The tokenizer's pieces of one word are joined; it lower-cases, and sets punctuation apart.
    """
    tokenizer = backbone.tokenize
    markers = {tokenizer.sot_token_id: "⟨start⟩", tokenizer.eot_token_id: "⟨end⟩"}
    words, start = [], 0
    for place, token in enumerate(map(int, ids)):
        if token not in markers and not tokenizer.decoder[token].endswith("</w>"):
            continue  # the word goes on
        # what stands before a marker without ending is a word cut at the context length
        stop = place if token in markers else place + 1
        if start < stop:
            pieces = [int(piece) for piece in ids[start:stop]]
            words.append(Word(tokenizer.decode(pieces).strip(), start, stop))
        if token in markers:
            words.append(Word(markers[token], place, place + 1))
        start = place + 1
        if token == tokenizer.eot_token_id:
            break
    return words


def word_weights(words: Sequence[Word], weights: Tensor) -> Tensor:
    """Token weights [..., L] summed over each word's tokens: [..., words]."""
    if not words:
        return weights[..., :0]
    return torch.stack([weights[..., w.start : w.stop].sum(dim=-1) for w in words], dim=-1)


def word_table(backbone: Backbone, batch: Batch, attention: ExplanationAttention) -> pd.DataFrame:
    """How each explanation of a batch is read, a row a word: mean over experts and heads.

    Columns: `pair` (its id), `place`, `word`, `from_image` and `from_text`; each of the latter sums
    to 1 over a pair's words.
    """
    parts = []
    for row, pair in enumerate(batch.ids):
        words = token_words(backbone, batch.explanations[row])
        sides = [word_weights(words, side[row].mean(dim=(0, 1))).cpu() for side in attention]
        names = {"place": range(len(words)), "word": [word.text for word in words]}
        weights = dict(zip(("from_image", "from_text"), map(Tensor.numpy, sides), strict=True))
        parts.append(pd.DataFrame({"pair": pair} | names | weights))
    return pd.concat(parts, ignore_index=True)


def patch_table(ids: Sequence[str], maps: Tensor) -> pd.DataFrame:
    """Maps [B, n, h, w] of pairs `ids` as rows: `pair`, `expert`, `row`, `column`, `weight`."""
    _, experts, height, width = maps.shape
    index = pd.MultiIndex.from_product(
        [list(ids), [f"image {i + 1}" for i in range(experts)], range(height), range(width)],
        names=["pair", "expert", "row", "column"],
    )
    return pd.DataFrame({"weight": maps.cpu().flatten().numpy()}, index).reset_index()


def as_pictures(backbone: Backbone, images: Tensor) -> list[Image.Image]:
    """Normalised images [B, 3, H, W] as the pictures the model saw, cropped and resized."""
    visual = backbone.clip.visual
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (visual.image_mean, visual.image_std))
    pixels = (images.cpu() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def _attention(group: ExpertGroup, side: Tokens, keys: Tensor, valid: Tensor | None) -> Tensor:
    """Weights [B, n, heads, L] of a group's experts, asked by each side's pooled row."""
    folded = group.fold_query(normalize_tokens(side.pooled))
    return group.attention(folded, keys, valid).unflatten(1, (group.n, group.heads))


def _gates(model: EntityCLIP, batch: Batch) -> dict[str, Tensor]:
    image = model.backbone.encode_image(batch.images)
    text = model.backbone.encode_text(batch.captions)
    features = {"image": image, "text": text, "fusion": torch.cat([image, text], dim=-1)}
    return {name: gate.weights(features[name]) for name, gate in _gate_modules(model).items()}


def _gate_modules(model: EntityCLIP) -> dict[str, Gate]:
    """The gates that there are: none mixes a side without experts, none fuses in an ablation."""
    fusion = None if model.matching is None else model.matching.gate
    gates = {"image": model.mmae.image_gate, "text": model.mmae.text_gate, "fusion": fusion}
    return {name: gate for name, gate in gates.items() if gate is not None}


def _experts(model: EntityCLIP, group: str) -> MMAE:
    if model.mmae is None or getattr(model.mmae, group) is None:
        raise ValueError(f"this model has no {group} experts")
    return model.mmae
