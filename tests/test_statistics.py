"""Numbers of ranks, and every interval against a loop that draws one resample at a time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from entityclip.statistics import (
    METRICS,
    Retrieval,
    bootstrap_interval,
    describe,
    difference_table,
    interval,
    mean_over_seeds,
    median,
    over_seeds,
    recall_at_k,
    retrieval_metrics,
    rsum,
    rsum_interval,
    rsum_numbers,
)


def skewed_ranks(n, seed=0):
    return np.random.default_rng(seed).geometric(0.1, n)


def test_needs_no_torch_and_no_scipy_stats():
    absent = "import sys; sys.modules |= {'torch': None, 'scipy.stats': None}"
    subprocess.run([sys.executable, "-c", f"{absent}; import entityclip.statistics"], check=True)


# ----------------------------------------------------------------------------- numbers of ranks


def test_retrieval_metrics_has_the_paper_columns():
    metrics = retrieval_metrics(torch.tensor([1, 4, 9, 60, 200]))
    assert tuple(metrics) == METRICS == ("R@1", "R@5", "R@10", "R@50", "R@100", "MedR", "MeanR")
    assert list(metrics.values()) == pytest.approx([20, 40, 60, 60, 80, 9, 54.8])
    assert retrieval_metrics([1, 2, 6, 3])["MedR"] == 2.5


@pytest.mark.parametrize("bad", [[], [0, 1], [1.0, 2.0], [[1, 2]]])
def test_what_is_no_rank_is_refused(bad):
    with pytest.raises(ValueError, match="rank"):
        retrieval_metrics(bad)


def test_k_must_be_a_positive_integer():
    for k in (0, -1, 1.5):
        with pytest.raises(ValueError, match="integer K"):
            recall_at_k([1, 2], (k,))


# ------------------------------------------------------------------------------------ bootstrap


def literal_bootstrap(ranks, clusters, n_resamples, seed, level):
    """Draw clusters, concatenate their queries, measure; again and again."""
    ranks, clusters = np.asarray(ranks), np.asarray(clusters)
    # clusters in the order of their ids; queries of a cluster in any order
    members = [ranks[clusters == c] for c in np.unique(clusters)]
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n_resamples):
        drawn = rng.integers(0, len(members), len(members))
        samples.append(retrieval_metrics(np.concatenate([members[c] for c in drawn])))
    tail = (1 - level) / 2
    return {
        name: tuple(np.quantile([sample[name] for sample in samples], [tail, 1 - tail]))
        for name in METRICS
    }


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("n", [2, 5, 50, 51])
def test_bootstrap_equals_the_literal_loop(n, clustered):
    ranks, clusters = skewed_ranks(n), np.arange(n)
    if clustered:
        clusters = np.random.default_rng(1).integers(0, n // 2 + 1, n)
        clusters[:2] = 0, n  # at least two, and ids need not be dense
    given = clusters if clustered else None
    got = bootstrap_interval(ranks, seed=3, n_resamples=200, level=0.9, clusters=given)
    expected = literal_bootstrap(ranks, clusters, 200, 3, 0.9)
    for name in METRICS:
        assert got[name] == pytest.approx(expected[name]), name


def test_bootstrap_does_not_depend_on_its_block_size(monkeypatch):
    ranks, both = skewed_ranks(37), [[skewed_ranks(37, s) for s in range(3)]] * 2
    found = [bootstrap_interval(ranks, n_resamples=50), interval(both, n_resamples=50)]
    monkeypatch.setattr("entityclip.statistics._WEIGHTS_AT_ONCE", 37 * 7)
    assert bootstrap_interval(ranks, n_resamples=50) == found[0]
    np.testing.assert_array_equal(interval(both, n_resamples=50), found[1])


def test_a_statistic_may_have_several_numbers_and_lack_some():
    rng = np.random.default_rng(0)
    values, lacking = rng.integers(1, 9, (2, 30)), np.arange(30) == 4

    def both(weights, values):
        """The median, and how often query 4 was drawn, NaN where it was not."""
        seen = weights @ lacking.astype(float)
        seen[seen == 0] = np.nan
        return np.stack([median(weights, values), np.repeat(seen[:, None], 2, 1)], axis=1)

    low, high = interval(values, statistic=both, n_resamples=300)
    alone = interval(values, statistic=median, n_resamples=300)
    assert (low[0], high[0]) == alone
    assert (low[1], high[1] >= 2) == (1, True)


def test_intervals_hold_the_value_narrow_with_n_and_repeat():
    widths = []
    for n in (50, 5000):
        ranks = torch.from_numpy(skewed_ranks(n))
        values, intervals = retrieval_metrics(ranks), bootstrap_interval(ranks)
        assert intervals == bootstrap_interval(ranks)
        assert intervals != bootstrap_interval(ranks, seed=1)
        for name, (low, high) in intervals.items():
            assert low <= values[name] <= high, name
        widths.append(intervals["R@5"][1] - intervals["R@5"][0])
    # by the square root of 100
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.3)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 100 * (1 - 0.9**5)  # P(rank <= 5) of the geometric distribution
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(skewed_ranks(200, trial), ("R@5",), n_resamples=200)["R@5"]
        covered += low <= truth <= high
    assert 180 <= covered <= 199  # 190 expected of a 95 % interval


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        ([1, 2], {"names": ["P@1"]}, "no metric 'P@1'"),
        ([1, 2], {"names": ["R@0"]}, "integer K"),
        ([1], {}, "at least 2"),
        ([1, 2, 3], {"clusters": [4, 4, 4]}, "at least 2"),
        ([1, 2, 3], {"clusters": [4, 4]}, "one id a rank"),
        ([1, 2], {"level": 95}, "level=95"),
        ([1, 2], {"n_resamples": 0}, "n_resamples=0"),
    ],
)
def test_bootstrap_refuses_what_it_cannot_draw(ranks, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(ranks, **options)


# ------------------------------------------------------------------------- paired differences


def rank_rows(ranks, *, clusters=None, fingerprint="f"):
    """Stored rows of kind "ranks" from {(variant, seed): ranks}."""
    return pd.DataFrame(
        {
            "variant": variant, "seed": seed, "dataset": "d", "split": "test",
            "direction": "text_to_image", "data_fingerprint": fingerprint, "ranks": list(values),
            "clusters": clusters,
        }
        for (variant, seed), values in ranks.items()
    )  # fmt: skip


def difference(first, second, metric="R@1", **options):
    """Value, low and high of one pair of models under one seed."""
    rows = rank_rows({("a", 0): first, ("b", 0): second})
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
    table = difference_table(rank_rows(ranks), [("a", "b"), ("a", "missing")])
    assert table["variant"].tolist() == ["a minus b"]
    row = table.iloc[0]
    assert row["seeds"] == 2
    assert row["n_queries"] == 4
    assert row["value"] == pytest.approx((50 + 25) / 2)
    assert row["low"] <= row["value"] <= row["high"]


def test_differences_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows = rank_rows({(v, s): rng.integers(1, 6, 60) for v in "ab" for s in range(4)})
    rows = pd.concat([rows, rows.assign(direction="another")])
    table = difference_table(rows, [("a", "b")])
    assert len(table) == 2
    pd.testing.assert_frame_equal(difference_table(rows[::-1], [("a", "b")]), table)


def test_an_interval_does_not_depend_on_what_else_is_compared():
    rng = np.random.default_rng(0)
    rows = rank_rows({(v, s): rng.integers(1, 6, 60) for v in "abc" for s in range(3)})
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
    rows = rank_rows(ranks, clusters=clusters)
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
    rows = [rank_rows({(v, 0): [1, 2]}, fingerprint=f) for v, f in (("a", "one"), ("b", "other"))]
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


# ------------------------------------------------------------------------------- RSUM, over seeds


def drawn(seed, captions=60, pictures=20):
    rng = np.random.default_rng(seed)
    image_of = np.random.default_rng(9).permutation(np.arange(captions) % pictures)
    return Retrieval(rng.integers(1, 15, captions), rng.integers(1, 15, pictures), image_of)


def literal_rsum(seeds, n, seed, others=None):
    """Draw pictures and seeds one by one; RSUM of what was drawn."""
    rng, found = np.random.default_rng(seed), []

    def of(one, pictures):
        texts = np.concatenate([np.flatnonzero(one.image_of == p) for p in pictures])
        ranks = {"t": one.text_to_image[texts], "i": one.image_to_text[pictures]}
        metrics = {
            d: {f"R@{k}": 100 * np.mean(r <= k) for k in (1, 5, 10)} for d, r in ranks.items()
        }
        return rsum(metrics)

    for _ in range(n):
        pictures = rng.integers(0, len(seeds[0].image_to_text), len(seeds[0].image_to_text))
        each = [of(one, pictures) for one in seeds]
        if others:
            each = [a - of(b, pictures) for a, b in zip(each, others, strict=True)]
        found.append(np.mean(rng.choice(each, len(each))))
    return np.quantile(found, [0.025, 0.975])


def test_rsum_is_that_of_the_metrics():
    one = drawn(0)
    assert rsum_interval([one]).value == pytest.approx(rsum(one.metrics()))
    both = rsum_numbers([one, drawn(1)])
    assert both["seeds"] == 2
    assert both["RSUM"] == pytest.approx((rsum(one.metrics()) + rsum(drawn(1).metrics())) / 2)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_rsum_interval_equals_the_literal_loop(n_seeds):
    seeds = [drawn(s) for s in range(n_seeds)]
    value, low, high = rsum_interval(seeds, n_resamples=4000)
    assert low < value < high
    # both estimate one quantile; the interval is some 150 wide
    assert (low, high) == pytest.approx(tuple(literal_rsum(seeds, 1500, 5)), abs=8)
    assert rsum_interval(seeds, n_resamples=4000) == (value, low, high)


def test_rsum_differences_are_paired():
    first, second = [drawn(0), drawn(1)], [drawn(2), drawn(3)]
    value, low, high = rsum_interval(first, second, n_resamples=4000)
    assert value == pytest.approx(rsum_interval(first).value - rsum_interval(second).value)
    assert (low, high) == pytest.approx(tuple(literal_rsum(first, 1500, 5, second)), abs=12)
    assert rsum_interval(first, first) == (0, 0, 0)


def test_a_model_that_always_or_never_finds_has_no_width():
    for rank, total in ((1, 600), (99, 0)):
        ends = bootstrap_interval([rank] * 10, ("R@5", "MedR"))
        assert ends == {"R@5": (total / 6,) * 2, "MedR": (rank, rank)}
        model = Retrieval(np.full(6, rank), np.full(3, rank), np.arange(6) % 3)
        assert rsum_interval([model]) == (total, total, total)


def test_ranks_of_other_pictures_are_refused():
    with pytest.raises(ValueError, match="no ranks of any seed"):
        rsum_interval([])
    moved = Retrieval(drawn(0).text_to_image, drawn(0).image_to_text, np.arange(60) % 20)
    for seeds in ([[drawn(0), drawn(0, captions=80)]], [[drawn(0)], [moved]]):
        with pytest.raises(ValueError, match="different pictures or captions"):
            rsum_interval(*seeds)
    with pytest.raises(ValueError, match="1 seeds against 2"):
        rsum_interval([drawn(0)], [drawn(0), drawn(1)])


def seed_rows(*values):
    return pd.DataFrame({"value": values, "low": 40.0, "high": 60.0})


def test_one_seed_keeps_its_rows_interval():
    assert over_seeds(seed_rows(50.0)) == (50.0, 40.0, 60.0)
    assert np.isnan(over_seeds(seed_rows(50.0).assign(low=None, high=None))[1:]).all()


def test_several_have_students_t_cut_at_the_bounds():
    values = [98.0, 99.0, 100.0]
    mean, low, high = over_seeds(seed_rows(*values))
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (mean, high) == (99.0, 100.0)
    assert low == pytest.approx(expected[0])
    assert over_seeds(seed_rows(*values), (-np.inf, np.inf))[2] == pytest.approx(expected[1])


def test_fewer_than_two_values_have_no_interval():
    assert mean_over_seeds([3.0])[0] == 3.0
    assert np.isnan([*mean_over_seeds([3.0])[1:], *mean_over_seeds([])]).all()
