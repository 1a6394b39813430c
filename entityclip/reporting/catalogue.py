"""What is redrawn of the main table: recall and ranks, their curves, training, differences.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from entityclip import variants
from entityclip.config import REPOSITORY
from entityclip.experiments.chapters import AsCLRuns
from entityclip.experiments.experiment import Experiment
from entityclip.reporting import charts, style, tables
from entityclip.reporting.charts import (
    plot_confusions,
    plot_cross_domain,
    plot_relation_scores,
    plot_rsum,
)
from entityclip.reporting.style import preview, save_figure
from entityclip.reporting.tables import cross_domain_table, relation_table, stored_curves
from entityclip.results import ResultsError, chapter_rows, find_rows, stored_rows
from entityclip.statistics import difference_table
from entityclip.variants import ASCL_VARIANTS as ASCL_VARIANTS
from entityclip.variants import TABLES, VARIANT_LABELS, label


@contextmanager
def skipping(*errors: type[Exception]) -> Iterator[None]:
    """Print "skipped: …" for a ResultsError, or one of `errors`, instead of raising it.

    Above a function, as ``@skipping()``, what it draws is left out as soon as rows are lacking.
    """
    try:
        yield
    except (ResultsError, *errors) as error:
        print(f"skipped: {error}")


def show(figure: Figure, folder: Path, name: str, *, save: bool, width: int | None = 440) -> None:
    """Show a figure, or `save` it as ``<name>.png`` and ``.svg`` and show it `width` pixels wide.

    None: what is saved is not shown, for it has a chapter of its own that shows it. Closes the
    figure. Outside of a notebook nothing is shown.
    """
    drawn = save_figure(figure, folder, name)[0] if save else None
    if get_ipython() is None or (save and width is None):
        plt.close(figure)
        print(f"drawn: {name}.png, {name}.svg" if save else f"not shown: {name}")
        return
    display(preview(figure, width=width if save else 680, drawn=drawn))


@skipping()
def draw_table(experiment: Experiment, table: str, figures: Path, *, save: bool) -> None:
    """Show a table of variants, text to image, and its differences to the first; `save` both ways.

    Files: ``<table>.csv/.md/.tex`` and ``<table>_differences.csv/.md/.tex/.png/.svg``.
    """
    splits = experiment.settings.test_splits
    for reason in tables.left_out(experiment, table):
        print(reason)
    recalls = tables.recall_table(experiment, table, splits=splits)
    found = tables.differences_to_first(experiment, table, splits=splits)
    one_way = recalls[recalls["direction"] == "text_to_image"].reset_index(drop=True)
    display(Markdown(tables.sheet_markdown(tables.retrieval_sheet(one_way))))
    if save:
        style.save_table(recalls, figures, table)
        sheet = tables.retrieval_sheet(recalls)
        tables.save_sheet(sheet, figures, table, f"Table {table}, recall in percent.")
    if found.empty:
        raise ResultsError(f"nothing in table {table} shares a seed with {TABLES[table][0]}")
    reference = label(TABLES[table][0], VARIANT_LABELS)
    forest = tables.forest_table(found)
    figure = charts.plot_forest(forest, f"R@1 minus {reference} (points)")
    show(figure, figures, f"{table}_differences", save=save)
    sheet = tables.difference_sheet(forest, reference)
    if save:
        style.save_table(found, figures, f"{table}_differences")
        caption = f"Table {table}: R@1 minus that of {reference}, points, 95 % intervals."
        tables.save_sheet(sheet, figures, f"{table}_differences", caption)
    display(*map(Markdown, sheet.notes))


@skipping(FileNotFoundError)  # it wants the pairs, and their data may not be here
def draw_rsum(experiment: Experiment, table: str, figures: Path, *, save: bool) -> None:
    """Show a table's RSUM with intervals and why rows are missing; `save` as ``<table>_rsum``."""
    for reason in tables.left_out(experiment, table):
        print(reason)
    splits = experiment.settings.test_splits
    found = tables.rsum_table(experiment, table, splits=splits)
    print(found.round(1).to_string(index=False))
    if save:
        style.save_table(found, figures, f"{table}_rsum")


