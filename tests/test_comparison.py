"""The paired bootstrap and the sentence made from it."""

from __future__ import annotations

import numpy as np
import pytest

from entityclip.comparison import describe, paired_difference


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
    for _ in range(4000):
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
    ],
)
def test_the_sentence_says_what_the_interval_says(metric, low, high, says):
    row = {
        "variant": "a minus b", "split": "test", "direction": "text_to_image", "metric": metric,
        "value": (low + high) / 2, "low": low, "high": high,
    }  # fmt: skip
    assert describe(row).startswith(f"test, text to image: {says} by {metric}")
