"""The fast objective equals its literal twin: every loss term, every gradient."""

from __future__ import annotations

import pytest
import torch

from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import Tokens
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.negatives import Negatives
from tests.literal import Choices, LiteralEntityCLIP, Sides, load_experts, stacked_gradients

WIDTH = 24


class Fixed(torch.nn.Module):
    """Stands in for the backbone: hands out given tokens, so that only our part is compared."""

    def __init__(self, sides: list[Tokens], logit_scale: torch.Tensor):
        super().__init__()
        self.sides, self.width = sides, WIDTH
        self.clip = torch.nn.Module()
        self.clip.logit_scale = torch.nn.Parameter(logit_scale.log())

    def image_tokens(self, _images):
        return self.sides[0]

    def text_tokens(self, _text, **_):
        return self.sides[1]

    def texts_tokens(self, _captions, _explanations, **_):
        return self.sides[1:]


def make_case(batch, config, dtype, seed=0):
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
    model = EntityCLIP(Fixed(sides, torch.tensor(7.0, dtype=dtype)), config)
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone"):
            parameter.data = torch.randn_like(parameter) * 0.3
    model.to(dtype)
    shift = torch.randint(1, batch, (2, batch))
    rows = (torch.arange(batch) + shift) % batch
    negatives = Negatives(rows[0], rows[1], torch.rand(batch) > 0.2)
    return model, leaves, sides, negatives


def literal_twin(model, leaves, sides):
    c = model.config
    choices = Choices(
        c.lambda_moe, c.eta_itm, c.bridge, c.reference_compat, c.matching, c.negative_explanation,
        c.shared_explanation_experts, c.crossed, c.detach_explanation,
    )  # fmt: skip
    counts = c.image_experts, c.text_experts, c.explanation_experts
    twin = LiteralEntityCLIP(WIDTH, *counts, c.heads, choices).to(leaves["image"].dtype)
    for name in groups(model):
        load_experts(getattr(twin, name), getattr(model.mmae, name))
    for ours, theirs in gates(model, twin):
        theirs.load_state_dict(ours.state_dict())
    copies = {k: v.detach().clone().requires_grad_() for k, v in leaves.items()}
    hide = (lambda s: None) if c.sees_padding else (lambda s: ~s.valid)
    return twin, copies, Sides(
        copies["image"], copies["text"], hide(sides[1]), sides[1].at,
        copies["explanation"], hide(sides[2]),
    )  # fmt: skip


def groups(model):
    names = ("image", "text", "explanation", "explanation_text")
    return [name for name in names if getattr(model.mmae, name) is not None]


def gates(model, twin):
    pairs = []
    if model.matching is not None:
        pairs.append((model.matching.head, twin.head))
        if model.matching.gate is not None:
            pairs.append((model.matching.gate.linear, twin.fusion_gate))
    for name in ("image_gate", "text_gate"):
        if getattr(model.mmae, name) is not None:
            pairs.append((getattr(model.mmae, name).linear, getattr(twin, name)))
    return pairs


def both_losses(model, leaves, sides, negatives):
    """Our terms, the literal twin's, the twin, its copies of the tokens and its logit scale."""
    unused = torch.zeros(len(leaves["image"]), 1)
    encoded = model.encode(unused, unused, unused)
    ours = model.losses(model.compare(encoded, unused, negatives=negatives))
    twin, copies, given = literal_twin(model, leaves, sides)
    scale = model.backbone.clip.logit_scale.detach().clone().requires_grad_()
    pooled = copies["explanation"][torch.arange(len(unused)), sides[2].at]
    theirs = twin(given, scale.exp(), *negatives, pooled)
    return ours, theirs, twin, copies, scale


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


