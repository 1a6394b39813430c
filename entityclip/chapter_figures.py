"""What of chapters 07 to 09 is drawn from rows alone, as the chapters draw it.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from entityclip import chapter_rows, report, section_tables
from entityclip.baselines.ascl import tables
from entityclip.baselines.ascl.figures import plot_rsum
from entityclip.baselines.ascl.runs import VARIANTS as ASCL_VARIANTS
from entityclip.baselines.ascl.runs import AsCLRuns
from entityclip.baselines.itr.figures import plot_relation_scores
from entityclip.cross_domain import cross_domain_table
from entityclip.experiments import Experiment
from entityclip.generalization_plots import plot_confusions, plot_cross_domain
from entityclip.redrawing import show, skipping
from entityclip.relations import relation_table
from entityclip.results import ResultsError


@skipping()
def draw_cross_domain(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``cross_domain``, retrieval of models trained on each drawn domain."""
    rows = _needed(
        chapter_rows.cross_domain_rows(experiment), "cross-domain rows; notebook 07 writes them"
    )
    table = cross_domain_table(rows)
    if save:
        report.save_table(table, figures, "cross_domain")
    show(plot_cross_domain(table), figures, "cross_domain", save=save, width=None)


@skipping()
def draw_sections(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, zero-shot sections: ``sections``, ``section_scores`` and the confusions.

    Confusions and scores are those of the profile's own data set and its first seed.
    """
    rows = _needed(chapter_rows.section_rows(experiment), "section rows; notebook 07 writes them")
    own = rows[rows["dataset"] == experiment.settings.dataset]
    own = own[own["seed"] == own["seed"].min()]
    if save:
        report.save_table(section_tables.summary_table(rows), figures, "sections")
        report.save_table(section_tables.section_table(own), figures, "section_scores")
    confusions = section_tables.confusions(own)
    show(plot_confusions(confusions), figures, "section_confusion", save=save, width=None)


@skipping()
def draw_relations(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``itr_relations_f1``, weighted F1 before and after ITR's pretraining."""
    rows = _needed(chapter_rows.relation_rows(experiment), "relation rows; notebook 08 writes them")
    if save:
        report.save_table(relation_table(rows), figures, "itr_relations_f1")
    show(plot_relation_scores(rows), figures, "itr_relations_f1", save=save, width=None)


@skipping()
def draw_ascl(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, AsCL's chapter: against plain contrast, its parts, other ways to ask."""
    rows = _needed(chapter_rows.ascl_rows(experiment), "AsCL rows; notebook 09 writes them")
    asked = tables.recall_table(rows)
    whole = ~asked["split"].str.contains("halves") & ~asked["variant"].str.contains("re-ranked")
    pair = asked["variant"].isin(["contrastive", "ascl"])
    parts = asked[whole].reset_index(drop=True)
    ways = asked[asked["variant"].str.match("(contrastive|ascl)(, re-ranked)?$")].copy()
    if save:
        recall = asked[whole & pair].reset_index(drop=True)
        report.save_table(recall, figures, "ascl_recall")
        apart = tables.differences(recall, "ascl", "contrastive")
        report.save_table(apart, figures, "ascl_differences")
        report.save_table(parts, figures, "ascl_ablation")
        report.save_table(tables.over_seeds(ways), figures, "ascl_queries")
        runs, both = AsCLRuns(experiment), ["contrastive", "ascl"]
        report.save_table(tables.rsum_table(runs, both), figures, "ascl_rsum")
        without = tables.rsum_differences(runs, ASCL_VARIANTS, "ascl")
        report.save_table(without, figures, "ascl_parts")
        asks = chapter_rows.ASCL_WAYS
        report.save_table(tables.rsum_table(runs, both, asks), figures, "ascl_queries_rsum")
    show(plot_rsum(parts, "One part left out"), figures, "ascl_ablation", save=save, width=None)
    ways["variant"] += ways["split"].str.replace("^[^,]*", "", regex=True)  # ", first halves"
    title = "Whole captions, first halves, re-ranked"
    show(plot_rsum(ways, title), figures, "ascl_queries", save=save, width=None)


def _needed(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    if rows.empty:
        raise ResultsError(f"no {what}")
    return rows
