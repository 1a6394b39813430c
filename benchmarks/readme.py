"""Fill the README's measured parts from the files that `make reproduce` left in figures/.

    python -m benchmarks.readme

Between ``<!-- name -->`` and ``<!-- /name -->`` nothing is typed by hand; a test compares.
"""

from __future__ import annotations

import json
import re

import pandas as pd

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
    "03_train": ("`pretraining_curves`, `training_runs.csv`", "section 4.1, training"),
    "04_retrieval": ("`retrieval_gallery`", "the retrieval tables"),
    "10_tables_and_figures": (
        "`retrieval.csv`, `differences.csv`, `retrieval`, `recall_curves`, `training_curves`",
        "all tables and figures, from stored rows",
    ),
}


def results() -> str:
    table = retrieval_markdown(pd.read_csv(FIGURES / "retrieval.csv"))
    differences = pd.read_csv(FIGURES / "differences.csv").to_dict("records")
    sentences = "".join(f"- {describe(row)}\n" for row in differences)
    said = "EntityCLIP against fine-tuned CLIP, query by query (paired bootstrap):"
    return f"{table}\n{said}\n\n{sentences}"


def notebook_map() -> str:
    report = json.loads((FIGURES / "reproduce.json").read_text(encoding="utf-8"))
    lines = ["| notebook | what it makes in `figures/` | answers to | minutes | MB |",
             "|---|---|---|--:|--:|"]  # fmt: skip
    for row in report["notebooks"]:
        makes, answers = MAP[row["notebook"]]
        link = f"[{row['notebook']}](notebooks/{row['notebook']}.ipynb)"
        lines.append(
            f"| {link} | {makes} | {answers} | {row['seconds'] / 60:.1f} | {row['peak_mb']} |"
        )
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The README with its measured parts as the files have them."""
    for name, content in (("results", results()), ("map", notebook_map())):
        marked = re.compile(f"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        if len(marked.findall(text)) != 1:
            raise ValueError(
                f"README.md needs one part between <!-- {name} --> and <!-- /{name} -->"
            )
        text = marked.sub(lambda _, n=name, c=content: f"<!-- {n} -->\n{c}<!-- /{n} -->", text)
    return text


def main() -> None:
    readme = REPOSITORY / "README.md"
    atomic_write_text(readme, filled(readme.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
