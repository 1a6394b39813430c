"""Both directions from one product: the literal sort and the two plain calls agree with it."""

import pytest
import torch

from entityclip.evaluation.ranks import both_ranks, retrieval_ranks
from tests.evaluation.test_metrics import BY_EYE, features, literal_ranks


def both_literal(queries, candidates, positives=None):
    turned = None if positives is None else positives[::-1]
    return literal_ranks(queries, candidates, positives), literal_ranks(candidates, queries, turned)


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("side", [64, 128, None])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_pairs_equal_the_literal_sort_with_ties(n, side):
    queries, candidates = features(n, seed=0), features(n, seed=1)
    expected = both_literal(queries, candidates)
    found = both_ranks(queries, candidates, side=side)
    assert same(found, expected)
    assert found[0].dtype == torch.int64


@pytest.mark.parametrize("seed", range(12))
def test_groups_equal_the_literal_sort_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    n_groups = int(torch.randint(1, 90, (), generator=generator))

    def draw(more):
        every = torch.arange(n_groups)
        ids = torch.cat([every, torch.randint(n_groups, (more,), generator=generator)])
        return 10 * ids[torch.randperm(len(ids), generator=generator)] - 7

    groups = draw(100), draw(57)
    queries = features(len(groups[0]), 5, seed=seed, levels=1)
    candidates = features(len(groups[1]), 5, seed=seed + 50, levels=1)
    expected = both_literal(queries, candidates, groups)
    assert same(both_ranks(queries, candidates, groups, side=64), expected)


def test_ranks_can_be_checked_by_eye():
    groups = torch.arange(4), torch.arange(8) // 2
    queries = torch.tensor(BY_EYE)
    captions, pictures = both_ranks(queries, torch.eye(8), groups)
    assert captions.tolist() == [1, 3, 3, 7]
    # read downwards: column 0 is best for its caption; column 1 has 0.1 there, 0.7 and 0.2 above
    # it and a tie: fourth
    assert pictures.tolist() == [1, 4, 1, 4, 1, 1, 4, 4]


@pytest.mark.parametrize("d", [96, 128, 512])
def test_real_values_equal_the_plain_calls(d):
    unit = torch.nn.functional.normalize
    generator = torch.Generator().manual_seed(d)
    pictures = unit(torch.randn(300, d, generator=generator), dim=-1)
    of = torch.randint(300, (900,), generator=generator)
    of[:300] = torch.arange(300)
    noise = torch.randn(900, d, generator=generator) * 10 * d**-0.5
    texts = unit(pictures[of] + noise, dim=-1)
    groups = of, torch.arange(300)
    plain = retrieval_ranks(texts, pictures, groups), retrieval_ranks(pictures, texts, groups[::-1])
    assert same(both_ranks(texts, pictures, groups, side=128), plain)
    assert plain[0].unique().numel() > 20


@pytest.mark.parametrize("n", [2, 33, 100, 203])
def test_a_constant_model_ranks_last_everywhere(n):
    one = torch.nn.functional.normalize(torch.randn(1, 512), dim=-1).repeat(n, 1)
    for side in (64, 128, None):
        for ranks in both_ranks(one, one, side=side):
            assert ranks.tolist() == [n] * n


def test_duplicates_tie_wherever_they_stand():
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(300, 96, generator=generator), dim=-1)
    x[299] = x[150] = x[7]
    for ranks in both_ranks(x, x, side=64):
        assert ranks[[7, 150, 299]].tolist() == [3, 3, 3]
        assert ranks.sum() == 297 + 9


def test_autocast_does_not_invent_ties():
    generator = torch.Generator().manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(128, 32, generator=generator), dim=-1)
    y = torch.nn.functional.normalize(x + 0.5 * torch.randn(128, 32, generator=generator), dim=-1)
    expected = both_ranks(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(both_ranks(x, y), expected)


def test_errors_are_those_of_the_plain_way():
    x = torch.randn(5, 4)
    ids = torch.arange(5)
    with pytest.raises(ValueError, match=r"query 3 \(group 3\) has no positive"):
        both_ranks(x, x[:3], (ids, ids[:3]))
    with pytest.raises(ValueError, match=r"query 4 \(group 4\) has no positive"):
        both_ranks(x[:4], x, (ids[:4], ids))
    with pytest.raises(ValueError, match="cannot be paired one to one"):
        both_ranks(x, x[:3])
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="similarity of query 2 and candidate 0 is nan"):
        both_ranks(x, torch.randn(5, 4))
