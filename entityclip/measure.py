"""Measure an experiment's variants: rows a metric, and the ranks behind them for paired tests."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor

from entityclip.datasets.pair import Pair, key63
from entityclip.evaluation import Retrieval, distinct_pictures, evaluate_retrieval
from entityclip.experiments import Experiment
from entityclip.model import EntityCLIP
from entityclip.neighbours import ranking
from entityclip.results import DIRECTIONS, Row, append_rows
from entityclip.stored import find_rows
from entityclip.variants import find_variant

log = logging.getLogger(__name__)

Ranks = dict[tuple[str, str], Retrieval]  # by (variant, split)


def measure(
    experiment: Experiment,
    variants: Iterable[str],
    splits: Iterable[str],
    *,
    shipped: bool = False,
    force: bool = False,
) -> Ranks:
    """Ranks of each variant on each split; what is not stored is trained, evaluated and stored.

    `shipped` also accepts the rows that the repository ships. `force` measures anew. A variant that
    the profile `lacks` is left out, with a warning that says why.
    """
    splits, ranks = list(splits), {}
    for variant in variants:
        if reason := experiment.lacks(variant):
            log.warning("%s is left out: %s", variant, reason)
            continue
        missing = []
        for split in splits:
            found = None if force else stored_ranks(experiment, variant, split, shipped=shipped)
            if found is None:
                missing.append(split)
            else:
                ranks[variant, split] = found
        if missing:
            model = experiment.load(variant)
            for split in missing:
                ranks[variant, split] = evaluate(experiment, model, variant, split)
    return ranks


def stored_ranks(
    experiment: Experiment, variant: str, split: str, *, shipped: bool = True
) -> Retrieval | None:
    """The ranks of an earlier measurement with this very seed, settings and data, if stored."""
    rows = find_rows(experiment, "ranks", variants=[variant], shipped=shipped)
    if rows.empty:
        return None
    rows = rows[(rows["split"] == split) & (rows["seed"] == experiment.seed)]
    if rows.empty:
        return None
    return seed_retrievals(rows, experiment.pairs(split)).get(experiment.seed)


def seed_retrievals(rank_rows: pd.DataFrame, pairs: Sequence[Pair]) -> dict[int, Retrieval]:
    """Stored ranks of one variant on one split, whose pairs these are, by seed."""
    shown = image_of(pairs)
    by_seed = {
        int(seed): {row["direction"]: row["ranks"] for _, row in rows.iterrows()}
        for seed, rows in rank_rows.groupby("seed")
    }
    return {
        seed: Retrieval(*(torch.tensor(ranks[d]) for d in DIRECTIONS), shown)
        for seed, ranks in by_seed.items()
        if set(ranks) == set(DIRECTIONS)
    }


def image_of(pairs: Sequence[Pair]) -> Tensor:
    """The picture row of each caption [N], as evaluation numbers pictures."""
    keys = torch.tensor([key63(pair.image_key) for pair in pairs])
    return distinct_pictures(keys)[0]


def measure_pretraining(experiment: Experiment) -> Retrieval:
    """Retrieval by generic captions on unseen pictures: is the small CLIP a CLIP at all?"""
    model = experiment.build("zero-shot")
    return evaluate(experiment, model, "zero-shot", "generic_val", "pretraining")


def evaluate(
    experiment: Experiment, model: EntityCLIP, variant: str, split: str, kind: str = "retrieval"
) -> Retrieval:
    """Evaluate a model on one split and store its rows under `variant`."""
    retrieval, rows = evaluate_retrieval(
        model,
        experiment.dataset(split),
        variant=variant,
        dataset_name=experiment.settings.dataset,
        split=split,
        config=experiment.identity(variant),
        seed=experiment.seed,
        bootstrap=experiment.settings.bootstrap,
        workers=experiment.settings.finetuning.workers,
        progress=experiment.progress,
        rank=ranking(find_variant(variant).method),
    )
    if kind == "retrieval":  # ranks first: who finds them skips the measurement
        append_rows(experiment.results / f"{kind}.jsonl", rows)
        append_rows(experiment.results / "ranks.jsonl", rank_rows(rows, retrieval))
    else:
        append_rows(experiment.results / f"{kind}.jsonl", rows)
    return retrieval


def rank_rows(rows: list[Row], retrieval: Retrieval) -> list[dict]:
    """The mean rank of each direction, beside it every query's rank and, if shared, its picture."""
    out = []
    for row in rows:
        if row["metric"] == "MeanR":
            clusters = retrieval.clusters(row["direction"])
            shared = clusters is not None and len(clusters.unique()) < len(clusters)
            ranks = retrieval.ranks(row["direction"]).tolist()
            pictures = clusters.tolist() if shared else None
            out.append({**row, "ranks": ranks, "clusters": pictures})
    return out
