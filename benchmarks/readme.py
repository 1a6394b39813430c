"""Fill the README's measured parts from the files that `make reproduce` left in figures/.

    python -m benchmarks.readme

Between ``<!-- name -->`` and ``<!-- /name -->`` nothing is typed by hand; a test compares.
"""

from __future__ import annotations

import json

import pandas as pd

from benchmarks.marked_parts import replace_part
from entityclip.ablation_plots import describe_leak
from entityclip.comparison import describe
from entityclip.config import REPOSITORY
from entityclip.results import atomic_write_text
from entityclip.tables import retrieval_markdown

FIGURES = REPOSITORY / "figures"
# notebook -> what it makes, what it answers to
MAP = {
    "00_setup_and_data": ("`pairs`, `generic_pairs`, `lengths`, `splits.csv`", "data sets"),
    "01_explanations": (
        "`explanations`, `explanation_checks`, `explanation_lengths`",
        "the LLM's explanations",
    ),
    "02_method": ("–", "section 3, equation by equation"),
    "03_train": (
        "`pretraining_curves`, `training_curves`, `training_runs.csv`",
        "section 4.1, training",
    ),
    "04_retrieval": (
        "`retrieval_gallery`, `attention_words`, `attention_patches`, `gates`, `embedding_space`",
        "the retrieval tables; what the experts look at",
    ),
    "05_ablation_mmae": ("shown only, as 06 and 12", "the ablation of MMAE; the leak question"),
    "06_ablation_gi_itm": ("–", "the ablation of GI-ITM"),
    "07_generalization": (
        "with `ALL=1`: domains, matrices, confusions",
        "cross-domain retrieval, zero-shot sections",
    ),
    "08_itr": ("with `ALL=1`: relations, F1, Grad-CAM", "the ITR paper"),
    "09_ascl": ("with `ALL=1`: samples, ablation, queries", "the AsCL paper"),
    "10_tables_and_figures": (
        "`retrieval`, `differences`, `recall_curves`, `seed_curves`; the tables of 05–09, 12",
        "all tables and figures, from stored rows",
    ),
    "11_search": ("`disagreements.csv`, `search_words.csv`", "search with the trained model"),
    "12_controls_and_search": ("–", "controls that could refute the claims; a search for better"),
}


def results() -> str:
    """The main table, text to image, and its differences in words."""
    table = pd.read_csv(FIGURES / "retrieval.csv")
    one_way = table[table["direction"] == "text_to_image"].reset_index(drop=True)
    said = "Differences query by query (bootstrap over queries and seeds, both paired):"
    return f"{retrieval_markdown(one_way)}\n{said}\n\n{sentences('differences')}"


def controls() -> str:
    """The controls' differences in words, then the leak question."""
    leak = describe_leak(pd.read_csv(FIGURES / "leak.csv"))
    return sentences("controls_differences") + "".join(f"- {line}\n" for line in leak)


def sentences(name: str) -> str:
    """A table of differences, text to image, as a list of sentences."""
    rows = pd.read_csv(FIGURES / f"{name}.csv")
    rows = rows[rows["direction"] == "text_to_image"].to_dict("records")
    return "".join(f"- {describe(row)}\n" for row in rows)


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


PARTS = {"results": results, "controls": controls, "map": notebook_map}


def filled(text: str) -> str:
    """The README with its measured parts as the files have them."""
    for name, write in PARTS.items():
        text = replace_part(text, name, write().rstrip("\n"))
    return text


def main() -> None:
    readme = REPOSITORY / "README.md"
    atomic_write_text(readme, filled(readme.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
