"""What a model scores, as tables: RSUM, F1 of relations and of sections, shares by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entityclip.reporting.differences import verdict
from entityclip.reporting.tables import by_group
from entityclip.results import ResultsError
from entityclip.statistics import (
    DIRECTIONS,
    RSUM_AT,
    Array,
    Draw,
    Estimate,
    Retrieval,
    mean_over_seeds,
    over_seeds,
    per_query,
    quantiles,
    resampled,
    retrievals,
)
from entityclip.variants import BEFORE, CONDITIONS, MATCHING, VARIANT_LABELS, label

SUMMARY = ("accuracy", "macro_f1")  # then one "f1/<section>" a section; all in percent


# -------------------------------------------------------------------------------------------- RSUM


def rsum_interval(
    seeds: Sequence[Retrieval],
    minus: Sequence[Retrieval] = (),
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """RSUM of a model's ranks, one `Retrieval` a training seed: the mean and its 95 % interval.

    With `minus`, what another model's ranks have less, seed by seed and query by query. Whole
    pictures are drawn, each as a query and with all its captions, of each of the `data` apart.
    Raises ValueError for no seeds, for another number of seeds in `minus`, and where seeds of the
    same data, or a seed and what it is compared with, were asked about different pictures.
    """
    if not seeds:
        raise ValueError("no ranks of any seed; measure first")
    if minus and len(minus) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds against {len(minus)}: they are compared in pairs")
    by_data: dict[str | None, list[tuple[Retrieval, ...]]] = {}
    for compared in zip(seeds, *([minus] if minus else []), strict=True):
        by_data.setdefault(compared[0].data, []).append(compared)
    draws = [_rsum_draw(data, found) for data, found in by_data.items()]
    low, high = quantiles(resampled(draws, _rsum, n_resamples=n_resamples, seed=seed))
    once = [_rsum(np.ones((1, draw.values.shape[-1])), draw.values)[0] for draw in draws]
    return Estimate(float(np.concatenate(once).mean()), float(low), float(high))


def _rsum_draw(data: str | None, compared: Sequence[tuple[Retrieval, ...]]) -> Draw:
    """What each of N captions and M pictures adds under each seed, as `_rsum` reads it."""
    image_of, n_pictures = np.asarray(compared[0][0].image_of), len(compared[0][0].image_to_text)
    for found in (one for both in compared for one in both):
        if found.data != data or not np.array_equal(image_of, found.image_of):
            raise ValueError("ranks of different pictures or captions cannot be set side by side")
    each = np.stack(
        [np.subtract(*map(_hits, both)) if both[1:] else _hits(*both) for both in compared]
    )
    texts = np.broadcast_to(np.arange(each.shape[1]) < len(image_of), each.shape)
    values = np.stack([each * texts, texts, each * ~texts, ~texts])
    return Draw(values, np.concatenate([image_of, np.arange(n_pictures)]))


def _hits(found: Retrieval) -> NDArray[np.float64]:
    """How much of RSUM each caption and each picture finds [N + M], from 0 to 300."""
    ranks = np.concatenate([found.ranks(direction) for direction in DIRECTIONS])
    return sum(per_query(ranks, f"R@{k}") for k in RSUM_AT)


def _rsum(weights: Array, values: Array) -> Array:
    """RSUM of resamples, a `Statistic`, of values [4, S, N + M].

    These are what captions find (0 for pictures), whether it is a caption, and both of pictures:
    the two sides are means over their own, however many there are.
    """
    sums = weights @ values.reshape(-1, values.shape[-1]).T
    found = sums.reshape(len(weights), *values.shape[:-1])
    return found[:, 0] / found[:, 1] + found[:, 2] / found[:, 3]


def rsum_numbers(seeds: Sequence[Retrieval]) -> dict[str, float]:
    """`rsum_interval` as columns of a table: RSUM, low, high, seeds."""
    value, low, high = rsum_interval(seeds)
    return {"RSUM": value, "low": low, "high": high, "seeds": len(seeds)}


def rsum_table(ranks: pd.DataFrame, by: Sequence[str] = ("variant", "split")) -> pd.DataFrame:
    """RSUM over seeds with its 95 % interval over pictures and seeds, from stored ranks.

    A row a value of the columns `by`, in the rows' order; then RSUM, low, high and seeds.
    """
    return by_group(ranks, by, lambda group: rsum_numbers(list(retrievals(group).values())))


def rsum_differences(ranks: pd.DataFrame, reference: str) -> pd.DataFrame:
    """RSUM of each variant of stored ranks, and minus the `reference`'s with its 95 % interval.

    Over the seeds that both have, paired by seed and picture; `difference` is NaN for the reference
    itself. Columns variant, seeds, RSUM, difference, low, high.
    """
    by_variant = {name: retrievals(group) for name, group in ranks.groupby("variant", sort=False)}
    base, found = by_variant.get(reference, {}), []
    for variant, own in by_variant.items():
        shared = [seed for seed in own if seed in base]
        if shared:
            first, second = ([of[seed] for seed in shared] for of in (own, base))
            apart = (np.nan,) * 3 if variant == reference else rsum_interval(first, second)
            found.append((variant, len(shared), rsum_numbers(first)["RSUM"], *apart))
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


def ascl_recall_table(rows: pd.DataFrame) -> pd.DataFrame:
    """R@1, R@5, R@10 both ways and RSUM: a row a variant, split and seed, in percent."""
    names = [f"{direction} R@{k}" for direction in DIRECTIONS for k in RSUM_AT]
    named = rows.assign(name=rows["direction"] + " " + rows["metric"])
    table = named.pivot_table("value", ["variant", "split", "seed"], "name", sort=False)
    table = table[names].assign(RSUM=table[names].sum(axis=1))
    return table.rename_axis(columns=None).reset_index()


def ascl_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest over seeds of each column of `ascl_recall_table`, one a row."""
    long = table.melt(["variant", "split", "seed"], var_name="metric")
    found = long.groupby(["variant", "split", "metric"], sort=False)["value"]
    return found.agg(["mean", "min", "max", "count"]).reset_index()


