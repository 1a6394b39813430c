"""Every file of figures/: which notebook shows it and, where rows are enough, what draws it.

Nothing here trains or measures; what has no rows yet is said in one line and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure as Chart

from entityclip.config import SHIPPED_FILES, Joined, Profile
from entityclip.reporting import charts, curves, differences, scores, settings, style, tables
from entityclip.reporting.markup import (
    Sheet,
    markdown,
    one_line,
    plain,
    save_sheet,
    sheet_markdown,
    words_changed,
)
from entityclip.results import ResultsError, chapter_rows, find_rows, table_rows
from entityclip.statistics import difference_table
from entityclip.variants import (
    COSTED,
    DATASET_LABELS,
    LEAK,
    NOT_FINETUNED,
    SPLIT_LABELS,
    TABLES,
    VARIANT_LABELS,
    in_order,
    label,
)

_RIVALS = ("clip", "entityclip", "bridge")  # of what the search chose

REPORTED = SHIPPED_FILES / "figures" / "paper_reported.csv"
COMPARED = (
    *(("clip", "zero-shot"), ("itr", "clip"), ("ascl", "clip"), ("entityclip", "clip")),
    *(("bridge", "clip"), ("bridge-entityclip", "bridge")),
)


class Drawn(NamedTuple):
    """What is saved and shown under one name: any of a chart, numbers, a printed table, words."""

    chart: Chart | None = None
    table: pd.DataFrame | None = None
    sheet: Sheet | None = None
    caption: str = ""  # of the sheet in LaTeX
    notes: Sequence[str] = ()


Rows = Callable[[Profile], pd.DataFrame]
Draw = Callable[[pd.DataFrame], Drawn]


class Figure(NamedTuple):
    """A figure or table: its notebook, its files' kinds, and how rows become it.

    Without `rows` and `draw` it needs a model: its notebook hands over what it drew.
    """

    notebook: str
    kinds: str
    rows: Rows | None = None
    draw: Draw | None = None
    width: int = 560  # pixels in a notebook


# ------------------------------------------------------------------------------------ rows chosen


def _of(kind: str, table: str) -> Rows:
    """Rows of a table's variants on the test splits, over all seeds."""

    def choose(profile: Profile) -> pd.DataFrame:
        rows = find_rows(profile, kind, variants=TABLES[table])
        chosen = rows[rows["split"].isin(profile.settings.test_splits)].reset_index(drop=True)
        return tables.articles_beside(chosen)

    return choose


def _listed(kind: str, table: str) -> Rows:
    """Rows of one of LISTED on the test splits, over all seeds, called as the table calls them."""

    def choose(profile: Profile) -> pd.DataFrame:
        rows = table_rows(profile, kind, table)
        chosen = rows[rows["split"].isin(profile.settings.test_splits)].reset_index(drop=True)
        return tables.articles_beside(chosen)

    return choose


def _all(kind: str, variants: Sequence[str]) -> Rows:
    return partial(find_rows, kind=kind, variants=variants)


def _chapter(kind: str) -> Rows:
    return partial(chapter_rows, kind=kind)


def _winner(profile: Profile) -> pd.DataFrame:
    """Ranks on the test splits of what the search chose on validation, and of its rivals after."""
    choice = tables.choose_on_validation(find_rows(profile, "retrieval", variants=TABLES["search"]))
    chosen = choice["variant"].iloc[0]
    ranks = find_rows(profile, "ranks", variants={chosen, *_RIVALS})
    ranks = ranks[ranks["split"].isin(profile.settings.test_splits)]
    own = ranks["variant"] == chosen
    if not own.any():
        raise ResultsError(f"{chosen} was not measured on the test splits yet")
    return pd.concat([ranks[own], ranks[~own]], ignore_index=True)


def _own(rows: pd.DataFrame) -> pd.DataFrame:
    """Of section rows those of the first data set, which is the profile's own, and first seed."""
    own = rows[rows["dataset"] == rows["dataset"].iloc[0]]
    return own[own["seed"] == own["seed"].min()]


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    """AsCL's rows that ask with whole captions and rank once."""
    return rows[~(rows["split"] + rows["variant"]).str.contains(", first halves|, re-ranked")]


def _pair(rows: pd.DataFrame) -> pd.DataFrame:
    """AsCL's rows of plain contrast and of the whole method, however asked."""
    return rows[rows["variant"].str.match("(contrastive|ascl)(, re-ranked)?$")]


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["metric"] == "MeanR"]  # beside which the ranks stand


# ------------------------------------------------------------------------------------- rows drawn


