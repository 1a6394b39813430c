import numpy as np
import pytest
import torch

from entityclip.evaluation.ranks import retrieval_ranks
from entityclip.statistics import (
    METRICS,
    bootstrap_interval,
    mean_rank,
    median_rank,
    recall_at_k,
    retrieval_metrics,
)


def ranks_of(similarity, positives=None, **options):
    """Ranks of a hand-written matrix: its product with unit vectors is itself."""
    similarity = torch.tensor(similarity, dtype=torch.float32)
    return retrieval_ranks(similarity, torch.eye(similarity.shape[1]), positives, **options)


def literal_ranks(queries, candidates, positives=None):
    """Sort each query's candidates, of equals the positives last; walk to the first positive."""
    if positives is None:
        positives = torch.arange(len(queries)), torch.arange(len(candidates))
    query_groups, candidate_groups = (ids.tolist() for ids in positives)
    ranks = []
    for query, group in zip(queries.double(), query_groups, strict=True):
        similarity = (candidates.double() @ query).tolist()
        is_positive = [other == group for other in candidate_groups]
        order = sorted(range(len(candidates)), key=lambda i: (-similarity[i], is_positive[i]))
        first = next(place for place, i in enumerate(order) if is_positive[i])
        ranks.append(first + 1)
    return torch.tensor(ranks)


