"""Measure an experiment's variants and read the stored measurements back.

Rows go to ``results/*.jsonl`` of the profile: ``retrieval`` (a row a metric), ``differences``
(paired, one model minus another) and ``pretraining``.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from entityclip.comparison import paired_difference
from entityclip.config import config_hash
from entityclip.datasets.pair import data_fingerprint
from entityclip.evaluation import Retrieval, evaluate_retrieval
from entityclip.experiments import VARIANTS, Experiment, device
from entityclip.model import EntityCLIP
from entityclip.results import (
    DIRECTIONS,
    ResultsError,
    Row,
    append_rows,
    measurement_rows,
    provenance,
    read_rows,
)

Ranks = dict[tuple[str, str], Retrieval]  # by (variant, split)


def measure(experiment: Experiment, variants: Iterable[str], splits: Iterable[str]) -> Ranks:
    """Evaluate each variant on each split, training it first if need be, and store the rows."""
    splits, ranks = list(splits), {}
    for variant in variants:
        model = experiment.load(variant)
        for split in splits:
            ranks[variant, split] = _measure(experiment, model, variant, split, "retrieval")
    return ranks


def measure_pretraining(experiment: Experiment) -> Retrieval:
    """Retrieval by generic captions on unseen pictures: is the small CLIP a CLIP at all?"""
    model = experiment.build("zero-shot")
    return _measure(experiment, model, "zero-shot", "generic_val", "pretraining")


def compare(experiment: Experiment, ranks: Ranks, first: str, second: str) -> pd.DataFrame:
    """R@1 of `first` minus that of `second` on each split measured, paired, as stored rows."""
    rows: list[Row] = []
    for split in dict.fromkeys(split for _, split in ranks):
        origin = provenance(
            config={"first": experiment.identity(first), "second": experiment.identity(second)},
            seed=experiment.seed,
            data_fingerprint=data_fingerprint(experiment.pairs(split)),
            device=device(),
            wall_time_s=0.0,  # ranks are at hand
        )
        a, b = ranks[first, split], ranks[second, split]
        for direction in DIRECTIONS:
            difference = paired_difference(
                a.ranks(direction),
                b.ranks(direction),
                n_resamples=experiment.settings.bootstrap,
                seed=experiment.seed,
                clusters=a.clusters(direction),
            )
            rows += measurement_rows(
                {"R@1": difference.value},
                {"R@1": (difference.low, difference.high)},
                variant=f"{first} minus {second}",
                dataset=experiment.settings.dataset,
                split=split,
                direction=direction,
                provenance=origin,
                **a.sizes(direction),
            )
    append_rows(experiment.results / "differences.jsonl", rows)
    return pd.DataFrame(rows)


def stored_rows(experiment: Experiment, kind: str = "retrieval") -> pd.DataFrame:
    """Stored rows of the experiment's very settings; rows of other settings stay aside.

    `kind` is "retrieval", "differences" or "pretraining". Raises ResultsError if there are none.
    """
    rows = read_rows(experiment.results / f"{kind}.jsonl")
    configs = [experiment.identity(name) for name in VARIANTS]
    if kind == "differences":
        configs = [{"first": a, "second": b} for a in configs for b in configs]
    kept = rows[rows["config_hash"].isin([config_hash(config) for config in configs])]
    if kept.empty:
        notebook = "03_train" if kind == "pretraining" else "04_retrieval"
        raise ResultsError(
            f"{experiment.results} has no {kind} rows of profile {experiment.profile.name}'s "
            f"present settings; run notebook {notebook}"
        )
    return kept.reset_index(drop=True)


def _measure(
    experiment: Experiment, model: EntityCLIP, variant: str, split: str, kind: str
) -> Retrieval:
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
    )
    append_rows(experiment.results / f"{kind}.jsonl", rows)
    return retrieval
