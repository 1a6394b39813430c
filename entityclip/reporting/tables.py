"""Stored result rows and the papers' own numbers as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entityclip.config import config_hash
from entityclip.reporting.markup import Cell, Sheet, number_cell, standings
from entityclip.results import ResultsError
from entityclip.statistics import (
    BY_ARTICLE,
    LOW_IS_GOOD,
    METRICS,
    PERCENT,
    level_intervals,
    over_seeds,
)
from entityclip.variants import (
    DIRECTION_LABELS,
    DISTRACTORS,
    FLOORS,
    NOT_FINETUNED,
    SPLIT_LABELS,
    TABLES,
    VAL_SPLITS,
    VARIANT_LABELS,
    VARIANTS,
    in_order,
)

_PRINTED = tuple(metric for metric in METRICS if metric not in ("R@50", "R@100"))
_LABELS = {"split": SPLIT_LABELS, "direction": DIRECTION_LABELS, "variant": VARIANT_LABELS}
_GROUP = ["dataset", "split", "variant", "direction"]
_NEEDED = [
    *(*_GROUP, "seed", "metric", "value", "low", "high", "n_queries", "n_candidates"),
    *("data_fingerprint", "ranks", "clusters"),
]
# what an interval holds, as a table's column says it, and in the words below a printed table
INTERVALS = {
    "bootstrap over queries and seeds": "over test queries and training seeds together (bootstrap)",
    "bootstrap over queries": "of one seed, over test queries (bootstrap)",
    "t over seeds": "±, over training seeds alone (Student's t)",
}


def retrieval_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a (dataset, split, variant, direction), one column a metric, from `read_rows`.

    Columns: the four names, `seeds`, `n_queries`, `n_candidates`, `interval`, then each of METRICS
    with `<metric>_low` and `<metric>_high`, 95 % intervals, `interval` saying of what. With one
    seed they are the rows' own, a bootstrap over queries. With several, values are means over seeds
    and intervals hold queries and seeds together, of ranks that stand in the rows (`with_ranks`);
    without ranks they are Student's t over seeds, the variance of training alone. `n_queries`
    counts those of all draws of the data. A metric that a seed lacks is blank, never a mean over
    fewer seeds than the row claims.

    Raises ResultsError where rows of different data, or of one seed under different settings, would
    be set side by side.
    """
    refuse_mixtures(rows)

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        seeds, by_metric = group["seed"].nunique(), dict(list(group.groupby("metric")))
        ranked = group[group["ranks"].map(lambda ranks: isinstance(ranks, list))]
        both = level_intervals(ranked) if len(ranked) == seeds > 1 else {}
        of_queries = "bootstrap over queries" + (" and seeds" if both else "")
        line = {
            "seeds": seeds,
            "n_queries": group.drop_duplicates("data_fingerprint")["n_queries"].sum(),
            "n_candidates": group["n_candidates"].iloc[0],
            "interval": of_queries if both or seeds == 1 else "t over seeds",
        }
        for metric in METRICS:
            of_metric = by_metric.get(metric, ())
            bounds = (1, np.inf) if metric in LOW_IS_GOOD else PERCENT
            whole = len(of_metric) == seeds
            value, *ends = over_seeds(of_metric, bounds) if whole else (np.nan,) * 3
            found = (value, *(both[metric] if both and whole else ends))
            line |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), found, strict=True))
        return line

    # without the columns of where rows come from, which cost most to group
    return in_label_order(by_group(rows.reindex(columns=_NEEDED), _GROUP, numbers))


