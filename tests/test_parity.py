"""The fast objective equals its literal twin: every loss term, every gradient."""

from __future__ import annotations

import pytest
import torch

from entityclip.backbone import Tokens
from entityclip.losses import entityclip_loss
from entityclip.matching import GatedMatching, Negatives
from entityclip.mmae import MMAE
from entityclip.model import EntityCLIP
from tests.literal import LiteralEntityCLIP, Sides, load_experts, stacked_gradients

WIDTH = 24


class Fixed(torch.nn.Module):
    """Stands in for the backbone: hands out given tokens, so that only our part is compared."""

    def __init__(self, sides: list[Tokens], logit_scale: torch.Tensor):
        super().__init__()
        self.sides = sides
        self.clip = torch.nn.Module()
        self.clip.logit_scale = torch.nn.Parameter(logit_scale.log())

    def image_tokens(self, _images):
        return self.sides[0]

    def text_tokens(self, _text, *, trim=True):
        return self.sides[1]

    def texts_tokens(self, _captions, _explanations, *, trim=True):
        return self.sides[1:]


def make_case(batch, counts, heads, compat, dtype, seed=0):
    """A model with random weights (biases and LayerNorms too), tokens and forced negatives."""
    torch.manual_seed(seed)
    lengths = {"image": 10, "text": 9, "explanation": 13}
    leaves = {
        k: torch.randn(batch, n, WIDTH, dtype=dtype, requires_grad=True) for k, n in lengths.items()
    }
    eots = {k: torch.randint(2, n, (batch,)) for k, n in lengths.items()}
    eots["image"] = torch.zeros(batch, dtype=torch.long)
    sides = []
    for kind, tokens in leaves.items():
        valid = torch.arange(lengths[kind]) <= eots[kind][:, None]
        valid = torch.ones_like(valid) if kind == "image" else valid
        sides.append(Tokens(tokens[torch.arange(batch), eots[kind]], tokens, valid, eots[kind]))
    mmae = MMAE(WIDTH, *counts, heads=heads)
    matching = GatedMatching(WIDTH, counts[0] + counts[1] + 2 * counts[2])
    for parameter in (*mmae.parameters(), *matching.parameters()):
        parameter.data = torch.randn_like(parameter) * 0.3
    config = type("Config", (), {"explanation_experts": counts[2], "reference_compat": compat})()
    model = EntityCLIP.__new__(EntityCLIP)
    torch.nn.Module.__init__(model)
    model.backbone = Fixed(sides, torch.tensor(7.0, dtype=dtype))
    model.config, model.mmae, model.matching = config, mmae, matching
    model.to(dtype)
    shift = torch.randint(1, batch, (2, batch))
    rows = (torch.arange(batch) + shift) % batch
    negatives = Negatives(rows[0], rows[1], torch.rand(batch) > 0.2)
    return model, leaves, sides, negatives


def literal_twin(model, counts, heads, leaves, sides, compat):
    twin = LiteralEntityCLIP(WIDTH, *counts, heads).to(leaves["image"].dtype)
    for name in ("image", "text", "explanation"):
        load_experts(getattr(twin, name), getattr(model.mmae, name))
    for ours, theirs in gates(model, twin):
        theirs.load_state_dict(ours.state_dict())
    copies = {k: v.detach().clone().requires_grad_() for k, v in leaves.items()}
    hide = (lambda s: None) if compat else (lambda s: ~s.valid)
    return twin, copies, Sides(
        copies["image"], copies["text"], hide(sides[1]), sides[1].at,
        copies["explanation"], hide(sides[2]),
    )  # fmt: skip


def gates(model, twin):
    pairs = [(model.matching.gate.linear, twin.fusion_gate), (model.matching.head, twin.head)]
    for name in ("image_gate", "text_gate"):
        if getattr(model.mmae, name) is not None:
            pairs.append((getattr(model.mmae, name).linear, getattr(twin, name)))
    return pairs


