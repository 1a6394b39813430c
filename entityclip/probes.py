"""Questions to a trained model's experts: is V*·T* agreement real, and does the head match?

The leak question: in training V* and T* both attend to the same explanation E, so they may agree
because both copy E. Put another explanation in E's place at test: what survives of their agreement
when BOTH sides read the same wrong E was never about picture and caption.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from entityclip.datasets.images import ImageTextDataset, whole_batch
from entityclip.datasets.pair import Batch, PairDataset
from entityclip.evaluation import Retrieval
from entityclip.experiments import Experiment
from entityclip.metrics import bootstrap_interval, recall_at_k, retrieval_ranks
from entityclip.model import EntityCLIP
from entityclip.results import Row, append_rows, measurement_rows, provenance

# whose explanation each side reads, image and text: its own, or that of one other pair or another
CONDITIONS = {
    "own": ("own", "own"),
    "same wrong": ("other", "other"),
    "wrong for the image": ("other", "own"),
    "wrong for the text": ("own", "other"),
    "two different wrong": ("other", "another"),
}
MATCHING = ("matched", "wrong text", "wrong image")
_BATCH = 100


@torch.inference_mode()
def mixed_embeddings(
    model: EntityCLIP,
    dataset: PairDataset | ImageTextDataset,
    image_reads: Tensor,
    text_reads: Tensor,
) -> tuple[Tensor, Tensor]:
    """V* and T*_moe of a split, [N, d] each and normalised, reading given pairs' explanations.

    `image_reads` and `text_reads` [N] say whose explanation (row) each side's experts attend to.
    Raises ValueError for a model without explanation experts, ImageError for a broken picture.
    """
    if not model.config.explanation_experts:
        raise ValueError("the model has no explanation experts whose reading could be changed")
    images, texts = [], []
    for rows, batch in _batches(dataset, model.device):
        image = model.backbone.image_tokens(batch.images)
        text = model.backbone.text_tokens(batch.captions, trim=not model.config.sees_padding)
        sides = []
        for reads in (image_reads, text_reads):
            explanation = model.backbone.text_tokens(
                dataset.explanations[reads[rows]].to(batch.captions.device),
                trim=not model.config.sees_padding,
            )
            vectors, *_ = model.mmae(image, text, explanation, masked=not model.config.sees_padding)
            sides.append(model.mmae.mix(image, text, vectors))
        images.append(F.normalize(sides[0][0].float(), dim=-1))
        texts.append(F.normalize(sides[1][1].float(), dim=-1))
    return torch.cat(images), torch.cat(texts)


def measure_leak(experiment: Experiment, model: EntityCLIP, variant: str, split: str) -> list[Row]:
    """R@1 between V* and T* of a split under each of CONDITIONS, stored as rows of kind "leak".

    The metric's name carries the condition: "R@1, same wrong".
    """
    start = time.perf_counter()
    dataset = experiment.dataset(split, explanations=True)
    n = len(dataset)
    generator = torch.Generator().manual_seed(experiment.seed)
    order = torch.randperm(n, generator=generator)
    reads = {"own": torch.arange(n)}
    for shift, name in enumerate(("other", "another"), start=1):
        reads[name] = torch.empty_like(order)
        reads[name][order] = order.roll(shift)  # a cycle: nobody keeps its own
    found: dict[str, Retrieval] = {}
    for name, (image, text) in CONDITIONS.items():
        images, texts = mixed_embeddings(model.eval(), dataset, reads[image], reads[text])
        found[name] = Retrieval(
            retrieval_ranks(texts, images), retrieval_ranks(images, texts), torch.arange(n)
        )
    rows: list[Row] = []
    for name, retrieval in found.items():
        for direction in ("text_to_image", "image_to_text"):
            ranks = retrieval.ranks(direction)
            rows += _recall_rows(
                experiment, variant, split, direction, {f"R@1, {name}": ranks}, model, start
            )
    append_rows(experiment.results / "leak.jsonl", rows)
    return rows


@torch.inference_mode()
def measure_matching(
    experiment: Experiment, model: EntityCLIP, variant: str, split: str
) -> list[Row]:
    """Accuracy of the GI-ITM head on true pairs and on hard negatives, rows of kind "matching".

    Negatives are drawn as in training, within batches of 100 pairs, under the run's seed. Raises
    ValueError for a model without the head.
    """
    if model.matching is None:
        raise ValueError(f"{variant} has no matching head")
    start = time.perf_counter()
    dataset = experiment.dataset(split, explanations=model.needs_explanations)
    right: dict[str, list[Tensor]] = {name: [] for name in MATCHING}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(experiment.seed)
        for _, batch in _batches(dataset, model.device):
            outputs = model.eval()(
                batch.images, batch.captions, batch.explanations, batch.image_keys
            )
            answers = outputs.itm_logits.argmax(dim=-1)  # [3, B]
            for name, answer, label in zip(MATCHING, answers, (1, 0, 0), strict=True):
                counted = slice(None) if label else outputs.itm_valid
                right[name].append((answer == label)[counted].cpu())
    rows: list[Row] = []
    for name, parts in right.items():
        # a rank of 1 where it is right: accuracy is R@1, and so is its interval
        ranks = {f"accuracy, {name}": 2 - torch.cat(parts).long()}
        rows += _recall_rows(experiment, variant, split, "pairs", ranks, model, start)
    append_rows(experiment.results / "matching.jsonl", rows)
    return rows


def _batches(
    dataset: PairDataset | ImageTextDataset, device: torch.device
) -> Iterator[tuple[Tensor, Batch]]:
    rows = torch.arange(len(dataset))
    parts = list(rows.split(_BATCH))
    if len(parts) > 1 and len(parts[-1]) == 1:  # a batch of one has no negatives
        parts[-2:] = [torch.cat(parts[-2:])]
    for part in parts:
        batch = whole_batch(dataset.collate([dataset[i] for i in part.tolist()]))
        yield part, batch.to(device)


def _recall_rows(
    experiment: Experiment,
    variant: str,
    split: str,
    direction: str,
    ranks: dict[str, Tensor],
    model: EntityCLIP,
    start: float,
) -> list[Row]:
    origin = provenance(
        config=experiment.identity(variant),
        seed=experiment.seed,
        data_fingerprint=experiment.fingerprint(split),
        device=model.device,
        wall_time_s=time.perf_counter() - start,
    )
    rows: list[Row] = []
    for metric, values in ranks.items():
        interval = bootstrap_interval(
            values, ["R@1"], n_resamples=experiment.settings.bootstrap, seed=experiment.seed
        )["R@1"]
        rows += measurement_rows(
            {metric: recall_at_k(values, [1])["R@1"]},
            {metric: interval},
            variant=variant,
            dataset=experiment.settings.dataset,
            split=split,
            direction=direction,
            n_queries=len(values),
            n_candidates=len(values) if direction != "pairs" else 2,
            provenance=origin,
        )
    return rows
