"""A table of variants from a profile to figures: which runs it needs, its rows, its differences."""

from __future__ import annotations

import pandas as pd

from entityclip.comparison import difference_table
from entityclip.experiments import Experiment
from entityclip.measure import measure, seed_retrievals, stored_ranks
from entityclip.results import ResultsError
from entityclip.rsum import rsum_numbers
from entityclip.stored import find_rows, stored_rows
from entityclip.sweep import splits_of, sweep
from entityclip.tables import retrieval_table
from entityclip.variants import LEAK, TABLES, VARIANTS, find_variant


def seed_experiments(experiment: Experiment, table: str) -> list[Experiment]:
    """An experiment for each seed that the profile wants behind a table (a key of TABLES)."""
    settings = experiment.settings
    seeds = settings.main_seeds if table == "main" else settings.ablation_seeds
    return [experiment.of_seed(seed) for seed in seeds]


def missing_runs(experiment: Experiment, table: str) -> list[tuple[str, int]]:
    """(variant, seed) of the runs a table still lacks, shipped rows counted as there."""
    lacking = []
    for number, of_seed in enumerate(seed_experiments(experiment, table)):
        for name in TABLES[table]:
            if (number and not find_variant(name).finetuned) or of_seed.lacks(name):
                continue
            splits = splits_of(of_seed, name)
            if any(stored_ranks(of_seed, name, split) is None for split in splits):
                lacking.append((name, of_seed.seed))
    return lacking


def run_table(experiment: Experiment, table: str) -> list[tuple[str, int]]:
    """Train and measure what a table lacks, if the profile's `train_tables`; what it lacks then."""
    if experiment.settings.train_tables:
        sweep(seed_experiments(experiment, table), TABLES[table])
    lacking = missing_runs(experiment, table)
    if lacking:
        print(f"{len(lacking)} runs of table {table} are not stored; the command that makes them:")
        print(f"python -m entityclip.sweep --profile {experiment.profile.name} --tables {table}")
    return lacking


def left_out(experiment: Experiment, table: str) -> list[str]:
    """Why rows of a table are missing under this profile, a sentence each."""
    reasons = {name: experiment.lacks(name) for name in TABLES[table]}
    return [f"{name} is left out: {reason}" for name, reason in reasons.items() if reason]


def describe_variants(experiment: Experiment, table: str) -> pd.DataFrame:
    """What each row of a table asks and how its model differs from the profile's."""
    rows = []
    for name in TABLES[table]:
        variant = VARIANTS[name]
        changes = [f"{key}={value}" for key, value in variant.model.items()]
        if variant.explanations != "own":
            changes.append(f"explanations={variant.explanations}")
        rows.append({"variant": name, "asks": variant.asks, "changes": ", ".join(changes)})
    return pd.DataFrame(rows)


def variant_rows(experiment: Experiment, table: str, *, splits: list[str]) -> pd.DataFrame:
    """The stored retrieval rows of a table's variants on some splits."""
    rows = stored_rows(experiment, "retrieval", variants=TABLES[table])
    return rows[rows["split"].isin(splits)].reset_index(drop=True)


def recall_table(experiment: Experiment, table: str, *, splits: list[str]) -> pd.DataFrame:
    """`retrieval_table` of a table's variants, in the table's order."""
    found = retrieval_table(variant_rows(experiment, table, splits=splits))
    place = {name: number for number, name in enumerate(TABLES[table])}
    order = found["variant"].map(place)
    return found.assign(place=order).sort_values(
        ["split", "direction", "place"], kind="stable", ignore_index=True
    ).drop(columns="place")  # fmt: skip


def rsum_table(experiment: Experiment, table: str, *, splits: list[str]) -> pd.DataFrame:
    """RSUM of each variant with its 95 % interval; columns split, variant and `rsum_numbers`."""
    ranks = _ranks(experiment, table)
    found = []
    for split in splits:
        of_split = ranks[ranks["split"] == split]
        for name in TABLES[table]:
            rows = of_split[of_split["variant"] == name]
            if len(rows):
                seeds = list(seed_retrievals(rows, experiment.pairs(split)).values())
                found.append({"split": split, "variant": name, **rsum_numbers(seeds)})
    return pd.DataFrame(found)


def differences_to_first(
    experiment: Experiment, table: str, *, splits: list[str], metric: str = "R@1"
) -> pd.DataFrame:
    """Each variant minus the table's first, paired by query and seed (`difference_table`)."""
    ranks = _ranks(experiment, table)
    first, *others = TABLES[table]
    chosen = ranks[ranks["split"].isin(splits)]
    return difference_table(chosen, [(other, first) for other in others], metric)


def _ranks(experiment: Experiment, table: str) -> pd.DataFrame:
    ranks = find_rows(experiment, "ranks", variants=TABLES[table])
    if ranks.empty:
        raise ResultsError(f"no ranks of table {table} are stored; run its notebook first")
    return ranks


def choose_on_validation(experiment: Experiment) -> pd.DataFrame:
    """The search's candidates by mean R@1 of both directions on val, best first; no test rows read.

    Columns `variant`, `seeds`, `R@1`, `lowest` and `highest` over the seeds that all candidates
    have: a choice among unequals would not be one. Raises ResultsError while there is none.
    """
    rows = variant_rows(experiment, "search", splits=["val"])
    rows = rows[rows["metric"] == "R@1"]
    measured = rows.groupby("seed")["variant"].agg(set)
    lacking = measured.map(lambda names: [n for n in TABLES["search"] if n not in names])
    shared = lacking.index[lacking.map(len) == 0]
    if shared.empty:
        least = min(lacking, key=len, default=TABLES["search"])
        raise ResultsError(f"the search still lacks runs of {', '.join(least)}")
    rows = rows[rows["seed"].isin(shared)]
    by_seed = rows.groupby(["variant", "seed"])["value"].mean().reset_index()
    table = by_seed.groupby("variant")["value"].agg(["count", "mean", "min", "max"])
    table = table.reindex(TABLES["search"])
    table.columns = ["seeds", "R@1", "lowest", "highest"]
    return table.sort_values("R@1", ascending=False, kind="stable").reset_index()


def measure_chosen(experiment: Experiment, choice: pd.DataFrame) -> str:
    """Measure the search's winner on the test splits, every seed; its name."""
    chosen = choice["variant"].iloc[0]
    for of_seed in seed_experiments(experiment, "search"):
        measure(of_seed, [chosen], of_seed.settings.test_splits, shipped=True)
    return chosen


def compare_chosen(experiment: Experiment, chosen: str, *, splits: list[str]) -> pd.DataFrame:
    """The winner minus CLIP, EntityCLIP and the bridge on the test splits, R@1."""
    others = [name for name in ("clip", "entityclip", "bridge") if name != chosen]
    ranks = find_rows(experiment, "ranks", variants=[chosen, *others])
    ranks = ranks[ranks["split"].isin(splits)]
    return difference_table(ranks, [(chosen, other) for other in others])


def leak_rows(experiment: Experiment) -> pd.DataFrame:
    """Stored rows of the leak question, of the variants that were asked it."""
    return stored_rows(experiment, "leak", variants=LEAK)


def matching_rows(experiment: Experiment) -> pd.DataFrame:
    """Stored rows of the matching head's accuracy."""
    return stored_rows(experiment, "matching", variants=TABLES["ablation_gi_itm"])
