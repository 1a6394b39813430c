"""Pairs left out of the contrast: a literal twin, forward and gradient, and their refuter."""

import pytest
import torch
import torch.nn.functional as F

from entityclip.config import EntityCLIPConfig
from entityclip.models.bridges import bridge_loss, context_loss, crossed_loss
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.losses import related, vtc_loss
from entityclip.variants import VARIANTS

SIBLINGS = torch.tensor([[1, 11], [1, 12], [2, 11], [3, 13], [4, 14], [4, 15]])


def literal(image, text, scale, left_out):
    """Row by row, rival by rival, both ways."""
    total = 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(len(a)):
            rivals = [j for j in range(len(b)) if not left_out[i][j]]
            scores = torch.stack([scale * (a[i] * b[j]).sum() for j in rivals])
            total = total - (scores - torch.logsumexp(scores, 0))[rivals.index(i)]
    return total / (2 * len(image))


def sides(n, count):
    torch.manual_seed(n)
    leaves = [torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    return leaves, [F.normalize(leaf, dim=-1) for leaf in leaves]


def test_rows_that_share_an_id_are_no_negatives():
    mask = related(SIBLINGS, "masked")
    marked = {(i, j) for i, j in mask.nonzero().tolist()}
    pairs = {(0, 1), (0, 2), (4, 5)}
    assert marked == pairs | {(j, i) for i, j in pairs}


def test_at_random_as_many_are_left_out_for_no_reason():
    torch.manual_seed(0)
    drawn = [related(SIBLINGS, "random") for _ in range(30)]
    assert {int(mask.sum()) for mask in drawn} == {6}
    assert all(torch.equal(mask, mask.T) and not mask.diagonal().any() for mask in drawn)
    assert len({tuple(mask.flatten().tolist()) for mask in drawn}) > 20


@pytest.mark.parametrize("draw", ["masked", "random"])
def test_terms_equal_their_literal_twins_forward_and_gradient(draw):
    torch.manual_seed(1)
    mask, scale = related(SIBLINGS, draw), torch.tensor(7.0, dtype=torch.float64)
    cases = {
        "vtc": (2, vtc_loss, lambda i, t: literal(i, t, scale, mask)),
        "bridge": (3, bridge_loss, lambda i, t, e: (
            literal(i, e, scale, mask) + literal(t, e, scale, mask)) / 2),
        "context": (3, context_loss, lambda i, t, e: literal(
            i, F.normalize(t + e, dim=-1), scale, mask)),
        "crossed": (4, crossed_loss, lambda a, b, c, d: (
            literal(a, b, scale, mask) + literal(c, d, scale, mask)) / 2),
    }  # fmt: skip
    for name, (count, fast, slow) in cases.items():
        found = []
        for term in (lambda *given, f=fast: f(*given, scale, mask), slow):
            leaves, normal = sides(6, count)
            loss = term(*normal)
            loss.backward()
            found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, msg=name)
        assert not torch.allclose(found[0][0], fast(*sides(6, count)[1], scale)), name


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_gets_no_gradient_and_the_other_does(tower):
    torch.manual_seed(0)
    backbone = create_backbone("newsroom-tiny", image_size=32)
    config = EntityCLIPConfig(**VARIANTS[f"frozen-{tower}"].model)
    model, images = EntityCLIP(backbone, config), torch.randn(4, 3, 32, 32)
    captions, told = (backbone.tokenize([f"{kind} {n}" for n in range(4)]) for kind in "ab")
    model.losses(model(images, captions, told))["loss"].backward()
    for name, parameter in backbone.clip.named_parameters():
        frozen = (name.startswith("visual.") == (tower == "image")) and name != "logit_scale"
        assert (parameter.grad is None) == frozen, name


def test_no_siblings_are_what_was_before():
    torch.manual_seed(0)
    alone = torch.arange(6)[:, None]
    _, normal = sides(6, 2)
    scale = torch.tensor(3.0, dtype=torch.float64)
    assert torch.equal(vtc_loss(*normal, scale, related(alone, "masked")), vtc_loss(*normal, scale))
