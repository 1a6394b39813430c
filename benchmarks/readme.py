"""Fill the READMEs' measured parts from the files that `make reproduce` left in figures/.

    python -m benchmarks.readme

Between ``<!-- name -->`` and ``<!-- /name -->`` nothing is typed by hand; a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from benchmarks.marked_parts import replace_part
from benchmarks.readme_findings import FIGURES, SPACE, ablations, chapters, difference_cell
from entityclip.config import REPOSITORY
from entityclip.files import atomic_write_text
from entityclip.reporting.style import read_table
from entityclip.variants import VARIANT_LABELS, label

# notebook -> what it makes, what it answers to
MAP = {
    "00_setup_and_data": ("`pairs`, `generic_pairs`, `lengths`, `splits.csv`", "data sets"),
    "01_explanations": ("`explanations`, `explanation_checks`, `explanation_lengths`",
                        "the LLM's explanations"),
    "02_method": ("`negative_draws`", "the method, equation by equation"),
    "03_train": ("`pretraining_curves`, `training_curves`, `training_runs.csv`", "training"),
    "04_retrieval": (
        "`retrieval_gallery`, `attention_words`, `attention_patches`, `gates`, `embedding_space`",
        "the retrieval tables; what the experts look at",
    ),
    "05_ablation_mmae": ("saved by 10", "the ablation of MMAE; the leak question"),
    "06_ablation_gi_itm": ("saved by 10", "the ablation of GI-ITM"),
    "07_generalization": (
        "with `ALL=1`: its tables and figures",
        "cross-domain retrieval, zero-shot sections",
    ),
    "08_itr": ("with `ALL=1`: its tables and figures", "the ITR paper"),
    "09_ascl": ("with `ALL=1`: its tables and figures", "the AsCL paper"),
    "10_tables_and_figures": (
        "`retrieval`, `differences`, `distractors.csv`, `recall_curves`, `recall_by_name`; what "
        "has rows of 05–09, 12, 13",
        "all tables and figures, from stored rows",
    ),
    "11_search": ("`disagreements.csv`, `search_words.csv`, `query_gates.csv`",
                  "search with the trained model"),
    "12_controls_and_search": ("saved by 10",
                               "controls that could refute the claims; a search for better"),
    "13_settings_and_cost": ("`mixes_differences`, `explanation_sources_differences`, `costs`",
                             "expert mixes, weights, who explains, backbones, costs"),
}  # fmt: skip


# the names that each query set asks by
KIND = {"test": "Common names", "test_rare": "Rare", "test_alias": "Aliases",
        "test_unseen": "Unseen"}  # fmt: skip


def main_table() -> str:
    """The main table's recall, text to image, and what is found without any name."""
    return _recall("retrieval", "R@10")


def views() -> str:
    """Recall of what reads names alone, and of its refuters."""
    return _recall("views", "R@10")


