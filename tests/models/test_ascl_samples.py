"""AsCL's generated texts: each keeps what it promises."""

from __future__ import annotations

import pytest
import torch

from entityclip.models import ascl
from entityclip.models.ascl import WRONG_KINDS, poorer_text, richer_text, word_mask

TEXTS = ["", "one", "a b", "officials from Ghana open the port", "x " * 200]


@pytest.fixture
def text(backbone):
    ids = backbone.tokenize(TEXTS)
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


def made(name, seed=0, words=(0, 1, 2, 7, 30), width=200, **options):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(words), 32, width, generator=torch.Generator().manual_seed(9))
    mask = (torch.arange(32) >= 1) & (torch.arange(32) <= torch.tensor(words)[:, None])
    return x, mask, getattr(ascl, name)(x, mask, *options.values(), generator)


@pytest.mark.parametrize(
    ("name", "options"),
    [("add_noise", {"scale": 1.0}), ("drop_entries", {"share": 0.5}), ("shuffle_words", {}),
     ("zero_words", {"share": 0.2}), ("zero_channels", {"share": 0.2})],
)  # fmt: skip
def test_wrong_texts_follow_their_seed_and_spare_start_end_and_padding(name, options):
    x, mask, changed = made(name, **options)
    assert torch.equal(changed[~mask], x[~mask])
    assert torch.equal(changed, made(name, **options)[2])
    assert not torch.equal(changed, made(name, seed=1, **options)[2])


def test_noise_has_the_stated_size():
    x, mask, changed = made("add_noise", scale=0.5)
    noise = (changed - x)[mask]
    assert noise.std().item() == pytest.approx(
        0.5 * x[mask].square().mean().sqrt().item(), rel=0.05
    )
    assert abs(noise.mean().item()) < 0.02


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x, mask, changed = made("drop_entries", share=0.25)
    zero = changed[mask] == 0
    assert zero.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(changed[mask][~zero], x[mask][~zero] / 0.75)


def test_shuffled_words_are_the_same_words_elsewhere():
    for seed in range(20):
        x, mask, changed = made("shuffle_words", seed)
        assert torch.equal(changed[:2], x[:2])
        for row in range(2, len(x)):
            before, after = x[row][mask[row]], changed[row][mask[row]]
            assert sorted(before[:, 0].tolist()) == sorted(after[:, 0].tolist())
            # whole words move, and from two words on something always does
            order = (after[:, None] == before).all(-1).float().argmax(1)
            assert torch.equal(after, before[order])
            assert not torch.equal(before, after)


def test_cutoffs_zero_their_share_and_at_least_one():
    x, mask, changed = made("zero_words", share=0.2)
    zeroed = [(changed[r][mask[r]] == 0).all(-1).sum().item() for r in range(5)]
    assert zeroed == [0, 1, 1, 1, 6]
    x, mask, changed = made("zero_channels", share=0.2)
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
