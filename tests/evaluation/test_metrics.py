import pytest
import torch

from entityclip.evaluation.ranks import retrieval_ranks
from entityclip.statistics import recall_at_k


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
