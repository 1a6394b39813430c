"""Differences between variants: their tables, their forest plot and their sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from entityclip.reporting.differences import (
    describe,
    describe_differences,
    difference_sheet,
    difference_table,
    plot_forest,
)
from entityclip.reporting.markup import Cell, sheet_latex
from entityclip.reporting.style import save_figure
from tests.reporting.samples import make_differences, make_ranks
from tests.reporting.test_markup import check_latex

pytestmark = pytest.mark.usefixtures("figure_style")


def test_sentences_say_what_the_intervals_do_below_a_table_of_signed_numbers():
    sentences = describe_differences(make_differences(), "CLIP")
    assert sentences == [
        "Test, R@1: better than CLIP: A & more $x^ (+2.0, +0.5 to +3.5); not separable from CLIP: "
        "B (+1.0, -1.0 to +3.0); without an interval, so not compared with CLIP: C (+4.0).",
        "Long tail, R@1: worse than CLIP: A & more $x^ (-2.0, -3.0 to -1.0).",
    ]
    alone = describe_differences(make_differences())
    assert alone[0].startswith("Test, R@1: better: A & more")
    assert "not separable from 0: B" in alone[0]
    sheet = difference_sheet(make_differences(), "CLIP")
    assert sheet.blocks[0][0][2:] == [Cell("+2.0", "[+0.5, +3.5]"), Cell("3")]
    assert sheet.blocks[0][2][2:] == [Cell("+4.0"), Cell("1")]
    assert sheet.notes == sentences
    check_latex(sheet_latex(sheet, "Differences", "tab:d"))


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
    with pytest.raises(ValueError, match="no differences to show"):
        plot_forest(make_differences().iloc[:0])


# ---------------------------------------------------------------------------------- the table


def difference(first, second, metric="R@1", **options):
    """Value, low and high of one pair of models under one seed."""
    rows = make_ranks({("a", 0): first, ("b", 0): second})
    table = difference_table(rows, [("a", "b")], metric, **options)
    return tuple(table[["value", "low", "high"]].iloc[0])


@pytest.mark.parametrize(
    ("metric", "value"), [("R@1", 25.0), ("R@5", 0.0), ("MeanR", (14 - 55) / 4)]
)
def test_the_value_is_the_difference_of_the_metrics(metric, value):
    first, second = [1, 1, 3, 9], [1, 2, 2, 50]
    assert difference(first, second, metric)[0] == pytest.approx(value)
    assert difference(first, first, metric) == (0.0, 0.0, 0.0)  # however queries are drawn


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1, 2], [1, 2, 3]), "same queries"),
        (([1, 2], [1, 2], "MedR"), "no metric 'MedR' is a mean over queries"),
        (([1, 2], [1, 2], "R@0"), "integer K"),
        (([1], [2]), "needs"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        difference(*arguments)


def test_differences_use_the_seeds_that_both_have():
    ranks = {
        ("a", 0): [1, 1, 1, 5], ("b", 0): [1, 2, 3, 5],
        ("a", 1): [1, 1, 2, 5], ("b", 1): [1, 2, 3, 5],
        ("a", 2): [9, 9, 9, 9],
    }  # fmt: skip
    table = difference_table(make_ranks(ranks), [("a", "b"), ("a", "missing")])
    assert table["variant"].tolist() == ["a minus b"]
    row = table.iloc[0]
    assert row["seeds"] == 2
    assert row["n_queries"] == 4
    assert row["value"] == pytest.approx((50 + 25) / 2)
    assert row["low"] <= row["value"] <= row["high"]


def test_differences_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows = make_ranks({(v, s): rng.integers(1, 6, 60) for v in "ab" for s in range(4)})
    rows = pd.concat([rows, rows.assign(direction="another")])
    table = difference_table(rows, [("a", "b")])
    assert len(table) == 2
    pd.testing.assert_frame_equal(difference_table(rows[::-1], [("a", "b")]), table)


def test_an_interval_does_not_depend_on_what_else_is_compared():
    rng = np.random.default_rng(0)
    rows = make_ranks({(v, s): rng.integers(1, 6, 60) for v in "abc" for s in range(3)})
    rows = rows[(rows["variant"] != "c") | (rows["seed"] < 2)]  # other numbers of seeds
    elsewhere = rows.assign(split="other", clusters=[[0, 0, 1, 2, 3] * 12] * len(rows))
    every = difference_table(pd.concat([rows, elsewhere]), [("a", "b"), ("a", "c"), ("b", "c")])
    assert len(every) == 6
    for _, row in every.iterrows():
        own = rows if row["split"] == "test" else elsewhere
        alone = difference_table(own, [(row["first"], row["second"])])
        assert alone.iloc[0].to_dict() == row.to_dict()


@pytest.mark.parametrize("clusters", [None, [0, 1, 1] * 10, np.arange(30).tolist()])
@pytest.mark.parametrize("n_seeds", [1, 2])
def test_queries_or_pictures_and_seeds_are_drawn_as_in_a_loop(n_seeds, clusters):
    """The same queries for both models, so that what is hard for both cancels out."""
    rng = np.random.default_rng(0)
    base = rng.integers(1, 4, (n_seeds, 30))
    ranks = {("a", s): base[s] for s in range(n_seeds)}
    ranks |= {("b", s): np.where(rng.random(30) < 0.3, 3, base[s]) for s in range(n_seeds)}
    rows = make_ranks(ranks, clusters=clusters)
    row = difference_table(rows, [("a", "b")], n_resamples=20_000).iloc[0]
    hits = {key: 100.0 * (values == 1) for key, values in ranks.items()}
    each = np.stack([hits["a", s] - hits["b", s] for s in range(n_seeds)])
    ids = np.arange(30) if clusters is None else np.array(clusters)
    members = [np.flatnonzero(ids == c) for c in np.unique(ids)]
    drawn = []
    for _ in range(5_000):
        chosen = rng.integers(0, len(members), len(members))
        queries = np.concatenate([members[c] for c in chosen])
        seeds = rng.integers(0, n_seeds, n_seeds)
        drawn.append(np.mean([each[s, queries].mean() for s in seeds]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    query = 100 / 30 / n_seeds
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1.01 * query)


def test_differences_on_different_data_are_refused():
    rows = [make_ranks({(v, 0): [1, 2]}, fingerprint=f) for v, f in (("a", "one"), ("b", "other"))]
    with pytest.raises(ValueError, match="a and b were measured on different data"):
        difference_table(pd.concat(rows), [("a", "b")])


@pytest.mark.parametrize(
    ("metric", "low", "high", "says"),
    [
        ("R@1", 1.0, 5.0, "a is better than b"),
        ("R@1", -5.0, -1.0, "a is worse than b"),
        ("MeanR", -5.0, -1.0, "a is better than b"),
        ("R@1", -1.0, 0.0, "a is not separable from b"),
        ("R@1", float("nan"), float("nan"), "a is not separable from b"),
    ],
)
def test_the_sentence_says_what_the_interval_says(metric, low, high, says):
    row = {
        "variant": "a minus b", "split": "test", "direction": "text_to_image", "metric": metric,
        "value": (low + high) / 2, "low": low, "high": high,
    }  # fmt: skip
    assert describe(row).startswith(f"test, text to image: {says} by {metric}")
