"""AsCL's fusion and NT-Xent equal their literal twins; each generated text keeps what it promises.

Forward and gradient, whole and in parts. The model in training and evaluation: tests/experiments.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from entityclip.models import ascl
from entityclip.models.ascl import (
    WRONG_KINDS,
    HierarchicalFusion,
    nt_xent,
    poorer_text,
    richer_text,
    same_picture,
    word_mask,
)
from entityclip.models.clip import Tokens
from tests import literal_ascl

D, HEADS = 24, 4


def tokens(batch, length, seed, ends=None):
    x = torch.randn(batch, length, D, generator=torch.Generator().manual_seed(seed))
    x.requires_grad_()
    at = torch.zeros(batch, dtype=torch.long) if ends is None else torch.tensor(ends)
    valid = torch.arange(length) <= (length if ends is None else at[:, None])
    return Tokens(x[torch.arange(batch), at], x, valid.expand(batch, length), at)


@pytest.fixture
def case():
    torch.manual_seed(0)
    fusion = HierarchicalFusion(D, HEADS, 0.8)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image, text = tokens(3, 8, 1), tokens(5, 9, 2, ends=[8, 2, 5, 3, 7])
    position = torch.arange(9)
    return fusion, image, text, (position >= 1) & (position < text.at[:, None])


def ours(fusion, image, text, words):
    return fusion(fusion.image_side(image), fusion.text_side(text, words))


def gradients(similarity, fusion, *sides):
    weighted = similarity * torch.linspace(-1, 2, similarity.numel()).view_as(similarity)
    leaves = {**dict(fusion.named_parameters()), **{i: s.tokens for i, s in enumerate(sides)}}
    found = torch.autograd.grad(weighted.sum(), list(leaves.values()), retain_graph=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("at_once", [None, 1, 3 * 7 * 9 * HEADS * 2])
def test_similarity_and_gradients_equal_the_loop_over_captions(case, monkeypatch, at_once):
    """In one stretch of captions and in several."""
    if at_once:
        monkeypatch.setattr(ascl, "_AT_ONCE", at_once)
    fast, slow = ours(*case), literal_ascl.similarity(*case)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    assert fast.std() > 0.01
    expected = gradients(slow, *case[:3])
    for name, grad in gradients(fast, *case[:3]).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=str(name))
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("tile", "tokens"), [(1, 1), (2 * 7 * 9, 9), (3 * 7 * 9, 3 * 9), (2**19, 512)]
)
def test_tiles_without_gradients_equal_the_loop_over_captions(case, monkeypatch, tile, tokens):
    monkeypatch.setitem(ascl._TILE, "cpu", tile)
    monkeypatch.setattr(ascl, "_TILE_TOKENS", tokens)
    with torch.no_grad():
        fast, slow = ours(*case), literal_ascl.similarity(*case)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


def test_similarity_weighs_local_and_global(case):
    found = []
    for u in (0.0, 1.0, 0.25):
        torch.manual_seed(1)
        found.append(ours(HierarchicalFusion(D, HEADS, u), *case[1:]))
    torch.testing.assert_close(found[2], 0.75 * found[0] + 0.25 * found[1])
    assert found[0].abs().max() <= 1 + 1e-6


def test_a_new_fusion_attends_by_cosine_and_starts_near_clip(case):
    side = HierarchicalFusion(D, HEADS, 0.8).image_side(case[1])
    cls = F.normalize(case[1].pooled, dim=-1)
    assert ((side.pooled * cls).sum(-1) > 0.95).all()
    torch.testing.assert_close(side.query * (D / HEADS) ** 0.5, side.key)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=5 does not divide the embedding width 24"):
        HierarchicalFusion(24, 5, 0.8)


def test_bf16_autocast_compares_in_float32(case):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(*case)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ours(*case), atol=2e-2, rtol=0)


# ------------------------------------------------------------------------------------------ NT-Xent


@pytest.mark.parametrize("with_wrong", [False, True])
def test_nt_xent_equals_the_loop(with_wrong):
    torch.manual_seed(0)
    keys = torch.tensor([4, 7, 4, 9, 7, 1])
    same = same_picture(keys, 6, keys.device)
    assert same.sum() == 4
    assert not same.diagonal().any()
    leaves = [torch.randn(6, 6, requires_grad=True)]
    leaves += [torch.randn(6, 6, requires_grad=True)] if with_wrong else []
    similarity, wrong = leaves[0], (leaves[1] if with_wrong else None)
    fast, slow = (f(similarity, same, 3.0, wrong) for f in (nt_xent, literal_ascl.nt_xent))
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaves) for loss in (fast, slow)))


def test_a_wrong_text_more_similar_than_the_true_one_is_dropped():
    """Each picture judges every wrong text by its own true one."""
    similarity, same = torch.tensor([[1.0, 0.0], [0.0, 0.5]]), torch.zeros(2, 2, dtype=torch.bool)
    plain = nt_xent(similarity, same, 10.0)
    false = torch.tensor([[1.5, 1.01], [0.7, 0.6]], requires_grad=True)
    dropped = nt_xent(similarity, same, 10.0, false)
    assert dropped.item() == plain.item()
    dropped.backward()
    assert not false.grad.any()
    half = torch.tensor([[0.6, 0.6], [0.6, 0.4]], requires_grad=True)  # picture 1 drops the first
    assert ascl.false_negatives(similarity, half).tolist() == [[False, False], [True, False]]
    nt_xent(similarity, same, 10.0, half).backward()
    assert (half.grad != 0).tolist() == [[True, True], [False, True]]


# ---------------------------------------------------------------------------------- generated texts


@pytest.fixture
def text(backbone):
    ids = backbone.tokenize(["", "one", "a b", "officials from Ghana open the port", "x " * 200])
    return ids, backbone.eot(ids)


def words_of(ids, at):
    return [row[1:end].tolist() for row, end in zip(ids, at, strict=True)]


def test_words_are_what_stands_between_start_and_end(text):
    ids, at = text
    mask = word_mask(at, ids.shape[1])
    assert mask[0].nonzero().flatten().tolist() == [1]  # the end token of the empty text
    for row in range(1, len(ids)):
        assert ids[row][mask[row]].tolist() == words_of(ids, at)[row]


def test_poorer_text_is_the_first_half_of_the_words(text, backbone):
    ids, at = text
    poorer = poorer_text(ids, at)
    for short, long in zip(words_of(poorer, backbone.eot(poorer)), words_of(ids, at), strict=True):
        assert short == long[: (len(long) + 1) // 2]
    assert (poorer[:, 0] == ids[:, 0]).all()


def test_richer_text_is_both_captions_cut_at_the_context_length(text, backbone):
    ids, at = text
    second, second_at = ids.roll(1, 0), at.roll(1, 0)
    richer = richer_text(ids, at, second, second_at)
    end = backbone.eot(richer)
    for row, own in enumerate(words_of(richer, end)):
        both = words_of(ids, at)[row] + words_of(second, second_at)[row]
        assert own == both[: ids.shape[1] - 2]
        assert not richer[row, end[row] + 1 :].any()
    assert (richer.gather(1, end[:, None]) == ids[0, at[0]]).all()


def made(name, *strength, seed=0):
    """Texts of 0, 1, 2, 7 and 30 words, which of their tokens are words, and what became of them.

    Every wrong text follows its seed and spares start, end and padding.
    """
    x = torch.randn(5, 32, 200, generator=torch.Generator().manual_seed(9))
    mask = torch.arange(32) <= torch.tensor([0, 1, 2, 7, 30])[:, None]
    mask[:, 0] = False
    changed, again, other = (
        getattr(ascl, name)(x, mask, *strength, torch.Generator().manual_seed(s))
        for s in (seed, seed, seed + 1)
    )
    assert torch.equal(changed[~mask], x[~mask])
    assert torch.equal(changed, again)
    assert not torch.equal(changed, other)
    return x, mask, changed


def test_noise_has_the_stated_size():
    x, mask, changed = made("add_noise", 0.5)
    noise, size = (changed - x)[mask], 0.5 * x[mask].square().mean().sqrt().item()
    assert noise.std().item() == pytest.approx(size, rel=0.05)
    assert abs(noise.mean().item()) < 0.02


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x, mask, changed = made("drop_entries", 0.25)
    zero = changed[mask] == 0
    assert zero.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(changed[mask][~zero], x[mask][~zero] / 0.75)


def test_shuffled_words_are_the_same_words_elsewhere():
    for seed in range(20):
        x, mask, changed = made("shuffle_words", seed=seed)
        assert torch.equal(changed[:2], x[:2])
        for row in range(2, len(x)):
            before, after = x[row][mask[row]], changed[row][mask[row]]
            assert sorted(before[:, 0].tolist()) == sorted(after[:, 0].tolist())
            # whole words move, and from two words on something always does
            order = (after[:, None] == before).all(-1).float().argmax(1)
            assert torch.equal(after, before[order])
            assert not torch.equal(before, after)


def test_cutoffs_zero_their_share_and_at_least_one():
    _, mask, changed = made("zero_words", 0.2)
    zeroed = [(changed[r][mask[r]] == 0).all(-1).sum().item() for r in range(5)]
    assert zeroed == [0, 1, 1, 1, 6]
    x, mask, changed = made("zero_channels", 0.2)
    for row in range(1, 5):
        off = (changed[row][mask[row]] == 0).all(0)
        assert off.sum().item() == 40
        assert torch.equal(changed[row][mask[row]][:, ~off], x[row][mask[row]][:, ~off])


def test_wrong_embeddings_draw_every_kind_and_obey_those_given():
    x, mask, _ = made("shuffle_words")
    kinds = torch.arange(len(WRONG_KINDS))
    generator = torch.Generator().manual_seed(3)
    changed = ascl.wrong_embeddings(x, mask, kinds=kinds, generator=generator)
    dropped = (changed[1][mask[1]] == 0).float().mean()  # row 1: dropout of its one word
    assert 0.3 < dropped < 0.7
    assert (changed[3][mask[3]] == 0).all(-1).any()  # row 3: a word is zeroed
    assert (changed[4][mask[4]] == 0).all(0).sum() == 40  # row 4: channels
    torch.manual_seed(0)
    many = ascl.wrong_embeddings(x[3:4].expand(200, -1, -1), mask[3:4].expand(200, -1))
    shares = [
        sum(torch.equal(row.sort(0).values, x[3].sort(0).values) for row in many),  # shuffled
        sum(bool((row[mask[3]] == 0).all(-1).any()) for row in many),
        sum(int((row[mask[3]] == 0).all(0).sum()) == 40 for row in many),
    ]
    assert all(20 <= share <= 60 for share in shares)  # about 40 of 200 each
