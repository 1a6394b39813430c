"""Tables of recall from rows, the papers' numbers beside them, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest

from entityclip.config import REPOSITORY
from entityclip.reporting.markup import sheet_latex, sheet_markdown
from entityclip.reporting.tables import (
    held,
    legend,
    reported_cells,
    reported_values,
    retrieval_sheet,
    retrieval_table,
    with_ranks,
)
from entityclip.results import ResultsError
from entityclip.statistics import DIRECTIONS, level_intervals, retrieval_metrics
from entityclip.variants import FLOORS, SPLIT_LABELS
from tests.reporting.samples import make_floors, make_rows
from tests.reporting.test_markup import check_latex


def markdown(table):
    """The table as printed, without its marks."""
    return re.sub(r"\*\*|</?u>", "", sheet_markdown(retrieval_sheet(table)))


def cell(table, variant):
    chosen = table["split"].eq("test") & table["direction"].eq("text_to_image")
    (row,) = table[chosen & (table["variant"] == variant)].to_dict("records")
    return row


def test_table_holds_the_rows_values_in_the_houses_order():
    shuffled = make_rows().sample(frac=1, random_state=0)
    table = retrieval_table(shuffled)
    assert table["split"].tolist() == ["test"] * 6 + ["test_alias"] * 6
    assert table["direction"].tolist()[:6] == ["text_to_image"] * 3 + ["image_to_text"] * 3
    assert table["variant"].tolist()[:3] == ["zero-shot", "clip", "entityclip"]
    row = cell(table, "clip")
    assert (row["R@1"], row["R@1_low"], row["R@1_high"]) == (70, 69.5, 70.5)
    assert (row["R@5"], row["MRR"], row["MedR"], row["MeanR"]) == (71, 75, 76, 77)
    assert (row["seeds"], row["n_queries"], row["n_candidates"]) == (1, 400, 300)
    assert row["interval"] == "bootstrap over queries"


def test_an_unknown_variant_comes_last_under_its_own_name():
    table = retrieval_table(make_rows({"other": 90, "entityclip": 65, "ablation": 5}))
    assert table["variant"].tolist()[:3] == ["entityclip", "ablation", "other"]
    assert "| other |" in markdown(table)


def test_a_row_that_is_gone_leaves_exactly_its_cell_blank():
    rows = make_rows()
    gone = rows.query(
        "variant == 'clip' and split == 'test' and direction == 'text_to_image' and metric == 'R@5'"
    )
    assert len(gone) == 1
    before, after = retrieval_table(rows), retrieval_table(rows.drop(gone.index))
    changed = before.ne(after) & ~(before.isna() & after.isna())
    assert changed.to_numpy().sum() == 3
    assert np.isnan([cell(after, "clip")[f"R@5{end}"] for end in ("", "_low", "_high")]).all()
    assert "| 70.0 [69.5, 70.5] |  | 72.0" in markdown(after)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.302653), (5, 2.5706), (10, 2.2281), (30, 2.0423), (500, 1.9647)],
)
def test_several_seeds_are_averaged_with_students_interval(degrees, quantile):
    seeds = range(degrees + 1)
    rows = make_rows({"clip": 50.0}, ["test"], seeds)
    rows["value"] = 50 + 0.01 * rows["seed"]
    row = cell(retrieval_table(rows), "clip")
    assert (row["seeds"], row["interval"]) == (degrees + 1, "t over seeds")
    assert row["R@1"] == pytest.approx(50 + 0.005 * degrees)
    spread = np.std(0.01 * np.array(seeds), ddof=1) / len(seeds) ** 0.5
    assert (row["R@1_high"] - row["R@1"]) / spread == pytest.approx(quantile, abs=5e-4)
    assert (row["R@1"] - row["R@1_low"]) / spread == pytest.approx(quantile, abs=5e-4)


def ranked_rows(seeds, n=40, **changes):
    """Retrieval rows of clip under some seeds, and its rows of kind "ranks", which agree."""
    rng, rows, ranks = np.random.default_rng(0), [], []
    for seed in seeds:
        own = make_rows({"clip": 0.0}, ["test"], [seed], **changes)
        for direction in DIRECTIONS:
            found = rng.geometric(0.1 + 0.05 * seed, n)
            here = own["direction"] == direction
            own.loc[here, "value"] = own.loc[here, "metric"].map(retrieval_metrics(found))
            mean = own[here & (own["metric"] == "MeanR")]
            ranks.append(mean.assign(ranks=[found.tolist()], clusters=None))
        rows.append(own)
    return pd.concat(rows, ignore_index=True), pd.concat(ranks, ignore_index=True)


def test_with_stored_ranks_intervals_hold_queries_and_seeds():
    rows, ranks = ranked_rows(range(3))
    both, over_seeds = retrieval_table(with_ranks(rows, ranks)), retrieval_table(rows)
    row, plain = cell(both, "clip"), cell(over_seeds, "clip")
    assert (row["interval"], row["seeds"]) == ("bootstrap over queries and seeds", 3)
    expected = level_intervals(ranks[ranks["direction"] == "text_to_image"])
    for metric, ends in expected.items():
        assert row[metric] == plain[metric]
        assert (row[f"{metric}_low"], row[f"{metric}_high"]) == ends
    assert held(both) == "95 % intervals over test queries and training seeds together (bootstrap)"
    assert "over test queries and training seeds together" in legend(both)[1]
    # one seed's ranks are not there: the old way, which says so
    lacking = retrieval_table(with_ranks(rows, ranks[ranks["seed"] > 0]))
    pd.testing.assert_frame_equal(lacking, over_seeds)
    pd.testing.assert_frame_equal(retrieval_table(with_ranks(rows, ranks[:0])), over_seeds)
    assert legend(over_seeds)[1] == "95 % intervals: ±, over training seeds alone (Student's t)."


def test_seeds_may_have_another_draw_of_the_data_if_all_have_it():
    parts = [ranked_rows((0, 1, 2)), ranked_rows((3, 4), 30, data_fingerprint="b", n_queries=30)]
    rows, ranks = (pd.concat(kind, ignore_index=True) for kind in zip(*parts, strict=True))
    row = cell(retrieval_table(with_ranks(rows, ranks)), "clip")
    values = rows[(rows["metric"] == "R@1") & (rows["direction"] == "text_to_image")]["value"]
    assert row["R@1"] == pytest.approx(values.mean())
    assert (row["seeds"], row["n_queries"]) == (5, 430)
    assert row["R@1_low"] < row["R@1"] < row["R@1_high"]
    # zero-shot was measured on the first draw alone, which all share
    first = make_rows({"zero-shot": 1.0}, ["test"], data_fingerprint="data of test")
    assert len(retrieval_table(pd.concat([rows, first], ignore_index=True))) == 4
    for seed, data in ((3, "data of test"), (5, "c")):  # not that seed's, or nobody else's
        other = make_rows({"entityclip": 1.0}, ["test"], [seed], data_fingerprint=data)
        with pytest.raises(ResultsError, match="come from different data"):
            retrieval_table(pd.concat([rows, other], ignore_index=True))


def test_marks_follow_the_printed_number():
    rows = make_rows({"clip": 0.0, "entityclip": 0.0, "bridge": 0.0, "itr": 0.0}, ["test"])
    values = {"clip": 99.65, "entityclip": 99.7, "bridge": 99.64, "itr": 98.0}
    rows["value"] = rows["variant"].map(values)
    assert np.round(99.65, 1) == 99.6  # where Python prints 99.7
    block = retrieval_sheet(retrieval_table(rows)).blocks[0]
    marks = {row[2]: (row[3].text, row[3].mark) for row in block}
    assert marks == {
        "CLIP, fine-tuned": ("99.7", "best"), "EntityCLIP": ("99.7", "best"),
        "CLIP + bridge": ("99.6", "second"), "ITR, fine-tuned": ("98.0", ""),
    }  # fmt: skip
    ranks = {row[2]: row[-1].mark for row in block}  # of which the least is best
    assert (ranks["ITR, fine-tuned"], ranks["CLIP + bridge"]) == ("best", "second")
    assert legend(retrieval_table(rows))[0].endswith("equal numbers share a mark.")


def test_floors_stand_last_apart_and_unmarked():
    rows = make_rows({"clip": 5.0, "bridge": 6.0}, ["test"])
    without = retrieval_sheet(retrieval_table(rows))
    table = retrieval_table(pd.concat([make_floors(), rows], ignore_index=True))
    sheet = retrieval_sheet(table)
    assert table["variant"].tolist()[:4] == ["clip", "bridge", "scene-only", "names-cut"]
    assert list(sheet.blocks[0][:2]) == list(without.blocks[0])  # although floors are higher
    assert sheet.blocks[0][2] == ()
    assert [row[2] for row in sheet.blocks[0][3:]] == list(FLOORS.values())
    assert {c.mark for row in sheet.blocks[0][3:] for c in row[3:]} == {""}
    assert list(sheet.blocks[1]) == list(without.blocks[1])  # image to text has none
    lines = sheet_markdown(sheet).splitlines()
    assert set(lines[4]) == {"|", " "}
    split = SPLIT_LABELS["test"]
    shown = f"| {split} | text → image | Floor: scene known, no name | 20.0 | 21.0 | 22.0 |"
    assert lines[5].startswith(shown)
    text = sheet_latex(sheet, "Recall", "tab:main")
    check_latex(text)
    parts = text.split(r"\addlinespace")
    assert len(parts) == 2
    assert "Floor: scene known, no name & 20.0 & 21.0" in parts[1]
    assert text.count(rf"\emph{{{split}, text") == 1


def test_an_interval_over_seeds_stays_within_what_a_metric_can_be():
    rows = make_rows({"clip": 98.0}, seeds=(0, 1))
    row = cell(retrieval_table(rows), "clip")
    assert row["R@1_high"] == 100
    rows["value"] -= 98
    assert cell(retrieval_table(rows), "clip")["R@1_low"] == 0
    assert cell(retrieval_table(rows), "clip")["MedR_low"] == 1


def test_a_metric_that_one_seed_lacks_is_blank():
    rows = make_rows(seeds=(0, 1))
    table = retrieval_table(rows[(rows["seed"] == 0) | (rows["metric"] != "R@1")])
    row = cell(table, "clip")
    assert row["seeds"] == 2
    assert np.isnan(row["R@1"])
    assert row["R@5"] == pytest.approx(71.5)


def test_rows_of_different_data_are_never_set_side_by_side():
    rows = make_rows()
    other = make_rows({"entityclip": 99}, data_fingerprint="other data")
    mixed = pd.concat([rows[rows["variant"] != "entityclip"], other], ignore_index=True)
    with pytest.raises(ResultsError, match=r"newsroom/test .*data of test: .*; other data: entity"):
        retrieval_table(mixed)


def test_rows_of_different_settings_are_never_averaged():
    changed = make_rows({"clip": 99}, seeds=(1,), config={"lr": 2.0}, config_hash="changed")
    with pytest.raises(ResultsError, match=r"rows of clip .* \(config_hash changed, clip0\)"):
        retrieval_table(pd.concat([make_rows(), changed], ignore_index=True))
    again = make_rows({"clip": 99}, config={"lr": 2.0}, config_hash="changed")  # the same seed
    with pytest.raises(ResultsError, match="different settings"):
        retrieval_table(pd.concat([make_rows(), again], ignore_index=True))


def test_markdown_shows_values_with_their_intervals():
    rows = make_rows({"clip": 76.7, "a|b": 1.0}, ["test"])
    rows.loc[rows["metric"] == "MeanR", ["low", "high"]] = np.nan
    lines = markdown(retrieval_table(rows)).splitlines()
    assert lines[0] == "| Split | Direction | Variant | R@1 | R@5 | R@10 | MRR | MedR | MeanR |"
    assert lines[2] == (
        "| Test | text → image | CLIP, fine-tuned | 76.7 [76.2, 77.2] | 77.7 [77.2, 78.2] "
        "| 78.7 [78.2, 79.2] | 81.7 [81.2, 82.2] | 82.7 [82.2, 83.2] | 83.7 |"
    )
    assert "| a\\|b |" in lines[3]
    two = pd.concat([rows, rows.assign(dataset="n24news")], ignore_index=True)
    assert markdown(retrieval_table(two)).startswith("| Dataset | Split |")


HEAD = "paper,table,row,column,value\n"


def test_reported_values_stand_beside_their_own_data_only(tmp_path):
    path = tmp_path / "paper_reported.csv"
    none = reported_values(path)  # there is no such file
    assert (list(none), len(none)) == (["paper", "table", "row", "column", "value"], 0)
    path.write_text(
        f"{HEAD}P,2,clip,newsroom test text_to_image R@1,12.5\n"
        "P,2,clip,newsroom test text_to_image R@5,30\n"
        "P,2,clip,n24news test text_to_image R@1,99\n"
        "P,2,entityclip,newsroom test text_to_image R@1,\n"
    )
    table, reported = retrieval_table(make_rows()), reported_values(path)
    assert reported["value"].tolist()[:3] == [12.5, 30, 99]
    assert np.isnan(reported["value"].iloc[3])  # unknown stays unknown
    said = reported_cells(table, reported)
    assert said[table["variant"] == "clip"].tolist() == ["R@1 12.5, R@5 30", "", "", ""]
    assert (said[table["variant"] != "clip"] == "").all()
    sheet = retrieval_sheet(table.assign(reported=said))
    assert sheet.header[-1] == "Reported"
    assert [row[-1] for row in sheet.blocks[0]] == ["", "R@1 12.5, R@5 30", ""]
    empty = retrieval_sheet(table.assign(reported=reported_cells(table, none)))
    assert {row[-1] for block in empty.blocks for row in block} == {""}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (f"{HEAD}P,1,CLIP,R@1,1\nP,,CLIP,R@5,1", "line 3: the value lacks its paper, table"),
        (f"{HEAD}P,1,CLIP,R@5,about 3", "line 2: the value is no finite number"),
        (f"{HEAD}P,1,CLIP,R@5,inf", "line 2: the value is no finite number"),
        (f"{HEAD}P,1,CLIP,R@1,1\nP,1,CLIP,R@1,2", "line 3: the value stands there twice"),
        ("paper,value\nP,1", "columns are"),
        (
            f"{HEAD}P,2,clip,newsroom R@1,1\nQ,7,clip,newsroom R@1,2",
            "two reported values for clip, newsroom R@1",
        ),
    ],
)
def test_a_reported_value_without_one_source_is_refused(tmp_path, lines, message):
    path = tmp_path / "reported.csv"
    path.write_text(f"{lines}\n")
    with pytest.raises(ResultsError, match=message):
        reported_cells(retrieval_table(make_rows()), reported_values(path))


def test_the_shipped_file_of_reported_values_holds_none():
    path = REPOSITORY / "figures" / "paper_reported.csv"
    assert path.exists()
    assert reported_values(path).empty
