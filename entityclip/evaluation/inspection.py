"""What a trained model's experts and gates look at (EntityCLIP, the attention figures).

Experts run in training only, so what asks them reads a batch as training would. The numbers are
training's own: folded queries on normalised tokens, `ExpertGroup.attention`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from entityclip.datasets.captions import SeveralCaptions
from entityclip.datasets.dataset import Batch, PairDataset, whole_batch
from entityclip.devices import doubled
from entityclip.evaluation.retrieval import Embeddings
from entityclip.models.ascl import (
    WRONG_KINDS,
    AsCL,
    poorer_text,
    richer_text,
    word_mask,
    wrong_embeddings,
)
from entityclip.models.clip import Backbone, Tokens
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.experts import MMAE, ExpertGroup, Gate, normalize_tokens
from entityclip.models.losses import vtc_loss
from entityclip.models.negatives import FLOOR, draw_scores

_BATCH = 100  # pairs, of what asks a model in training's form
_CHUNK = 1024  # rows of a matrix of distances held at a time
_KINDS = ("as written", "says more", "says less")


class Word(NamedTuple):
    """A word and its tokens' places, from `start` up to `stop`."""

    text: str
    start: int
    stop: int


@torch.inference_mode()
def explanation_attention(model: EntityCLIP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Attention of the explanation experts over each pair's own explanation (section 3.2).

    As asked by each picture's CLS and by each caption's EOT, [B, n_e, heads, L] each, L being the
    longest explanation of the batch: each row sums to 1, and padding gets 0. Raises ValueError for
    a model without explanation experts and for a batch without explanations.
    """
    mmae = _experts(model, "explanation")
    if batch.explanations is None:
        raise ValueError("the batch has no explanations; make its dataset with_explanations=True")
    batch = batch.to(model.device)
    trim = not model.config.sees_padding
    image = model.backbone.image_tokens(batch.images)
    text, explanation = model.backbone.texts_tokens(batch.captions, batch.explanations, trim=trim)
    read = normalize_tokens(explanation.tokens), explanation.valid if trim else None
    of_text = mmae.explanation if mmae.explanation_text is None else mmae.explanation_text
    return _attention(mmae.explanation, image, *read), _attention(of_text, text, *read)


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
        image = model.backbone.encode_image(moved.images)
        text = model.backbone.encode_text(moved.captions)
        features = {"image": image, "text": text, "fusion": torch.cat([image, text], dim=-1)}
        for gate, module in _gate_modules(model).items():
            weights = module.weights(features[gate]).float().cpu().numpy()
            table = pd.DataFrame(weights, columns=names[gate])
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
    image, text, explanation = (
        [f"{name} {i + 1}" for i in range(getattr(model.config, f"{name}_experts"))]
        for name in ("image", "text", "explanation")
    )
    of_both = [f"{name} from {side}" for side in ("image", "text") for name in explanation]
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


def word_table(backbone: Backbone, batch: Batch, attention: tuple[Tensor, Tensor]) -> pd.DataFrame:
    """How each explanation of a batch is read, a row a word: mean over experts and heads.

    `attention` is `explanation_attention`'s, a word's being the sum of its tokens'. Columns: `pair`
    (its id), `place`, `word`, `from_image` and `from_text`; each of the latter sums to 1 over a
    pair's words.
    """
    parts = []
    for row, pair in enumerate(batch.ids):
        words = token_words(backbone, batch.explanations[row])
        columns = {"pair": pair, "place": range(len(words)), "word": [w.text for w in words]}
        for name, side in zip(("from_image", "from_text"), attention, strict=True):
            tokens = side[row].mean(dim=(0, 1)).cpu()
            sums = [tokens[word.start : word.stop].sum() for word in words]
            columns[name] = torch.stack(sums).numpy()
        parts.append(pd.DataFrame(columns))
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


def _gate_modules(model: EntityCLIP) -> dict[str, Gate]:
    """The gates that there are: none mixes a side without experts, none fuses in an ablation."""
    fusion = None if model.matching is None else model.matching.gate
    gates = {"image": model.mmae.image_gate, "text": model.mmae.text_gate, "fusion": fusion}
    return {name: gate for name, gate in gates.items() if gate is not None}


def _experts(model: EntityCLIP, group: str) -> MMAE:
    if model.mmae is None or getattr(model.mmae, group) is None:
        raise ValueError(f"this model has no {group} experts")
    return model.mmae


# ------------------------------------------------------------------------------ the leak question


@torch.inference_mode()
def mixed_embeddings(
    model: EntityCLIP, dataset: PairDataset, image_reads: Tensor, text_reads: Tensor
) -> tuple[Tensor, Tensor]:
    """V* and T*_moe of a split, [N, d] each and normalised, reading given pairs' explanations.

    In training both attend to the same E (section 3.2), so they may agree because both copy it:
    what survives when BOTH sides read the same wrong E was never about picture and caption.
    `image_reads` and `text_reads` [N] say whose explanation (row) each side's experts attend to.
    Rows keep the split's order; both tensors are float32 on the model's device. Raises ValueError
    for a model without explanation experts, ImageError for a broken picture.
    """
    if not model.config.explanation_experts:
        raise ValueError("the model has no explanation experts whose reading could be changed")
    images, texts, trim = [], [], not model.config.sees_padding
    for rows, batch in batches_of(dataset, model.device):
        image = model.backbone.image_tokens(batch.images)
        text = model.backbone.text_tokens(batch.captions, trim=trim)
        sides = []
        for reads in (image_reads, text_reads):
            ids = dataset.explanations[reads[rows]].to(batch.captions.device)
            explanation = model.backbone.text_tokens(ids, trim=trim)
            vectors, *_ = model.mmae(image, text, explanation)
            sides.append(model.mmae.mix(image, text, vectors))
        images.append(F.normalize(sides[0][0].float(), dim=-1))
        texts.append(F.normalize(sides[1][1].float(), dim=-1))
    return torch.cat(images), torch.cat(texts)


def batches_of(dataset: PairDataset, device: torch.device) -> Iterator[tuple[Tensor, Batch]]:
    """Rows and batches of a split in order, of some 100 pairs, as training reads them.

    Raises ImageError naming pair and file for a broken picture.
    """
    parts = list(torch.arange(len(dataset)).split(_BATCH))
    if len(parts) > 1 and len(parts[-1]) == 1:  # a batch of one has no negatives
        parts[-2:] = [torch.cat(parts[-2:])]
    for part in parts:
        batch = whole_batch(dataset.collate([dataset[i] for i in part.tolist()]))
        yield part, batch.to(device)


# ---------------------------------------------------------------------------- the embedding space


def alignment(images: Tensor, texts: Tensor, alpha: float = 2) -> float:
    """Mean ‖image − text‖^α of true pairs (Wang & Isola 2020, equation 4); lower is closer.

    `images` and `texts` [N, d], row by row a pair, normalised. Raises ValueError for other shapes.
    """
    if images.shape != texts.shape or images.ndim != 2 or not len(images):
        raise ValueError(
            f"alignment needs pairs [N, d], got {list(images.shape)} and {list(texts.shape)}"
        )
    return (images - texts).norm(dim=1).pow(alpha).mean().item()


def uniformity(x: Tensor, t: float = 2) -> float:
    """log of the mean exp(−t‖x_i − x_j‖²) over pairs i < j (Wang & Isola 2020, equation 5).

    `x` [N, d], normalised; lower is more even, 0 means a single point. Raises ValueError for fewer
    than two rows.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"uniformity needs at least two rows [N, d], got {list(x.shape)}")
    x, total = doubled(x), 0.0
    for start in range(0, len(x), _CHUNK):
        near = torch.exp(-t * torch.cdist(x[start : start + _CHUNK], x).square())
        total += near.triu(diagonal=start + 1).sum().item()
    return float(torch.tensor(total / (len(x) * (len(x) - 1) / 2)).log())


