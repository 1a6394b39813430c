"""The paired bootstrap and the sentence made from it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from entityclip.statistics import describe, difference_table, paired_difference


def test_the_value_is_the_difference_of_the_metrics():
    first, second = [1, 1, 3, 9], [1, 2, 2, 50]
    assert paired_difference(first, second).value == pytest.approx(25.0)
    assert paired_difference(first, second, "R@5").value == pytest.approx(0.0)
    assert paired_difference(first, second, "MeanR").value == pytest.approx((14 - 55) / 4)


def test_equal_models_have_no_difference_however_queries_are_drawn():
    ranks = np.random.default_rng(0).integers(1, 50, 200)
    assert paired_difference(ranks, ranks) == (0.0, 0.0, 0.0)


def test_the_interval_matches_the_literal_resampling():
    rng = np.random.default_rng(1)
    first, second = rng.integers(1, 8, 300), rng.integers(1, 8, 300)
    ours = paired_difference(first, second, n_resamples=4000, seed=0)
    literal = []
    for _ in range(20_000):
        drawn = rng.integers(0, 300, 300)
        literal.append(100 * ((first[drawn] == 1).mean() - (second[drawn] == 1).mean()))
    assert ours.low == pytest.approx(np.quantile(literal, 0.025), abs=0.7)
    assert ours.high == pytest.approx(np.quantile(literal, 0.975), abs=0.7)


def test_pairing_narrows_the_interval():
    """Queries hard for both models cancel out, which two separate intervals can't see."""
    rng = np.random.default_rng(2)
    first = np.where(rng.random(400) < 0.5, 1, 30)
    second = np.where(rng.random(400) < 0.05, 30, first)
    paired = paired_difference(first, second)
    apart = paired_difference(first, rng.permutation(second))
    assert paired.high - paired.low < 0.6 * (apart.high - apart.low)


def test_whole_clusters_widen_it():
    first, second = np.repeat([1, 9, 1, 1, 9], 40), np.full(200, 9)
    clusters = np.repeat(np.arange(5), 40)
    alone, joint = (paired_difference(first, second, clusters=c) for c in (None, clusters))
    assert joint.high - joint.low > 3 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1, 2], [1, 2, 3]), "same queries"),
        (([1, 2], [1, 2], "MedR"), "no paired test of 'MedR'"),
        (([1, 2], [1, 2], "R@0"), "no paired test"),
        (([1], [2]), "needs"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        paired_difference(*arguments)


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
    elsewhere = rows.assign(split="other", clusters=[[0, 0, 1, 2, 3] * 12] * len(rows))
    every = difference_table(pd.concat([rows, elsewhere]), [("a", "b"), ("a", "c"), ("b", "c")])
    assert len(every) == 6
    for _, row in every.iterrows():
        own = rows if row["split"] == "test" else elsewhere
        alone = difference_table(own, [(row["first"], row["second"])])
        assert alone.iloc[0].to_dict() == row.to_dict()


def test_both_axes_are_resampled_as_in_a_loop():
    rng = np.random.default_rng(0)
    ranks = {(v, s): rng.integers(1, 4, 30) for v in "ab" for s in range(2)}
    row = difference_table(rank_rows(ranks), [("a", "b")], n_resamples=20_000).iloc[0]
    hits = {key: 100.0 * (values == 1) for key, values in ranks.items()}
    each = np.stack([hits["a", s] - hits["b", s] for s in range(2)])
    drawn = []
    for _ in range(20_000):
        queries, seeds = rng.integers(0, 30, 30), rng.integers(0, 2, 2)
        drawn.append(np.mean([each[s, queries].mean() for s in seeds]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1.7)  # one query


def test_one_seed_gives_the_paired_bootstrap_over_queries():
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 6, 300), rng.integers(1, 6, 300)
    table = difference_table(
        rank_rows({("a", 0): first, ("b", 0): second}), [("a", "b")], n_resamples=1500, seed=3
    )
    apart = paired_difference(first, second, n_resamples=1500, seed=4)
    assert table["value"][0] == pytest.approx(apart.value)
    assert table["low"][0] == pytest.approx(apart.low, abs=1.0)
    assert table["high"][0] == pytest.approx(apart.high, abs=1.0)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    base = rng.integers(1, 6, 400)
    alike = {(v, s): base if v == "b" else np.ones(400, int) for v in "ab" for s in (0, 1, 2)}
    apart = alike | {("a", 1): base, ("a", 2): np.full(400, 9)}
    widths = []
    for ranks in (alike, apart):
        row = difference_table(rank_rows(ranks), [("a", "b")]).iloc[0]
        widths.append(row["high"] - row["low"])
    assert widths[1] > 3 * widths[0]


def test_differences_on_different_data_are_refused():
    rows = pd.concat(
        [
            rank_rows({("a", 0): [1, 2]}, fingerprint="one"),
            rank_rows({("b", 0): [1, 2]}, fingerprint="other"),
        ]
    )
    with pytest.raises(ValueError, match="a and b were measured on different data"):
        difference_table(rows, [("a", "b")])


def test_captions_of_one_picture_are_drawn_together():
    ranks = {("a", 0): np.repeat([1, 9, 1, 1, 9], 40), ("b", 0): np.full(200, 9)}
    widths = []
    for clusters in (None, np.repeat(np.arange(5), 40).tolist()):
        rows = rank_rows(ranks)
        rows["clusters"] = [clusters] * len(rows)
        row = difference_table(rows, [("a", "b")]).iloc[0]
        widths.append(row["high"] - row["low"])
    assert widths[1] > 3 * widths[0]
