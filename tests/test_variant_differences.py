"""Differences between variants: their tables, their forest plot and their sentences."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from entityclip.forest import COLUMNS, plot_forest
from entityclip.results import ResultsError
from entityclip.sheets import Cell, sheet_latex
from entityclip.style import apply_style, save_figure
from entityclip.variant_differences import (
    describe_differences,
    difference_sheet,
    difference_table,
    seed_differences,
)
from tests.test_report import make_rows
from tests.test_sheets import check_latex

NAN = float("nan")


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context():
        apply_style()
        yield
    plt.close("all")


def make_differences():
    """Two groups; by the intervals: better, not separable, untested, worse."""
    lines = [
        ("a", "A & more $x^", "Test, R@1", 2.0, 0.5, 3.5, 3),
        ("b", "B", "Test, R@1", 1.0, -1.0, 3.0, 3),
        ("c", "C", "Test, R@1", 4.0, NAN, NAN, 1),
        ("a", "A & more $x^", "Long tail, R@1", -2.0, -3.0, -1.0, 3),
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def rows_of(values, metric="R@1", split="test", direction="text_to_image"):
    """Retrieval rows of one metric; `values` holds each variant's list, a value a seed."""
    levels = dict.fromkeys(values, 0.0)
    rows = make_rows(levels, [split], seeds=range(max(map(len, values.values()))))
    rows = rows[(rows["metric"] == metric) & (rows["direction"] == direction)]
    kept = [row["seed"] < len(values[row["variant"]]) for _, row in rows.iterrows()]
    rows = rows[kept].copy()
    rows["value"] = [values[row["variant"]][row["seed"]] for _, row in rows.iterrows()]
    return rows


def test_differences_are_taken_seed_by_seed():
    # seeds differ widely, the difference hardly does
    rows = rows_of({"clip": [10.0, 50.0, 90.0], "entityclip": [12.0, 53.0, 91.0]})
    (line,) = seed_differences(rows, "clip").to_dict("records")
    half = 4.302653 * 1 / 3**0.5  # t with 2 degrees of freedom, standard deviation 1
    assert (line["variant"], line["label"], line["seeds"]) == ("entityclip", "EntityCLIP", 3)
    assert line["group"] == "Test, text → image, R@1"
    assert line["value"] == pytest.approx(2)
    assert line["low"] == pytest.approx(2 - half, abs=1e-3)
    assert line["high"] == pytest.approx(2 + half, abs=1e-3)


def test_only_seeds_in_common_count_and_one_has_no_interval():
    rows = rows_of({"clip": [10.0, 50.0], "entityclip": [12.0], "x": [9.0, 48.0]})
    table = seed_differences(rows, "clip").set_index("variant")
    assert table.loc["entityclip", ["value", "seeds"]].tolist() == [2.0, 1]
    assert np.isnan(table.loc["entityclip", "low"])
    assert table.loc["x", ["value", "seeds"]].tolist() == [-1.5, 2]


def test_a_row_that_is_gone_takes_only_its_own_line():
    rows = pd.concat(
        rows_of({"clip": [10.0], "entityclip": [12.0], "x": [9.0]}, split=split)
        for split in ("test", "test_longtail")
    ).reset_index(drop=True)
    before = seed_differences(rows, "clip")
    gone = (rows["variant"] == "x") & (rows["split"] == "test")
    after = seed_differences(rows[~gone], "clip")
    left = before[~((before["variant"] == "x") & before["group"].str.startswith("Test"))]
    pd.testing.assert_frame_equal(after, left.reset_index(drop=True))
    assert len(before) == 4


def test_a_missing_reference_and_mixed_data_are_refused():
    rows = rows_of({"clip": [10.0], "x": [9.0]})
    with pytest.raises(ResultsError, match="no R@1 rows of 'entityclip' on test"):
        seed_differences(rows, "entityclip")
    mixed = rows.assign(data_fingerprint=["one", "two"])
    with pytest.raises(ResultsError, match="different data"):
        seed_differences(mixed, "clip")


