"""Where we differ from the authors' public code, and by how much: measured, and written down.

    python -m benchmarks.public_code            measures all, writes figures/public_code.csv
    python -m benchmarks.public_code NAME ...   measures and prints some

What their code does is written from its facts alone; no code of theirs is used. Each function below
measures one difference, on a CPU in seconds: on random weights, drawn features or drawn pairs where
no data are named. The README's table is filled from the file by ``python -m benchmarks.readme``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from entityclip.config import REPOSITORY, AsCLConfig, EntityCLIPConfig, TrainConfig, load_profile
from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import Batch, PairDataset
from entityclip.datasets.pair import decode
from entityclip.datasets.sources.n24news import n24news_pairs
from entityclip.evaluation.inspection import drawn_negatives, logits_at
from entityclip.evaluation.ranks import both_ranks, similarity_ranks
from entityclip.evaluation.retrieval import positions, reordered, retrieve_reranked
from entityclip.models.ascl import AsCL, word_mask, wrong_embeddings
from entityclip.models.clip import Backbone, BackboneError, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.negatives import FLOOR, Negatives
from entityclip.models.weights import preprocessing_of
from entityclip.reporting.style import save_table
from entityclip.results import chapter_rows, read_log, stored_rows
from entityclip.statistics import recall_at_k
from entityclip.training.loop import train
from tests.fixtures import layouts

FIGURES, NAME = REPOSITORY / "figures", "public_code"


class Difference(NamedTuple):
    """A row of the table; `restored_by` is empty where no setting restores theirs."""

    what: str
    theirs: str
    ours: str
    change: str
    restored_by: str


# ------------------------------------------------------------------------------------ EntityCLIP


def negatives() -> Difference:
    late, later = 0.06, 0.0006
    drawn = drawn_negatives([later])
    others = drawn[drawn["rank"] > 0]
    mean = {
        draw: np.average(rows["rank"], weights=rows["probability"])
        for draw, rows in others.groupby("draw")
    }
    mass = logits_at(late).softmax(dim=1).fill_diagonal_(0).sum(dim=1)
    share = (len(mass) * FLOOR / (mass + len(mass) * FLOOR)).mean()
    return Difference(
        "GI-ITM's negatives",
        "softmax with the pair itself, its entry then 0, and 1e-5 added to every entry: the pair "
        "and its repeats can be drawn",
        "softmax without the pair and its repeats, no floor",
        f"B = 192, scale 100: at VTC {late} the floor holds {100 * share:.0f} % of a row; "
        f"at {later} a negative's mean rank is {mean['floored']:.0f} of 191, of ours "
        f"{mean['hard']:.1f}",
        "`model.negatives: floored`, or `reference_compat`",
    )


def padding() -> Difference:
    found = {}
    for name, options in {"ours": {}, "padding": {"mask_padding": False},
                          "both": {"reference_compat": True}}.items():  # fmt: skip
        torch.manual_seed(0)
        model = EntityCLIP(_backbone(), EntityCLIPConfig(**options)).eval()
        batch = _batch(model.backbone, 32)
        rows = torch.arange(32).roll(1)
        given = Negatives(rows, rows, torch.ones(32, dtype=torch.bool))
        encoded = model.encode(batch.images, batch.captions, batch.explanations)
        found[name] = model.losses(model.compare(encoded, batch.captions, negatives=given))
    moved = abs(found["padding"]["vtc_moe"] / found["ours"]["vtc_moe"] - 1)
    pooled = abs(found["both"]["itm"] / found["padding"]["itm"] - 1)
    return Difference(
        "Padding, and where a negative text is read",
        "experts attend to what follows EOT; a negative text is pooled at the positive's EOT",
        "padding is masked; a negative text is pooled at its own EOT",
        f"random weights: VTC(V\\*, T\\*) moves by {100 * moved:.2g} %, the GI-ITM loss by "
        f"{100 * pooled:.2g} %",
        "`model.reference_compat: true`",
    )


def precision() -> Difference:
    torch.manual_seed(0)
    weights = torch.cat([p.flatten() for p in _backbone().clip.parameters() if p.ndim > 1])
    still = {}
    for rate in (1e-5, 5e-6):  # Adam's first step moves every weight by the rate
        half = weights.half()
        step = rate * torch.randn(len(weights)).sign()
        still[rate] = ((half.float() - step).half() == half).float().mean().item()
        kept = (weights - step == weights).float().mean().item()
    return Difference(
        "Precision",
        "weights re-cast to fp16 every step",
        "fp32 weights; products in bf16 where the GPU has it",
        f"random towers, one Adam step: {100 * still[1e-5]:.0f} % of their weights do not move at "
        f"lr 1e-5, {100 * still[5e-6]:.0f} % at 5e-6; of ours {100 * kept:.2g} %",
        "",
    )


def logit_scale() -> Difference:
    rise = 100 * (math.exp(1e-5 * 1000) - 1)
    return Difference(
        "Logit scale",
        "free",
        "held at 100 or below, as in CLIP; the log marks the steps where that binds",
        f"OpenAI's weights start at 100: 1,000 steps of 1e-5 add {rise:.1f} %",
        "`finetuning.max_logit_scale: null`",
    )


# -------------------------------------------------------------------------------------- training


def best_checkpoint() -> Difference:
    torch.manual_seed(0)
    backbone = _backbone()
    model = EntityCLIP(backbone, EntityCLIPConfig())
    sets = [_dataset(backbone, n, split) for n, split in ((96, "train"), (40, "val"))]
    config = TrainConfig(epochs=6, batch_size=16, lr=5e-4, precision="fp32", seed=0)
    with tempfile.TemporaryDirectory() as folder:
        train(model, *sets, config, Path(folder), progress=False)
        rows = read_log(Path(folder) / "log.jsonl")[1].set_index("epoch")
    by = {name: int(rows[f"val_{name}"].idxmin()) for name in ("loss", "vtc")}
    return Difference(
        "Best checkpoint",
        "lowest VTC of the pooled features",
        "lowest total loss; both count all validation pairs",
        f"96 drawn pairs, 6 epochs: epoch {by['vtc']} by VTC, {by['loss']} by loss",
        "`finetuning.best_by: vtc`, or `reference_compat`",
    )


def preprocessing() -> Difference:
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD,
             "interpolation": "bicubic", "resize_mode": "shortest"}  # fmt: skip
    listed = [(n, t) for n, t in open_clip.list_pretrained() if "ViT" in n]
    others = sum(usual | preprocessing_of(*entry) != usual for entry in listed)
    torch.manual_seed(0)
    backbone = _backbone().eval()
    images = _batch(backbone, 64).images
    mean, std = (torch.tensor(usual[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        alike = F.cosine_similarity(
            backbone.encode_image(images), backbone.encode_image((images * std + mean - 0.5) / 0.5)
        )
    return Difference(
        "Pictures' preprocessing",
        "OpenAI's; only OpenAI's weights are offered",
        "the one that the weights were trained with, everywhere",
        f"{others} of open_clip's {len(listed)} ViT entries want another; with mean and deviation "
        f"0.5, features of random towers lie at cosine {alike.mean():.3f}",
        "",
    )


def epoch_length() -> Difference:
    return Difference(
        "Length of N24News' data set",
        "`__len__` is 512 as released",
        "all pairs",
        f"theirs: {512 // 192} steps of 192 an epoch",
        "`train_pairs: 512` trains on as many, though always the same",
    )


def resnets() -> Difference:
    try:
        create_backbone("RN50", weights=False)
        said = "accepted"
    except BackboneError as error:
        said = f"refused before the first step: “{str(error).split(';')[0]}”"
    return Difference("RN101, RN50x4", "offered; their forward pass crashes", "refused", said, "")


# ------------------------------------------------------------------------------------------ AsCL


def ascl_wrong() -> Difference:
    torch.manual_seed(0)
    model = AsCL(_backbone(), AsCLConfig()).eval()
    batch = _batch(model.backbone, 64)
    with torch.no_grad():
        image, text = model.image_side(batch.images), model.text_side(batch.captions)
        similarity = model.similarity(image, text)
        wrong = model.similarity(image, model.text_side(batch.captions, wrong=True))
    scale = 1 / model.config.temperature
    dropped = wrong > similarity.diagonal()[:, None]
    kept = (scale * similarity).exp().sum(1) + (scale * wrong).exp().masked_fill(dropped, 0).sum(1)
    share = (dropped.sum(1) / (dropped.sum(1) + kept)).mean()
    return Difference(
        "AsCL: wrong texts more similar than the true one",
        "stay in the denominator with similarity 0",
        "masked",
        f"random weights, B = 64: {100 * dropped.float().mean():.0f} % of the wrong texts are "
        f"dropped; theirs would hold {100 * share:.2g} % of the denominator",
        "",
    )


def ascl_shuffle() -> Difference:
    torch.manual_seed(0)
    model = AsCL(_backbone(), AsCLConfig()).eval()
    batch = _batch(model.backbone, 32)
    at = model.backbone.eot(batch.captions)
    words = word_mask(at, int(at.max()) + 1)
    shuffled = {"words": words, "kinds": torch.full_like(at, 2)}
    with torch.no_grad():
        image, tokens = model.image_side(batch.images), model.backbone.text_tokens(batch.captions)
        after = tokens._replace(tokens=wrong_embeddings(tokens.tokens, **shuffled))
        before = model.backbone.text_tokens(
            batch.captions, change=lambda x: wrong_embeddings(x, **shuffled)
        )
        true, theirs, ours = (
            model.fusion(image, model.fusion.text_side(side, words))
            for side in (tokens, after, before)
        )
    return Difference(
        "AsCL: shuffled words as a wrong text",
        "the encoder's output is shuffled",
        "the encoder's input is",
        f"the similarity moves by {(theirs - true).abs().max():.0e} at most in theirs, by "
        f"{(ours - true).abs().max():.0e} in ours",
        "",
    )


def ascl_gate() -> Difference:
    gate = AsCL(_backbone(), AsCLConfig()).fusion.gate
    return Difference(
        "AsCL: the fusion's gate",
        "is not among the optimizer's parameters",
        "is trained",
        f"{sum(p.numel() for p in gate.parameters()):,} parameters at d = {gate.out_features}",
        "",
    )


def reranking() -> Difference:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(300, 32, generator=generator)
    image_of = torch.arange(300).repeat_interleave(5)
    captions = pictures[image_of] + 2 * torch.randn(1500, 32, generator=generator)
    similarity = F.normalize(pictures, dim=1) @ F.normalize(captions, dim=1).T
    groups = image_of, torch.arange(300)
    plain = similarity_ranks(similarity.T, groups)[0]
    honest = retrieve_reranked(similarity, image_of).text_to_image
    back = positions(similarity).T  # [caption, picture]
    known = torch.stack([back[image_of == group].amin(dim=0) for group in range(300)])[image_of]
    cheating = similarity_ranks(-reordered(positions(similarity.T), known, 20), groups)[0]
    first = [recall_at_k(ranks, (1,))["R@1"] for ranks in (plain, honest, cheating)]
    return Difference(
        "AsCL's follow-up: re-ranking text → image",
        "a candidate is judged by the best rank of any caption of the query's true picture",
        "by the query's own rank",
        f"300 drawn pictures, five captions each, R@1: {first[0]:.1f} plain, {first[1]:.1f} ours, "
        f"{first[2]:.1f} theirs",
        "",
    )


# ------------------------------------------------------------------------------------------- ITR


def itr_probe() -> Difference:
    rows = chapter_rows(load_profile("demo"), "relations")
    rows = rows[(rows["protocol"] == "linear probe") & (rows["variant"] == "CLIP")]
    f1 = rows.groupby("label")["value"].mean()
    measured = "no rows of the demo's relations are shipped; notebook 08 measures both"
    if len(f1):
        measured = (
            f"drawn tweets, weighted F1 of CLIP: text {f1['text of combined']:.1f} theirs, "
            f"{f1['text']:.1f} ours; image {f1['image of combined']:.1f}, {f1['image']:.1f}"
        )
    return Difference(
        "ITR: the linear probe",
        "one 4-class model, the two binary labels read from it",
        "a probe a label; theirs beside it",
        measured,
        "rows “text of combined”, “image of combined”",
    )


def itr_judged() -> Difference:
    rng, pairs, true = np.random.default_rng(0), 1000, 0.6
    best = rng.binomial(pairs, true, (10_000, 20)).max(axis=1) / pairs
    return Difference(
        "ITR: which iteration is reported",
        "the best of 20 on the test pairs",
        "the best on held-out pairs",
        f"by chance alone, 20 equal models of accuracy 60 % on {pairs:,} pairs: theirs reports "
        f"{100 * best.mean():.1f} %",
        "",
    )


# ---------------------------------------------------------------------------- data and evaluation


def left_out() -> Difference:
    with tempfile.TemporaryDirectory() as folder:
        layouts.n24news(Path(folder))
        pairs, report = n24news_pairs(Path(folder), "train")
    return Difference(
        "Rows without caption or picture, repeated ids",
        "stay in the test splits",
        "left out of every split, test too, and counted",
        f"of {report.rows} rows of a drawn N24News with such faults {len(pairs)} stay",
        "",
    )


def articles() -> Difference:
    generator = torch.Generator().manual_seed(0)
    article = torch.arange(200).repeat_interleave(3)
    shared = torch.randn(200, 64, generator=generator)[article]
    image, text = (shared + torch.randn(600, 64, generator=generator) for _ in range(2))
    features = [F.normalize(side, dim=1) for side in (text, image)]
    ranks = [both_ranks(*features, groups)[0] for groups in (None, (article, article))]
    first = [recall_at_k(found, (1,))["R@1"] for found in ranks]
    return Difference(
        "GoodNews: several pictures an article",
        "N captions against N pictures",
        "the same, and rows by article beside",
        f"200 drawn articles of three pictures, R@1: {first[0]:.1f} by picture, {first[1]:.1f} by "
        "article",
        "",
    )


def median_rank() -> Difference:
    ranks = stored_rows(load_profile("demo"), "ranks")["ranks"]
    even = [sorted(row) for row in ranks if len(row) % 2 == 0]
    apart = [(row[len(row) // 2] - row[len(row) // 2 - 1]) / 2 for row in even]
    return Difference(
        "MedR of an even number of queries",
        "the lower of the middle two",
        "their mean",
        f"differs in {sum(a > 0 for a in apart)} of the {len(even)} stored measurements, "
        f"by {max(apart):g} at most",
        "",
    )


def ties() -> Difference:
    n = 400
    ours = recall_at_k(similarity_ranks(torch.zeros(n, n))[0], (1, 100))
    order = np.zeros((n, n)).argsort(axis=1, kind="stable")  # sorting keeps the candidates' order
    theirs = 100 * np.mean(order.argsort(axis=1).diagonal() < 100)
    return Difference(
        "Ties",
        "broken by the order of the candidates",
        "count against the query",
        f"a model that gives 400 pictures one score has R@100 {theirs:g} in theirs, "
        f"{ours['R@100']:g} in ours",
        "",
    )


def decoding() -> Difference:
    picture = load_pairs("newsroom", "test", limit=1, seed=0, image_size=64)[0].load_image()
    with tempfile.TemporaryDirectory() as folder:
        turned, see_through = Path(folder) / "turned.jpg", Path(folder) / "see_through.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(turned, exif=exif, quality=95)
        layer = picture.convert("RGBA")
        layer.putalpha(Image.linear_gradient("L").resize(picture.size))
        layer.save(see_through)
        off = [
            np.abs(np.asarray(decode(path), float) - np.asarray(Image.open(path).convert("RGB")))
            for path in (turned, see_through)
        ]
    return Difference(
        "Turned and transparent pictures",
        "the camera's orientation is ignored, transparency dropped",
        "turned upright; transparent pixels become white",
        f"one drawn picture, a pixel's mean change: {off[0].mean():.0f} of 255 by a quarter turn, "
        f"{off[1].mean():.0f} by transparency",
        "",
    )


# ----------------------------------------------------------------------------------------- shared


def _backbone() -> Backbone:
    return create_backbone("newsroom-tiny")


def _dataset(backbone: Backbone, n: int, split: str = "train") -> PairDataset:
    pairs = load_pairs("newsroom", split, limit=n, seed=0, image_size=64)
    return PairDataset(
        pairs, backbone.preprocess, backbone.tokenize, with_explanations=True, cache=True
    )


def _batch(backbone: Backbone, n: int) -> Batch:
    served = _dataset(backbone, n)
    return served.collate([served[row] for row in range(n)])


MEASURED: dict[str, Callable[[], Difference]] = {
    function.__name__: function
    for function in (
        negatives, padding, precision, logit_scale,
        best_checkpoint, preprocessing, epoch_length, resnets,
        ascl_wrong, ascl_shuffle, ascl_gate, reranking,
        itr_probe, itr_judged,
        left_out, articles, median_rank, ties, decoding,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASURED))
    names = parser.parse_args().names
    if unknown := set(names) - set(MEASURED):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(MEASURED)}")
    rows = {name: MEASURED[name]() for name in names or MEASURED}
    for name, row in rows.items():
        print(f"{name}: {row.change}")
    if not names:
        table = pd.DataFrame({"name": name, **row._asdict()} for name, row in rows.items())
        save_table(table, FIGURES, NAME, f"python -m benchmarks.{NAME}")


if __name__ == "__main__":
    main()
