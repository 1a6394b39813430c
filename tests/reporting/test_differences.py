"""Differences between variants: their tables, their forest plot and their sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from entityclip.reporting.differences import (
    benjamini_hochberg,
    bootstrap_p,
    crossed_t,
    describe,
    describe_differences,
    difference_sheet,
    difference_table,
    equivalent,
    legend,
    plot_forest,
)
from entityclip.reporting.markup import Cell, sheet_latex
from entityclip.reporting.style import save_figure
from entityclip.statistics import Draw, resampled
from tests.reporting.samples import make_differences, make_ranks
from tests.reporting.test_markup import check_latex

pytestmark = pytest.mark.usefixtures("figure_style")


def test_sentences_say_what_the_intervals_do_below_a_table_of_signed_numbers():
    sentences = describe_differences(make_differences(), "CLIP")
    assert sentences == [
        "Test, R@1: better than CLIP: A & more $x^ (+2.0, +0.5 to +3.5); not separable from CLIP: "
        "B (+1.0, -1.0 to +3.0); without an interval, so not compared with CLIP: C (+4.0).",
        "Aliases, R@1: worse than CLIP: A & more $x^ (-2.0, -3.0 to -1.0).",
    ]
    alone = describe_differences(make_differences())
    assert alone[0].startswith("Test, R@1: better: A & more")
    assert "not separable from 0: B" in alone[0]
    sheet = difference_sheet(make_differences(), "CLIP")
    assert sheet.blocks[0][0][2:] == [Cell("+2.0†", "[+0.5, +3.5]", "best"), Cell("3")]
    assert sheet.blocks[0][1][2] == Cell("+1.0", "[-1.0, +3.0]")
    assert sheet.blocks[0][2][2:] == [Cell("+4.0"), Cell("1")]
    assert sheet.blocks[1][0][2] == Cell("-2.0", "[-3.0, -1.0]", "best")  # bold, and no more
    assert sheet.notes == [legend(make_differences()), *sentences]
    assert "Bold: the 95 % interval" in sheet.notes[0]
    assert (
        "†: survives Benjamini and Hochberg's correction at 5 % over the 3 diff" in sheet.notes[0]
    )
    assert "not separable is not thereby equal" in sheet.notes[0]
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
    assert words[:2] == ["+2.0† [+0.5, +3.5]", "3 seeds"]
    assert [axis.texts[place].get_fontweight() for place in (0, 2)] == ["bold", "normal"]
    assert figure.get_supxlabel().replace("\n", " ") == legend(make_differences())
    assert words[4:6] == ["+4.0", "1 seed"]
    names = [(tick.get_text(), tick.get_fontweight()) for tick in axis.get_yticklabels()]
    plain = [(name, "normal") for name in ("A & more $x^", "B", "C")]
    bold = [("Test, R@1", "bold"), ("Aliases, R@1", "bold")]
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
        own = alone.iloc[0].drop("survives").to_dict()  # which is about the table
        assert own == row.drop("survives").to_dict()


def resample(draws, rng):
    """The mean over seeds of one resample: of each draw's queries or clusters, and of its seeds."""
    found = []
    for each, members in draws:
        chosen = rng.integers(0, len(members), len(members))
        queries = np.concatenate([members[c] for c in chosen])
        seeds = rng.integers(0, len(each), len(each))
        found += [each[s, queries].mean() for s in seeds]
    return np.mean(found)


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
    drawn = [resample([(each, members)], rng) for _ in range(5_000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    query = 100 / 30 / n_seeds
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1.01 * query)


def two_draws(rng, sizes=(60, 40), seeds=(3, 2), apart=0.3):
    """Rows of a and b under seeds of two draws of the data, whose queries are not the same."""
    rows, start = [], 0
    for name, n, k in zip(("one", "other"), sizes, seeds, strict=True):
        base = rng.integers(1, 4, n)
        ranks = {("a", start + s): base for s in range(k)}
        ranks |= {("b", start + s): np.where(rng.random(n) < apart, 3, base) for s in range(k)}
        rows.append(make_ranks(ranks, fingerprint=name))
        start += k
    return pd.concat(rows, ignore_index=True)


def test_seeds_of_another_draw_have_queries_of_their_own_as_in_a_loop():
    rng = np.random.default_rng(0)
    rows = two_draws(rng)
    row = difference_table(rows, [("a", "b")], n_resamples=20_000).iloc[0]
    hits = {(r.variant, r.seed): 100.0 * (np.array(r.ranks) == 1) for r in rows.itertuples()}
    draws = [np.stack([hits["a", s] - hits["b", s] for s in own]) for own in ((0, 1, 2), (3, 4))]
    by_seed = [values.mean() for each in draws for values in each]
    assert (row["seeds"], row["n_queries"]) == (5, 100)
    assert row["value"] == pytest.approx(np.mean(by_seed))
    alone = [(each, [[q] for q in range(each.shape[1])]) for each in draws]
    low, high = np.quantile([resample(alone, rng) for _ in range(5_000)], [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.8)
    pd.testing.assert_frame_equal(
        difference_table(rows[::-1], [("a", "b")]), difference_table(rows, [("a", "b")])
    )


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


@pytest.mark.parametrize(
    ("ends", "inner", "says"),
    [
        ((-1.2, 1.1), (-1.0, 0.9), "equivalent (within ±1.5) to"),
        ((-1.8, 1.1), (-1.5, 0.9), "not separable from"),  # the end itself is outside
        ((-1.8, 1.9), (-1.4, 1.6), "not separable from"),
        ((-1.0, 1.0), (float("nan"),) * 2, "not separable from"),
        ((0.1, 1.2), (0.2, 1.1), "better than"),  # and small; that it differs comes first
    ],
)
def test_equality_is_said_only_where_its_own_test_shows_it(ends, inner, says):
    row = {
        "variant": "a minus b", "split": "test", "direction": "text_to_image", "metric": "R@1",
        "value": 0.0, "low": ends[0], "high": ends[1], "low_90": inner[0], "high_90": inner[1],
    }  # fmt: skip
    assert f" a is {says} b by R@1" in describe(row, margin=1.5)
    assert "equivalent" not in describe(row)


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.normal(rng.normal(0, 0.3), 1, (4, 30)) + rng.normal(0, 0.2, (4, 1))
        margin, by_t = rng.uniform(0.1, 1), crossed_t(Draw(values))
        error = by_t.variance**0.5
        tests = [(by_t.value + margin) / error, (margin - by_t.value) / error]  # above -m, below m
        both = max(stats.t.sf(tests, by_t.degrees)) < 0.05
        assert equivalent(by_t.low_90, by_t.high_90, margin) == both
    with pytest.raises(ValueError, match="margin is 0"):
        equivalent(-1, 1, 0)


# ------------------------------------------------------------------------------------------ tests


def literal_crossed(values):
    """Variance of the mean of [S, Q] and Satterthwaite's degrees of freedom, sum by sum."""
    s, q = values.shape
    mean = values.mean()
    by_seed, by_query = values.mean(axis=1), values.mean(axis=0)
    ms_seed = sum(q * (m - mean) ** 2 for m in by_seed) / (s - 1)
    ms_query = sum(s * (m - mean) ** 2 for m in by_query) / (q - 1)
    rest = 0.0
    for i in range(s):
        for j in range(q):
            rest += (values[i, j] - by_seed[i] - by_query[j] + mean) ** 2
    ms_rest = rest / ((s - 1) * (q - 1))
    seed, query = max((ms_seed - ms_rest) / q, 0), max((ms_query - ms_rest) / s, 0)
    variance = seed / s + query / q + ms_rest / (s * q)
    squares = ms_rest**2 / ((s - 1) * (q - 1))
    if seed and query:
        squares += ms_seed**2 / (s - 1) + ms_query**2 / (q - 1)
    elif seed or query:
        squares = ms_seed**2 / (s - 1) if seed else ms_query**2 / (q - 1)
    return variance, variance**2 / (squares / (s * q) ** 2)


@pytest.mark.parametrize("seeds_spread", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("queries_spread", [0.0, 1.0])
def test_the_crossed_t_is_the_literal_analysis_of_variance(seeds_spread, queries_spread):
    rng = np.random.default_rng(1)
    for _ in range(20):
        values = rng.normal(0.3, 1, (3, 25)) + queries_spread * rng.normal(0, 1, 25)
        values += seeds_spread * rng.normal(0, 1, (3, 1))
        found = crossed_t(Draw(values))
        variance, degrees = literal_crossed(values)
        assert found.value == pytest.approx(values.mean())
        assert (found.variance, found.degrees) == pytest.approx((variance, degrees))
        t = abs(values.mean()) / variance**0.5
        assert found.p == pytest.approx(2 * stats.t.sf(t, degrees))
        ends = stats.t.interval(0.9, degrees, values.mean(), variance**0.5)
        assert (found.low_90, found.high_90) == pytest.approx(ends)


def test_where_queries_do_not_matter_the_crossed_t_is_students_over_seeds():
    by_seed = np.array([1.0, 2.0, 4.0, 3.5])
    found = crossed_t(Draw(np.repeat(by_seed[:, None], 50, axis=1)))
    assert found.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    assert found.degrees == pytest.approx(3)


def test_a_crossed_t_of_several_draws_weighs_them_by_their_seeds():
    rng = np.random.default_rng(2)
    draws = [rng.normal(0.3, 1, (3, 25)), rng.normal(0.3, 1, (2, 40))]
    found, parts = crossed_t(*map(Draw, draws)), [literal_crossed(values) for values in draws]
    weighted = [(share**2 * v, df) for share, (v, df) in zip((0.6, 0.4), parts, strict=True)]
    variance = sum(v for v, _ in weighted)
    assert found.value == pytest.approx(0.6 * draws[0].mean() + 0.4 * draws[1].mean())
    assert found.variance == pytest.approx(variance)
    assert found.degrees == pytest.approx(variance**2 / sum(v**2 / df for v, df in weighted))


def test_queries_of_a_cluster_count_once():
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 1, (3, 25))
    thrice = crossed_t(Draw(np.repeat(values, 3, axis=1), np.repeat(np.arange(25), 3)))
    assert thrice == pytest.approx(crossed_t(Draw(values)))
    uneven = crossed_t(Draw(values, [0, 0, 0, 1, 2, *range(3, 23)]))
    assert uneven.value == pytest.approx(values.mean())


def test_values_without_variance_are_certain():
    assert crossed_t(Draw(np.zeros((2, 9))))[1:4] == (0, np.inf, 1)
    assert crossed_t(Draw(np.full((2, 9), 100.0)))[1:4] == (0, np.inf, 0)


def test_the_crossed_t_keeps_its_level_where_three_seeds_differ():
    rng = np.random.default_rng(4)
    found = [
        crossed_t(Draw(rng.normal(0, 1, (3, 40)) + rng.normal(0, 0.4, (3, 1)))).p < 0.05
        for _ in range(1000)
    ]
    assert 0.02 < np.mean(found) < 0.075  # 5 % expected; over queries alone it were above 30 %


@pytest.mark.parametrize(("seeds", "by_t"), [(1, False), (2, True), (5, True), (6, False)])
def test_p_is_a_t_where_seeds_are_few_else_the_bootstraps(seeds, by_t):
    rng = np.random.default_rng(5)
    ranks = {(v, s): rng.integers(1, 3, 30) for v in "ab" for s in range(seeds)}
    row = difference_table(make_ranks(ranks), [("a", "b")], n_resamples=999).iloc[0]
    each = [np.subtract(*(100.0 * (ranks[v, s] == 1) for v in "ab")) for s in range(seeds)]
    drawn = resampled([Draw(np.stack(each))], n_resamples=999)
    counts = sum(r <= 0 for r in drawn), sum(r >= 0 for r in drawn)
    expected = min(1, 2 * (1 + min(counts)) / (1 + 999))
    assert bootstrap_p(drawn) == pytest.approx(expected)
    if by_t:
        expected = crossed_t(Draw(np.stack(each))).p
    assert row["p"] == pytest.approx(expected)
    assert row["low_90"] < row["value"] < row["high_90"]


def literal_survivors(p, rate):
    """Step up: the largest k whose k-th smallest p is at most k / N of the rate, and all below."""
    order = sorted(range(len(p)), key=p.__getitem__)
    passing = [k for k, i in enumerate(order, 1) if p[i] <= rate * k / len(p)]
    kept = set(order[: max(passing, default=0)])
    return [i in kept for i in range(len(p))]


def test_what_survives_is_benjamini_and_hochbergs_step_up():
    rng = np.random.default_rng(6)
    for n in (1, 2, 7, 30):
        for _ in range(20):
            p = (rng.random(n) ** 3).tolist()
            assert benjamini_hochberg(p).tolist() == literal_survivors(p, 0.05)
    # 0.03 is below 5 %, but not as one of four; 0.02 is carried by 0.025
    assert benjamini_hochberg([0.03, 0.9, 0.8, 0.7]).tolist() == [False] * 4
    assert benjamini_hochberg([0.001, 0.028, 0.9, 0.03]).tolist() == [True, True, False, True]
    ranks = {("a", 0): [1] * 30, ("b", 0): [2] * 30, ("c", 0): [1, 2] * 15}
    table = difference_table(make_ranks(ranks), [("a", "b"), ("c", "c")])
    assert table["survives"].tolist() == [True, False]