def features(n, d=16, *, seed, levels=3):
    """Small integers: products are exact in float32, and ties are frequent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels + 1, (n, d), generator=generator).float()


# Four captions (rows), eight pictures (columns).
BY_EYE = [
    # the true picture of caption i is in column i
    [0.9, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0],  # first
    [0.8, 0.7, 0.6, 0.1, 0.0, 0.0, 0.0, 0.0],  # second, behind column 0
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],  # sixth
    [0.5, 0.1, 0.2, 0.5, 0.0, 0.5, 0.0, 0.0],  # ties with two others: third
]
COLUMN = torch.arange(8)


def test_ranks_can_be_checked_by_eye():
    ranks = ranks_of(BY_EYE, (torch.arange(4), COLUMN))
    assert ranks.tolist() == [1, 2, 6, 3]
    assert ranks.dtype == torch.int64
    assert recall_at_k(ranks, (1, 2, 3, 5, 6)) == {
        "R@1": 25.0,
        "R@2": 50.0,
        "R@3": 75.0,
        "R@5": 75.0,
        "R@6": 100.0,
    }
    assert median_rank(ranks) == 2.5
    assert mean_rank(ranks) == 3.0


def test_several_positives_count_by_the_best():
    # columns 0-1 belong to caption 0, 2-3 to caption 1, and so on
    ranks = ranks_of(BY_EYE, (torch.arange(4), COLUMN // 2))
    # caption 0: column 0 first. 1: best of columns 2-3 is 0.6, third. 2: 0.6 behind 0.7, 0.8.
    # 3: columns 6-7 are 0.0 and so is column 4, a tie: five higher, one equal, seventh.
    assert ranks.tolist() == [1, 3, 3, 7]


def test_tied_positives_do_not_count_against_each_other():
    assert ranks_of([[0.5, 0.5, 0.1]], (torch.tensor([7]), torch.tensor([7, 7, 1]))).tolist() == [1]
    assert ranks_of([[0.5, 0.5, 0.5]], (torch.tensor([7]), torch.tensor([7, 7, 1]))).tolist() == [2]


def test_both_directions_of_one_matrix():
    square = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]])
    eye = torch.eye(3)
    assert retrieval_ranks(square, eye).tolist() == [1, 2, 1]
    assert retrieval_ranks(eye, square).tolist() == [1, 3, 1]


@pytest.mark.parametrize("chunk", [1, 7, 32, 101, 500, None])
def test_equals_the_literal_sort_with_ties_and_uneven_last_chunks(chunk):
    queries, candidates = features(101, seed=0), features(101, seed=1)
    expected = literal_ranks(queries, candidates)
    assert expected.unique().numel() > 30
    assert torch.equal(retrieval_ranks(queries, candidates, chunk=chunk), expected)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_literal_sort_with_several_positives(seed):
    generator = torch.Generator().manual_seed(seed)
    n_groups = int(torch.randint(1, 12, (), generator=generator))
    candidate_groups = torch.cat(
        [torch.arange(n_groups), torch.randint(n_groups, (40,), generator=generator)]
    )
    query_groups = torch.randint(n_groups, (23,), generator=generator)
    queries = features(23, 4, seed=seed, levels=1)
    candidates = features(len(candidate_groups), 4, seed=seed + 100, levels=1)
    positives = (query_groups, candidate_groups)
    expected = literal_ranks(queries, candidates, positives)
    assert torch.equal(retrieval_ranks(queries, candidates, positives, chunk=5), expected)


def test_pairs_are_the_special_case_of_groups():
    queries, candidates = features(50, seed=2), features(50, seed=3)
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        retrieval_ranks(queries, candidates), retrieval_ranks(queries, candidates, (ids, ids))
    )


@pytest.mark.parametrize("seed", range(5))
def test_order_of_candidates_and_scale_of_queries_do_not_matter(seed):
    queries, candidates = features(30, seed=seed), features(60, seed=seed + 50)
    groups = torch.arange(60) % 30
    ranks = retrieval_ranks(queries, candidates, (torch.arange(30), groups))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    shuffled = retrieval_ranks(4 * queries, candidates[order], (torch.arange(30), groups[order]))
    assert torch.equal(ranks, shuffled)
    assert ranks.min() >= 1
    assert ranks.max() <= 59  # 58 rivals at most: two candidates are positives


@pytest.mark.parametrize("n", [2, 7, 33, 100, 1003])
def test_a_constant_model_scores_no_more_than_chance(n):
    one = torch.nn.functional.normalize(
        torch.randn(1, 512, generator=torch.Generator().manual_seed(n)), dim=-1
    )
    same = one.repeat(n, 1)
    for ranks in (retrieval_ranks(same, same), retrieval_ranks(same, same, chunk=3)):
        for k in (1, 5, 10, 50, 100):
            recall = recall_at_k(ranks, (k,))[f"R@{k}"]
            assert recall <= 100 * min(1, k / n)
            assert recall == (0 if k < n else 100)


def test_identical_features_of_a_pair_tie_with_a_duplicate():
    # the duplicate of candidate 0 is no positive: it must not lose to the original by rounding
    generator = torch.Generator().manual_seed(0)
    candidates = torch.nn.functional.normalize(torch.randn(64, 96, generator=generator), dim=-1)
    candidates[33] = candidates[0]
    ranks = retrieval_ranks(candidates, candidates, chunk=9)
    assert ranks[[0, 33]].tolist() == [2, 2]
    assert ranks[[1, 32, 63]].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_compared_in_float32(dtype):
    queries, candidates = features(40, 64, seed=4), features(40, 64, seed=5)
    # these products need more digits than half precision has
    exact = literal_ranks(queries * 31, candidates * 33)
    assert torch.equal(
        retrieval_ranks((queries * 31).to(dtype), (candidates * 33).to(dtype)), exact
    )


def test_an_enclosing_autocast_changes_nothing():
    queries, candidates = features(60, 64, seed=6, levels=99), features(60, 64, seed=7, levels=99)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = retrieval_ranks(queries, candidates)
    assert torch.equal(inside, literal_ranks(queries, candidates))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_non_finite_similarity_is_never_a_hit(bad, grouped):
    queries = features(20, seed=8).abs() + 1
    queries[13, 2] = bad
    groups = (torch.arange(20), torch.arange(20)) if grouped else None
    with pytest.raises(ValueError, match="similarity of query 13 and candidate 0 is"):
        retrieval_ranks(queries, features(20, seed=9).abs() + 1, groups, chunk=6)


def test_large_finite_similarities_are_accepted():
    # their sum over a row overflows, they do not
    candidates = torch.full((4, 1), 3e38)
    assert retrieval_ranks(torch.ones(4, 1), candidates).tolist() == [4, 4, 4, 4]


def test_a_query_without_positive_is_named():
    groups = (torch.tensor([3, 4, 9, 8]), torch.tensor([3, 4, 5, 5, 3, 4, 5, 5]))
    with pytest.raises(ValueError, match=r"query 2 \(group 9\) has no positive"):
        ranks_of(BY_EYE, groups, chunk=2)


@pytest.mark.parametrize(
    ("queries", "candidates", "positives", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), None, "3 queries and 4 candidates"),
        (torch.ones(3, 2), torch.ones(3, 5), None, "2 wide and candidates 5"),
        (torch.ones(0, 2), torch.ones(0, 2), None, "queries have shape"),
        (torch.ones(3), torch.ones(3), None, "queries have shape"),
        (torch.ones(3, 2), torch.ones(3, 2), (torch.arange(2), torch.arange(3)), "query_groups"),
        (torch.ones(3, 2), torch.ones(3, 2), (torch.arange(3), torch.rand(3)), "candidate_groups"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(queries, candidates, positives, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(queries, candidates, positives)


def test_chunk_must_be_positive():
    with pytest.raises(ValueError, match="chunk is 0"):
        retrieval_ranks(torch.ones(2, 2), torch.ones(2, 2), chunk=0)


def test_retrieval_metrics_has_the_paper_columns():
    metrics = retrieval_metrics(torch.tensor([1, 4, 9, 60, 200]))
    assert tuple(metrics) == METRICS
    assert metrics == {
        "R@1": 20.0,
        "R@5": 40.0,
        "R@10": 60.0,
        "R@50": 60.0,
        "R@100": 80.0,
        "MedR": 9.0,
        "MeanR": pytest.approx(54.8),
    }


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


def skewed_ranks(n, seed=0):
    return np.random.default_rng(seed).geometric(0.1, n)


@pytest.mark.parametrize("n", [2, 5, 50, 51])
def test_bootstrap_equals_the_literal_loop_with_clusters(n):
    ranks = skewed_ranks(n)
    clusters = np.random.default_rng(1).integers(0, n // 2 + 1, n)
    clusters[:2] = 0, n  # at least two, and ids need not be dense
    got = bootstrap_interval(ranks, seed=3, n_resamples=200, level=0.9, clusters=clusters)
    expected = literal_bootstrap(ranks, clusters, 200, 3, 0.9)
    for name in METRICS:
        assert got[name] == pytest.approx(expected[name]), name


def test_bootstrap_without_clusters_draws_single_queries():
    ranks = np.sort(skewed_ranks(40))  # sorted, so that the draws name the same queries
    got = bootstrap_interval(ranks, seed=5, n_resamples=100)
    expected = literal_bootstrap(ranks, np.arange(40), 100, 5, 0.95)
    for name in METRICS:
        assert got[name] == pytest.approx(expected[name]), name


def test_bootstrap_does_not_depend_on_its_block_size(monkeypatch):
    ranks = skewed_ranks(37)
    whole = bootstrap_interval(ranks, n_resamples=50)
    monkeypatch.setattr("entityclip.statistics._WEIGHTS_AT_ONCE", 37 * 7)
    assert bootstrap_interval(ranks, n_resamples=50) == whole


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


def test_queries_of_one_picture_are_drawn_together():
    ranks = np.repeat(skewed_ranks(100), 5)  # five captions that agree say no more than one
    alone = bootstrap_interval(ranks, ("R@5",))["R@5"]
    together = bootstrap_interval(ranks, ("R@5",), clusters=np.repeat(np.arange(100), 5))["R@5"]
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(5**0.5, rel=0.2)


def test_all_right_has_an_interval_of_no_width():
    assert bootstrap_interval([1] * 10, ("R@1", "MedR")) == {"R@1": (100, 100), "MedR": (1, 1)}
    assert bootstrap_interval([7] * 10, ("R@5",)) == {"R@5": (0, 0)}


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
