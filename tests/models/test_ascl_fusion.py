"""Hierarchical fusion and NT-Xent equal their literal twins, forward and gradient."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from entityclip.models import ascl as module
from entityclip.models.ascl import HierarchicalFusion, nt_xent, same_picture
from entityclip.models.clip import Tokens
from tests import literal_ascl

D, HEADS = 24, 4


def tokens(batch, length, seed, ends=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, D, generator=generator, dtype=torch.float32)
    x.requires_grad_()
    at = torch.zeros(batch, dtype=torch.long) if ends is None else torch.tensor(ends)
    valid = (
        torch.ones(batch, length, dtype=torch.bool)
        if ends is None
        else torch.arange(length) <= at[:, None]
    )
    return Tokens(x[torch.arange(batch), at], x, valid, at)


@pytest.fixture
def case():
    torch.manual_seed(0)
    fusion = HierarchicalFusion(D, HEADS, 0.8)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image, text = tokens(3, 8, 1), tokens(5, 9, 2, ends=[8, 2, 5, 3, 7])
    position = torch.arange(9)
    words = (position >= 1) & (position < text.at[:, None])
    return fusion, image, text, words


def ours(fusion, image, text, words):
    return fusion(fusion.image_side(image), fusion.text_side(text, words))


def gradients(similarity, fusion, *sides):
    for tensor in (*fusion.parameters(), *(s.tokens for s in sides)):
        tensor.grad = None
    (similarity * torch.linspace(-1, 2, similarity.numel()).view_as(similarity)).sum().backward(
        retain_graph=True
    )
    grads = {name: p.grad.clone() for name, p in fusion.named_parameters()}
    return grads | {i: s.tokens.grad.clone() for i, s in enumerate(sides)}


def test_similarity_and_gradients_equal_the_loop_over_captions(case):
    fusion, image, text, words = case
    fast, slow = ours(*case), literal_ascl.similarity(fusion, image, text, words)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    assert fast.std() > 0.01
    expected = gradients(slow, fusion, image, text)
    for name, grad in gradients(fast, fusion, image, text).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=str(name))
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize("at_once", [1, 3 * 7 * 9 * HEADS * 2])
def test_stretches_of_captions_change_nothing(case, monkeypatch, at_once):
    fusion, image, text, _ = case
    whole = ours(*case)
    expected = gradients(whole, fusion, image, text)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    parts = ours(*case)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    for name, grad in gradients(parts, fusion, image, text).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("tile", "tokens"), [(1, 1), (2 * 7 * 9, 9), (3 * 7 * 9, 3 * 9), (2**19, 512)]
)
def test_tiles_without_gradients_equal_the_loop_over_captions(case, monkeypatch, tile, tokens):
    monkeypatch.setitem(module._TILE, "cpu", tile)
    monkeypatch.setattr(module, "_TILE_TOKENS", tokens)
    with torch.no_grad():
        fast, slow = ours(*case), literal_ascl.similarity(*case)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


def test_padding_counts_for_nothing(case):
    fusion, image, text, words = case
    noisy = text.tokens.detach().clone()
    noisy[~words & (torch.arange(9) != text.at[:, None])] = 1e3
    changed = text._replace(tokens=noisy)
    with torch.no_grad():
        torch.testing.assert_close(ours(fusion, image, changed, words), ours(*case))


def test_paired_is_the_diagonal(case):
    fusion, image, text, words = case
    short = Tokens(*(part[:3] for part in text))
    sides = fusion.image_side(image), fusion.text_side(short, words[:3])
    torch.testing.assert_close(
        fusion.paired(*sides), fusion(*sides).diagonal(), rtol=1e-5, atol=1e-6
    )


def test_similarity_weighs_local_and_global(case):
    _, image, text, words = case
    found = []
    for u in (0.0, 1.0, 0.25):
        torch.manual_seed(1)
        found.append(ours(HierarchicalFusion(D, HEADS, u), image, text, words))
    torch.testing.assert_close(found[2], 0.75 * found[0] + 0.25 * found[1])
    assert found[0].abs().max() <= 1 + 1e-6


def test_a_new_fusion_attends_by_cosine_and_starts_near_clip(case):
    image = case[1]
    side = HierarchicalFusion(D, HEADS, 0.8).image_side(image)
    cls = F.normalize(image.pooled, dim=-1)
    assert ((side.pooled * cls).sum(-1) > 0.95).all()
    torch.testing.assert_close(side.query * (D / HEADS) ** 0.5, side.key)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=5 does not divide the embedding width 24"):
        HierarchicalFusion(24, 5, 0.8)


@pytest.mark.parametrize("with_wrong", [False, True])
def test_nt_xent_equals_the_loop(with_wrong):
    torch.manual_seed(0)
    keys = torch.tensor([4, 7, 4, 9, 7, 1])
    same = same_picture(keys, 6, keys.device)
    assert same.sum() == 4
    assert not same.diagonal().any()
    similarity = torch.randn(6, 6, requires_grad=True)
    wrong = torch.randn(6, requires_grad=True) if with_wrong else None
    fast = nt_xent(similarity, same, 3.0, wrong)
    slow = literal_ascl.nt_xent(similarity, same, 3.0, wrong)
    torch.testing.assert_close(fast, slow)
    leaves = [similarity, wrong] if with_wrong else [similarity]
    for a, b in zip(
        torch.autograd.grad(fast, leaves), torch.autograd.grad(slow, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_wrong_text_more_similar_than_the_true_one_is_dropped():
    similarity, same = torch.eye(2), torch.zeros(2, 2, dtype=torch.bool)
    plain = nt_xent(similarity, same, 10.0)
    false = torch.tensor([1.5, 1.01], requires_grad=True)
    dropped = nt_xent(similarity, same, 10.0, false)
    assert dropped.item() == plain.item()
    dropped.backward()
    assert false.grad.tolist() == [0, 0]
    assert nt_xent(similarity, same, 10.0, torch.tensor([0.9, 0.9])) > plain + 0.1


def test_bf16_autocast_compares_in_float32(case):
    fusion, image, text, words = copy.deepcopy(case[0]), *case[1:]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(fusion, image, text, words)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ours(*case), atol=2e-2, rtol=0)