def _drawn(
    make: Callable[[pd.DataFrame], pd.DataFrame],
    plot: Callable[[pd.DataFrame], Chart] | None = None,
    say: Callable[[pd.DataFrame], list[str]] | None = None,
) -> Draw:
    """What makes a table of rows, and of it a chart and sentences."""

    def draw(rows: pd.DataFrame) -> Drawn:
        table = make(rows)
        return Drawn(plot(table) if plot else None, table, notes=say(table) if say else ())

    return draw


def _left_out(table: str, rows: pd.DataFrame) -> list[str]:
    lacking = [name for name in TABLES[table] if name not in set(rows["variant"])]
    return [f"Without rows, so left out: {', '.join(lacking)}."] if lacking else []


def _retrieval(rows: pd.DataFrame) -> Drawn:
    """Recall with intervals, the papers' numbers beside ours."""
    table = tables.retrieval_table(rows)
    table["reported"] = tables.reported_cells(table, tables.reported_values(REPORTED))
    chart, sheet = charts.plot_retrieval(table), tables.retrieval_sheet(table)
    caption = "Retrieval: recall in percent, ranks, 95 % intervals."
    return Drawn(chart, table, sheet, caption, _left_out("main", rows))


def _recalls(table: str) -> tuple[Rows, Draw]:
    """Recall of a table's variants, in the table's order: the rows, and what draws them."""

    def draw(rows: pd.DataFrame) -> Drawn:
        found = tables.recall_table(rows, TABLES[table])
        caption, notes = f"Table {table}, recall in percent.", _left_out(table, rows)
        return Drawn(None, found, tables.retrieval_sheet(found), caption, notes)

    return _of("retrieval", table), draw


def _apart(found: pd.DataFrame, reference: str, axis: str, caption: str) -> Drawn:
    if found.empty:
        raise ResultsError("nothing shares a seed with what it is compared with")
    forest = differences.forest_table(found)
    sheet = differences.difference_sheet(forest, reference)
    chart = differences.plot_forest(forest, axis)
    return Drawn(chart, found, sheet, f"{caption}, 95 % intervals.")