def ascl_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """AsCL minus plain contrast of each split and seed, column by column of `ascl_recall_table`.

    Runs are paired by seed: they saw the same batches. Raises ResultsError if a seed lacks one.
    """
    by_variant = ascl_recall_table(rows).set_index(["variant", "split", "seed"])
    a, b = (by_variant.loc[n] if n in by_variant.index else None for n in ("ascl", "contrastive"))
    if a is None or b is None or set(a.index) != set(b.index):
        raise ResultsError("ascl and contrastive were not measured on the same splits and seeds")
    return (a - b.loc[a.index]).reset_index()


# -------------------------------------------------------------------------------- classifications


def relation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Weighted F1 by protocol, variant and label: mean over seeds and gain over no ITR.

    `value` is the mean over `seeds` seeds; `gain` the mean of the seed-by-seed difference from the
    start weights, `gain_low` to `gain_high` its 95 % t interval over the seeds (NaN for one seed).
    The interval holds the luck of ITR's seed, not that of the pairs judged.
    """
    pairs = ["protocol", "label", "seed"]
    start = rows.loc[rows["variant"] == BEFORE, [*pairs, "value"]]
    rows = rows.merge(start, "left", pairs, suffixes=("", "_before"))
    rows["gain"] = rows["value"] - rows["value_before"]

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        gain = mean_over_seeds(group["gain"].dropna())
        gain = dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
        return {"value": group["value"].mean(), **gain, "seeds": len(group)}

    return by_group(rows, ["protocol", "variant", "label"], numbers)


def confusions(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each variant's confusion matrix from stored rows of one seed and split: counts, true × found.

    Raises ValueError where a variant has several, which no one matrix stands for.
    """
    whole = rows[rows["metric"] == "accuracy"]
    repeated = sorted(set(whole.loc[whole.duplicated("variant"), "variant"]))
    if repeated:
        raise ValueError(
            f"several confusion matrices of {', '.join(repeated)}; choose one seed and split"
        )
    return {
        row["variant"]: pd.DataFrame(row["confusion"], row["sections"], row["sections"])
        for _, row in whole.iterrows()
    }


