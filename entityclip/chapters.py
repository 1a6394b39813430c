"""Everything that is redrawn of a table of variants: sheet, differences, forest, sentences.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

from pathlib import Path

from IPython.display import Markdown, display

from entityclip import ablations, report
from entityclip.experiments import Experiment
from entityclip.redrawing import show, skipping
from entityclip.results import ResultsError
from entityclip.style import VARIANTS, label
from entityclip.variants import TABLES


@skipping()
def draw_table(experiment: Experiment, table: str, figures: Path, *, save: bool) -> None:
    """Show a table of variants, text to image, and its differences to the first; `save` both ways.

    Files: ``<table>.csv/.md/.tex`` and ``<table>_differences.csv/.md/.tex/.png/.svg``.
    """
    splits = experiment.settings.test_splits
    for reason in ablations.left_out(experiment, table):
        print(reason)
    recalls = ablations.recall_table(experiment, table, splits=splits)
    found = ablations.differences_to_first(experiment, table, splits=splits)
    one_way = recalls[recalls["direction"] == "text_to_image"].reset_index(drop=True)
    display(Markdown(report.sheet_markdown(report.retrieval_sheet(one_way))))
    if save:
        report.save_table(recalls, figures, table)
        sheet = report.retrieval_sheet(recalls)
        report.save_sheet(sheet, figures, table, f"Table {table}, recall in percent.")
    if found.empty:
        raise ResultsError(f"nothing in table {table} shares a seed with {TABLES[table][0]}")
    reference = label(TABLES[table][0], VARIANTS)
    forest = report.forest_table(found)
    figure = report.plot_forest(forest, f"R@1 minus {reference} (points)")
    show(figure, figures, f"{table}_differences", save=save)
    sheet = report.difference_sheet(forest, reference)
    if save:
        report.save_table(found, figures, f"{table}_differences")
        caption = f"Table {table}: R@1 minus that of {reference}, points, 95 % intervals."
        report.save_sheet(sheet, figures, f"{table}_differences", caption)
    display(*map(Markdown, sheet.notes))


@skipping(FileNotFoundError)  # it wants the pairs, and their data may not be here
def draw_rsum(experiment: Experiment, table: str, figures: Path, *, save: bool) -> None:
    """Show a table's RSUM with intervals and why rows are missing; `save` as ``<table>_rsum``."""
    for reason in ablations.left_out(experiment, table):
        print(reason)
    splits = experiment.settings.test_splits
    found = ablations.rsum_table(experiment, table, splits=splits)
    print(found.round(1).to_string(index=False))
    if save:
        report.save_table(found, figures, f"{table}_rsum")


@skipping()
def draw_doses(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``ablation_mmae_doses``, recall against experts and against λ."""
    split = experiment.settings.test_splits[0]
    table = ablations.recall_table(experiment, "ablation_mmae", splits=[split])
    figure = report.plot_doses(table, split=split)
    show(figure, figures, "ablation_mmae_doses", save=save)


@skipping()
def draw_leak(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``leak``, how V* and T* agree under wrong explanations."""
    table = report.leak_table(ablations.leak_rows(experiment))
    if save:
        report.save_table(table, figures, "leak")
    show(report.plot_leak(table), figures, "leak", save=save)
    display(*map(Markdown, report.describe_leak(table)))


@skipping()
def draw_matching(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``matching``, the matching head's accuracy by kind of pair."""
    table = report.matching_table(ablations.matching_rows(experiment))
    if save:
        report.save_table(table, figures, "matching")
    show(report.plot_matching(table), figures, "matching", save=save)


@skipping()
def draw_search(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, the candidates on validation and the winner on test, if it was measured."""
    choice = ablations.choose_on_validation(experiment)
    print(choice.round(1).to_string(index=False))
    if save:
        report.save_table(choice, figures, "search")
    chosen, splits = choice["variant"].iloc[0], experiment.settings.test_splits
    tested = ablations.compare_chosen(experiment, chosen, splits=splits)
    if tested.empty:
        raise ResultsError(f"{chosen} was not measured on {', '.join(splits)} yet")
    if save:
        report.save_table(tested, figures, "search_tested")
    display(*map(Markdown, report.describe_differences(report.forest_table(tested))))
