"""Train and measure the variants of the tables over several seeds: what ``entityclip sweep`` does.

What is measured already, with the same settings and data, is skipped; what was interrupted goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import pandas as pd

from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import (
    alone,
    measure,
    measured_ranks,
    store_curves,
    stored_ranks,
)
from entityclip.experiments.probes import (
    measure_by_name,
    measure_leak,
    measure_matching,
    measure_names_cut,
)
from entityclip.identities import Entry, table_entries
from entityclip.models.clip import BackboneError, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.results import KINDS, find_rows, schema_of, write_shipped
from entityclip.variants import KEPT, LEAK, TABLES, find_variant

log = logging.getLogger(__name__)


def sweep(
    experiments: Sequence[Experiment],
    variants: Iterable[str],
    *,
    shipped: bool = True,
    keep: Iterable[str] = KEPT,
) -> None:
    """`work_off` each variant under each experiment (one a seed), seeds outermost."""
    entries = [Entry(name, there.settings, name) for there in experiments[:1] for name in variants]
    work_off(_runs(experiments, entries), shipped=shipped, keep=keep)


def _runs(
    experiments: Iterable[Experiment], entries: Iterable[Entry]
) -> Iterator[tuple[Experiment, str]]:
    """(experiment, variant) of a table's rows; without fine-tuning, seeds differ in nothing."""
    for number, of_seed in enumerate(experiments):
        for entry in entries:
            if not number or find_variant(entry.variant).finetuned:
                yield of_seed.under(entry.settings.of_seed(of_seed.seed)), entry.variant


def work_off(
    runs: Iterable[tuple[Experiment, str]], *, shipped: bool = True, keep: Iterable[str] = KEPT
) -> None:
    """Train and measure each run.

    Weights of variants other than `keep` are deleted once measured. `shipped` accepts rows that
    the repository ships as done. Variants that another process is training are left to it.
    """
    for experiment, name in runs:
        measure_variant(experiment, name, shipped=shipped, keep=name in keep)
        if name in TABLES["main"]:
            measure_by_name(experiment, [name], splits_of(experiment, name))


def measure_variant(
    experiment: Experiment, name: str, *, shipped: bool = True, keep: bool = True
) -> bool:
    """Train and measure one variant with all its probes.

    False if that was done, is being, or cannot be under this profile.
    """
    splits = splits_of(experiment, name)
    spec, reason = find_variant(name), experiment.lacks(name)
    if reason:
        log.warning("%s is left out: %s", name, reason)
        return False
    if not _unmeasured(experiment, name, splits, shipped):
        hint = " (rows that are shipped count; --anew ignores them)" if shipped else ""
        log.info("seed %d: %s is measured already%s", experiment.seed, name, hint)
        return False
    if spec.finetuned and experiment.busy(name):
        return False
    with alone(experiment, "sweep", experiment.identity(name), "", wait=False) as ours:
        # another process may have done it since
        missing = _unmeasured(experiment, name, splits, shipped) if ours else []
        if not missing:
            return False
        log.info("seed %d: %s", experiment.seed, name)
        model = experiment.load(name)
        if name in TABLES["main"] and spec.method != "ascl":  # whose fusion takes minutes a split
            for split in missing:
                measure_names_cut(experiment, model, name, split)
        if spec.finetuned and not spec.after:
            _probe(experiment, model, name)
        for split in missing:
            measured_ranks(experiment, lambda: model, name, split, shipped=shipped)
        if spec.finetuned and not spec.after:
            store_curves(experiment, [name])
            if not keep:
                experiment.discard(name)
        return True


def _unmeasured(
    experiment: Experiment, name: str, splits: list[str], shipped: bool = True
) -> list[str]:
    return [s for s in splits if stored_ranks(experiment, name, s, shipped=shipped) is None]


def splits_of(experiment: Experiment, name: str) -> list[str]:
    """Where a variant is measured: candidates of the search also where one of them is chosen."""
    val = experiment.val_splits if name in TABLES["search"] else []
    return val + experiment.settings.test_splits