def section_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a (variant, section) of one seed and split: pairs, precision, recall and F1 in percent.

    F1 with its interval is the stored one; precision is blank for a section never predicted.
    """
    parts = []
    for variant, counts in confusions(rows).items():
        hits, true, found = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
        part = pd.DataFrame({"variant": variant, "section": counts.index, "pairs": true})
        part["precision"], part["recall"] = 100 * hits / found.where(found > 0), 100 * hits / true
        f1 = rows[rows["variant"] == variant].set_index("metric").loc["f1/" + counts.index]
        part[["f1", "f1_low", "f1_high"]] = f1[["value", "low", "high"]].to_numpy()
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a (dataset, variant) of one split: accuracy and macro-F1 with 95 % intervals.

    Of several `seeds` means, with Student's t over seeds; of one its own, over queries. Beside them
    the accuracy of `guessing` uniformly and of always saying the commonest section, `majority`,
    which no macro-F1 rewards.
    """

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        accuracy = group[group["metric"] == "accuracy"].iloc[0]
        n, true = accuracy["n_candidates"], np.sum(accuracy["confusion"], axis=1)
        line = {"seeds": group["seed"].nunique(), "sections": n, "guessing": 100 / n}
        line["majority"] = 100 * true.max() / true.sum()
        for metric in SUMMARY:
            value, low, high = over_seeds(group[group["metric"] == metric])
            line |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        return line

    return by_group(rows[rows["metric"].isin(SUMMARY)], ["dataset", "variant"], numbers)


def leak_table(rows: pd.DataFrame) -> pd.DataFrame:
    """R@1 between V* and T* by what each side reads: a row a variant, direction and condition.

    `rows` are stored rows of kind "leak". Columns `variant`, `split`, `direction`, `reads`,
    `value`, `low`, `high`, `seeds`, `chance`; intervals as in `retrieval_table`.
    """
    return _by_kind(rows, "R@1, ", list(CONDITIONS))


def describe_leak(table: pd.DataFrame) -> list[str]:
    """A sentence a variant: what survives the same wrong explanation, and two different ones."""
    sentences = []
    for variant, rows in table[table["direction"] == "text_to_image"].groupby(
        "variant", sort=False
    ):
        value = rows.set_index("reads")["value"]
        sentences.append(
            f"{label(variant, VARIANT_LABELS)}: R@1 between V* and T* is {value['own']:.1f} with "
            f"the own explanation, {value['same wrong']:.1f} when both read the same wrong one, "
            f"{value['two different wrong']:.1f} when they read different wrong ones "
            f"(chance {rows['chance'].iloc[0]:.2f})."
        )
    return sentences


def matching_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the matching head by kind of pair, columns as `leak_table`; chance is 50 %."""
    return _by_kind(rows, "accuracy, ", list(MATCHING)).assign(chance=50.0)


def _by_kind(rows: pd.DataFrame, prefix: str, kinds: list[str]) -> pd.DataFrame:
    keys = ["variant", "split", "direction"]
    rows = rows.assign(reads=rows["metric"].str.removeprefix(prefix))
    rows = rows[rows["reads"].isin(kinds)]
    if rows.empty:
        raise ResultsError(f"no rows whose metric starts with {prefix!r}")

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        value, low, high = over_seeds(group)
        chance = 100 / group["n_candidates"].iloc[0]
        return {"value": value, "low": low, "high": high, "seeds": len(group), "chance": chance}

    # groups as they come, and in each the kinds in their own order
    order = np.lexsort((rows["reads"].map(kinds.index), rows.groupby(keys, sort=False).ngroup()))
    return by_group(rows.iloc[order], [*keys, "reads"], numbers)
