"""What of chapters 07 to 09 is drawn from rows alone, as the chapters draw it.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from entityclip import chapter_rows, report, section_tables
from entityclip.baselines.ascl import tables
from entityclip.baselines.ascl.figures import plot_rsum
from entityclip.baselines.ascl.runs import AsCLRuns
from entityclip.baselines.itr.figures import plot_relation_scores
from entityclip.cross_domain import cross_domain_table
from entityclip.experiments import Experiment
from entityclip.generalization_plots import plot_confusions, plot_cross_domain
from entityclip.relations import relation_table


def draw_cross_domain(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``cross_domain``, retrieval of models trained on each drawn domain."""
    rows = chapter_rows.cross_domain_rows(experiment)
    if rows.empty:
        print("skipped: no cross-domain rows; notebook 07 writes them")
        return
    table = cross_domain_table(rows)
    if save:
        report.save_table(table, figures, "cross_domain")
    _show(plot_cross_domain(table), figures, "cross_domain", save=save)


def draw_sections(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, zero-shot sections: ``sections``, ``section_scores`` and the confusions.

    Confusions and scores are those of the profile's own data set and its first seed.
    """
    rows = chapter_rows.section_rows(experiment)
    if rows.empty:
        print("skipped: no section rows; notebook 07 writes them")
        return
    own = rows[rows["dataset"] == experiment.settings.dataset]
    own = own[own["seed"] == own["seed"].min()]
    if save:
        report.save_table(section_tables.summary_table(rows), figures, "sections")
        report.save_table(section_tables.section_table(own), figures, "section_scores")
    confusions = section_tables.confusions(own)
    _show(plot_confusions(confusions), figures, "section_confusion", save=save)


def draw_relations(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save` as ``itr_relations_f1``, weighted F1 before and after ITR's pretraining."""
    rows = chapter_rows.relation_rows(experiment)
    if rows.empty:
        print("skipped: no relation rows; notebook 08 writes them")
        return
    if save:
        report.save_table(relation_table(rows), figures, "itr_relations_f1")
    _show(plot_relation_scores(rows), figures, "itr_relations_f1", save=save)


def draw_ascl(experiment: Experiment, figures: Path, *, save: bool) -> None:
    """Show, and `save`, AsCL's chapter: against plain contrast, its parts, other ways to ask."""
    rows = chapter_rows.ascl_rows(experiment)
    if rows.empty:
        print("skipped: no AsCL rows; notebook 09 writes them")
        return
    asked = tables.recall_table(rows)
    whole = ~asked["split"].str.contains("halves") & ~asked["variant"].str.contains("re-ranked")
    pair = asked["variant"].isin(["contrastive", "ascl"])
    parts = asked[whole & (asked["seed"] == asked["seed"].min())].reset_index(drop=True)
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
        asks = chapter_rows.ASCL_WAYS
        report.save_table(tables.rsum_table(runs, both, asks), figures, "ascl_queries_rsum")
    _show(plot_rsum(parts, "One part left out"), figures, "ascl_ablation", save=save)
    ways["variant"] += ways["split"].str.replace("^[^,]*", "", regex=True)  # ", first halves"
    title = "Whole captions, first halves, re-ranked"
    _show(plot_rsum(ways, title), figures, "ascl_queries", save=save)


def _show(figure: Figure, figures: Path, name: str, *, save: bool) -> None:
    if not save:
        display(report.preview(figure))
        return
    report.save_figure(figure, figures, name)
    plt.close(figure)  # its chapter shows it
    print(f"drawn: {name}.png, {name}.svg")