def test_stored_differences_keep_one_seeds_interval_and_average_several():
    rows = rows_of({"entityclip minus clip": [1.0, 3.0], "clip minus zero-shot": [60.0]})
    table = difference_table(rows.sample(frac=1, random_state=0)).set_index("variant")
    one = table.loc["clip minus zero-shot"]
    stored = rows[rows["variant"] == "clip minus zero-shot"].iloc[0]
    assert (one["low"], one["high"]) == (stored["low"], stored["high"])
    assert one["label"] == "CLIP, fine-tuned − CLIP, zero-shot"
    two = table.loc["entityclip minus clip"]
    assert (two["value"], two["seeds"]) == (2.0, 2)
    assert two["high"] - 2 == pytest.approx(12.7062, abs=1e-3)  # t with 1 degree of freedom, sd √2
    both = pd.concat([rows, rows.assign(dataset="n24news")])
    with pytest.raises(ResultsError, match="there are n24news, newsroom"):
        difference_table(both)


def test_sentences_say_what_the_intervals_do():
    assert describe_differences(make_differences(), "CLIP") == [
        "Test, R@1: better than CLIP: A & more $x^ (+2.0, +0.5 to +3.5); not separable from CLIP: "
        "B (+1.0, -1.0 to +3.0); without an interval, so not compared with CLIP: C (+4.0).",
        "Long tail, R@1: worse than CLIP: A & more $x^ (-2.0, -3.0 to -1.0).",
    ]
    lower = describe_differences(make_differences(), "CLIP", higher_is_better=False)
    assert lower[0].startswith("Test, R@1: worse than CLIP: A & more")
    assert lower[1].startswith("Long tail, R@1: better than CLIP: A & more")
    alone = describe_differences(make_differences())
    assert alone[0].startswith("Test, R@1: better: A & more")
    assert "not separable from 0: B" in alone[0]


def test_the_printed_table_signs_its_numbers_and_would_compile():
    sheet = difference_sheet(make_differences(), "CLIP")
    assert sheet.blocks[0][0][2:] == [Cell("+2.0", "± 1.5"), Cell("3")]
    assert sheet.blocks[0][2][2:] == [Cell("+4.0"), Cell("1")]
    assert list(sheet.notes) == describe_differences(make_differences(), "CLIP")
    check_latex(sheet_latex(sheet, "Differences"))


def test_the_forest_fills_what_excludes_zero(tmp_path):
    figure = plot_forest(make_differences(), "R@1 against CLIP (points)")
    (axis,) = figure.axes
    marks = {
        line.get_xdata()[0]: to_hex(line.get_markerfacecolor())
        for line in axis.lines
        if line.get_marker() == "o"
    }
    hollow = to_hex("white")
    assert [marks[value] == hollow for value in (2.0, 1.0, 4.0, -2.0)] == [False, True, True, False]
    ends = [segment[:, 0].tolist() for c in axis.collections for segment in c.get_segments()]
    assert ends == [[0.5, 3.5], [-1.0, 3.0], [-3.0, -1.0]]
    zero = [line for line in axis.lines if list(line.get_xdata()) == [0, 0]]
    assert len(zero) == 1
    words = [text.get_text() for text in axis.texts]
    assert words[:2] == ["+2.0 [+0.5, +3.5]", "3 seeds"]
    assert words[4:6] == ["+4.0", "1 seed"]
    names = [(tick.get_text(), tick.get_fontweight()) for tick in axis.get_yticklabels()]
    plain = [(name, "normal") for name in ("A & more $x^", "B", "C")]
    bold = [("Test, R@1", "bold"), ("Long tail, R@1", "bold")]
    assert names == [bold[0], *plain, bold[1], plain[0]]
    places = axis.get_yticks()
    assert (np.diff(places) >= 1).all()
    assert places[4] - places[3] > 1.5  # room above the second heading
    assert axis.yaxis_inverted()
    save_figure(figure, tmp_path, "forest")  # dollar signs are no mathematics


def test_a_forest_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no differences to show"):
        plot_forest(make_differences().iloc[:0])
    with pytest.raises(ValueError, match="no seeds"):
        plot_forest(make_differences().drop(columns="seeds"))
