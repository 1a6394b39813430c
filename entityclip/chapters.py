"""Everything that is redrawn of a table of variants: sheet, differences, forest, sentences.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

from pathlib import Path

from IPython.display import Markdown, display
from matplotlib.figure import Figure

from entityclip import ablations, report
from entityclip.experiments import Experiment
from entityclip.results import ResultsError
from entityclip.style import VARIANTS, label
from entityclip.variants import TABLES


def draw_table(experiment: Experiment, table: str, figures: Path, *, save: bool) -> None:
    """Show a table of variants, text to image, and its differences to the first; `save` both ways.

    Files: ``<table>.csv/.md/.tex`` and ``<table>_differences.csv/.md/.tex/.png/.svg``.
    """
    splits = experiment.settings.test_splits
    for reason in ablations.left_out(experiment, table):
        print(reason)
    try:
        recalls = ablations.recall_table(experiment, table, splits=splits)
        found = ablations.differences_to_first(experiment, table, splits=splits)
    except ResultsError as error:
        print(f"skipped: {error}")
        return
    one_way = recalls[recalls["direction"] == "text_to_image"].reset_index(drop=True)
    display(Markdown(report.sheet_markdown(report.retrieval_sheet(one_way))))
    if save:
        report.save_table(recalls, figures, table)
        sheet = report.retrieval_sheet(recalls)
        report.save_sheet(sheet, figures, table, f"Table {table}, recall in percent.")
    if found.empty:
        print(f"skipped: nothing in table {table} shares a seed with {TABLES[table][0]}")
        return
    reference = label(TABLES[table][0], VARIANTS)
    forest = report.forest_table(found)
    figure = report.plot_forest(forest, f"R@1 minus {reference} (points)")
    _show(figure, figures, f"{table}_differences", save=save)
    sheet = report.difference_sheet(forest, reference)
    if save:
        report.save_table(found, figures, f"{table}_differences")
        report.save_sheet(sheet, figures, f"{table}_differences")
    display(*map(Markdown, sheet.notes))


def draw_rsum(experiment: Experiment, table: str, figures: Path, *, save: bool) -> None:
    """Show a table's RSUM with intervals and why rows are missing; `save` as ``<table>_rsum``."""
    for reason in ablations.left_out(experiment, table):
        print(reason)
    splits = experiment.settings.test_splits
    try:
        found = ablations.rsum_table(experiment, table, splits=splits)
    except (ResultsError, FileNotFoundError) as error:
        print(f"skipped: {error}")
        return
    print(found.round(1).to_string(index=False))
    if save:
        report.save_table(found, figures, f"{table}_rsum")


def draw_doses(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``ablation_mmae_doses``, recall against experts and against λ."""
    split = experiment.settings.test_splits[0]
    try:
        table = ablations.recall_table(experiment, "ablation_mmae", splits=[split])
        figure = report.plot_doses(table, split=split)
    except ResultsError as error:
        print(f"skipped: {error}")
        return
    _show(figure, figures, "ablation_mmae_doses", save=save)


def draw_leak(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``leak``, how V* and T* agree under wrong explanations."""
    try:
        table = report.leak_table(ablations.leak_rows(experiment))
    except ResultsError as error:
        print(f"skipped: {error}")
        return
    if save:
        report.save_table(table, figures, "leak")
    _show(report.plot_leak(table), figures, "leak", save=save)
    display(*map(Markdown, report.describe_leak(table)))


def draw_matching(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``matching``, the matching head's accuracy by kind of pair."""
    try:
        table = report.matching_table(ablations.matching_rows(experiment))
    except ResultsError as error:
        print(f"skipped: {error}")
        return
    if save:
        report.save_table(table, figures, "matching")
    _show(report.plot_matching(table), figures, "matching", save=save)


def draw_search(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, the candidates on validation and the winner on test, if it was measured."""
    try:
        choice = ablations.choose_on_validation(experiment)
    except ResultsError as error:
        print(f"skipped: {error}")
        return
    print(choice.round(1).to_string(index=False))
    if save:
        report.save_table(choice, figures, "search")
    chosen, splits = choice["variant"].iloc[0], experiment.settings.test_splits
    tested = ablations.compare_chosen(experiment, chosen, splits=splits)
    if tested.empty:
        print(f"skipped: {chosen} was not measured on {', '.join(splits)} yet")
        return
    if save:
        report.save_table(tested, figures, "search_tested")
    display(*map(Markdown, report.describe_differences(report.forest_table(tested))))


def _show(figure: Figure, figures: Path, name: str, *, save: bool) -> None:
    if save:
        report.save_figure(figure, figures, name)
    display(report.preview(figure, width=440 if save else 680))  # its chapter shows it large
