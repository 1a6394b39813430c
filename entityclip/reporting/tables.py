"""Stored result rows and the papers' own numbers as tables."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from entityclip.config import config_hash
from entityclip.experiments.chapters import AsCLRuns
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import seed_retrievals
from entityclip.files import atomic_write_text
from entityclip.results import Log, ResultsError, find_rows, read_log, stored_rows
from entityclip.statistics import (
    DIRECTIONS,
    METRICS,
    PERCENT,
    difference_table,
    mean_over_seeds,
    over_seeds,
    rsum,
    rsum_difference,
    rsum_numbers,
    verdict,
)
from entityclip.variants import (
    BEFORE,
    CONDITIONS,
    CURVE_SPLITS,
    DIRECTION_LABELS,
    LEAK,
    MATCHING,
    NOT_FINETUNED,
    SPLIT_LABELS,
    TABLES,
    VARIANT_LABELS,
    VARIANTS,
    Measured,
    in_order,
    label,
)

# ------------------------------------------------------------------------------------------ tables


def relation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Weighted F1 by protocol, variant and label: mean over seeds and gain over no ITR.

    `value` is the mean over `seeds` seeds; `gain` the mean of the seed-by-seed difference from the
    start weights, `gain_low` to `gain_high` its 95 % t interval over the seeds (NaN for one seed).
    The interval holds the luck of ITR's seed, not that of the pairs judged.
    """
    keys = ["protocol", "variant", "label"]
    table = []
    for (protocol, variant, kind), group in rows.groupby(keys, sort=False):
        before = rows[
            (rows["variant"] == BEFORE) & (rows["protocol"] == protocol) & (rows["label"] == kind)
        ]
        gains = group.set_index("seed")["value"].sub(before.set_index("seed")["value"]).dropna()
        gain, low, high = mean_over_seeds(gains)
        table.append(
            {
                "protocol": protocol, "variant": variant, "label": kind,
                "value": group["value"].mean(), "gain": gain, "gain_low": low,
                "gain_high": high, "seeds": len(group),
            }
        )  # fmt: skip
    return pd.DataFrame(table)


Mark = Literal["", "best", "second"]


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "%_&$#{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "…": r"\dots{}",
    "λ": r"$\lambda$",
    "η": r"$\eta$",
}


# never enlarged
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


class Cell(NamedTuple):
    """A number as printed, its interval ("± 0.4" or "[1.2, 3.4]") and whether it stands out."""

    text: str = ""
    interval: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class Sheet:
    """A printed table: `header`, then blocks of rows, a rule between two blocks.

    The first `names` columns are words, left-aligned; the others numbers. `notes` are sentences for
    below the table.
    """

    header: Sequence[str]
    blocks: Sequence[Sequence[Sequence[Cell | str]]]
    names: int
    notes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        for row in (row for block in self.blocks for row in block):
            if len(row) != len(self.header):
                raise ValueError(f"{len(row)} cells below {len(self.header)} headings: {row}")


def standings(values: Sequence[float], *, higher_is_better: bool = True) -> list[Mark]:
    """Which of some values, as printed, are "best" and which "second".

    Equal values share their mark; second is the next other value. A blank (NaN) has none, and where
    all are equal, or there is only one, nothing stands out.
    """
    known = sorted({v for v in values if not np.isnan(v)}, reverse=higher_is_better)
    if len(known) < 2:
        return [""] * len(values)
    places: dict[float, Mark] = {known[0]: "best", known[1]: "second"}
    return [places.get(value, "") for value in values]


def sheet_markdown(sheet: Sheet) -> str:
    """The table in Markdown: best bold, second underlined; notes as paragraphs below."""
    dashes = ["---" if i < sheet.names else "--:" for i in range(len(sheet.header))]
    lines = [list(sheet.header), dashes]
    lines += [[_markdown(cell) for cell in row] for block in sheet.blocks for row in block]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n{note}\n" for note in sheet.notes)


