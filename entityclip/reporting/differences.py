"""Differences between variants: tested, as a table, as a forest plot and in sentences.

Differences are the first minus the second, in the metric's unit. That an interval holds 0 is no
sign of equality: that has a test of its own, `equivalent`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from entityclip.reporting.markup import Cell, Sheet, number_cell
from entityclip.reporting.style import BLUE, GREY, beside, grid, panels
from entityclip.results import ResultsError
from entityclip.statistics import (
    LOW_IS_GOOD,
    Array,
    Draw,
    as_clusters,
    draws_of,
    per_query,
    quantiles,
    resampled,
)
from entityclip.variants import DIRECTION_LABELS, SPLIT_LABELS, VARIANT_LABELS

COLUMNS = ("variant", "label", "group", "value", "low", "high", "seeds", "survives")
_ROW = 0.2  # inches
_DAGGER = "†"
_FEW = 5  # seeds: up to so many, resampling them understates their spread


# ------------------------------------------------------------------------------------ the table


def _paired(first: ArrayLike, second: ArrayLike, metric: str) -> NDArray[np.float64]:
    a, b = per_query(first, metric), per_query(second, metric)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} ranks against {len(b)}: a paired test needs the same queries")
    return a - b


def difference_table(
    rank_rows: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    metric: str = "R@1",
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """First minus second for pairs of variants, from stored ranks, over the seeds that both have.

    `rank_rows` are the stored rows of kind "ranks"; `metric` is a mean over queries (`per_query`).
    A row a pair, data set, split and direction: `variant` ("a minus b"), `first`, `second`,
    `value`, `low`, `high`, `seeds`, `n_queries`, `p`, `low_90`, `high_90`, `survives`. The 95 %
    interval is a paired bootstrap (Koehn 2004, section 4) over queries, drawn alike for both, so
    that what makes one hard for both cancels out, and over seeds where there are several; seeds of
    other draws of the data have queries of their own (`resampled`). `p` and the 90 % interval, for
    tests, are `crossed_t`'s where each draw has 2 to 5 seeds, else the bootstrap's; `survives`: p
    passes Benjamini and Hochberg's procedure at 5 % over this table. A pair without a common seed
    has no row. Raises ValueError for another metric and where, under a seed, different data or
    queries would be compared.
    """
    keys = ["dataset", "split", "direction", "seed"]
    table: list[dict[str, Any]] = []
    alike: dict[tuple, list[tuple[dict[str, Any], list[Draw]]]] = {}  # by clusters and [S, Q]
    by_variant, nothing = dict(list(rank_rows.groupby("variant"))), rank_rows.iloc[:0]
    for first, second in pairs:
        one, other = (by_variant.get(name, nothing) for name in (first, second))
        both = one.merge(other, on=keys, suffixes=("", "_of_second"))
        # neither rows nor intervals depend on what was measured first: resamples draw by place
        both = both.sort_values(keys, kind="stable")
        for names, group in both.groupby(keys[:3], sort=False):
            if (group["data_fingerprint"] != group["data_fingerprint_of_second"]).any():
                raise ValueError(f"{first} and {second} were measured on different data: {names}")
            draws = draws_of(
                group, lambda row: _paired(row["ranks"], row["ranks_of_second"], metric)
            )
            row = dict(zip(keys, names, strict=False))
            row |= {"variant": f"{first} minus {second}", "first": first, "second": second}
            row |= {"metric": metric, "value": _over_draws(draws), "low": None, "high": None}
            row |= {"seeds": len(group), "n_queries": sum(d.values.shape[1] for d in draws)}
            table.append(row)
            key = tuple((d.clusters and tuple(d.clusters), d.values.shape) for d in draws)
            alike.setdefault(key, []).append((row, draws))
    # what was asked alike shares its resamples, which take the most time to draw
    for found in alike.values():
        stacked = [
            Draw(np.stack([draw.values for draw in same]), same[0].clusters)
            for same in zip(*(draws for _, draws in found), strict=True)
        ]
        resamples = resampled(stacked, n_resamples=n_resamples, seed=seed)
        for place, (row, draws) in enumerate(found):
            row |= _tested(draws, resamples[:, place])
    p = [row["p"] for row in table]
    return pd.DataFrame(table).assign(survives=benjamini_hochberg(p)) if table else pd.DataFrame()


def _over_draws(draws: Sequence[Draw]) -> float:
    """The mean over all seeds of their means over queries."""
    return float(np.concatenate([draw.values.mean(axis=1) for draw in draws]).mean())


def _tested(draws: Sequence[Draw], resamples: NDArray[np.float64]) -> dict[str, float]:
    """Both intervals and p of a difference's draws, values [S, Q], by its resamples [R]."""
    numbers = dict(zip(("low", "high"), map(float, quantiles(resamples)), strict=True))
    if all(2 <= len(draw.values) <= _FEW for draw in draws):
        by_t = crossed_t(*draws)
        return numbers | {"p": by_t.p, "low_90": by_t.low_90, "high_90": by_t.high_90}
    low, high = map(float, quantiles(resamples, (0.05, 0.95)))
    return numbers | {"p": bootstrap_p(resamples), "low_90": low, "high_90": high}