@skipping()
def draw_doses(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``ablation_mmae_doses``, recall against experts and against λ."""
    split = experiment.settings.test_splits[0]
    table = tables.recall_table(experiment, "ablation_mmae", splits=[split])
    figure = charts.plot_doses(table, split=split)
    show(figure, figures, "ablation_mmae_doses", save=save)


@skipping()
def draw_leak(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``leak``, how V* and T* agree under wrong explanations."""
    table = tables.leak_table(tables.leak_rows(experiment))
    if save:
        style.save_table(table, figures, "leak")
    show(charts.plot_leak(table), figures, "leak", save=save)
    display(*map(Markdown, tables.describe_leak(table)))


@skipping()
def draw_matching(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``matching``, the matching head's accuracy by kind of pair."""
    table = tables.matching_table(tables.matching_rows(experiment))
    if save:
        style.save_table(table, figures, "matching")
    show(charts.plot_matching(table), figures, "matching", save=save)


@skipping()
def draw_search(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, the candidates on validation and the winner on test, if it was measured."""
    choice = tables.choose_on_validation(experiment)
    print(choice.round(1).to_string(index=False))
    if save:
        style.save_table(choice, figures, "search")
    chosen, splits = choice["variant"].iloc[0], experiment.settings.test_splits
    tested = tables.compare_chosen(experiment, chosen, splits=splits)
    if tested.empty:
        raise ResultsError(f"{chosen} was not measured on {', '.join(splits)} yet")
    if save:
        style.save_table(tested, figures, "search_tested")
    display(*map(Markdown, tables.describe_differences(tables.forest_table(tested))))


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
    table = tables.retrieval_table(main_rows(experiment))
    reported = tables.reported_values(REPORTED)
    sheet = tables.retrieval_sheet(table, reported)
    if save:
        said = tables.reported_cells(table, reported)
        style.save_table(table.assign(reported=said), figures, "retrieval")
        caption = "Retrieval: recall in percent, ranks, 95 % intervals."
        tables.save_sheet(sheet, figures, "retrieval", caption)
    display(Markdown(tables.sheet_markdown(sheet)))
    draw_rsum(experiment, "main", figures, save=save)


@skipping()
def draw_retrieval(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``retrieval``, recall with intervals."""
    table = tables.retrieval_table(main_rows(experiment))
    show(charts.plot_retrieval(table), figures, "retrieval", save=save, width=680)


@skipping()
def draw_recall_curves(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``recall_curves``, recall at every K."""
    figure = charts.plot_recall_curves(main_rows(experiment))
    show(figure, figures, "recall_curves", save=save, width=680)


@skipping()
def draw_seed_curves(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``seed_curves``, losses over epochs: means and bands over seeds."""
    curves = stored_curves(experiment, TABLES["main"])
    if not curves:
        raise ResultsError("no curves are stored; notebook 03 writes them")
    table = tables.seed_curves(curves)
    if save:
        style.save_table(table, figures, "seed_curves")
    show(charts.plot_seed_curves(table), figures, "seed_curves", save=save, width=680)


@skipping()
def draw_differences(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``differences``, the pairs of COMPARED: forest, table, sentences."""
    ranks = find_rows(experiment, "ranks", variants=TABLES["main"])
    if ranks.empty:
        raise ResultsError("no ranks are stored; notebook 04 writes them")
    ranks = ranks[ranks["split"].isin(experiment.settings.test_splits)]
    found = difference_table(ranks, COMPARED)
    found = found.sort_values(["split", "direction"], ascending=[True, False], kind="stable")
    forest = tables.forest_table(found)
    if save:
        style.save_table(found, figures, "differences")
        caption = "Differences in R@1, points, 95 % intervals."
        tables.save_sheet(tables.difference_sheet(forest), figures, "differences", caption)
    figure = charts.plot_forest(forest, "difference in R@1 (points)")
    show(figure, figures, "differences", save=save, width=560)
    display(*map(Markdown, tables.describe_differences(forest)))


@skipping()
def draw_cross_domain(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``cross_domain``, retrieval of models trained on each drawn domain."""
    rows = _needed(
        chapter_rows(experiment.profile, "cross_domain"),
        "cross-domain rows; notebook 07 writes them",
    )
    table = cross_domain_table(rows)
    if save:
        style.save_table(table, figures, "cross_domain")
    show(plot_cross_domain(table), figures, "cross_domain", save=save, width=None)


@skipping()
def draw_sections(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, zero-shot sections: ``sections``, ``section_scores`` and the confusions.

    Confusions and scores are those of the profile's own data set and its first seed.
    """
    rows = _needed(
        chapter_rows(experiment.profile, "sections"), "section rows; notebook 07 writes them"
    )
    own = rows[rows["dataset"] == experiment.settings.dataset]
    own = own[own["seed"] == own["seed"].min()]
    if save:
        style.save_table(tables.summary_table(rows), figures, "sections")
        style.save_table(tables.section_table(own), figures, "section_scores")
    confusions = tables.confusions(own)
    show(plot_confusions(confusions), figures, "section_confusion", save=save, width=None)


@skipping()
def draw_relations(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``itr_relations_f1``, weighted F1 before and after ITR's pretraining."""
    rows = _needed(
        chapter_rows(experiment.profile, "relations"), "relation rows; notebook 08 writes them"
    )
    if save:
        style.save_table(relation_table(rows), figures, "itr_relations_f1")
    show(plot_relation_scores(rows), figures, "itr_relations_f1", save=save, width=None)


@skipping()
def draw_ascl(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, AsCL's chapter: against plain contrast, its parts, other ways to ask."""
    rows = _needed(chapter_rows(experiment.profile, "ascl"), "AsCL rows; notebook 09 writes them")
    asked = tables.ascl_recall_table(rows)
    whole = ~asked["split"].str.contains("halves") & ~asked["variant"].str.contains("re-ranked")
    pair = asked["variant"].isin(["contrastive", "ascl"])
    parts = asked[whole].reset_index(drop=True)
    ways = asked[asked["variant"].str.match("(contrastive|ascl)(, re-ranked)?$")].copy()
    if save:
        recall = asked[whole & pair].reset_index(drop=True)
        style.save_table(recall, figures, "ascl_recall")
        apart = tables.differences(recall, "ascl", "contrastive")
        style.save_table(apart, figures, "ascl_differences")
        style.save_table(parts, figures, "ascl_ablation")
        style.save_table(tables.ascl_over_seeds(ways), figures, "ascl_queries")
        runs, both = AsCLRuns(experiment), ["contrastive", "ascl"]
        style.save_table(tables.ascl_rsum_table(runs, both), figures, "ascl_rsum")
        without = tables.rsum_differences(runs, ASCL_VARIANTS, "ascl")
        style.save_table(without, figures, "ascl_parts")
        asks = variants.ASCL_WAYS
        style.save_table(tables.ascl_rsum_table(runs, both, asks), figures, "ascl_queries_rsum")
    show(plot_rsum(parts, "One part left out"), figures, "ascl_ablation", save=save, width=None)
    ways["variant"] += ways["split"].str.replace("^[^,]*", "", regex=True)  # ", first halves"
    title = "Whole captions, first halves, re-ranked"
    show(plot_rsum(ways, title), figures, "ascl_queries", save=save, width=None)


def _needed(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    if rows.empty:
        raise ResultsError(f"no {what}")
    return rows