class Plane(NamedTuple):
    """A space seen in two dimensions, with what that view keeps and the space's own numbers.

    `points`: a row a caption and a row a picture, with `kind` ("caption" or "picture"), `pair`
    (the number of the picture both belong to), `x`, `y` and `label`; `explained` the two axes'
    shares of the variance.
    """

    points: pd.DataFrame
    explained: tuple[float, float]
    alignment: float
    uniformity_images: float
    uniformity_texts: float


def plane(embeddings: Embeddings, labels: Sequence[str | None]) -> Plane:
    """Pictures and captions of a split on their first two principal components.

    `labels` holds one a caption; a picture takes that of the first pair that shows it. Raises
    ValueError for another number of labels and for fewer than two pictures.
    """
    from sklearn.decomposition import PCA  # slow to import, and only figures need it

    texts, images = embeddings.texts.float().cpu(), embeddings.images.float().cpu()
    if len(labels) != len(texts):
        raise ValueError(f"{len(labels)} labels for {len(texts)} captions")
    if len(images) < 2:
        raise ValueError(f"{len(images)} picture(s) span no plane")
    pca = PCA(n_components=2, svd_solver="full").fit(torch.cat([texts, images]).numpy())
    of = embeddings.image_of.cpu()
    sides = {
        "caption": (texts, of.tolist(), list(labels)),
        "picture": (images, range(len(images)), [labels[i] for i in embeddings.first.tolist()]),
    }
    points = [
        pd.DataFrame(pca.transform(x.numpy()), columns=["x", "y"]).assign(
            kind=kind, pair=list(pair), label=[name or "" for name in named]
        )
        for kind, (x, pair, named) in sides.items()
    ]
    return Plane(
        pd.concat(points, ignore_index=True)[["kind", "pair", "label", "x", "y"]],
        tuple(map(float, pca.explained_variance_ratio_)),
        alignment(images[of], texts),
        uniformity(images),
        uniformity(texts),
    )