def describe(row: Mapping[str, Any], margin: float | None = None) -> str:
    """A difference row in words: which is better, or that this test cannot tell.

    `row` is one of `difference_table`; `low_90` and `high_90` are read where a `margin`, in the
    metric's unit, says what counts as equivalent (`verdict`).
    """
    first, _, second = row["variant"].partition(" minus ")
    direction = row["direction"].replace("_", " ")
    low, high = row["low"], row["high"]
    inner = (np.nan, np.nan) if margin is None else (row["low_90"], row["high_90"])
    better = row["metric"] not in LOW_IS_GOOD
    found = verdict(low, high, higher_is_better=better, margin=margin, inner=inner)
    return (
        f"{row['split']}, {direction}: {first} is {found} {second} by {row['metric']} "
        f"(difference {row['value']:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
    )


def verdict(
    low: float,
    high: float,
    *,
    higher_is_better: bool = True,
    margin: float | None = None,
    inner: tuple[float, float] = (np.nan, np.nan),
) -> str:
    """How the first compares with the second, by the interval of first minus second.

    "better than", "worse than", or "not separable from" where 0 lies within or there is none (NaN):
    that is no sign of equality. "equivalent (within ±m) to" is said only where `inner`, the 90 %
    interval, shows it for a `margin` m.
    """
    if low > 0 or high < 0:
        return "better than" if (low > 0) == higher_is_better else "worse than"
    if margin is not None and equivalent(*inner, margin):
        return f"equivalent (within ±{margin:g}) to"
    return "not separable from"


# ----------------------------------------------------------------------------------------- tests


class CrossedT(NamedTuple):
    """A mean over queries and seeds, its variance, degrees of freedom, two-sided p, 90 % ends."""

    value: float
    variance: float
    degrees: float
    p: float
    low_90: float
    high_90: float


def crossed_t(*draws: Draw) -> CrossedT:
    """Student's t of a mean over seeds and queries, both random and crossed, against 0.

    `draws` have values [S, Q], S > 1: every seed answers every query. A mean over both has variance
    (MS_seed + MS_query - MS_rest) / SQ by the two-way analysis of variance (Cronbach, Gleser, Nanda
    and Rajaratnam 1972, chapter 2), where a component that comes out negative counts as 0; several
    draws weigh what they have seeds. Degrees of freedom are Satterthwaite's (1946). Clusters count
    as one query each, by the ratio estimator's linear form. Values without variance have p 1 if
    their mean is 0, else 0.
    """
    n_seeds = sum(len(draw.values) for draw in draws)
    terms = np.array([
        (share * (len(draw.values) / n_seeds) ** 2, degrees)
        for draw in draws
        for share, degrees in _shares(_by_cluster(*draw))
    ])  # fmt: skip
    value, variance = _over_draws(draws), float(max(terms[:, 0].sum(), 0.0))
    spread = (terms[:, 0] ** 2 / terms[:, 1]).sum()
    if variance == 0 or spread == 0:
        return CrossedT(value, 0.0, np.inf, float(value == 0), value, value)
    degrees = float(variance**2 / spread)
    p = 2 * float(stdtr(degrees, -abs(value) / variance**0.5))
    half = float(stdtrit(degrees, 0.95)) * variance**0.5
    return CrossedT(value, variance, degrees, p, value - half, value + half)