def _compared(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    found = difference_table(rows, pairs)
    if found.empty:
        raise ResultsError("no two variants to compare share a seed and a split; measure more")
    return found


def _differences(rows: pd.DataFrame) -> Drawn:
    """The pairs of COMPARED: forest, table, sentences."""
    found = _compared(rows, COMPARED)
    found = found.sort_values(["split", "direction"], ascending=[True, False], kind="stable")
    return _apart(found, "", "difference in R@1 (points)", "Differences in R@1, points")


def _to_first(table: str) -> tuple[Rows, Draw]:
    """Each variant of a table minus the table's first, paired by query and seed."""
    first, *others = TABLES[table]
    reference = label(first, VARIANT_LABELS)

    def draw(rows: pd.DataFrame) -> Drawn:
        found = _compared(rows, [(other, first) for other in others])
        caption = f"Table {table}: R@1 minus that of {reference}, points"
        return _apart(found, reference, f"R@1 minus {reference} (points)", caption)

    return _of("ranks", table), draw


def _listed_recalls(table: str) -> tuple[Rows, Draw]:
    """Recall of one of LISTED in the profile's order: the rows, and what draws them."""

    def draw(rows: pd.DataFrame) -> Drawn:
        found = tables.recall_table(rows, list(dict.fromkeys(rows["variant"])))
        caption = f"{table.replace('_', ' ').capitalize()}, recall in percent."
        return Drawn(None, found, tables.retrieval_sheet(found), caption)

    return _listed("retrieval", table), draw


def _listed_differences(
    table: str, pairs: Callable[[list[str]], list[tuple[str, str]]]
) -> tuple[Rows, Draw]:
    """Differences in R@1 between some `pairs` of one of LISTED, given its rows' names."""

    def draw(rows: pd.DataFrame) -> Drawn:
        compared = pairs(list(dict.fromkeys(rows["variant"])))
        found = _compared(rows, compared)
        shared = {second for _, second in compared}
        reference = shared.pop() if len(shared) == 1 else ""
        minus = f" minus {reference}" if reference else ""
        caption = f"{table.replace('_', ' ').capitalize()}: R@1{minus}, points"
        return _apart(found, reference, f"R@1{minus} (points)", caption)

    return _listed("ranks", table), draw


def _to_own_clip(names: list[str]) -> list[tuple[str, str]]:
    """EntityCLIP against CLIP of the same backbone: names end in variants' labels."""
    trained, plain = (f": {VARIANT_LABELS[name]}" for name in ("entityclip", "clip"))
    owns = [name.removesuffix(trained) for name in names if name.endswith(trained)]
    return [(own + trained, own + plain) for own in owns]


def _to_the_first(names: list[str]) -> list[tuple[str, str]]:
    return [(name, names[0]) for name in names[1:]]


def _to_clip(names: list[str]) -> list[tuple[str, str]]:
    clip = VARIANT_LABELS["clip"]
    return [(name, clip) for name in names if name != clip]


def _grid(rows: pd.DataFrame) -> Drawn:
    found = tables.recall_table(rows, list(dict.fromkeys(rows["variant"])))
    return Drawn(settings.plot_grid(found), found)


def _costs(rows: pd.DataFrame) -> Drawn:
    found = settings.cost_table(rows)
    sheet, caption = settings.cost_sheet(found), "What a training step and a query cost."
    return Drawn(settings.plot_costs(found), found, sheet, caption)


def _doses(rows: pd.DataFrame) -> Drawn:
    """Recall against experts and against λ, on the first split."""
    split = in_order(rows["split"], SPLIT_LABELS)[0]
    return Drawn(charts.plot_doses(tables.retrieval_table(rows[rows["split"] == split])))


def _against_rivals(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = rows["variant"].iloc[0]
    return _compared(rows, [(chosen, rival) for rival in _RIVALS if rival != chosen])


def _said(found: pd.DataFrame) -> list[str]:
    return differences.describe_differences(differences.forest_table(found))


def _ascl_rsum(rows: pd.DataFrame) -> Drawn:
    ranks = _ranked(_plain(_pair(rows)))
    apart = scores.rsum_differences(ranks, "contrastive")
    notes = scores.describe_rsum(apart, "contrastive")
    return Drawn(table=scores.rsum_table(ranks), notes=notes)


def _ascl_queries(rows: pd.DataFrame) -> Drawn:
    ways = scores.ascl_recall_table(_pair(rows))
    table = scores.ascl_over_seeds(ways)
    ways["variant"] += ways["split"].str.replace("^[^,]*", "", regex=True)  # ", first halves"
    return Drawn(charts.plot_rsum(ways, "Whole captions, first halves, re-ranked"), table)


_main_rsum = _drawn(
    lambda rows: scores.rsum_table(tables.in_label_order(rows), ["split", "variant"])
)
_seed_curves = _drawn(curves.seed_curves, curves.plot_seed_curves)
_by_name = _drawn(curves.name_table, curves.plot_by_name)
_leak = _drawn(scores.leak_table, charts.plot_leak, scores.describe_leak)
_matching = _drawn(scores.matching_table, charts.plot_matching)
_search = _drawn(tables.choose_on_validation)
_search_tested = _drawn(_against_rivals, say=_said)
_cross_domain = _drawn(tables.cross_domain_table, charts.plot_cross_domain)
_sections = _drawn(scores.summary_table)
_section_scores = _drawn(lambda rows: scores.section_table(_own(rows)))
_ascl_recall = _drawn(lambda rows: scores.ascl_recall_table(_plain(_pair(rows))))
_ascl_differences = _drawn(lambda rows: scores.ascl_differences(_plain(_pair(rows))))
_ascl_queries_rsum = _drawn(lambda rows: scores.rsum_table(_ranked(_pair(rows))))
_ascl_ablation = _drawn(
    lambda rows: scores.ascl_recall_table(_plain(rows)),
    partial(charts.plot_rsum, title="One part left out"),
)
_ascl_parts = _drawn(
    lambda rows: scores.rsum_differences(_ranked(_plain(rows)), "ascl"),
    say=partial(scores.describe_rsum, reference="ascl"),
)


def _recall_curves(rows: pd.DataFrame) -> Drawn:
    return Drawn(charts.plot_recall_curves(rows))


def _confusions(rows: pd.DataFrame) -> Drawn:
    return Drawn(charts.plot_confusions(scores.confusions(_own(rows))))


def _relations(rows: pd.DataFrame) -> Drawn:
    return Drawn(charts.plot_relation_scores(rows), scores.relation_table(rows))


# -------------------------------------------------------------------------------------- the table


def _names(profile: Profile) -> pd.DataFrame:
    """Recall by name, and with names cut where that was measured, of the main table's variants."""
    parts = [_of(kind, "main")(profile) for kind in ("names", "names_cut")]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


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
    "ablation_mmae": Figure("05_ablation_mmae", _PRINTED, *_recalls("ablation_mmae")),
    "ablation_mmae_differences": Figure("05_ablation_mmae", _ALL, *_to_first("ablation_mmae")),
    "ablation_mmae_doses": Figure(
        "05_ablation_mmae", _CHART, _of("retrieval", "ablation_mmae"), _doses
    ),
    "leak": Figure("05_ablation_mmae", _BOTH, _all("leak", LEAK), _leak),
    "ablation_gi_itm": Figure("06_ablation_gi_itm", _PRINTED, *_recalls("ablation_gi_itm")),
    "ablation_gi_itm_differences": Figure(
        "06_ablation_gi_itm", _ALL, *_to_first("ablation_gi_itm")
    ),
    "matching": Figure("06_ablation_gi_itm", _BOTH, _of("matching", "ablation_gi_itm"), _matching),
    "domains": Figure("07_generalization", _CHART),
    "cross_domain": Figure("07_generalization", _BOTH, _chapter("cross_domain"), _cross_domain),
    "sections": Figure("07_generalization", "csv", _chapter("sections"), _sections),
    "section_scores": Figure("07_generalization", "csv", _chapter("sections"), _section_scores),
    "section_confusion": Figure("07_generalization", _CHART, _chapter("sections"), _confusions),
    "itr_relations": Figure("08_itr", _CHART),
    "itr_relations_f1": Figure("08_itr", _BOTH, _chapter("relations"), _relations),
    "itr_grad_cam": Figure("08_itr", _CHART),
    "ascl_samples": Figure("09_ascl", _CHART),
    "ascl_wrong": Figure("09_ascl", _BOTH, width=360),
    "ascl_recall": Figure("09_ascl", "csv", _chapter("ascl"), _ascl_recall),
    "ascl_rsum": Figure("09_ascl", "csv", _chapter("ascl"), _ascl_rsum),
    "ascl_differences": Figure("09_ascl", "csv", _chapter("ascl"), _ascl_differences),
    "ascl_ablation": Figure("09_ascl", _BOTH, _chapter("ascl"), _ascl_ablation),
    "ascl_parts": Figure("09_ascl", "csv", _chapter("ascl"), _ascl_parts),
    "ascl_queries": Figure("09_ascl", _BOTH, _chapter("ascl"), _ascl_queries),
    "ascl_queries_rsum": Figure("09_ascl", "csv", _chapter("ascl"), _ascl_queries_rsum),
    "ascl_spaces": Figure("09_ascl", "csv"),
    "retrieval": Figure("10_tables_and_figures", _ALL, _of("retrieval", "main"), _retrieval, 680),
    "main_rsum": Figure("10_tables_and_figures", "csv", _of("ranks", "main"), _main_rsum),
    "recall_curves": Figure(
        "10_tables_and_figures", _CHART, _of("retrieval", "main"), _recall_curves, 680
    ),
    "seed_curves": Figure(
        "10_tables_and_figures", _BOTH, _all("curves", TABLES["main"]), _seed_curves, 680
    ),
    "recall_by_name": Figure("10_tables_and_figures", _BOTH, _names, _by_name, 680),
    "differences": Figure("10_tables_and_figures", _ALL, _of("ranks", "main"), _differences),
    "search_words": Figure("11_search", "csv"),
    "disagreements": Figure("11_search", "csv"),
    "query_gates": Figure("11_search", "csv"),
    "controls": Figure("12_controls_and_search", _PRINTED, *_recalls("controls")),
    "controls_differences": Figure("12_controls_and_search", _ALL, *_to_first("controls")),
    "views": Figure("12_controls_and_search", _PRINTED, *_recalls("views")),
    "views_differences": Figure("12_controls_and_search", _ALL, *_to_first("views")),
    "search": Figure("12_controls_and_search", "csv", _all("retrieval", TABLES["search"]), _search),
    "search_tested": Figure("12_controls_and_search", "csv", _winner, _search_tested),
    "mixes": Figure("13_settings_and_cost", _PRINTED, *_listed_recalls("mixes")),
    "mixes_differences": Figure(
        "13_settings_and_cost", _ALL, *_listed_differences("mixes", _to_the_first)
    ),
    "grid": Figure("13_settings_and_cost", _BOTH, _listed("retrieval", "grid"), _grid),
    "explanation_sources": Figure(
        "13_settings_and_cost", _PRINTED, *_listed_recalls("explanation_sources")
    ),
    "explanation_sources_differences": Figure(
        "13_settings_and_cost", _ALL, *_listed_differences("explanation_sources", _to_clip)
    ),
    "backbones": Figure("13_settings_and_cost", _PRINTED, *_listed_recalls("backbones")),
    "backbones_differences": Figure(
        "13_settings_and_cost", _ALL, *_listed_differences("backbones", _to_own_clip)
    ),
    "costs": Figure("13_settings_and_cost", _ALL, _all("cost", COSTED), _costs),
}
FROM_ROWS = tuple(name for name, figure in FIGURES.items() if figure.draw)

# what is also drawn of several data sets at once, their splits beside each other
JOINED = (
    *("retrieval", "main_rsum", "recall_curves", "recall_by_name", "differences", "cross_domain"),
    *("ablation_mmae", "ablation_mmae_differences", "leak", "ablation_gi_itm"),
    *("ablation_gi_itm_differences", "matching", "controls", "controls_differences", "mixes"),
    *("views", "views_differences"),
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
            parts.append(rows[own | (rows["trained_on"] != NOT_FINETUNED)])
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
