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
    bootstrap_interval,
    interval,
    level_intervals,
    mean_over_seeds,
    median,
    over_seeds,
    recall_at_k,
    retrieval_metrics,
)
from tests.reporting.samples import make_ranks


def skewed_ranks(n, seed=0):
    return np.random.default_rng(seed).geometric(0.1, n)


def test_needs_no_torch_and_no_scipy_stats():
    absent = "import sys; sys.modules |= {'torch': None, 'scipy.stats': None}"
    subprocess.run([sys.executable, "-c", f"{absent}; import entityclip.statistics"], check=True)


# ----------------------------------------------------------------------------- numbers of ranks


def test_retrieval_metrics_has_the_paper_columns():
    metrics = retrieval_metrics(torch.tensor([1, 4, 9, 60, 200]))
    assert (
        tuple(metrics) == METRICS == ("R@1", "R@5", "R@10", "R@50", "R@100", "MRR", "MedR", "MeanR")
    )
    mrr = 100 * (1 + 1 / 4 + 1 / 9 + 1 / 60 + 1 / 200) / 5
    assert list(metrics.values()) == pytest.approx([20, 40, 60, 60, 80, mrr, 9, 54.8])
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


def test_a_model_that_always_or_never_finds_has_no_width():
    for rank, total in ((1, 600), (99, 0)):
        ends = bootstrap_interval([rank] * 10, ("R@5", "MedR"))
        assert ends == {"R@5": (total / 6,) * 2, "MedR": (rank, rank)}


# ----------------------------------------------------------------------- over queries and seeds


def literal_levels(draws, n_resamples):
    """Draw each draw's clusters and seeds one by one, and average the seeds' metrics."""
    rng, found = np.random.default_rng(5), {name: [] for name in METRICS}
    for _ in range(n_resamples):
        each = []
        for ranks, clusters in draws:
            ids = np.unique(clusters)
            chosen = rng.choice(ids, len(ids))
            queries = np.concatenate([np.flatnonzero(clusters == c) for c in chosen])
            seeds = rng.integers(0, len(ranks), len(ranks))
            each += [retrieval_metrics(ranks[s][queries]) for s in seeds]
        for name in METRICS:
            found[name].append(np.mean([one[name] for one in each]))
    return {name: np.quantile(values, [0.025, 0.975]) for name, values in found.items()}


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_levels_hold_queries_and_seeds_of_each_draw_as_in_a_loop(several, clustered):
    rng = np.random.default_rng(2)
    draws, rows = [], []
    for name, n, k in (("one", 60, 3), ("other", 40, 2))[: 1 + several]:
        ranks = rng.geometric(rng.uniform(0.05, 0.2, (k, 1)), (k, n))
        clusters = np.arange(n) // 2 if clustered else np.arange(n)
        ids = clusters.tolist() if clustered else None
        rows.append(make_ranks({("a", len(rows) * 3 + s): ranks[s] for s in range(k)},
                               clusters=ids, fingerprint=name))  # fmt: skip
        draws.append((ranks, clusters))
    rows = pd.concat(rows)
    got, expected = level_intervals(rows, n_resamples=4000), literal_levels(draws, 2000)
    assert level_intervals(rows[::-1], n_resamples=4000) == got
    for name in METRICS:
        width = expected[name][1] - expected[name][0]
        assert got[name] == pytest.approx(tuple(expected[name]), abs=0.15 * width + 1e-9), name


# ------------------------------------------------------------------------------------ over seeds


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
