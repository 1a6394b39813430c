"""How stored rows become figures: which rows are chosen, and what draws them.

Nothing here trains or measures. `catalogue` says which of these makes which file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure as Chart

from entityclip.config import SHIPPED_FILES, Profile
from entityclip.reporting import charts, curves, differences, scores, settings, tables
from entityclip.reporting.markup import (
    Sheet,
)
from entityclip.results import ResultsError, chapter_rows, find_rows, table_rows
from entityclip.variants import (
    DIRECTION_LABELS,
    FLOORS,
    SPLIT_LABELS,
    TABLES,
    VARIANT_LABELS,
    in_order,
    label,
)

_RIVALS = ("clip", "entityclip", "bridge")  # of what the search chose

# what variants are compared by: as the whole ranking counts, fewer queries tell two apart than R@1
BY = "MRR"

REPORTED = SHIPPED_FILES / "figures" / "paper_reported.csv"
COMPARED = (
    *(("clip", "zero-shot"), ("itr", "clip"), ("ascl", "clip"), ("entityclip", "clip")),
    *(("bridge", "clip"), ("bridge", "entityclip"), ("bridge-entityclip", "bridge")),
    *(("name-views", "bridge"), ("name-views-context", "name-views")),
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


# ------------------------------------------------------------------------------------ rows chosen


def of_table(kind: str, table: str) -> Rows:
    """Rows of a table's variants on the test splits, over all seeds."""
    return _on_test(kind, partial(find_rows, variants=TABLES[table]))


def of_listed(kind: str, table: str) -> Rows:
    """Rows of one of LISTED on the test splits, over all seeds, called as the table calls them."""
    return _on_test(kind, partial(table_rows, table=table))


def _on_test(kind: str, find: Callable[..., pd.DataFrame]) -> Rows:
    """Found rows of a kind on the test splits; those of retrieval with their ranks."""

    def choose(profile: Profile) -> pd.DataFrame:
        rows = find(profile, kind=kind)
        rows = rows[rows["split"].isin(profile.settings.test_splits)].reset_index(drop=True)
        if kind == "retrieval":
            rows = tables.with_ranks(rows, find(profile, kind="ranks"))
        return tables.articles_beside(rows)

    return choose


def main_recalls(profile: Profile) -> pd.DataFrame:
    """Retrieval rows of the main table, after them those of FLOORS where there are any."""
    rows = of_table("retrieval", "main")(profile)
    floors = _on_test("floor", partial(find_rows, variants=FLOORS))(profile)
    # floors alone are no table
    return pd.concat([rows, floors], ignore_index=True) if len(rows) and len(floors) else rows


def of_variants(kind: str, variants: Sequence[str]) -> Rows:
    """Rows of some variants, on whatever split."""
    return partial(find_rows, kind=kind, variants=variants)


def of_chapter(kind: str) -> Rows:
    """A chapter's rows."""
    return partial(chapter_rows, kind=kind)


def winner(profile: Profile) -> pd.DataFrame:
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


def retrieval(rows: pd.DataFrame) -> Drawn:
    """Recall with intervals, the papers' numbers beside ours."""
    table = tables.retrieval_table(rows)
    reported = tables.reported_cells(table, tables.reported_values(REPORTED))
    if (reported != "").any():
        table["reported"] = reported
    chart, sheet = charts.plot_retrieval(table), tables.retrieval_sheet(table)
    caption = f"Retrieval: recall in percent, ranks, {tables.held(table)}."
    return Drawn(chart, table, sheet, caption, _left_out("main", rows))


def distractors(rows: pd.DataFrame) -> Drawn:
    """What queries of the main table are mistaken for."""
    table = tables.distractor_table(rows)
    caption = "What a query's own picture beats, and how its scene's others rank, percent."
    return Drawn(None, table, tables.distractor_sheet(table), caption)


