"""AsCL's chapter in tables: recalls and RSUM by variant and seed, and differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from entityclip.baselines.ascl.runs import AsCLRuns, Measured
from entityclip.comparison import verdict
from entityclip.metrics import rsum
from entityclip.results import DIRECTIONS
from entityclip.rsum import rsum_difference, rsum_numbers


def recall_table(rows: pd.DataFrame) -> pd.DataFrame:
    """R@1, R@5, R@10 both ways and RSUM: a row a variant, split and seed, in percent."""
    shown = rows[rows["metric"].isin(["R@1", "R@5", "R@10"])]
    found = []
    for (variant, split, seed), part in shown.groupby(["variant", "split", "seed"], sort=False):
        metrics = {d: dict(zip(p["metric"], p["value"], strict=True))
                   for d in DIRECTIONS  # whatever was stored first
                   if len(p := part[part["direction"] == d])}  # fmt: skip
        row = {"variant": variant, "split": split, "seed": seed}
        for direction, values in metrics.items():
            row |= {f"{direction} {name}": value for name, value in values.items()}
        found.append(row | {"RSUM": rsum(metrics)})
    return pd.DataFrame(found)


def rsum_table(
    runs: AsCLRuns, variants: Iterable[str], ways: Iterable[Measured] = (Measured(),)
) -> pd.DataFrame:
    """RSUM over seeds with its 95 % interval over pictures and seeds: a row a variant and way."""
    found = []
    for variant, way in itertools.product(variants, ways):
        names = {"variant": way.variant(variant), "split": way.split(runs.settings.test_split)}
        found.append(names | rsum_numbers(runs.retrievals(variant, runs.seeds, way)))
    return pd.DataFrame(found)


def rsum_differences(runs: AsCLRuns, variants: Iterable[str], reference: str) -> pd.DataFrame:
    """RSUM of each variant that has rows, and minus the `reference`'s with its 95 % interval.

    Over the seeds that both have, paired by seed and picture; `difference` is NaN for the reference
    itself. Columns variant, seeds, RSUM, difference, low, high.
    """
    base, found = runs.by_seed(reference, runs.seeds), []
    for variant in variants:
        own = runs.by_seed(variant, runs.seeds)
        shared = [seed for seed in own if seed in base]
        if not shared:
            continue
        first, second = ([of[seed] for seed in shared] for of in (own, base))
        apart = (np.nan,) * 3 if variant == reference else rsum_difference(first, second)
        row = {"variant": variant, "seeds": len(shared), "RSUM": rsum_numbers(first)["RSUM"]}
        found.append(row | dict(zip(("difference", "low", "high"), apart, strict=True)))
    return pd.DataFrame(found, columns=["variant", "seeds", "RSUM", "difference", "low", "high"])


def describe_rsum(table: pd.DataFrame, reference: str) -> list[str]:
    """`rsum_differences` in sentences, one a variant that the reference is compared with."""
    return [
        f"{row.variant} is {verdict(row.low, row.high)} {reference} by RSUM (difference "
        f"{row.difference:+.1f}, 95 % interval {row.low:+.1f} to {row.high:+.1f}, "
        f"{row.seeds} seeds)"
        for row in table.itertuples()
        if row.variant != reference
    ]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest over seeds of each column of `recall_table`, one a row."""
    long = table.melt(["variant", "split", "seed"], var_name="metric")
    found = long.groupby(["variant", "split", "metric"], sort=False)["value"]
    return found.agg(["mean", "min", "max", "count"]).reset_index()


def differences(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """`first` minus `second` of each split and seed, column by column of `recall_table`.

    Runs are paired by seed: they saw the same batches. Raises ValueError if a seed lacks one.
    """
    a, b = (
        table[table["variant"] == name].set_index(["split", "seed"]).drop(columns="variant")
        for name in (first, second)
    )
    if a.empty or set(a.index) != set(b.index):
        raise ValueError(f"{first} and {second} were not measured on the same splits and seeds")
    return (a - b.loc[a.index]).reset_index()