# -------------------------------------------------------------------- Grad-CAM and AsCL's texts


def grad_cams(backbone: Backbone, images: Tensor, texts: Tensor) -> NDArray[np.float32]:
    """Maps [N, H, W] from 0 to 1 of what raises each picture's cosine similarity to its text.

    `images` [N, 3, H, W] are preprocessed, `texts` [N, L] token ids. Each map is scaled by its own
    extremes: maps show where, not how much. One is all 0 where no patch helps. Raises ImportError
    where grad-cam is missing.
    """
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise ImportError("Grad-CAM needs grad-cam; pip install 'entityclip[notebooks]'") from error
    transformer = backbone.clip.visual.transformer

    def as_grid(tokens: Tensor) -> Tensor:
        """The patch tokens of [N, 1 + P, C] as pictures [N, C, rows, columns]; CLS has no place."""
        tokens = tokens if transformer.batch_first else tokens.transpose(0, 1)
        grid = backbone.clip.visual.grid_size
        return tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)

    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        targets = F.normalize(backbone.encode_text(texts), dim=-1)
    cosines = [lambda x, text=text: F.normalize(x, dim=-1) @ text for text in targets]
    visual, layers = backbone.clip.visual, [transformer.resblocks[-1].ln_1]
    try:
        # enable_grad: GradCAM differentiates whatever mode the caller is in
        with torch.enable_grad(), GradCAM(visual, layers, reshape_transform=as_grid) as cam:
            return cam(images, cosines)
    finally:
        backbone.zero_grad(set_to_none=True)
        backbone.train(was_training)