def sheet_latex(sheet: Sheet, caption: str = "", label: str = "") -> str:
    r"""A ``table`` environment for ``\usepackage{booktabs,graphicx}``.

    The best is bold, the second underlined. Names that a whole block shares stand once, above it; a
    table wider than the line is shrunk to it. All words are escaped, so names may hold %, _, & and
    $. Notes stand below the table.
    """
    shared = _shared_names(sheet)
    columns = "l" * (sheet.names - shared) + "r" * (len(sheet.header) - sheet.names)
    lines = [r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{latex(caption)}}}")
    if label and caption:  # a label points at its caption's number
        lines.append(rf"\label{{{label}}}")
    lines += [_FITTED, rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_row(map(latex, sheet.header[shared:])), r"\midrule"]
    for number, block in enumerate(sheet.blocks):
        lines += [r"\midrule"] if number else []
        if shared and block:
            above = ", ".join(_latex_cell(name) for name in block[0][:shared])
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{above}}}}} \\")
        lines += [_row(map(_latex_cell, row[shared:])) for row in block]
    lines += [r"\bottomrule", r"\end{tabular}%", "}"]
    notes = (latex(re.sub(r"(?<!\w)-(?=\d)", "−", note)) for note in sheet.notes)
    lines += [rf"\par\smallskip{{\footnotesize\raggedright {note}\par}}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _shared_names(sheet: Sheet) -> int:
    """How many leading names every block's rows have in common, the last name never among them."""
    for place in range(max(sheet.names - 1, 0)):
        if any(len({row[place] for row in block}) > 1 for block in sheet.blocks):
            return place
    return max(sheet.names - 1, 0)


def save_sheet(sheet: Sheet, folder: str | Path, name: str, caption: str = "") -> list[Path]:
    """Write ``name.md`` and ``name.tex`` into `folder`; the paths."""
    label = f"tab:{name.replace('_', '-')}"
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("md", "tex")]
    texts = sheet_markdown(sheet), sheet_latex(sheet, caption, label)
    for path, text in zip(paths, texts, strict=True):
        atomic_write_text(path, text)
    return paths