def _recall(name: str, *metrics: str) -> str:
    """A table's text to image recall: a line a variant, the splits beside each other."""
    table = read_table(FIGURES / f"{name}.csv")
    one_way = table[table["direction"] == "text_to_image"]
    splits = [split for split in KIND if split in set(one_way["split"])]
    places = [(split, metric) for split in splits for metric in metrics]
    heads = [f"{KIND[split]}, {metric}" for split, metric in places]
    lines = [f"| Variant | Seeds | {' | '.join(heads)} |", "|---|--:|" + "--:|" * len(heads)]
    for variant, rows in one_way.groupby("variant", sort=False):
        at = rows.set_index("split")
        cells = [_number(at.loc[split].to_dict(), metric) for split, metric in places]
        seeds = rows["seeds"].iloc[0]
        lines.append(f"| {label(variant, VARIANT_LABELS)} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def results() -> str:
    """The main table, text to image, and its differences."""
    table = read_table(FIGURES / "retrieval.csv")
    one_way = table[table["direction"] == "text_to_image"]
    lines = ["| Names | Variant | Seeds | R@1 | R@10 | MRR | MeanR |",
             "|---|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for row in one_way.to_dict("records"):
        numbers = " | ".join(_number(row, metric) for metric in ("R@1", "R@10", "MRR", "MeanR"))
        split = KIND[row["split"]].replace(" ", SPACE)
        names = f"{split} | {label(row['variant'], VARIANT_LABELS)}"
        lines.append(f"| {names} | {row['seeds']} | {numbers} |")
    said = (
        "MRR, text → image, first minus second on the same queries and seeds. Bold: the 95 % "
        "interval excludes 0; †: after Benjamini and Hochberg, too, at 5 % over all differences of "
        "its table, both directions:"
    )
    return "\n".join([*lines, "", said, "", differences("differences")])


def controls() -> str:
    """The controls' differences, then the leak question."""
    return f"{differences('controls_differences')}\n{leak()}"


def differences(name: str) -> str:
    """A table of differences, text to image: a line a comparison, a column a query set."""
    rows = read_table(FIGURES / f"{name}.csv")
    rows = rows[rows["direction"] == "text_to_image"]
    places = [split for split in KIND if split in set(rows["split"])]
    heads = [KIND[split] for split in places]
    lines = [f"| MRR, difference | Seeds | {' | '.join(heads)} |",
             "|---|--:|" + "--:|" * len(places)]  # fmt: skip
    for (first, second), pair in rows.groupby(["first", "second"], sort=False):
        at = pair.set_index("split")
        cells = [difference_cell(at.loc[place]) if place in at.index else "" for place in places]
        seeds = "–".join(str(n) for n in sorted(set(pair["seeds"])))
        names = f"{label(first, VARIANT_LABELS)} − {label(second, VARIANT_LABELS)}"
        lines.append(f"| {names} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def leak() -> str:
    """Retrieval between V* and T*, text to image, by the explanation that they read at test."""
    table = read_table(FIGURES / "leak.csv")
    table = table[table["direction"] == "text_to_image"]
    reads = {"own": "its own", "same wrong": "the same wrong one",
             "two different wrong": "two different wrong ones"}  # fmt: skip
    said = "Retrieval between V\\* and T\\*, text to image, R@1 in percent, chance "
    lines = [f"{said}{table['chance'].iloc[0]:g}:", "",
             f"| Both read … | Seeds | {' | '.join(reads.values())} |",
             "|---|--:|" + "--:|" * len(reads)]  # fmt: skip
    for variant, rows in table.groupby("variant", sort=False):
        value = rows.set_index("reads")["value"]
        numbers = " | ".join(f"{value[kind]:.1f}" for kind in reads)
        lines.append(f"| {label(variant, VARIANT_LABELS)} | {rows['seeds'].iloc[0]} | {numbers} |")
    return "\n".join(lines) + "\n"


def _number(row: dict, metric: str) -> str:
    if pd.isna(row[f"{metric}_low"]):  # a floor
        return f"{row[metric]:.1f}"
    return f"{row[metric]:.1f} [{row[f'{metric}_low']:.1f},{SPACE}{row[f'{metric}_high']:.1f}]"


def notebook_map() -> str:
    report = json.loads((FIGURES / "reproduce.json").read_text(encoding="utf-8"))
    run = {row["notebook"]: row for row in report["notebooks"]}
    lines = ["| notebook | what it makes in `figures/` | answers to | minutes | MB |",
             "|---|---|---|--:|--:|"]  # fmt: skip
    for name, (makes, answers) in MAP.items():
        cost = "– | –"
        if name in run:
            cost = f"{run[name]['seconds'] / 60:.1f} | {run[name]['peak_mb']}"
        lines.append(f"| [{name}](notebooks/{name}.ipynb) | {makes} | {answers} | {cost} |")
    return "\n".join(lines) + "\n"


def public_code() -> str:
    """Where we differ from the authors' public code."""
    table = read_table(FIGURES / "public_code.csv").fillna("")
    columns = ["what", "theirs", "ours", "change", "restored_by"]
    lines = ["| What | Theirs | Ours | How much it changes, measured | Restored by |",
             "|---|---|---|---|---|"]  # fmt: skip
    lines += ["| " + " | ".join(row) + " |" for row in table[columns].itertuples(index=False)]
    return "\n".join(lines) + "\n"


README, FIGURES_README, PACKAGE_README = (
    REPOSITORY / folder / "README.md" for folder in ("", "figures", "entityclip")
)
# which file holds which part
PARTS = {
    README: {"main": main_table, "views": views, "map": notebook_map},
    FIGURES_README: {
        "results": results, "controls": controls, "ablations": ablations, "chapters": chapters,
        "views": lambda: differences("views_differences"),
    },
    PACKAGE_README: {"public-code": public_code},
}  # fmt: skip


def filled(path: Path) -> str:
    """One of PARTS with its measured parts as the files have them."""
    text = path.read_text(encoding="utf-8")
    for name, write in PARTS[path].items():
        text = replace_part(text, name, write().rstrip("\n"))
    return text


def main() -> None:
    for path in PARTS:
        atomic_write_text(path, filled(path))


if __name__ == "__main__":
    main()