ABLATIONS = [
    {"matching": "mean"},
    {"matching": "none"},
    {"negative_explanation": "positive"},
    {"negative_explanation": "positive", "reference_compat": True},
    {"shared_explanation_experts": False},
    {"shared_explanation_experts": False, "reference_compat": True, "heads": 2},
    {"shared_explanation_experts": False, "negative_explanation": "positive"},
    {"mask_padding": False},
    {"bridge": 0.7},
    {"bridge": 0.7, "detach_explanation": True},
    {"crossed": True},
    {"crossed": True, "image_experts": 0, "bridge": 1.0},
    {"crossed": True, "text_experts": 0, "matching": "none"},
    {"lambda_moe": 1.3, "eta_itm": 0.4},
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("batch", "counts", "heads", "compat"), CASES)
def test_loss_and_every_gradient_equal_the_literal_form(
    batch, counts, heads, compat, dtype, tolerance
):
    config = EntityCLIPConfig(*counts, heads=heads, reference_compat=compat)
    compare(config, batch, dtype, tolerance)


@pytest.mark.parametrize("overrides", ABLATIONS, ids=lambda o: ",".join(o))
def test_every_ablation_equals_its_literal_form(overrides):
    config = EntityCLIPConfig(
        **{"image_experts": 2, "text_experts": 1, "explanation_experts": 3} | overrides
    )
    compare(config, 5, torch.float64, 1e-10)


def compare(config, batch, dtype, tolerance):
    model, leaves, sides, negatives = make_case(batch, config, dtype)
    ours, theirs, twin, copies, scale = both_losses(model, leaves, sides, negatives)
    ours["loss"].backward()
    theirs["loss"].backward()

    def close(a, b, what):
        # relative to the tensor's size: fp32 rounding grows with it
        error = (a - b).abs().max() / b.abs().max().clamp_min(1.0)
        assert error <= tolerance, f"{what}: {error:.2e}"

    assert set(theirs) == set(ours) - {"itm_accuracy"}
    for name, value in theirs.items():
        close(ours[name], value, name)
    close(model.backbone.clip.logit_scale.grad, scale.grad, "logit_scale")
    for kind, leaf in leaves.items():
        if copies[kind].grad is None:
            assert leaf.grad is None
        else:
            close(leaf.grad, copies[kind].grad, f"gradient of {kind} tokens")
    for ours_gate, theirs_gate in gates(model, twin):
        close(ours_gate.weight.grad, theirs_gate.weight.grad, "gate")
        close(ours_gate.bias.grad, theirs_gate.bias.grad, "gate bias")
    for name in groups(model):
        group = getattr(model.mmae, name)
        for key, gradient in stacked_gradients(getattr(twin, name)).items():
            close(getattr(group, key).grad, gradient, f"{name}.{key}")


def test_the_twin_notices_a_change():
    """Guards the comparison itself: whatever an option changes must show."""
    base = {"image_experts": 2, "text_experts": 2, "explanation_experts": 2}
    changes = {
        "itm": [{"matching": "mean"}, {"negative_explanation": "positive"}],
        "vtc_moe": [{"mask_padding": False}, {"crossed": True}],
    }
    for term, options in changes.items():
        for option in options:
            config = EntityCLIPConfig(**base)
            case = make_case(5, config, torch.float64)
            ours = both_losses(*case)[0]
            case[0].config = case[0].mmae.config = EntityCLIPConfig(**base, **option)
            theirs = both_losses(*case)[1]
            assert (ours[term] - theirs[term]).abs() > 1e-6, option


def test_detaching_the_explanation_stops_exactly_its_gradient():
    grads = []
    for detach in (False, True):
        config = EntityCLIPConfig(2, 2, 2, detach_explanation=detach)
        model, leaves, sides, negatives = make_case(5, config, torch.float64)
        both_losses(model, leaves, sides, negatives)[0]["loss"].backward()
        grads.append([leaves[kind].grad for kind in ("image", "text", "explanation")])
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    assert grads[0][2].abs().max() > 0
    assert grads[1][2] is None


def test_padding_never_reaches_the_loss():
    """What stands after EOT, in caption or explanation, changes nothing."""
    model, leaves, sides, negatives = make_case(5, EntityCLIPConfig(2, 2, 2), torch.float64)
    before = both_losses(model, leaves, sides, negatives)[0]["loss"]
    with torch.no_grad():
        for side in sides[1:]:
            side.tokens[~side.valid] += 100.0
    after = both_losses(model, leaves, sides, negatives)[0]["loss"]
    assert torch.equal(before, after)