def _shares(values: Array) -> list[tuple[float, int]]:
    """What the variance of the mean of values [S, Q] consists of, with degrees of freedom."""
    (s, q), whole = values.shape, values.mean()
    seeds, queries = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    rest = s * q / ((s - 1) * (q - 1)) * np.mean((values - seeds - queries + whole) ** 2)
    sides = [(q * np.var(seeds, ddof=1), s - 1), (s * np.var(queries, ddof=1), q - 1)]
    # a side below the rest has no component of its own, so that it adds the rest, which cancels
    found = [(float(ms), degrees) for ms, degrees in sides if ms > rest]
    found.append(((1 - len(found)) * float(rest), (s - 1) * (q - 1)))
    return [(ms / (s * q), degrees) for ms, degrees in found]


def _by_cluster(values: Array, clusters: ArrayLike | None) -> Array:
    """Values [S, Q] as [S, clusters], of the same means over a row."""
    ids, means = as_clusters(clusters, values.shape[1]), values.mean(axis=1, keepdims=True)
    if clusters is None:
        return values
    sums = np.stack([np.bincount(ids, weights=row) for row in values - means])
    return means + sums * (sums.shape[1] / values.shape[1])


def bootstrap_p(resamples: NDArray[np.float64]) -> float:
    """Two-sided p of a difference of 0 from resamples [R] of it, by inverting its interval.

    Twice the share on 0's rarer side, with 1 added to count and number (Davison and Hinkley 1997,
    section 4.2), so that R resamples never claim less than 2 / (R + 1).
    """
    beyond = min((resamples <= 0).sum(), (resamples >= 0).sum())
    return min(1.0, 2 * (1 + float(beyond)) / (1 + len(resamples)))


def benjamini_hochberg(p: ArrayLike, rate: float = 0.05) -> NDArray[np.bool_]:
    """Which p-values [N] survive at a false discovery rate (Benjamini and Hochberg 1995)."""
    p = np.asarray(p, float)
    low = np.sort(p)
    passing = np.flatnonzero(low <= rate * np.arange(1, len(p) + 1) / max(len(p), 1))
    return p <= (low[passing[-1]] if len(passing) else -1.0)


def equivalent(low_90: float, high_90: float, margin: float) -> bool:
    """Whether a difference's 90 % interval lies within ±margin: two one-sided tests at 5 %.

    Schuirmann 1987. NaN is no interval, which shows nothing. Raises ValueError for a margin that is
    not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be above 0")
    return bool(-margin < low_90 and high_90 < margin)


# ------------------------------------------------------------------------------ printed, and drawn


def forest_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`difference_table` with COLUMNS, as `plot_forest` wants it.

    Where all are compared with one variant, labels name only what is compared with it. Groups stand
    in the house's order of splits and directions.
    """
    places = {name: i for names in (SPLIT_LABELS, DIRECTION_LABELS) for i, name in enumerate(names)}
    table = differences.sort_values(
        ["split", "direction"], key=lambda column: column.map(places), kind="stable"
    )
    first, second = (table[side].replace(VARIANT_LABELS) for side in ("first", "second"))
    split, direction = table["split"].replace(SPLIT_LABELS), table["direction"]
    group = split + ", " + direction.replace(DIRECTION_LABELS) + ", " + table["metric"]
    one = second.nunique() == 1
    return table.assign(label=first if one else first + " − " + second, group=group)[list(COLUMNS)]


def difference_sheet(differences: pd.DataFrame, reference: str = "") -> Sheet:
    """A differences table as printed; below it what marks mean, and sentences from its numbers."""
    blocks = [
        [
            [row["group"], row["label"], _cell(row), Cell(f"{row['seeds']:.0f}")]
            for _, row in rows.iterrows()
        ]
        for _, rows in differences.groupby("group", sort=False)
    ]
    notes = [legend(differences), *describe_differences(differences, reference)]
    return Sheet(["Group", "Variant", "Difference", "Seeds"], blocks, 2, notes)


def _cell(row: pd.Series) -> Cell:
    numbers, mark = row[["value", "low", "high"]], "best" if _excludes_0(row) else ""
    cell = number_cell(*numbers, mark, over_seeds=False, sign="+")
    return cell._replace(text=cell.text + _DAGGER) if row["survives"] else cell


def _excludes_0(row: pd.Series) -> bool:
    return row["low"] > 0 or row["high"] < 0


