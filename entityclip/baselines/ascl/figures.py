"""What AsCL's chapter shows: its generated samples and the tables of its runs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from entityclip.baselines.ascl.model import AsCL
from entityclip.baselines.ascl.samples import (
    WRONG_KINDS,
    poorer_text,
    richer_text,
    word_mask,
    wrong_embeddings,
)
from entityclip.datasets.captions import SeveralCaptions
from entityclip.style import GREY, PAGE, VERMILLION

_KINDS = ("as written", "says more", "says less")


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
    of wrong texts that are more similar, which the loss leaves out as false negatives.
    """
    device, config = model.backbone.device, model.config
    batch = dataset.collate([dataset[row] for row in range(min(n, len(dataset)))]).to(device)
    at = model.backbone.eot(batch.captions)
    words = word_mask(at, int(at.max()) + 1)
    image, true = model.image_side(batch.images), model.text_side(batch.captions)
    similarity = model.fusion.paired(image, true)
    found = []
    for number, kind in enumerate(WRONG_KINDS):
        kinds = torch.full_like(at, number)

        def change(embeddings: torch.Tensor, kinds: torch.Tensor = kinds) -> torch.Tensor:
            return wrong_embeddings(
                embeddings, words, noise=config.noise, dropout=config.dropout,
                cutoff=config.cutoff, kinds=kinds,
            )  # fmt: skip

        tokens = model.backbone.text_tokens(batch.captions, change=change)
        wrong = model.fusion.paired(image, model.fusion.text_side(tokens, words))
        found.append(
            {
                "kind": kind,
                "true": similarity.mean().item(),
                "wrong": wrong.mean().item(),
                "left out, %": 100 * (wrong > similarity).float().mean().item(),
            }
        )
    return pd.DataFrame(found)


def plot_wrong(table: pd.DataFrame) -> Figure:
    """`wrong_similarities` as pairs of points, true and wrong."""
    figure, axis = plt.subplots(figsize=(PAGE / 2, 2.0), layout="constrained")
    places = range(len(table))
    axis.hlines(places, table["wrong"], table["true"], color=GREY, linewidth=1)
    axis.plot(table["true"], places, "o", color=GREY, label="true caption")
    axis.plot(table["wrong"], places, "D", color=VERMILLION, label="made wrong")
    axis.set_yticks(places, table["kind"])
    axis.set(xlabel="mean similarity S with the picture", ylim=(len(table) - 0.5, -0.5))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
    return figure


def plot_rsum(table: pd.DataFrame, title: str = "") -> Figure:
    """RSUM of `recall_table`: a line a variant, a point a seed, the mean of several as a bar."""
    variants = list(dict.fromkeys(table["variant"]))
    height = 0.7 + 0.28 * len(variants)
    figure, axis = plt.subplots(figsize=(PAGE * 0.6, height), layout="constrained")
    for place, variant in enumerate(variants):
        values = table[table["variant"] == variant]["RSUM"]
        colour = GREY if variant.startswith("contrastive") else VERMILLION
        axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.6)
        if len(values) > 1:
            axis.plot([values.mean()], [place], "|", color="black", markersize=14)
    axis.set_yticks(range(len(variants)), variants)
    axis.set(xlabel="RSUM (at most 600)", ylim=(len(variants) - 0.5, -0.5), title=title)
    return figure