def text_samples(
    model: AsCL, dataset: SeveralCaptions, rows: list[int]
) -> list[tuple[str, str, Image.Image]]:
    """(kind, text, picture) of each row's caption and the true texts made of it, for a gallery."""
    backbone = model.backbone
    batch = dataset.collate([dataset[row] for row in rows])
    at, other_at = backbone.eot(batch.captions), backbone.eot(batch.others)
    richer = richer_text(batch.captions, at, batch.others, other_at)
    poorer = poorer_text(batch.captions, at)
    found = []
    for place, row in enumerate(rows):
        for kind, ids in zip(_KINDS, (batch.captions, richer, poorer), strict=True):
            end = int(backbone.eot(ids[place : place + 1]))
            text = backbone.tokenize.decode(ids[place, 1:end].tolist()).strip()
            found.append((kind, text, dataset.pairs[row].load_image()))
    return found


@torch.inference_mode()
def wrong_similarities(model: AsCL, dataset: SeveralCaptions, n: int) -> pd.DataFrame:
    """How each kind of wrong text compares with the true one, over the first `n` pairs.

    A row a kind: mean S with the true caption and with the wrong text made of it, and the percent
    of wrong texts that are more similar, which the loss leaves out as false negatives. Training
    also meets the wrong texts of all other captions.
    """
    device, config = model.backbone.device, model.config
    batch = dataset.collate([dataset[row] for row in range(min(n, len(dataset)))]).to(device)
    at = model.backbone.eot(batch.captions)
    words = word_mask(at, int(at.max()) + 1)
    image, true = model.image_side(batch.images), model.text_side(batch.captions)
    similarity = model.fusion(image, true).diagonal()
    found = []
    for number, kind in enumerate(WRONG_KINDS):
        change = partial(
            wrong_embeddings, words=words, noise=config.noise, dropout=config.dropout,
            cutoff=config.cutoff, kinds=torch.full_like(at, number),
        )  # fmt: skip
        tokens = model.backbone.text_tokens(batch.captions, change=change)
        wrong = model.fusion(image, model.fusion.text_side(tokens, words)).diagonal()
        left_out = 100 * (wrong > similarity).float().mean().item()
        means = {"true": similarity.mean().item(), "wrong": wrong.mean().item()}
        found.append({"kind": kind} | means | {"left out, %": left_out})
    return pd.DataFrame(found)


def logits_at(vtc: float, batch: int = 192, scale: float = 100.0, seed: int = 0) -> Tensor:
    """Main logits [B, B] of drawn features whose VTC is `vtc`: captions are pictures and noise."""
    generator = torch.Generator().manual_seed(seed)
    image, noise = F.normalize(torch.randn(2, batch, 512, generator=generator).double(), dim=-1)
    low, high, scale_ = 0.0, 1.0, torch.tensor(scale)
    for _ in range(40):  # bisection: more noise, more VTC
        share = (low + high) / 2
        text = F.normalize((1 - share) * image + share * noise, dim=-1)
        low, high = (share, high) if vtc_loss(image, text, scale_) < vtc else (low, share)
    return scale * image @ text.T


def drawn_negatives(vtcs: Sequence[float], **drawn: Any) -> pd.DataFrame:
    """Which texts GI-ITM draws, by rank, at several moments of a training (`logits_at`).

    A row a `vtc`, `draw` ("hard", ours, and "floored", the authors' code's) and `rank` of the
    negative in its picture's row, 1 the hardest and 0 the pair itself: the mean `probability`.
    """
    parts = []
    for vtc, (draw, floor) in itertools.product(vtcs, {"hard": 0.0, "floored": FLOOR}.items()):
        logits = logits_at(vtc, **drawn)
        own = torch.eye(len(logits), dtype=torch.bool)
        scores = draw_scores(logits, own if draw == "hard" else torch.zeros_like(own), floor)
        order = logits.masked_fill(own, torch.inf).argsort(dim=1, descending=True)  # the own first
        mean = scores.double().softmax(dim=1).gather(1, order).mean(dim=0)
        parts.append(pd.DataFrame({"vtc": vtc, "draw": draw, "rank": range(len(mean)),
                                   "probability": mean.numpy()}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)