def legend(differences: pd.DataFrame) -> str:
    """What stands out in a table of COLUMNS, in words, and what does not follow from the rest."""
    n = int(differences["low"].notna().sum())
    return (
        "Bold: the 95 % interval, a paired bootstrap over queries and training seeds, excludes 0. "
        f"{_DAGGER}: survives Benjamini and Hochberg's correction at 5 % over the {n} differences "
        f"of this table (p of 2 to {_FEW} seeds: a t over queries and seeds, crossed; else the "
        "bootstrap's). What is not separable is not thereby equal."
    )


def describe_differences(differences: pd.DataFrame, reference: str = "") -> list[str]:
    """A sentence a group: what is better, what is worse, what these intervals cannot separate.

    `differences` has COLUMNS. `reference` is what was subtracted, as a reader should see
    it; "" where labels say so themselves ("a − b"), for which better and worse mean a. A
    difference without an interval is named as untested, never as a finding.
    """
    return [
        f"{group}: {'; '.join(_verdicts(rows, reference))}."
        for group, rows in differences.groupby("group", sort=False)
    ]


def _verdicts(rows: pd.DataFrame, reference: str) -> list[str]:
    apart, untested = (rows["low"] > 0) | (rows["high"] < 0), rows["low"].isna()
    better = rows["value"] > 0  # all of what is compared is a share of hits
    of, to, by = (f" {word} {reference}" if reference else "" for word in ("than", "from", "with"))
    parts = (
        (f"better{of}", rows[apart & better]),
        (f"worse{of}", rows[apart & ~better]),
        (f"not separable{to or ' from 0'}", rows[~apart & ~untested]),
        (f"without an interval, so not compared{by}", rows[untested]),
    )
    return [
        f"{verdict}: {', '.join(_said(row) for _, row in part.iterrows())}"
        for verdict, part in parts
        if len(part)
    ]


def _said(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f", {row['low']:+.1f} to {row['high']:+.1f}"
    return f"{row['label']} ({row['value']:+.1f}{interval})"


def plot_forest(
    differences: pd.DataFrame, title: str = "difference", note: str | None = None
) -> Figure:
    """One line a difference, under its group's heading; the line at 0 is where both are alike.

    `differences` has COLUMNS: `value` with its 95 % interval `low` to `high` in the metric's unit,
    `seeds` it is over; groups and rows are drawn in the table's order. A mark is filled where the
    interval excludes 0, hollow where it does not or where there is none; numbers are marked as in
    the table, and `note` stands below, by default their `legend`. `title` names the axis. Raises
    ResultsError for an empty table.
    """
    if differences.empty:
        raise ResultsError("no differences to show")
    groups = differences.groupby("group", sort=False)
    lines = len(differences) + groups.ngroups + 0.6 * (groups.ngroups - 1)
    figure, ((axis,),) = panels(1, 1, 1.2 + _ROW * lines)
    y, places, names, weights = -1.6, [], [], []
    for group, rows in groups:
        y += 1.6
        places.append(y)
        for _, row in rows.iterrows():
            y += 1
            _difference(axis, y, row)
            places.append(y)
        names += [group, *rows["label"]]
        weights += ["bold", *["normal"] * len(rows)]
    axis.axvline(0, color=GREY, linewidth=0.9, zorder=0)
    axis.set(ylim=(y + 0.7, -0.7), xlabel=title)
    axis.set_yticks(places, labels=names)
    for text, weight in zip(axis.get_yticklabels(), weights, strict=True):
        text.set_fontweight(weight)
    axis.tick_params(axis="y", length=0)
    grid(axis, "x")
    axis.spines["left"].set_visible(False)
    figure.supxlabel(
        textwrap.fill(note or legend(differences), 150), x=0.01, ha="left", fontsize=6.5
    )
    return figure


def _difference(axis: Axes, y: float, row: pd.Series) -> None:
    low, value, high = row["low"], row["value"], row["high"]
    if not np.isnan(low):
        axis.hlines(y, low, high, color=BLUE, linewidth=1.4)
    face, weight = (BLUE, "bold") if _excludes_0(row) else ("white", "normal")
    axis.plot(value, y, "o", markersize=5, color=BLUE, markerfacecolor=face, markeredgewidth=1.2)
    cell, seeds = _cell(row), f"{row['seeds']:.0f} seed{'s' if row['seeds'] != 1 else ''}"
    numbers = f"{cell.text} {cell.interval}".rstrip().replace("-", "−")  # as on the axis
    beside(axis, numbers, y, (6, 0), va="center", color="0.25", fontweight=weight)
    beside(axis, seeds, y, (100, 0), va="center", color="0.25")
