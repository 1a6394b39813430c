"""RSUM with its intervals, against a loop that draws one resample at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from entityclip.reporting.scores import rsum_interval, rsum_numbers, rsum_table
from entityclip.statistics import DIRECTIONS, Retrieval, rsum
from tests.reporting.samples import make_ranks


def drawn(seed, captions=60, pictures=20):
    rng = np.random.default_rng(seed)
    image_of = np.random.default_rng(9).permutation(np.arange(captions) % pictures)
    return Retrieval(rng.integers(1, 15, captions), rng.integers(1, 15, pictures), image_of)


def resample(seeds, rng, others=None):
    """RSUM of as many seeds, drawn from those given, on pictures drawn with their captions."""

    def of(one, pictures):
        texts = np.concatenate([np.flatnonzero(one.image_of == p) for p in pictures])
        ranks = {"t": one.text_to_image[texts], "i": one.image_to_text[pictures]}
        metrics = {
            d: {f"R@{k}": 100 * np.mean(r <= k) for k in (1, 5, 10)} for d, r in ranks.items()
        }
        return rsum(metrics)

    pictures = rng.integers(0, len(seeds[0].image_to_text), len(seeds[0].image_to_text))
    each = [of(one, pictures) for one in seeds]
    if others:
        each = [a - of(b, pictures) for a, b in zip(each, others, strict=True)]
    return rng.choice(each, len(each))


def literal_rsum(seeds, n, seed, others=None):
    """Draw pictures and seeds one by one; RSUM of what was drawn."""
    rng = np.random.default_rng(seed)
    found = [np.mean(resample(seeds, rng, others)) for _ in range(n)]
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


def test_rsum_of_two_draws_is_drawn_in_each_apart():
    one = [replace(drawn(s), data="one") for s in range(3)]
    other = [replace(drawn(s, 50, 25), data="other") for s in (3, 4)]
    value, low, high = rsum_interval([*one, *other], n_resamples=4000)
    assert value == pytest.approx(np.mean([rsum(found.metrics()) for found in (*one, *other)]))
    rng = np.random.default_rng(5)
    means = [
        np.mean(np.concatenate([resample(seeds, rng) for seeds in (one, other)]))
        for _ in range(1500)
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=8)
    with pytest.raises(ValueError, match="different pictures"):
        rsum_interval(one[:2], other)


def test_rsum_differences_are_paired():
    first, second = [drawn(0), drawn(1)], [drawn(2), drawn(3)]
    value, low, high = rsum_interval(first, second, n_resamples=4000)
    assert value == pytest.approx(rsum_interval(first).value - rsum_interval(second).value)
    assert (low, high) == pytest.approx(tuple(literal_rsum(first, 1500, 5, second)), abs=12)
    assert rsum_interval(first, first) == (0, 0, 0)


def test_a_model_that_always_or_never_finds_has_no_width():
    for rank, total in ((1, 600), (99, 0)):
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


def test_a_table_of_rsum_takes_each_seed_with_its_own_draw():
    parts = []
    for s, n, data in ((0, 60, "one"), (1, 60, "one"), (2, 50, "other"), (3, 50, "other")):
        one = drawn(s, n, n // 2)
        for direction in DIRECTIONS:
            rows = make_ranks({("clip", s): one.ranks(direction).tolist()}, fingerprint=data)
            parts.append(rows.assign(direction=direction, image_of=[one.image_of.tolist()]))
    row = rsum_table(pd.concat(parts, ignore_index=True)).iloc[0]
    sides = [(drawn(s, n, n // 2), d) for s, n, d in ((0, 60, "a"), (1, 60, "a"), (2, 50, "b"))]
    sides.append((drawn(3, 50, 25), "b"))
    expected = rsum_interval([replace(one, data=data) for one, data in sides])
    assert (row["RSUM"], row["low"], row["high"], row["seeds"]) == (*expected, 4)
