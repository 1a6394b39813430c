"""Hard negatives: what may be drawn, and how often."""

from __future__ import annotations

import torch

from entityclip.models.negatives import FLOOR, draw_in_batch, draw_negatives, same_pairs


def captions(*ids):
    return torch.tensor([[i, 0] for i in ids])


def test_a_pair_is_never_its_own_negative_even_with_equal_logits():
    same = same_pairs(captions(*range(5)), None)
    for seed in range(200):
        torch.manual_seed(seed)
        for scale in (0.0, 100.0):
            # the pair itself scores highest by far, as after training
            negatives = draw_negatives(scale * torch.eye(5), same)
            assert (negatives.text != torch.arange(5)).all()
            assert (negatives.image != torch.arange(5)).all()
            assert negatives.valid.all()


def test_repeated_captions_and_pictures_are_no_negatives_of_each_other():
    same = same_pairs(captions(1, 1, 2, 3), torch.tensor([10, 11, 12, 12]))
    assert same.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    for seed in range(100):
        torch.manual_seed(seed)
        negatives = draw_negatives(torch.zeros(4, 4), same)
        for drawn in (negatives.text, negatives.image):
            assert not same[torch.arange(4), drawn].any()


def test_a_pair_without_any_negative_is_marked():
    same = same_pairs(captions(1, 1, 1), None)
    assert not draw_negatives(torch.zeros(3, 3), same).valid.any()
    same = same_pairs(captions(1, 1, 2), torch.tensor([5, 6, 7]))
    assert draw_negatives(torch.zeros(3, 3), same).valid.all()


def test_draws_follow_the_softmax_of_rows_and_columns():
    torch.manual_seed(0)
    logits = torch.tensor([[9.0, 0.0, 1.0], [2.0, 9.0, 0.0], [0.0, 1.0, 9.0]])
    blocks, calls = 100, 200  # a hundred such batches in one, which may draw from their own only
    allowed = torch.block_diag(*[1 - torch.eye(3)] * blocks).bool()
    texts, images = torch.zeros(3, 3), torch.zeros(3, 3)
    rows, one = torch.arange(3 * blocks), torch.ones(3 * blocks)
    for _ in range(calls):
        negatives = draw_negatives(logits.repeat(blocks, blocks), ~allowed)
        assert allowed[rows, negatives.text].all()
        assert allowed[rows, negatives.image].all()
        texts.index_put_((rows % 3, negatives.text % 3), one, accumulate=True)
        images.index_put_((rows % 3, negatives.image % 3), one, accumulate=True)
    draws = blocks * calls
    masked = logits.masked_fill(torch.eye(3, dtype=torch.bool), -torch.inf)
    # 5 standard deviations of a share estimated from this many draws are below 0.018
    torch.testing.assert_close(texts / draws, masked.softmax(1), atol=0.018, rtol=0)
    torch.testing.assert_close(images / draws, masked.T.softmax(1), atol=0.018, rtol=0)


def test_the_draw_carries_no_gradient():
    logits = torch.zeros(3, 3, requires_grad=True)
    negatives = draw_negatives(logits, torch.eye(3, dtype=torch.bool))
    assert not negatives.text.requires_grad


def test_with_a_floor_the_pair_itself_and_its_repeats_are_drawn():
    """As the authors' code draws: nothing is excluded, and every pair has a negative."""
    image = torch.nn.functional.normalize(torch.eye(4) + 0.01, dim=1)
    given = image, image, torch.tensor(100.0), captions(1, 1, 2, 3), torch.tensor([5, 6, 7, 7])
    torch.manual_seed(0)
    drawn = [draw_in_batch(*given, "floored", None) for _ in range(200)]
    assert all(one.valid.all() for one in drawn)
    for side in ("text", "image"):
        rows = torch.stack([getattr(one, side) for one in drawn])
        assert {*rows[:, 0].tolist()} == {0, 1, 2, 3}
    hard = draw_in_batch(*given, "hard", None)
    assert (hard.text != torch.arange(4)).all()


def test_the_floor_is_that_of_every_entry_and_the_diagonal_holds_only_it():
    """One negative is likely, the rest rest on the floor: p = (softmax, diagonal 0) + floor."""
    logits = torch.tensor([[20.0, 6.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 20.0]])
    expected = logits.softmax(1).fill_diagonal_(0) + FLOOR
    expected = expected / expected.sum(1, keepdim=True)
    torch.manual_seed(0)
    blocks, calls = 60, 300
    apart = ~torch.block_diag(*[torch.ones(3, 3)] * blocks).bool()
    found, one = torch.zeros(3, 3), torch.ones(3 * blocks)
    for _ in range(calls):
        # the blocks are as processes that draw from their own rows only
        texts = draw_negatives(logits.repeat(blocks, blocks), apart, FLOOR).text
        found.index_put_((torch.arange(3 * blocks) % 3, texts % 3), one, accumulate=True)
    torch.testing.assert_close(found / (blocks * calls), expected, atol=0.019, rtol=0)