def _probe(experiment: Experiment, model: EntityCLIP, name: str) -> None:
    """What the tables on the experts ask, on the first test split that has explanations."""
    split = experiment.settings.test_splits[0]
    if model.needs_explanations and not all(p.explanation for p in experiment.pairs(split)):
        log.warning("%s has no explanations: nothing is asked of %s's experts", split, name)
        return
    if name in LEAK:
        measure_leak(experiment, model, name, split)
    if name in TABLES["ablation_gi_itm"] and model.matching is not None:
        measure_matching(experiment, model, name, split)


def ship_rows(experiment: Experiment) -> dict[str, int]:
    """Merge this experiment's rows into those the repository ships; how many of each kind it has.

    Only rows of the present settings and data are kept, in a fixed order, so the file changes only
    where a measurement did.
    """

    @cache
    def present(seed: int, split: str) -> str | None:
        try:
            return experiment.of_seed(seed).fingerprint(split)
        except FileNotFoundError:
            return None  # rows can be shipped from a machine that lacks the data

    counts, profile = {}, experiment.profile
    # with other explanations, too: the other listed tables differ by variant alone, or by archive
    entries = table_entries(profile.settings, "explanation_sources")
    read = {entry.settings.explanation_source: entry.settings for entry in entries}
    read = {profile.settings.explanation_source: profile.settings} | read
    for kind in KINDS:
        parts = [find_rows(replace(profile, settings=each), kind) for each in read.values()]
        rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
        rows = rows.drop_duplicates(list(schema_of(kind).key), ignore_index=True)
        if len(rows):
            pairs = zip(rows["seed"], rows["split"], strict=True)
            here = pd.Series([present(*pair) for pair in pairs], rows.index, object)
            rows = rows[here.isna() | (here == rows["data_fingerprint"])]
        write_shipped(experiment.profile, kind, rows)
        if len(rows):
            counts[kind] = len(rows)
    return counts


def seed_experiments(experiment: Experiment, table: str) -> list[Experiment]:
    """An experiment for each seed that the profile wants behind a table (a key of TABLES)."""
    settings = experiment.settings
    seeds = settings.main_seeds if table == "main" else settings.ablation_seeds
    return [experiment.of_seed(seed) for seed in seeds]


def table_runs(
    experiment: Experiment, table: str, seeds: Iterable[int] | None = None
) -> Iterator[tuple[Experiment, str]]:
    """A table's runs, (experiment, variant), seeds outermost: one of TABLES, or of LISTED."""
    there = seed_experiments(experiment, table)
    there = [experiment.of_seed(seed) for seed in seeds] if seeds else there
    refused = refused_backbones(experiment) if table == "backbones" else {}
    entries = table_entries(experiment.settings, table)
    yield from _runs(there, [one for one in entries if one.settings.backbone not in refused])


def missing_runs(experiment: Experiment, table: str) -> list[tuple[str, int]]:
    """(variant, seed) of the runs a table still lacks, shipped rows counted as there."""
    return [
        (name, there.seed)
        for there, name in table_runs(experiment, table)
        if not there.lacks(name) and _unmeasured(there, name, splits_of(there, name))
    ]


def run_table(experiment: Experiment, table: str) -> list[tuple[str, int]]:
    """Train and measure what a table lacks, if the profile's `train_tables`; what it lacks then."""
    if experiment.settings.train_tables:
        work_off(table_runs(experiment, table))
    lacking = missing_runs(experiment, table)
    if lacking:
        print(f"{len(lacking)} runs of table {table} are not stored; the command that makes them:")
        print(f"entityclip sweep --profile {experiment.profile.asked} --tables {table}")
    return lacking


def refused_backbones(experiment: Experiment) -> dict[str, str]:
    """Of the profile's `backbones` those that cannot carry the experts, and why."""
    refused = {}
    for choice in experiment.settings.backbones:
        try:
            create_backbone(choice.backbone, choice.pretrained, weights=False)
        except BackboneError as error:
            refused[choice.backbone] = str(error)
    return refused


def measure_chosen(experiment: Experiment, choice: pd.DataFrame) -> str:
    """Measure the search's winner on the test splits, every seed; its name."""
    chosen = choice["variant"].iloc[0]
    for of_seed in seed_experiments(experiment, "search"):
        measure(of_seed, [chosen], of_seed.settings.test_splits, shipped=True)
    return chosen