def latex(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _row(cells: Iterable[str]) -> str:
    line = " & ".join(cells)
    # LaTeX reads a "[" or "*" that follows \\ as belonging to it, even on the next line
    return (f"{{}}{line}" if line.startswith(("[", "*")) else line) + r" \\"


def _markdown(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    text = {"best": f"**{cell.text}**", "second": f"<u>{cell.text}</u>"}.get(cell.mark, cell.text)
    return f"{text} {cell.interval}".rstrip()


def _latex_cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return latex(cell)
    marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(cell.mark, "%s")
    text = marked % _latex_number(cell.text)
    return f"{text} {{\\scriptsize {_latex_number(cell.interval)}}}" if cell.interval else text


def _latex_number(text: str) -> str:
    return latex(text.replace("-", "−"))  # a minus, where LaTeX would set a hyphen


_PRINTED = ("R@1", "R@5", "R@10", "MedR", "MeanR")


_GROUP = ["dataset", "split", "variant", "direction"]


_NEEDED = [*_GROUP, *("seed", "metric", "value", "low", "high", "n_queries", "n_candidates")]


def retrieval_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a (dataset, split, variant, direction), one column a metric, from `read_rows`.

    Columns: the four names, `seeds`, `n_queries`, `n_candidates`, `interval`, then each of METRICS
    with `<metric>_low` and `<metric>_high`. With one seed the intervals are the rows' own (95 %
    bootstrap over queries: the variance of the test set); with several, values are means over seeds
    and intervals Student's t over seeds (the variance of training), as `interval` says. A metric
    that a seed lacks is blank, never a mean over fewer seeds than the row claims.

    Raises ResultsError where rows of different data, or of one seed under different settings, would
    be set side by side.
    """
    refuse_mixtures(rows)
    rows = rows[_NEEDED]  # without the columns of where they come from, which cost most to group
    table = []
    for names, group in rows.groupby(_GROUP, sort=False):
        seeds, by_metric = group["seed"].nunique(), dict(list(group.groupby("metric")))
        line: dict[str, Any] = dict(zip(_GROUP, names, strict=True)) | {
            "seeds": seeds,
            "n_queries": group["n_queries"].iloc[0],
            "n_candidates": group["n_candidates"].iloc[0],
            "interval": "bootstrap over queries" if seeds == 1 else "t over seeds",
        }
        for metric in METRICS:
            of_metric = by_metric.get(metric, ())
            bounds = PERCENT if metric.startswith("R@") else (1, np.inf)
            whole = len(of_metric) == seeds
            numbers = over_seeds(of_metric, bounds) if whole else (np.nan,) * 3
            line |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), numbers, strict=True))
        table.append(line)
    return _sorted(pd.DataFrame(table))


def retrieval_sheet(
    table: pd.DataFrame, reported: pd.DataFrame | None = None, *, marked: bool = True
) -> Sheet:
    """`retrieval_table` as printed: best and second of each split, direction and metric `marked`.

    An interval over seeds is "± half", one over queries or cut at a metric's bound "[low, high]".
    With `reported` (`reported_values`) there is a last column "Reported", empty where no source
    gives a value.
    """
    several = table["dataset"].nunique() > 1
    names = [*(["Dataset"] if several else []), "Split", "Direction", "Variant"]
    said = None if reported is None else reported_cells(table, reported)
    blocks = [
        [
            [*_names(row, several), *cells, *([] if said is None else [said[at]])]
            for (at, row), cells in zip(group.iterrows(), _cells(group, marked), strict=True)
        ]
        for _, group in table.groupby(["dataset", "split", "direction"], sort=False)
    ]
    header = [*names, *_PRINTED, *([] if said is None else ["Reported"])]
    return Sheet(header, blocks, len(names))


def retrieval_markdown(table: pd.DataFrame) -> str:
    """`retrieval_table` as a Markdown table in which nothing is marked."""
    return sheet_markdown(retrieval_sheet(table, marked=False))


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
        if len(found) > 1:
            which = "; ".join(f"{data}: {', '.join(names)}" for data, names in found.items())
            raise ResultsError(
                f"rows of {dataset}/{split} come from different data ({which}); measure all "
                "variants on the same data, or choose rows by data_fingerprint"
            )
    configs = rows.drop_duplicates("config_hash").set_index("config_hash")["config"]
    settings = configs.map(lambda config: config_hash(_without_seeds(config)))
    settings = rows["config_hash"].map(settings)
    for (dataset, split, variant), group in settings.groupby(
        [rows["dataset"], rows["split"], rows["variant"]]
    ):
        if group.nunique() > 1:
            which = ", ".join(sorted(set(rows.loc[group.index, "config_hash"])))
            raise ResultsError(
                f"rows of {variant} on {dataset}/{split} come from different settings (config_hash "
                f"{which}); choose rows by config_hash"
            )


def _without_seeds(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: _without_seeds(v) for k, v in config.items() if k != "seed"}
    return [_without_seeds(v) for v in config] if isinstance(config, list) else config


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    places = {"split": SPLIT_LABELS, "variant": VARIANT_LABELS, "direction": DIRECTION_LABELS}

    def place(column: pd.Series) -> pd.Series:
        order = in_order(column, places.get(column.name, {}))
        return column.map({name: i for i, name in enumerate(order)})

    return table.sort_values(["dataset", "split", "direction", "variant"], key=place).reset_index(
        drop=True
    )


def _names(row: pd.Series, several: bool) -> list[str]:
    """What a row of a printed table is called."""
    return [
        *([row["dataset"]] if several else []),
        label(row["split"], SPLIT_LABELS),
        label(row["direction"], DIRECTION_LABELS),
        label(row["variant"], VARIANT_LABELS),
    ]


def _cells(group: pd.DataFrame, marked: bool) -> list[list[Cell]]:
    """The printed metrics of each row of one split and direction."""
    columns, rows = [], group.to_dict("records")
    for metric in _PRINTED:
        # as printed: what looks equal is marked equally
        marks = standings(group[metric].round(1), higher_is_better=metric.startswith("R@"))
        columns.append(
            [
                number_cell(
                    *(row[name] for name in (metric, f"{metric}_low", f"{metric}_high")),
                    mark if marked else "",
                    over_seeds=row["interval"] == "t over seeds",
                )
                for row, mark in zip(rows, marks, strict=True)
            ]
        )
    return [list(cells) for cells in zip(*columns, strict=True)]


def number_cell(
    value: float, low: float, high: float, mark: Mark = "", *, over_seeds: bool, sign: str = ""
) -> Cell:
    """A value to one decimal with its interval: "± half" if it is symmetric and over seeds.

    `sign` "+" shows a difference's sign. NaN gives an empty cell, or one without interval.
    """
    if np.isnan(value):
        return Cell()
    text = f"{value:{sign}.1f}"
    if np.isnan(low):
        return Cell(text, mark=mark)
    if over_seeds and np.isclose(high - value, value - low):
        return Cell(text, f"± {high - value:.1f}", mark)
    return Cell(text, f"[{low:{sign}.1f}, {high:{sign}.1f}]", mark)


# ---------------------------------------------------------------------------------------- table


def cross_domain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`retrieval_table` of each training domain, which is its first column, `trained_on`.

    Means and intervals over seeds where there are several. Raises ResultsError as
    `retrieval_table` does.
    """
    parts = []
    for name, group in rows.groupby("trained_on", sort=False):
        table = retrieval_table(group)
        table.insert(0, "trained_on", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def describe_transfer(table: pd.DataFrame, metric: str = "R@1") -> list[str]:
    """In words, for each variant and test domain: what training elsewhere costs, text to image.

    Intervals are compared, not differences: where two overlap, this test does not tell them apart.
    """
    chosen = table[table["direction"] == "text_to_image"]
    elsewhere = chosen[~chosen["trained_on"].isin([NOT_FINETUNED])]
    keyed = elsewhere.set_index(["variant", "dataset", "trained_on"])
    sentences = []
    for variant, tested, trained in keyed.index:
        if trained == tested or (variant, tested, tested) not in keyed.index:
            continue
        own, other = keyed.loc[(variant, tested, tested)], keyed.loc[(variant, tested, trained)]
        apart = other[f"{metric}_high"] < own[f"{metric}_low"]
        apart |= other[f"{metric}_low"] > own[f"{metric}_high"]
        sentences.append(
            f"{variant} on {tested}: {metric} {_numbers(other, metric)} trained on {trained}, "
            f"{_numbers(own, metric)} trained on its own; intervals "
            f"{'apart' if apart else 'overlap'}"
        )
    return sentences


def _numbers(row: pd.Series, metric: str) -> str:
    return f"{row[metric]:.1f} [{row[metric + '_low']:.1f}, {row[metric + '_high']:.1f}]"


def stored_curves(experiment: Experiment, variants: Iterable[str]) -> dict[str, list[Log]]:
    """The stored curves of each variant that has any, a (training, validation) pair a seed."""
    rows = find_rows(experiment, "curves", variants=variants)
    found: dict[str, list[Log]] = {}
    if rows.empty:
        return found
    epochs = rows["metric"].str.extract(r"epoch (\d+)$", expand=False).astype(int)
    rows = rows[["variant", "seed", "split", "value"]].assign(epoch=epochs)
    for (variant, _), run in rows.groupby(["variant", "seed"], sort=True):
        parts = [
            run[run["split"] == split].rename(columns={"value": column})[["epoch", column]]
            for split, column in CURVE_SPLITS.items()
        ]
        steps, validations = (part.sort_values("epoch", ignore_index=True) for part in parts)
        found.setdefault(str(variant), []).append((steps, validations))
    return found


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


COLUMNS = ("variant", "label", "group", "value", "low", "high", "seeds")


def forest_table(differences: pd.DataFrame) -> pd.DataFrame:
    """`comparison.difference_table` with COLUMNS, as `plot_forest` wants it.

    Where all are compared with one variant, labels name only what is compared with it. Groups stand
    in the house's order of splits and directions.
    """
    places = {
        name: place
        for names in (SPLIT_LABELS, DIRECTION_LABELS)
        for place, name in enumerate(names)
    }
    differences = differences.sort_values(
        ["split", "direction"], key=lambda column: column.map(places), kind="stable"
    )
    one = differences["second"].nunique() == 1
    firsts = differences["first"].map(lambda name: label(name, VARIANT_LABELS))
    seconds = differences["second"].map(lambda name: label(name, VARIANT_LABELS))
    groups = [
        f"{label(row['split'], SPLIT_LABELS)}, {label(row['direction'], DIRECTION_LABELS)}, "
        f"{row['metric']}"
        for _, row in differences.iterrows()
    ]
    table = differences.assign(label=firsts if one else firsts + " − " + seconds, group=groups)
    return table[list(COLUMNS)]


def separable(differences: pd.DataFrame) -> pd.Series:
    """Which differences have an interval that excludes 0; one without an interval is not."""
    return (differences["low"] > 0) | (differences["high"] < 0)


def difference_sheet(differences: pd.DataFrame, reference: str = "") -> Sheet:
    """A differences table as printed, with a sentence made from its numbers below."""
    blocks = [
        [
            [
                row["group"],
                row["label"],
                number_cell(*row[["value", "low", "high"]], over_seeds=False, sign="+"),
                Cell(f"{row['seeds']:.0f}"),
            ]
            for _, row in rows.iterrows()
        ]
        for _, rows in differences.groupby("group", sort=False)
    ]
    notes = describe_differences(differences, reference)
    return Sheet(["Group", "Variant", "Difference", "Seeds"], blocks, 2, notes)


def describe_differences(
    differences: pd.DataFrame, reference: str = "", *, higher_is_better: bool = True
) -> list[str]:
    """A sentence a group: what is better, what is worse, what these intervals cannot separate.

    `differences` has `forest.COLUMNS`. `reference` is what was subtracted, as a reader should see
    it; "" where labels say so themselves ("a − b"), for which better and worse mean a. A
    difference without an interval is named as untested, never as a finding.
    """
    return [
        f"{group}: {'; '.join(_verdicts(rows, reference, higher_is_better))}."
        for group, rows in differences.groupby("group", sort=False)
    ]


def _verdicts(rows: pd.DataFrame, reference: str, higher_is_better: bool) -> list[str]:
    apart, untested = separable(rows), rows["low"].isna()
    better = (rows["value"] > 0) == higher_is_better
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


SUMMARY = ("accuracy", "macro_f1")  # then one "f1/<section>" a section; all in percent


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
    f1 = rows[rows["metric"].str.startswith("f1/")].set_index(["variant", "metric"])
    table = []
    for variant, counts in confusions(rows).items():
        for name in counts.index:
            hits, true, found = counts.loc[name, name], counts.loc[name].sum(), counts[name].sum()
            of_f1 = f1.loc[(variant, f"f1/{name}")]
            table.append(
                {
                    "variant": variant,
                    "section": name,
                    "pairs": true,
                    "precision": 100 * hits / found if found else np.nan,
                    "recall": 100 * hits / true,
                    **{"f1": of_f1["value"], "f1_low": of_f1["low"], "f1_high": of_f1["high"]},
                }
            )
    return pd.DataFrame(table)


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a (dataset, variant) of one split: accuracy and macro-F1 with 95 % intervals.

    Of several `seeds` means, with Student's t over seeds; of one its own, over queries. Beside them
    the accuracy of `guessing` uniformly and of always saying the commonest section, `majority`,
    which no macro-F1 rewards.
    """
    table = []
    shown = rows[rows["metric"].isin(SUMMARY)]
    for (dataset, variant), group in shown.groupby(["dataset", "variant"], sort=False):
        line = {"dataset": dataset, "variant": variant, "seeds": group["seed"].nunique()}
        line["sections"] = group["n_candidates"].iloc[0]
        line["guessing"] = 100 / line["sections"]
        confusion = group.loc[group["metric"] == "accuracy", "confusion"].iloc[0]
        true = np.array(confusion).sum(1)
        line["majority"] = 100 * true.max() / true.sum()
        for metric in SUMMARY:
            value, low, high = over_seeds(group[group["metric"] == metric])
            line |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        table.append(line)
    return pd.DataFrame(table)


def ascl_recall_table(rows: pd.DataFrame) -> pd.DataFrame:
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


def ascl_rsum_table(
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


def ascl_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
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


def leak_table(rows: pd.DataFrame) -> pd.DataFrame:
    """R@1 between V* and T* by what each side reads: a row a variant, direction and condition.

    `rows` are stored rows of kind "leak". Columns `variant`, `split`, `direction`, `reads`,
    `value`, `low`, `high`, `seeds`, `chance`; intervals as in `retrieval_table`.
    """
    return _by_kind(rows, "R@1, ", list(CONDITIONS))


def describe_leak(table: pd.DataFrame, direction: str = "text_to_image") -> list[str]:
    """A sentence a variant: what survives the same wrong explanation, and two different ones."""
    sentences = []
    for variant, rows in table[table["direction"] == direction].groupby("variant", sort=False):
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
    lines = []
    keys = ["variant", "split", "direction"]
    for names, group in rows.groupby(keys, sort=False):
        for kind in kinds:
            of_kind = group[group["metric"] == prefix + kind]
            if of_kind.empty:
                continue
            value, low, high = over_seeds(of_kind)
            lines.append(
                dict(zip(keys, names, strict=True))
                | {"reads": kind, "value": value, "low": low, "high": high}
                | {"seeds": len(of_kind), "chance": 100 / of_kind["n_candidates"].iloc[0]}
            )
    if not lines:
        raise ResultsError(f"no rows whose metric starts with {prefix!r}")
    return pd.DataFrame(lines)


_PHASES = {"training": "Training (mean of each epoch)", "validation": "Validation"}


def seed_curves(logs: Mapping[str, Sequence[Log | str | Path]], term: str = "vtc") -> pd.DataFrame:
    """One loss term by epoch over the seeds of each variant; `logs` holds a log a seed.

    Columns: `variant`, `phase` ("training": mean over the epoch's steps, or "validation"), `epoch`,
    `seeds`, `mean`, `low` and `high` (least and greatest seed). An epoch that a seed has not
    reached is left out, so that every point is over all seeds. Raises ValueError for no logs and
    for a log without the term.
    """
    tables = []
    for variant, seeds in logs.items():
        read = [log if isinstance(log, tuple) else read_log(log) for log in seeds]
        if not read or any(term not in steps for steps, _ in read):
            raise ValueError(f"no {term!r} in the logs of {variant}")
        for phase in _PHASES:
            by_seed = pd.concat([_by_epoch(log, phase, term) for log in read], axis=1).dropna()
            tables.append(
                pd.DataFrame(
                    {
                        "variant": variant,
                        "phase": phase,
                        "epoch": by_seed.index.astype(int),
                        "seeds": by_seed.shape[1],
                        "mean": by_seed.mean(axis=1).to_numpy(),
                        "low": by_seed.min(axis=1).to_numpy(),
                        "high": by_seed.max(axis=1).to_numpy(),
                    }
                )
            )
    if not tables:
        raise ValueError(f"no {term!r} in the logs of nothing")
    return pd.concat(tables, ignore_index=True)


def _by_epoch(log: Log, phase: str, term: str) -> pd.Series:
    steps, validations = log
    if phase == "training":
        return steps.groupby("epoch")[term].mean()
    if f"val_{term}" not in validations:  # killed before its first validation
        return pd.Series(dtype=float)
    return validations.groupby("epoch")[f"val_{term}"].last()