def recalls(table: str) -> tuple[Rows, Draw]:
    """Recall of a table's variants, in the table's order: the rows, and what draws them."""

    def draw(rows: pd.DataFrame) -> Drawn:
        found = tables.recall_table(rows, TABLES[table])
        caption = f"Table {table}, recall in percent, {tables.held(found)}."
        notes = _left_out(table, rows)
        return Drawn(None, found, tables.retrieval_sheet(found), caption, notes)

    return of_table("retrieval", table), draw


def _apart(found: pd.DataFrame, reference: str, axis: str, caption: str) -> Drawn:
    if found.empty:
        raise ResultsError("nothing shares a seed with what it is compared with")
    forest = differences.forest_table(found)
    sheet = differences.difference_sheet(forest, reference)
    charted, note = forest, differences.legend(forest)
    if found["split"].nunique() > 2:  # a page's height; the table has both directions
        way = DIRECTION_LABELS["text_to_image"]
        charted = forest[forest["group"].str.contains(way, regex=False)]
    chart = differences.plot_forest(charted, axis, note)
    return Drawn(chart, found, sheet, f"{caption}, 95 % intervals over queries and training seeds.")


def _compared(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    found = differences.difference_table(rows, pairs, BY)
    if found.empty:
        raise ResultsError("no two variants to compare share a seed and a split; measure more")
    return found


def main_differences(rows: pd.DataFrame) -> Drawn:
    """The pairs of COMPARED: forest, table, sentences."""
    found = _compared(rows, COMPARED)
    found = found.sort_values(["split", "direction"], ascending=[True, False], kind="stable")
    return _apart(found, "", f"difference in {BY} (points)", f"Differences in {BY}, points")


def to_first(table: str) -> tuple[Rows, Draw]:
    """Each variant of a table minus the table's first, paired by query and seed."""
    first, *others = TABLES[table]
    reference = label(first, VARIANT_LABELS)

    def draw(rows: pd.DataFrame) -> Drawn:
        found = _compared(rows, [(other, first) for other in others])
        caption = f"Table {table}: {BY} minus that of {reference}, points"
        return _apart(found, reference, f"{BY} minus {reference} (points)", caption)

    return of_table("ranks", table), draw


def listed_recalls(table: str) -> tuple[Rows, Draw]:
    """Recall of one of LISTED in the profile's order: the rows, and what draws them."""

    def draw(rows: pd.DataFrame) -> Drawn:
        found = tables.recall_table(rows, list(dict.fromkeys(rows["variant"])))
        name = table.replace("_", " ").capitalize()
        caption = f"{name}, recall in percent, {tables.held(found)}."
        return Drawn(None, found, tables.retrieval_sheet(found), caption)

    return of_listed("retrieval", table), draw


def listed_differences(
    table: str, pairs: Callable[[list[str]], list[tuple[str, str]]]
) -> tuple[Rows, Draw]:
    """Differences in BY between some `pairs` of one of LISTED, given its rows' names."""

    def draw(rows: pd.DataFrame) -> Drawn:
        compared = pairs(list(dict.fromkeys(rows["variant"])))
        found = _compared(rows, compared)
        shared = {second for _, second in compared}
        reference = shared.pop() if len(shared) == 1 else ""
        minus = f" minus {reference}" if reference else ""
        caption = f"{table.replace('_', ' ').capitalize()}: {BY}{minus}, points"
        return _apart(found, reference, f"{BY}{minus} (points)", caption)

    return of_listed("ranks", table), draw


def to_own_clip(names: list[str]) -> list[tuple[str, str]]:
    """EntityCLIP against CLIP of the same backbone: names end in variants' labels."""
    trained, plain = (f": {VARIANT_LABELS[name]}" for name in ("entityclip", "clip"))
    owns = [name.removesuffix(trained) for name in names if name.endswith(trained)]
    return [(own + trained, own + plain) for own in owns]


def to_the_first(names: list[str]) -> list[tuple[str, str]]:
    """Each other against the first."""
    return [(name, names[0]) for name in names[1:]]


def to_clip(names: list[str]) -> list[tuple[str, str]]:
    """Each other against fine-tuned CLIP."""
    clip = VARIANT_LABELS["clip"]
    return [(name, clip) for name in names if name != clip]


def grid(rows: pd.DataFrame) -> Drawn:
    """Recall by two weights."""
    found = tables.recall_table(rows, list(dict.fromkeys(rows["variant"])))
    return Drawn(settings.plot_grid(found), found)


def costs(rows: pd.DataFrame) -> Drawn:
    """What steps and queries cost."""
    found = settings.cost_table(rows)
    sheet, caption = settings.cost_sheet(found), "What a training step and a query cost."
    return Drawn(settings.plot_costs(found), found, sheet, caption)


def doses(rows: pd.DataFrame) -> Drawn:
    """Recall against experts and against λ, on the first split."""
    split = in_order(rows["split"], SPLIT_LABELS)[0]
    return Drawn(charts.plot_doses(tables.retrieval_table(rows[rows["split"] == split])))


def _against_rivals(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = rows["variant"].iloc[0]
    return _compared(rows, [(chosen, rival) for rival in _RIVALS if rival != chosen])


def _said(found: pd.DataFrame) -> list[str]:
    return differences.describe_differences(differences.forest_table(found))


def ascl_rsum(rows: pd.DataFrame) -> Drawn:
    """RSUM of AsCL and of plain contrast, with the difference in words."""
    ranks = _ranked(_plain(_pair(rows)))
    apart = scores.rsum_differences(ranks, "contrastive")
    notes = scores.describe_rsum(apart, "contrastive")
    return Drawn(table=scores.rsum_table(ranks), notes=notes)


def ascl_queries(rows: pd.DataFrame) -> Drawn:
    """AsCL and plain contrast, asked in each way."""
    ways = scores.ascl_recall_table(_pair(rows))
    table = scores.ascl_over_seeds(ways)
    ways["variant"] += ways["split"].str.replace("^[^,]*", "", regex=True)  # ", first halves"
    return Drawn(charts.plot_rsum(ways, "Whole captions, first halves, re-ranked"), table)


main_rsum = _drawn(
    lambda rows: scores.rsum_table(tables.in_label_order(rows), ["split", "variant"])
)
seed_curves = _drawn(curves.seed_curves, curves.plot_seed_curves)
by_name = _drawn(curves.name_table, curves.plot_by_name)
leak = _drawn(scores.leak_table, charts.plot_leak, scores.describe_leak)
matching = _drawn(scores.matching_table, charts.plot_matching)
search = _drawn(tables.choose_on_validation)
search_tested = _drawn(_against_rivals, say=_said)
cross_domain = _drawn(tables.cross_domain_table, charts.plot_cross_domain)
sections = _drawn(scores.summary_table)
section_scores = _drawn(lambda rows: scores.section_table(_own(rows)))
ascl_recall = _drawn(lambda rows: scores.ascl_recall_table(_plain(_pair(rows))))
ascl_differences = _drawn(lambda rows: scores.ascl_differences(_plain(_pair(rows))))
ascl_queries_rsum = _drawn(lambda rows: scores.rsum_table(_ranked(_pair(rows))))
ascl_ablation = _drawn(
    lambda rows: scores.ascl_recall_table(_plain(rows)),
    partial(charts.plot_rsum, title="One part left out"),
)
ascl_parts = _drawn(
    lambda rows: scores.rsum_differences(_ranked(_plain(rows)), "ascl"),
    say=partial(scores.describe_rsum, reference="ascl"),
)


def recall_curves(rows: pd.DataFrame) -> Drawn:
    """Recall at every K."""
    return Drawn(charts.plot_recall_curves(rows))


def confusions(rows: pd.DataFrame) -> Drawn:
    """Sections taken for sections."""
    return Drawn(charts.plot_confusions(scores.confusions(_own(rows))))


def relations(rows: pd.DataFrame) -> Drawn:
    """F1 of relations before and after ITR."""
    return Drawn(charts.plot_relation_scores(rows), scores.relation_table(rows))


def names(profile: Profile) -> pd.DataFrame:
    """Recall by name, and with names cut where that was measured, of the main table's variants."""
    parts = [of_table(kind, "main")(profile) for kind in ("names", "names_cut")]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
