"""RSUM and its interval: a hand-checked case, and the literal resampling loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from entityclip.statistics import Retrieval, rsum, rsum_difference, rsum_interval, rsum_numbers


def drawn(seed, captions=60, pictures=20):
    generator = torch.Generator().manual_seed(seed)
    image_of = torch.arange(captions) % pictures
    return Retrieval(
        torch.randint(1, 15, (captions,), generator=generator),
        torch.randint(1, 15, (pictures,), generator=generator),
        image_of[torch.randperm(captions, generator=torch.Generator().manual_seed(9))],
    )


def literal(seeds, n, seed, others=None):
    """Draw pictures and seeds one by one; RSUM of what was drawn."""
    rng, found = np.random.default_rng(seed), []

    def of(one, pictures):
        texts = np.concatenate([captions[id(one)][p] for p in pictures])
        ranks = {
            "text_to_image": one.text_to_image.numpy()[texts],
            "image_to_text": one.image_to_text.numpy()[pictures],
        }
        metrics = {
            d: {f"R@{k}": 100 * np.mean(r <= k) for k in (1, 5, 10)} for d, r in ranks.items()
        }
        return rsum(metrics)

    captions = {
        id(one): [np.flatnonzero(one.image_of == p) for p in range(len(one.image_to_text))]
        for one in (*seeds, *(others or ()))
    }
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
def test_interval_equals_the_literal_loop(n_seeds):
    seeds = [drawn(s) for s in range(n_seeds)]
    value, low, high = rsum_interval(seeds, n_resamples=4000)
    assert low < value < high
    expected = literal(seeds, 1500, 5)
    # both estimate one quantile; the interval is some 150 wide
    assert abs(low - expected[0]) < 8
    assert abs(high - expected[1]) < 8
    assert rsum_interval(seeds, n_resamples=4000) == (value, low, high)


def test_differences_are_paired():
    first, second = [drawn(0), drawn(1)], [drawn(2), drawn(3)]
    value, low, high = rsum_difference(first, second, n_resamples=4000)
    assert value == pytest.approx(rsum_interval(first).value - rsum_interval(second).value)
    expected = literal(first, 1500, 5, second)
    assert abs(low - expected[0]) < 12
    assert abs(high - expected[1]) < 12
    assert rsum_difference(first, first) == (0, 0, 0)


def test_a_model_that_always_or_never_finds_has_no_width():
    perfect = Retrieval(torch.ones(6).long(), torch.ones(3).long(), torch.arange(6) % 3)
    assert rsum_interval([perfect]) == (600, 600, 600)
    hopeless = Retrieval(torch.full((6,), 99), torch.full((3,), 99), torch.arange(6) % 3)
    assert rsum_interval([hopeless]) == (0, 0, 0)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no ranks of any seed"):
        rsum_interval([])
    with pytest.raises(ValueError, match="different pictures or captions"):
        rsum_interval([drawn(0), drawn(0, captions=80)])
    with pytest.raises(ValueError, match="1 seeds against 2"):
        rsum_difference([drawn(0)], [drawn(0), drawn(1)])
