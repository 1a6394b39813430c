"""Every file of figures/: which notebook shows it and, where rows are enough, what draws it.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure as Chart

from entityclip.config import Joined, Profile
from entityclip.reporting import (
    drawing,
    style,
)
from entityclip.reporting.drawing import Draw, Drawn, Rows
from entityclip.reporting.markup import (
    markdown,
    one_line,
    plain,
    save_sheet,
    sheet_markdown,
    words_changed,
)
from entityclip.results import ResultsError
from entityclip.variants import (
    COSTED,
    DATASET_LABELS,
    LEAK,
    NOT_FINETUNED,
    SPLIT_LABELS,
    TABLES,
    label,
)


class Figure(NamedTuple):
    """A figure or table: its notebook, its files' kinds, and how rows become it.

    Without `rows` and `draw` it needs a model: its notebook hands over what it drew.
    """

    notebook: str
    kinds: str
    rows: Rows | None = None
    draw: Draw | None = None
    width: int = 560  # pixels in a notebook


_CHART, _BOTH = "png svg", "csv png svg"
_PRINTED, _ALL = "csv md tex", "csv md tex png svg"

FIGURES = {
    "pairs": Figure("00_setup_and_data", _CHART),
    "generic_pairs": Figure("00_setup_and_data", _CHART),
    "lengths": Figure("00_setup_and_data", _BOTH, width=360),
    "splits": Figure("00_setup_and_data", "csv"),
    "explanations": Figure("01_explanations", _CHART, width=620),
    "explanations_served": Figure("01_explanations", _CHART),
    "explanation_checks": Figure("01_explanations", _BOTH),
    "explanation_lengths": Figure("01_explanations", _BOTH, width=360),
    "explanation_runs": Figure("01_explanations", "csv"),
    "negative_draws": Figure("02_method", _BOTH),
    "pretraining_curves": Figure("03_train", _BOTH),
    "training_curves": Figure("03_train", _BOTH),
    "training_runs": Figure("03_train", "csv"),
    "retrieval_gallery": Figure("04_retrieval", _CHART),
    "attention_words": Figure("04_retrieval", _BOTH, width=600),
    "attention_patches": Figure("04_retrieval", _BOTH, width=600),
    "gates": Figure("04_retrieval", _BOTH),
    "embedding_space": Figure("04_retrieval", _BOTH),
    "embedding_space_numbers": Figure("04_retrieval", "csv"),
    "ablation_mmae": Figure("05_ablation_mmae", _PRINTED, *drawing.recalls("ablation_mmae")),
    "ablation_mmae_differences": Figure(
        "05_ablation_mmae", _ALL, *drawing.to_first("ablation_mmae")
    ),
    "ablation_mmae_doses": Figure(
        "05_ablation_mmae", _CHART, drawing.of_table("retrieval", "ablation_mmae"), drawing.doses
    ),
    "leak": Figure("05_ablation_mmae", _BOTH, drawing.of_variants("leak", LEAK), drawing.leak),
    "ablation_gi_itm": Figure("06_ablation_gi_itm", _PRINTED, *drawing.recalls("ablation_gi_itm")),
    "ablation_gi_itm_differences": Figure(
        "06_ablation_gi_itm", _ALL, *drawing.to_first("ablation_gi_itm")
    ),
    "matching": Figure(
        "06_ablation_gi_itm",
        _BOTH,
        drawing.of_table("matching", "ablation_gi_itm"),
        drawing.matching,
    ),
    "domains": Figure("07_generalization", _CHART),
    "cross_domain": Figure(
        "07_generalization", _BOTH, drawing.of_chapter("cross_domain"), drawing.cross_domain
    ),
    "sections": Figure(
        "07_generalization", "csv", drawing.of_chapter("sections"), drawing.sections
    ),
    "section_scores": Figure(
        "07_generalization", "csv", drawing.of_chapter("sections"), drawing.section_scores
    ),
    "section_confusion": Figure(
        "07_generalization", _CHART, drawing.of_chapter("sections"), drawing.confusions
    ),
    "itr_relations": Figure("08_itr", _CHART),
    "itr_relations_f1": Figure("08_itr", _BOTH, drawing.of_chapter("relations"), drawing.relations),
    "itr_grad_cam": Figure("08_itr", _CHART),
    "ascl_samples": Figure("09_ascl", _CHART),
    "ascl_wrong": Figure("09_ascl", _BOTH, width=360),
    "ascl_recall": Figure("09_ascl", "csv", drawing.of_chapter("ascl"), drawing.ascl_recall),
    "ascl_rsum": Figure("09_ascl", "csv", drawing.of_chapter("ascl"), drawing.ascl_rsum),
    "ascl_differences": Figure(
        "09_ascl", "csv", drawing.of_chapter("ascl"), drawing.ascl_differences
    ),
    "ascl_ablation": Figure("09_ascl", _BOTH, drawing.of_chapter("ascl"), drawing.ascl_ablation),
    "ascl_parts": Figure("09_ascl", "csv", drawing.of_chapter("ascl"), drawing.ascl_parts),
    "ascl_queries": Figure("09_ascl", _BOTH, drawing.of_chapter("ascl"), drawing.ascl_queries),
    "ascl_queries_rsum": Figure(
        "09_ascl", "csv", drawing.of_chapter("ascl"), drawing.ascl_queries_rsum
    ),
    "ascl_spaces": Figure("09_ascl", "csv"),
    "retrieval": Figure(
        "10_tables_and_figures", _ALL, drawing.main_recalls, drawing.retrieval, 680
    ),
    "main_rsum": Figure(
        "10_tables_and_figures", "csv", drawing.of_table("ranks", "main"), drawing.main_rsum
    ),
    "recall_curves": Figure(
        "10_tables_and_figures",
        _CHART,
        drawing.main_recalls,
        drawing.recall_curves,
        680,
    ),
    "seed_curves": Figure(
        "10_tables_and_figures",
        _BOTH,
        drawing.of_variants("curves", TABLES["main"]),
        drawing.seed_curves,
        680,
    ),
    "recall_by_name": Figure("10_tables_and_figures", _BOTH, drawing.names, drawing.by_name, 680),
    "differences": Figure(
        "10_tables_and_figures", _ALL, drawing.of_table("ranks", "main"), drawing.main_differences
    ),
    "distractors": Figure(
        "10_tables_and_figures",
        _PRINTED,
        drawing.of_table("retrieval", "main"),
        drawing.distractors,
    ),
    "search_words": Figure("11_search", "csv"),
    "disagreements": Figure("11_search", "csv"),
    "query_gates": Figure("11_search", "csv"),
    "controls": Figure("12_controls_and_search", _PRINTED, *drawing.recalls("controls")),
    "controls_differences": Figure("12_controls_and_search", _ALL, *drawing.to_first("controls")),
    "views": Figure("12_controls_and_search", _PRINTED, *drawing.recalls("views")),
    "views_differences": Figure("12_controls_and_search", _ALL, *drawing.to_first("views")),
    "methods": Figure("12_controls_and_search", _PRINTED, *drawing.recalls("methods")),
    "methods_differences": Figure("12_controls_and_search", _ALL, *drawing.to_first("methods")),
    "afterwards": Figure("12_controls_and_search", _PRINTED, *drawing.recalls("afterwards")),
    "afterwards_differences": Figure(
        "12_controls_and_search", _ALL, *drawing.to_first("afterwards")
    ),
    "search": Figure(
        "12_controls_and_search",
        "csv",
        drawing.of_variants("retrieval", TABLES["search"]),
        drawing.search,
    ),
    "search_tested": Figure("12_controls_and_search", "csv", drawing.winner, drawing.search_tested),
    "mixes": Figure("13_settings_and_cost", _PRINTED, *drawing.listed_recalls("mixes")),
    "mixes_differences": Figure(
        "13_settings_and_cost", _ALL, *drawing.listed_differences("mixes", drawing.to_the_first)
    ),
    "grid": Figure(
        "13_settings_and_cost", _BOTH, drawing.of_listed("retrieval", "grid"), drawing.grid
    ),
    "explanation_sources": Figure(
        "13_settings_and_cost", _PRINTED, *drawing.listed_recalls("explanation_sources")
    ),
    "explanation_sources_differences": Figure(
        "13_settings_and_cost",
        _ALL,
        *drawing.listed_differences("explanation_sources", drawing.to_clip),
    ),
    "backbones": Figure("13_settings_and_cost", _PRINTED, *drawing.listed_recalls("backbones")),
    "backbones_differences": Figure(
        "13_settings_and_cost", _ALL, *drawing.listed_differences("backbones", drawing.to_own_clip)
    ),
    "costs": Figure(
        "13_settings_and_cost", _ALL, drawing.of_variants("cost", COSTED), drawing.costs
    ),
}
FROM_ROWS = tuple(name for name, figure in FIGURES.items() if figure.draw)

# what is also drawn of several data sets at once, their splits beside each other
JOINED = (
    *("retrieval", "main_rsum", "recall_curves", "recall_by_name", "differences", "cross_domain"),
    *("ablation_mmae", "ablation_mmae_differences", "ablation_gi_itm"),
    *("ablation_gi_itm_differences", "controls", "controls_differences", "mixes"),
    *("views", "views_differences", "methods", "methods_differences"),
    *("afterwards", "afterwards_differences"),
    *("mixes_differences", "grid", "explanation_sources", "explanation_sources_differences"),
    *("backbones", "backbones_differences", "costs"),
)


# ------------------------------------------------------------------------------ drawn, saved, shown


def draw(profile: Profile | Joined, name: str, rows: pd.DataFrame | None = None) -> Drawn:
    """A figure of FROM_ROWS, from its stored rows or from those given; of JOINED for several.

    Raises ResultsError where there are none.
    """
    figure = FIGURES[name]
    if rows is None:
        several = isinstance(profile, Joined)
        rows = _joined_rows(profile, figure) if several else figure.rows(profile)
    if rows.empty:
        raise ResultsError(
            f"{name} has no rows of profile {profile.name}'s present settings; run the notebooks "
            f"up to {figure.notebook} first"
        )
    return figure.draw(rows)


def _joined_rows(profile: Joined, figure: Figure) -> pd.DataFrame:
    """The rows of all parts; where they were measured stands in the name of the split."""
    parts = []
    for part in profile.parts:
        rows = figure.rows(part)
        if rows.empty:
            continue
        if "trained_on" in rows:  # beside which the data sets stand already
            own = rows["dataset"] == part.settings.dataset
            together = rows["dataset"].isin([one.settings.dataset for one in profile.parts])
            parts.append(rows[own | (together & (rows["trained_on"] != NOT_FINETUNED))])
            continue
        where = label(part.settings.dataset, DATASET_LABELS)
        told = rows["split"].map(lambda split: label(split, SPLIT_LABELS))
        parts.append(rows.assign(split=where + ", " + told.str[:1].str.lower() + told.str[1:]))
    return pd.concat(parts, ignore_index=True) if parts else figure.rows(profile.parts[0])


def made_by(name: str) -> str:
    """The command that makes a figure."""
    figure = FIGURES[name]
    return (
        f"entityclip {f'figures {name}' if figure.draw else f'reproduce --only {figure.notebook}'}"
    )


def save(drawn: Drawn, name: str, folder: Path) -> list[Path]:
    """Write what was drawn under its name, each file saying what it is `made_by`; the paths.

    Closes the chart. Raises KeyError for a name that is not in FIGURES.
    """
    paths, command = [], made_by(name)
    if drawn.chart is not None:
        paths += style.save_figure(drawn.chart, folder, name, command)
        plt.close(drawn.chart)  # or a notebook's cell shows it once more
    if drawn.table is not None:
        paths.append(style.save_table(drawn.table, folder, name, command))
    if drawn.sheet is not None:
        paths += save_sheet(drawn.sheet, folder, name, drawn.caption, command)
    return paths


def keep(profile: Profile, names: Iterable[str], folder: Path) -> None:
    """Save figures of FROM_ROWS that another notebook shows, a line each: files, or why none."""
    for name in names:
        try:
            paths = save(draw(profile, name), name, folder)
        except ResultsError as error:
            print(f"{name:32} skipped: {one_line(str(error))}")
        else:
            print(f"{name:32} {' '.join(path.suffix[1:] for path in paths)}")
        plt.close("all")


def show(
    profile: Profile, name: str, folder: Path | None = None, *, rows: pd.DataFrame | None = None,
    chart: Chart | None = None, table: pd.DataFrame | None = None, **preview: Any,
) -> None:  # fmt: skip
    """Show a figure or table in a notebook, and save it where a `folder` is given.

    It is drawn from its stored rows, from those given, or is the `chart` and `table` that the
    notebook made from a model. What has no rows is said in one line. `preview` goes to
    `style.preview`. Outside of a notebook nothing is shown.
    """
    try:
        given = chart is not None or table is not None
        drawn = Drawn(chart, table) if given else draw(profile, name, rows)
    except ResultsError as error:
        print(f"skipped: {one_line(str(error))}")
        return
    paths = save(drawn, name, folder) if folder else []
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        if drawn.chart is not None:
            plt.close(drawn.chart)
        return
    from IPython.display import Markdown, display

    if drawn.sheet is not None:
        display(Markdown(sheet_markdown(drawn.sheet)))
    elif drawn.chart is None and drawn.table is not None:
        display(words_changed(drawn.table.round(2), plain))
    if drawn.chart is not None:
        png = next((path for path in paths if path.suffix == ".png"), None)
        options = {"width": FIGURES[name].width, "drawn": png} | preview
        display(style.preview(drawn.chart, **options))
    display(*(Markdown(markdown(note)) for note in drawn.notes))
