"""By features and by given scores, all ranks are those of a literal sort, ties included."""

import pytest
import torch

from entityclip.evaluation.ranks import both_ranks, similarity_ranks
from entityclip.statistics import recall_at_k


def given(queries, candidates, positives=None, **options):
    return similarity_ranks(queries.float() @ candidates.float().T, positives, **options)


WAYS = pytest.mark.parametrize("rank", [both_ranks, given])


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


def assert_literal(found, queries, candidates, positives=None):
    expected = literal_ranks(queries, candidates, positives)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], literal_ranks(candidates, queries, positives and positives[::-1]))
    assert found[0].dtype == torch.int64


def features(n, d=16, *, seed, levels=3):
    """Small integers: products are exact in float32, and ties are frequent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels + 1, (n, d), generator=generator).float()


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


# four captions (rows) and eight pictures (columns): 0 and 1 belong to caption 0, 2 and 3 to 1, …
BY_EYE = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0],  # column 0 is first
        [0.8, 0.7, 0.6, 0.1, 0.0, 0.0, 0.0, 0.0],  # column 2 is third
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],  # column 5 is behind 6 and 7: third
        [0.5, 0.1, 0.2, 0.5, 0.0, 0.5, 0.0, 0.0],  # 6 and 7 behind five, and column 4 ties: seventh
    ]
)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_can_be_checked_by_eye(rank, dtype):
    groups = torch.arange(4), torch.arange(8) // 2
    unit = torch.eye(8, dtype=dtype)  # a product with unit vectors is itself
    captions, pictures = rank(BY_EYE.to(dtype), unit, groups)
    assert captions.tolist() == [1, 3, 3, 7]
    # read downwards: column 1 has 0.1 for its caption, 0.7 and 0.2 above it and a tie: fourth
    assert pictures.tolist() == [1, 4, 1, 4, 1, 1, 4, 4]
    assert list(recall_at_k(captions, (1, 2, 3, 5, 7)).values()) == [25, 25, 75, 75, 100]


@WAYS
@pytest.mark.parametrize("side", [1, 64, 128, None])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_pairs_equal_the_literal_sort_with_ties(rank, n, side):
    queries, candidates = features(n, seed=0), features(n, seed=1)
    found = rank(queries, candidates, side=side)
    assert_literal(found, queries, candidates)
    ids = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    as_groups = rank(queries, candidates, (ids, ids), side=side)
    assert all(map(torch.equal, found, as_groups))


@WAYS
@pytest.mark.parametrize("seed", range(12))
def test_groups_equal_the_literal_sort_with_ties(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    n_groups = int(torch.randint(1, 90, (), generator=generator))

    def draw(more):
        every = torch.arange(n_groups)
        ids = torch.cat([every, torch.randint(n_groups, (more,), generator=generator)])
        return 10 * ids[torch.randperm(len(ids), generator=generator)] - 7

    groups = draw(100), draw(57)
    queries = features(len(groups[0]), 5, seed=seed, levels=1)
    candidates = features(len(groups[1]), 5, seed=seed + 50, levels=1)
    assert_literal(rank(queries, candidates, groups, side=64), queries, candidates, groups)


@pytest.mark.parametrize("d", [96, 128, 512])
def test_blocks_round_alike_whatever_their_size(d):
    pictures = unit(300, d, seed=d)
    of = torch.randint(300, (900,), generator=torch.Generator().manual_seed(d))
    of[:300] = torch.arange(300)
    texts = torch.nn.functional.normalize(unit(900, d, seed=d + 1) * 10 + pictures[of], dim=-1)
    groups = of, torch.arange(300)
    # in full precision: no score here is nearer to another than float32 rounds
    expected = similarity_ranks(texts.double() @ pictures.double().T, groups)
    for side in (64, 128, None):
        assert all(map(torch.equal, both_ranks(texts, pictures, groups, side=side), expected))
    turned = both_ranks(pictures, texts, groups[::-1])
    assert all(map(torch.equal, turned[::-1], expected))
    assert expected[0].unique().numel() > 20


@WAYS
@pytest.mark.parametrize("side", [64, None])
@pytest.mark.parametrize("n", [2, 7, 33, 203])
def test_a_constant_model_ranks_last_everywhere(rank, n, side):
    same = unit(1, 512, seed=n).repeat(n, 1)
    assert [ranks.tolist() for ranks in rank(same, same, side=side)] == [[n] * n] * 2


def test_duplicates_tie_wherever_they_stand():
    # a duplicate is no positive: it must not lose to the original by rounding
    x = unit(300, 96)
    x[299] = x[150] = x[7]
    for ranks in both_ranks(x, x, side=64):
        assert ranks[[7, 150, 299]].tolist() == [3, 3, 3]
        assert ranks.sum() == 297 + 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_compared_in_float32(dtype, autocast):
    # these products need more digits than half precision has
    queries, candidates = 31 * features(40, 64, seed=4), 33 * features(40, 64, seed=5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = both_ranks(queries.to(dtype), candidates.to(dtype))
    assert_literal(found, queries, candidates)


@WAYS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_non_finite_similarity_is_never_a_hit(rank, bad, grouped):
    queries = features(200, seed=8).abs() + 1
    queries[133, 2] = bad
    groups = (torch.arange(200).flip(0),) * 2 if grouped else None
    with pytest.raises(ValueError, match="similarity of query 133 and candidate 0 is"):
        rank(queries, features(200, seed=9).abs() + 1, groups, side=64)


@WAYS
def test_large_finite_similarities_are_accepted(rank):
    # their sum over a row overflows, they do not
    candidates = torch.full((4, 1), 3e38)
    assert [r.tolist() for r in rank(torch.ones(4, 1), candidates)] == [[4] * 4] * 2


@WAYS
def test_a_query_without_positive_is_named(rank):
    x, ids = torch.randn(5, 4), torch.tensor([9, 8, 7, 3, 4])
    with pytest.raises(ValueError, match=r"query 3 \(group 3\) has no positive"):
        rank(x, x[:3], (ids, ids[:3]))
    with pytest.raises(ValueError, match=r"query 4 \(group 4\) has no positive"):
        rank(x[:4], x, (ids[:4], ids))


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
        both_ranks(queries, candidates, positives)


def test_given_scores_need_a_matrix_and_a_block_a_row():
    with pytest.raises(ValueError, match=r"similarities have shape \(0, 3\)"):
        similarity_ranks(torch.ones(0, 3))
    with pytest.raises(ValueError, match="3 queries and 4 candidates cannot be paired one to one"):
        similarity_ranks(torch.ones(3, 4))
    with pytest.raises(ValueError, match="side is 0"):
        both_ranks(torch.ones(2, 2), torch.ones(2, 2), side=0)