def with_ranks(rows: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Retrieval rows, beside each mean rank the `ranks` and `clusters` of its queries, if stored.

    `ranks` are rows of kind "ranks", which may lack some or all.
    """
    keys = [*_GROUP, "seed", "metric", "config_hash", "data_fingerprint"]
    return rows.merge(ranks.reindex(columns=[*keys, "ranks", "clusters"]), "left", keys)


def articles_beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Retrieval rows with those by article as a split of their own, "test, by article"."""
    by_article = rows["metric"].str.endswith(BY_ARTICLE)
    return rows.assign(
        split=rows["split"].where(~by_article, rows["split"] + BY_ARTICLE),
        metric=rows["metric"].str.removesuffix(BY_ARTICLE),
    )


def by_group(
    rows: pd.DataFrame, keys: Sequence[str], numbers: Callable[[pd.DataFrame], dict[str, Any]]
) -> pd.DataFrame:
    """A row a value of the columns `keys`, in the rows' order; then the `numbers` of its group."""
    return pd.DataFrame(
        dict(zip(keys, names, strict=True)) | numbers(group)
        for names, group in rows.groupby(list(keys), sort=False)
    )


def recall_table(rows: pd.DataFrame, variants: Sequence[str]) -> pd.DataFrame:
    """`retrieval_table` with the variants in the order given."""
    return retrieval_table(rows).sort_values(
        ["split", "direction", "variant"], kind="stable", ignore_index=True,
        key=lambda column: column.map(variants.index) if column.name == "variant" else column,
    )  # fmt: skip


def retrieval_sheet(table: pd.DataFrame) -> Sheet:
    """`retrieval_table` as printed: best and second of each split, direction and metric marked.

    An interval over seeds alone is "± half", another or one cut at a metric's bound "[low, high]".
    Floors stand apart, below, and are never marked. A table with a column `reported`
    (`reported_cells`) has it as its last.
    """
    mixed = table.groupby("split")["dataset"].nunique().max() > 1  # else splits' names tell
    names = ["dataset"] * bool(mixed) + ["split", "direction", "variant"]
    more = [name for name in ["reported"] if name in table]
    blocks = []
    for _, group in table.groupby(["dataset", "split", "direction"], sort=False):
        floor, block = group["variant"].isin(FLOORS), []
        for rows, marked in ((group[~floor], True), (group[floor], False)):
            cells = [_cells(rows, metric, marked) for metric in _PRINTED]
            shown = rows.replace(_LABELS)
            columns = [*(shown[name] for name in names), *cells, *(shown[name] for name in more)]
            block += [()] if block and len(rows) else []
            block += zip(*columns, strict=True)
        blocks.append(block)
    header = [*map(str.capitalize, names), *_PRINTED, *map(str.capitalize, more)]
    return Sheet(header, blocks, len(names), legend(table))


def _cells(group: pd.DataFrame, metric: str, marked: bool) -> list[Cell]:
    """A printed metric of each row of one split and direction."""
    numbers = (group[f"{metric}{end}"] for end in ("", "_low", "_high"))
    rows = zip(*numbers, group["interval"] == "t over seeds", strict=True)
    cells = [number_cell(*row, over_seeds=several) for *row, several in rows]
    # by what is printed: rounding by other means may part what looks equal
    printed = [float(cell.text or "nan") if marked else np.nan for cell in cells]
    marks = standings(printed, higher_is_better=metric not in LOW_IS_GOOD)
    return [cell._replace(mark=mark) for cell, mark in zip(cells, marks, strict=True)]


def distractor_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a (dataset, split, variant, direction): what queries are mistaken for.

    From retrieval rows. Columns: the four names, `seeds`, then IN_SCENE (0 is best, 50 is what a
    scene alone gives), ONE_FLAG and SAME_FLAGS (100 is best), each with `_low` and `_high`, 95 %
    intervals as `over_seeds` gives them. Raises ResultsError where pictures are not drawn.
    """
    rows = rows[rows["metric"].isin(DISTRACTORS)]
    if rows.empty:
        raise ResultsError("only drawn pictures tell what a query could be mistaken for")

    def numbers(group: pd.DataFrame) -> dict[str, Any]:
        line: dict[str, Any] = {"seeds": group["seed"].nunique()}
        for metric in DISTRACTORS:
            found = over_seeds(group[group["metric"] == metric])
            line |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), found, strict=True))
        return line

    return in_label_order(by_group(rows, _GROUP, numbers))


def distractor_sheet(table: pd.DataFrame) -> Sheet:
    """`distractor_table` as printed."""
    blocks = []
    for _, group in table.replace(_LABELS).groupby("split", sort=False):
        cells = []
        for metric in DISTRACTORS:
            numbers = (group[f"{metric}{end}"] for end in ("", "_low", "_high"))
            cells.append(
                [number_cell(*row, over_seeds=False) for row in zip(*numbers, strict=True)]
            )
        blocks.append(list(zip(group["split"], group["variant"], *cells, strict=True)))
    said = "95 % intervals: over training seeds (Student's t), or over queries where there is one."
    return Sheet(["Split", "Variant", *DISTRACTORS], blocks, 2, [said])


def legend(table: pd.DataFrame) -> list[str]:
    """What marks and intervals of a printed `retrieval_table` are, in sentences."""
    known = set(table.loc[table["R@1_low"].notna(), "interval"])  # floors have none
    kinds = [said for kind, said in INTERVALS.items() if kind in known]
    return [
        "Bold: best of its split, direction and metric; underlined: second best, both by the "
        "printed number, so that equal numbers share a mark.",
        f"95 % intervals: {'; '.join(kinds)}.",
    ]


def held(table: pd.DataFrame) -> str:
    """What most rows' intervals of a `retrieval_table` hold, for its caption."""
    return f"95 % intervals {INTERVALS[table['interval'].mode()[0]].removeprefix('±, ')}"


def reported_cells(table: pd.DataFrame, reported: pd.DataFrame) -> pd.Series:
    """What papers report for each row of `retrieval_table`: "R@1 12.5, R@5 30.1", or nothing.

    A value of `reported_values` belongs to a row if its `row` is the variant's name and its
    `column` reads "<dataset> <split> <direction> <metric>", such as "n24news test text_to_image
    R@1": the numbers of other data never stand beside ours. Its `table` is the paper's own.
    """
    known = reported.dropna(subset="value").set_index(["row", "column"])["value"]
    if not known.index.is_unique:
        twice = known.index[known.index.duplicated()][0]
        raise ResultsError(f"two reported values for {twice[0]}, {twice[1]}; keep one source")

    def said(row: pd.Series) -> str:
        place = f"{row['dataset']} {row['split']} {row['direction']}"
        found = {m: known.get((row["variant"], f"{place} {m}")) for m in METRICS}
        return ", ".join(f"{m} {value:g}" for m, value in found.items() if value is not None)

    return pd.Series([said(row) for _, row in table.iterrows()], index=table.index, dtype=str)


def reported_values(path: str | Path) -> pd.DataFrame:
    """The papers' own numbers, each with its place: columns paper, table, row, column, value.

    No file gives an empty table, and a value nobody could read stays blank: none is ever invented.
    `reported_cells` says how a value finds its place.
    Raises ResultsError naming the line for a value without its place, a double or no number.
    """
    columns = ["paper", "table", "row", "column", "value"]
    path = Path(path)
    if not path.exists():
        return pd.DataFrame(columns=columns).astype({"value": float})
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != columns:
        raise ResultsError(f"{path}: columns are {list(frame.columns)}; expected {columns}")
    values = pd.to_numeric(frame["value"].replace("", np.nan), errors="coerce")
    problems = {
        "lacks its paper, table, row or column": (frame[columns[:4]] == "").any(axis=1),
        "stands there twice": frame.duplicated(columns[:4]),
        "is no finite number": (frame["value"] != "") & ~np.isfinite(values),
    }
    for problem, found in problems.items():
        if found.any():
            place = int(np.flatnonzero(found)[0])
            raise ResultsError(
                f"{path}, line {place + 2}: the value {problem}: {frame.loc[place].to_dict()}"
            )
    return frame.assign(value=values)


def refuse_mixtures(rows: pd.DataFrame) -> None:
    """Raise ResultsError for rows of different data, or of a variant under different settings."""
    for (dataset, split), group in rows.groupby(["dataset", "split"]):
        found = group.groupby("data_fingerprint")["variant"].unique()
        # some seeds may have another draw of the data, the same for all who have the seed
        of_seeds = group.groupby("seed")["data_fingerprint"].nunique()
        of_variants = group.groupby("variant")["data_fingerprint"].agg(set)
        if of_seeds.max() > 1 or not set.intersection(*of_variants):
            which = "; ".join(f"{data}: {', '.join(names)}" for data, names in found.items())
            raise ResultsError(
                f"rows of {dataset}/{split} come from different data ({which}); measure all "
                "variants on the same data, or choose rows by data_fingerprint"
            )
    configs = rows.drop_duplicates("config_hash").set_index("config_hash")["config"]
    settings = configs.map(lambda config: config_hash(_without_seeds(config)))
    kinds = rows[["dataset", "split", "variant", "config_hash"]].drop_duplicates()
    for (dataset, split, variant), hashes in kinds.groupby(_GROUP[:3])["config_hash"]:
        if settings[hashes].nunique() > 1:
            which = ", ".join(sorted(hashes))
            raise ResultsError(
                f"rows of {variant} on {dataset}/{split} come from different settings (config_hash "
                f"{which}); choose rows by config_hash"
            )


def _without_seeds(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _without_seeds(v) for k, v in config.items() if k not in ("seed", "data_seed")}
    return [_without_seeds(v) for v in config] if isinstance(config, list) else config


def in_label_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by data set, split, direction and variant, in the order of their labels."""

    def place(column: pd.Series) -> pd.Series:
        return column.map(in_order(column, _LABELS.get(column.name, {})).index)

    by = ["dataset", "split", "direction", "variant"]
    return table.sort_values(by, key=place, ignore_index=True)


def cross_domain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`retrieval_table` of each training domain, which is its first column, `trained_on`.

    Means and intervals over seeds where there are several. Raises ResultsError as
    `retrieval_table` does.
    """
    parts = {name: retrieval_table(group) for name, group in rows.groupby("trained_on", sort=False)}
    return pd.concat(parts, names=["trained_on"]).reset_index("trained_on").reset_index(drop=True)


def describe_transfer(table: pd.DataFrame) -> list[str]:
    """In words, for each variant and test domain: R@1 that training elsewhere costs, text to image.

    Intervals are compared, not differences: where two overlap, this test does not tell them apart.
    """
    chosen = table[table["direction"] == "text_to_image"]
    elsewhere = chosen[chosen["trained_on"] != NOT_FINETUNED]
    keyed = elsewhere.set_index(["variant", "dataset", "trained_on"])
    sentences = []
    for variant, tested, trained in keyed.index:
        if trained == tested or (variant, tested, tested) not in keyed.index:
            continue
        own, other = keyed.loc[(variant, tested, tested)], keyed.loc[(variant, tested, trained)]
        apart = other["R@1_high"] < own["R@1_low"] or other["R@1_low"] > own["R@1_high"]
        there, home = (
            f"{row['R@1']:.1f} [{row['R@1_low']:.1f}, {row['R@1_high']:.1f}]"
            for row in (other, own)
        )
        sentences.append(
            f"{variant} on {tested}: R@1 {there} trained on {trained}, {home} trained on its own; "
            f"intervals {'apart' if apart else 'overlap'}"
        )
    return sentences


def describe_variants(table: str) -> pd.DataFrame:
    """What each row of a table asks and how its model differs from the profile's."""
    rows = []
    for variant in map(VARIANTS.__getitem__, TABLES[table]):
        changes = [f"{key}={value}" for key, value in variant.model.items()]
        if variant.explanations != "own":
            changes.append(f"explanations={variant.explanations}")
        rows.append({"variant": variant.name, "asks": variant.asks, "changes": ", ".join(changes)})
    return pd.DataFrame(rows)


def choose_on_validation(rows: pd.DataFrame) -> pd.DataFrame:
    """The search's candidates by mean R@1, both ways, on VAL_SPLITS, best first; no test rows read.

    `rows` are retrieval rows of any splits. Columns `variant`, `seeds`, `R@1`, `lowest` and
    `highest` over the seeds that all candidates have: a choice among unequals would not be one.
    Raises ResultsError while there is none.
    """
    rows = rows[(rows["metric"] == "R@1") & (rows["split"].isin(VAL_SPLITS))]
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
