"""What is redrawn of the main table: recall and ranks, their curves, training, differences.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

from entityclip import chapters, report
from entityclip.comparison import difference_table
from entityclip.config import REPOSITORY
from entityclip.curves import stored_curves
from entityclip.experiments import Experiment
from entityclip.redrawing import show, skipping
from entityclip.results import ResultsError
from entityclip.stored import find_rows, stored_rows
from entityclip.variants import TABLES

REPORTED = REPOSITORY / "figures" / "paper_reported.csv"
COMPARED = (
    *(("clip", "zero-shot"), ("itr", "clip"), ("ascl", "clip"), ("entityclip", "clip")),
    *(("bridge", "clip"), ("bridge-entityclip", "bridge")),
)


def main_rows(experiment: Experiment) -> pd.DataFrame:
    """Rows of the main table's variants on the test splits, over all seeds.

    Raises ResultsError, naming the notebook to run, if there are none.
    """
    rows = stored_rows(experiment, variants=TABLES["main"])
    return rows[rows["split"].isin(experiment.settings.test_splits)]


@skipping()
def draw_retrieval_table(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show the main table, the papers' numbers beside it, and RSUM; `save` as ``retrieval``.

    Files: ``retrieval.csv/.md/.tex`` and ``main_rsum.csv``.
    """
    table = report.retrieval_table(main_rows(experiment))
    reported = report.reported_values(REPORTED)
    sheet = report.retrieval_sheet(table, reported)
    if save:
        said = report.reported_cells(table, reported)
        report.save_table(table.assign(reported=said), figures, "retrieval")
        caption = "Retrieval: recall in percent, ranks, 95 % intervals."
        report.save_sheet(sheet, figures, "retrieval", caption)
    display(Markdown(report.sheet_markdown(sheet)))
    chapters.draw_rsum(experiment, "main", figures, save=save)


@skipping()
def draw_retrieval(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``retrieval``, recall with intervals."""
    table = report.retrieval_table(main_rows(experiment))
    show(report.plot_retrieval(table), figures, "retrieval", save=save, width=680)


@skipping()
def draw_recall_curves(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``recall_curves``, recall at every K."""
    figure = report.plot_recall_curves(main_rows(experiment))
    show(figure, figures, "recall_curves", save=save, width=680)


@skipping()
def draw_seed_curves(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``seed_curves``, losses over epochs: means and bands over seeds."""
    curves = stored_curves(experiment, TABLES["main"])
    if not curves:
        raise ResultsError("no curves are stored; notebook 03 writes them")
    table = report.seed_curves(curves)
    if save:
        report.save_table(table, figures, "seed_curves")
    show(report.plot_seed_curves(table), figures, "seed_curves", save=save, width=680)


@skipping()
def draw_differences(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``differences``, the pairs of COMPARED: forest, table, sentences."""
    ranks = find_rows(experiment, "ranks", variants=TABLES["main"])
    if ranks.empty:
        raise ResultsError("no ranks are stored; notebook 04 writes them")
    ranks = ranks[ranks["split"].isin(experiment.settings.test_splits)]
    found = difference_table(ranks, COMPARED)
    found = found.sort_values(["split", "direction"], ascending=[True, False], kind="stable")
    forest = report.forest_table(found)
    if save:
        report.save_table(found, figures, "differences")
        caption = "Differences in R@1, points, 95 % intervals."
        report.save_sheet(report.difference_sheet(forest), figures, "differences", caption)
    figure = report.plot_forest(forest, "difference in R@1 (points)")
    show(figure, figures, "differences", save=save, width=560)
    display(*map(Markdown, report.describe_differences(forest)))
