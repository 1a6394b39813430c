"""What else is asked of a measured variant: of its experts, of its matching head, of its names.

Rows of kinds "leak", "matching" and "names", beside those of retrieval (`measure`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from entityclip.datasets.dataset import Batch, whole_batch
from entityclip.devices import best_device, own_draws
from entityclip.evaluation.cost import query_cost, training_cost
from entityclip.evaluation.distractors import scene_floor, shown_by
from entityclip.evaluation.inspection import batches_of, mixed_embeddings
from entityclip.evaluation.ranks import both_ranks
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import (
    joined,
    measured,
    origin,
    retrieved,
    store,
    stored_ranks,
)
from entityclip.identities import measured_identity
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.results import Row, measurement_rows
from entityclip.statistics import DIRECTIONS, Retrieval, bootstrap_interval, recall_at_k
from entityclip.variants import BY_NAME, CONDITIONS, MATCHING, NAME_BINS, NAMES_CUT

NAME_METRICS = ("R@1", "R@10")
FLOOR_METRICS = ("R@1", "R@5", "R@10", "MRR", "MedR", "MeanR")


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
    found = {}
    for name, (image, text) in CONDITIONS.items():
        images, texts = mixed_embeddings(model.eval(), dataset, reads[image], reads[text])
        found[name] = both_ranks(texts, images)
    rows: list[Row] = []
    for name, both in found.items():
        for direction, ranks in zip(DIRECTIONS, both, strict=True):
            rows += _recall_row(experiment, variant, split, direction, f"R@1, {name}", ranks, start)
    return store(experiment, "leak", rows, experiment.trained_on(variant))


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
    with own_draws(model.device):
        torch.manual_seed(experiment.seed)
        for _, batch in batches_of(dataset, model.device):
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
        ranks, metric = 2 - torch.cat(parts).long(), f"accuracy, {name}"
        rows += _recall_row(experiment, variant, split, "pairs", metric, ranks, start)
    return store(experiment, "matching", rows, experiment.trained_on(variant))


def _recall_row(
    experiment: Experiment,
    variant: str,
    split: str,
    direction: str,
    metric: str,
    ranks: Tensor,
    start: float,
) -> list[Row]:
    """R@1 of ranks under the name `metric`, measured since `start`."""
    took, seed = time.perf_counter() - start, experiment.seed
    ends = bootstrap_interval(
        ranks, ["R@1"], n_resamples=experiment.settings.bootstrap, seed=seed
    )["R@1"]  # fmt: skip
    return measurement_rows(
        {metric: recall_at_k(ranks, [1])["R@1"]}, {metric: ends}, variant=variant,
        dataset=experiment.settings.dataset, split=split, direction=direction,
        n_queries=len(ranks), n_candidates=2 if direction == "pairs" else len(ranks),
        provenance=origin(experiment, experiment.identity(variant), split, took, seed),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- names


def measure_by_name(
    experiment: Experiment, variants: Iterable[str], splits: Iterable[str]
) -> pd.DataFrame:
    """R@1 and R@10 of captions by how often training captions hold their rarest name.

    From stored ranks, no model is asked; what has none is left out. Rows of kind "names", whose
    metric carries the bin of NAME_BINS: "R@1, rarest name in 1–3 training captions". A bin of fewer
    than two pictures has no interval to give, and no row.
    """
    parts = []
    for variant, split in itertools.product(variants, splits):
        if (found := stored_ranks(experiment, variant, split)) is None:
            continue
        identity = measured_identity(experiment.settings, "names", variant, experiment.seed)
        parts.append(
            measured(
                experiment, "names", identity, split,
                partial(_by_name, experiment, found, variant, identity, split),
                trained=partial(experiment.trained_on, variant),
            )
        )  # fmt: skip
    return joined(parts) if parts else pd.DataFrame()


def _by_name(
    experiment: Experiment, found: Retrieval, variant: str, identity: dict[str, Any], split: str
) -> list[Row]:
    start, settings = time.perf_counter(), experiment.settings
    held, pictures = experiment.rarest_names(split), found.image_of
    bins = np.digitize(held, list(NAME_BINS)) - 1
    rows: list[Row] = []
    for number, label in enumerate(NAME_BINS.values()):
        here = bins == number
        if len({*pictures[here]}) < 2:
            continue
        ranks = found.text_to_image[here]
        ends = bootstrap_interval(
            ranks, NAME_METRICS, n_resamples=settings.bootstrap, seed=experiment.seed,
            clusters=pictures[here],
        )  # fmt: skip
        suffix = f", {BY_NAME.format(label)}"
        rows += measurement_rows(
            {m + suffix: v for m, v in recall_at_k(ranks, [1, 10]).items()},
            {m + suffix: v for m, v in ends.items()}, variant=variant, dataset=settings.dataset,
            split=split, direction="text_to_image", n_queries=len(ranks),
            n_candidates=len(found.image_to_text),
            provenance=origin(
                experiment, identity, split, time.perf_counter() - start, experiment.seed
            ),
        )  # fmt: skip
    return rows


def measure_names_cut(
    experiment: Experiment, model: EntityCLIP, variant: str, split: str
) -> list[Row]:
    """R@1 and R@10 of a split's captions without their names, stored as rows of kind "names_cut".

    What remains is found by scene and event alone. CLIP's are a floor of all variants, too.
    """
    identity = measured_identity(experiment.settings, "names_cut", variant, experiment.seed)
    _, found = retrieved(experiment, model, variant, identity, split, experiment, names_cut=True)
    rows = [
        {**row, "metric": f"{row['metric']}, {NAMES_CUT}"}
        for row in found
        if row["metric"] in NAME_METRICS
    ]
    if variant == "clip":
        _store_floors(experiment, split, found)
    return store(experiment, "names_cut", rows, experiment.trained_on(variant))


def _store_floors(experiment: Experiment, split: str, names_cut: list[Row]) -> None:
    """What is found without names, as rows of kind "floor": by these rows, and by scenes alone."""
    base = next(row for row in names_cut if row["direction"] == "text_to_image")
    values = {
        row["metric"]: row["value"]
        for row in names_cut
        if row["direction"] == "text_to_image" and row["metric"] in FLOOR_METRICS
    }
    floors = {"names-cut": values}
    pictures = {pair.image_key: pair for pair in experiment.pairs(split)}
    if shown := shown_by([*pictures.values()]):
        floors["scene-only"] = scene_floor(shown, (1, 5, 10))
    for name, metrics in floors.items():
        identity = measured_identity(experiment.settings, "floor", name, experiment.seed)
        rows = measurement_rows(
            metrics, {}, variant=name, dataset=base["dataset"], split=split,
            direction="text_to_image", n_queries=base["n_queries"],
            n_candidates=base["n_candidates"],
            provenance=origin(experiment, identity, split, base["wall_time_s"], experiment.seed),
        )  # fmt: skip
        trained = experiment.trained_on("clip") if name == "names-cut" else None
        store(experiment, "floor", rows, trained)


# ------------------------------------------------------------------------------------------ cost


def measure_costs(experiment: Experiment, variants: Iterable[str]) -> pd.DataFrame:
    """What a training step and 1,000 queries of each variant cost: rows of kind "cost".

    Of the first batch of the training split, with untrained weights; value, least and greatest of
    several times. What is stored is not measured again: costs are this machine's, as rows say.
    """
    split, parts = experiment.settings.test_splits[0], []
    for variant in variants:
        identity = experiment.identity(variant)
        make = partial(_cost_rows, experiment, variant, identity, split)
        parts.append(
            measured(experiment, "cost", identity, split, make, trained=lambda: None)
        )  # fmt: skip
    return joined(parts)


def _cost_rows(
    experiment: Experiment, variant: str, identity: dict[str, Any], split: str
) -> list[Row]:
    start, settings = time.perf_counter(), experiment.settings
    towers = create_backbone(settings.backbone, image_size=settings.image_size)
    model, asked = EntityCLIP(towers, experiment.config(variant)), experiment.pairs(split)
    model = model.to(best_device())
    served = experiment.read_by(model, "train")
    rows = range(min(settings.finetuning.batch_size, len(served)))
    batch = served.collate([served[i] for i in rows])  # less its broken pictures, as in training
    batch = batch if isinstance(batch, Batch) else whole_batch(batch)
    found = training_cost(model, batch, settings.finetuning)
    captions = [pair.caption for pair in itertools.islice(asked, 256)]
    pictures = len({pair.image_key for pair in asked})
    found["query"] = query_cost(model, captions, pictures)
    return measurement_rows(
        {name: one.value for name, one in found.items()},
        {name: (one.low, one.high) for name, one in found.items()},
        variant=variant, dataset=settings.dataset, split=split, direction="pairs",
        n_queries=len(batch), n_candidates=pictures,
        provenance=origin(
            experiment, identity, split, time.perf_counter() - start, experiment.seed
        ),
    )  # fmt: skip