CASES = [
    # batch, (image, text, explanation), heads, compat
    (5, (4, 4, 4), 1, False),
    (2, (2, 2, 2), 1, False),
    (7, (3, 1, 2), 4, False),
    (5, (0, 2, 2), 2, False),
    (5, (2, 0, 2), 1, False),
    (5, (2, 3, 0), 1, False),
    (3, (0, 0, 2), 1, False),
    (3, (2, 0, 0), 1, False),
    (3, (0, 2, 0), 3, False),
    (5, (4, 4, 4), 1, True),
    (2, (1, 2, 3), 2, True),
    (4, (2, 2, 0), 1, True),
    (3, (16, 1, 16), 1, False),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("batch", "counts", "heads", "compat"), CASES)
def test_loss_and_every_gradient_equal_the_literal_form(
    batch, counts, heads, compat, dtype, tolerance
):
    model, leaves, sides, negatives = make_case(batch, counts, heads, compat, dtype)
    unused = torch.zeros(batch, 1)
    ours = entityclip_loss(model(unused, unused, unused, negatives=negatives), 0.1, 0.1)
    ours["loss"].backward()

    twin, copies, sides = literal_twin(model, counts, heads, leaves, sides, compat)
    scale = model.backbone.clip.logit_scale.detach().clone().requires_grad_()
    theirs = twin(sides, scale.exp(), *negatives, 0.1, 0.1, compat)
    theirs["loss"].backward()

    def close(a, b, what):
        # relative to the tensor's size: fp32 rounding grows with it
        error = (a - b).abs().max() / b.abs().max().clamp_min(1.0)
        assert error <= tolerance, f"{what}: {error:.2e}"

    for name, value in theirs.items():
        close(ours[name], value, name)
    close(model.backbone.clip.logit_scale.grad, scale.grad, "logit_scale")
    for kind, leaf in leaves.items():
        if kind == "explanation" and not counts[2]:
            assert leaf.grad is None
        else:
            close(leaf.grad, copies[kind].grad, f"gradient of {kind} tokens")
    for ours_gate, theirs_gate in gates(model, twin):
        close(ours_gate.weight.grad, theirs_gate.weight.grad, "gate")
        close(ours_gate.bias.grad, theirs_gate.bias.grad, "gate bias")
    for count, name in zip(counts, ("image", "text", "explanation"), strict=True):
        if count:
            group = getattr(model.mmae, name)
            for key, gradient in stacked_gradients(getattr(twin, name)).items():
                close(getattr(group, key).grad, gradient, f"{name}.{key}")


def test_the_twin_notices_a_change():
    """Guards the comparison itself: a wrong mask or EOT must show."""
    model, leaves, sides, negatives = make_case(5, (2, 2, 2), 1, False, torch.float64)
    unused = torch.zeros(5, 1)
    ours = entityclip_loss(model(unused, unused, unused, negatives=negatives), 0.1, 0.1)
    twin, _, masked = literal_twin(model, (2, 2, 2), 1, leaves, sides, compat=False)
    scale = torch.tensor(7.0, dtype=torch.float64)
    other_eot = twin(masked, scale, *negatives, 0.1, 0.1, True)
    assert (ours["itm"] - other_eot["itm"]).abs() > 1e-6
    _, _, unmasked = literal_twin(model, (2, 2, 2), 1, leaves, sides, compat=True)
    attends_padding = twin(unmasked, scale, *negatives, 0.1, 0.1, False)
    assert (ours["vtc_moe"] - attends_padding["vtc_moe"]).abs() > 1e-6


def test_padding_never_reaches_the_loss():
    """What stands after EOT, in caption or explanation, changes nothing."""
    model, _, sides, negatives = make_case(5, (2, 2, 2), 1, False, torch.float64)
    unused = torch.zeros(5, 1)
    before = entityclip_loss(model(unused, unused, unused, negatives=negatives), 0.1, 0.1)["loss"]
    with torch.no_grad():
        for side in sides[1:]:
            side.tokens[~side.valid] += 100.0
    after = entityclip_loss(model(unused, unused, unused, negatives=negatives), 0.1, 0.1)["loss"]
    assert torch.equal(before, after)
