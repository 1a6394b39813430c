"""The objective equals its literal twin, every loss term and every gradient; the whole model.

Shapes, options, refusals, on given tokens and on pictures and texts.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch

from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import Tokens, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.experts import ExpertGroup
from entityclip.models.losses import itm_accuracy, itm_loss, vtc_loss
from entityclip.models.negatives import Negatives
from tests.literal import Sides, groups, linears, stacked, twin_of
from tests.training_setup import NO_EXPERTS

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
    options = {"dtype": dtype, "requires_grad": True}
    leaves = {k: torch.randn(batch, n, WIDTH, **options) for k, n in lengths.items()}
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
    # what draws as the authors' code does may draw the pair itself
    shift = torch.randint(0 if config.negatives == "floored" else 1, batch, (2, batch))
    rows = (torch.arange(batch) + shift) % batch
    if config.negatives == "floored":
        rows[:, 0] = 0  # surely once
    negatives = Negatives(rows[0], rows[1], torch.rand(batch) > 0.2)
    return model, leaves, sides, negatives


def both_losses(model, leaves, sides, negatives):
    """Our terms, the literal twin's, the twin, its copies of the tokens and its logit scale."""
    unused = torch.zeros(len(leaves["image"]), 1)
    encoded = model.encode(unused, unused, unused)
    ours = model.losses(model.compare(encoded, unused, negatives=negatives))
    twin = twin_of(model.mmae, model.matching, model.config).to(leaves["image"].dtype)
    copies = {k: v.detach().clone().requires_grad_() for k, v in leaves.items()}
    padding = [None if model.config.sees_padding else ~side.valid for side in sides]
    given = Sides(
        copies["image"], copies["text"], padding[1], sides[1].at,
        copies["explanation"], padding[2],
    )  # fmt: skip
    scale = model.backbone.clip.logit_scale.detach().clone().requires_grad_()
    pooled = copies["explanation"][torch.arange(len(unused)), sides[2].at]
    theirs = twin(given, scale.exp(), *negatives, pooled)
    return ours, theirs, twin, copies, scale


CASES = [  # batch, (image, text, explanation), heads, compat
    (5, (4, 4, 4), 1, False), (2, (2, 2, 2), 1, False), (7, (3, 1, 2), 4, False),
    (5, (0, 2, 2), 2, False), (5, (2, 0, 2), 1, False), (5, (2, 3, 0), 1, False),
    (3, (0, 0, 2), 1, False), (3, (2, 0, 0), 1, False), (3, (0, 2, 0), 3, False),
    (5, (4, 4, 4), 1, True), (2, (1, 2, 3), 2, True), (4, (2, 2, 0), 1, True),
    (3, (16, 1, 16), 1, False),
]  # fmt: skip
ABLATIONS = [
    {"matching": "mean"},
    {"matching": "none"},
    {"negative_explanation": "positive"},
    {"negative_explanation": "positive", "reference_compat": True},
    {"shared_explanation_experts": False},
    {"shared_explanation_experts": False, "reference_compat": True, "heads": 2},
    {"shared_explanation_experts": False, "negative_explanation": "positive"},
    {"mask_padding": False},
    {"negatives": "floored"},
    {"bridge": 0.7},
    {"bridge": 0.7},
    {"context": 0.6},
    {"bridge": 0.7, "context": 0.6, "matching": "none"},
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
    config = EntityCLIPConfig(**dict(zip(NO_EXPERTS, (2, 1, 3), strict=True)) | overrides)
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
    for ours_gate, theirs_gate in linears(model.mmae, model.matching, twin):
        close(ours_gate.weight.grad, theirs_gate.weight.grad, "gate")
        close(ours_gate.bias.grad, theirs_gate.bias.grad, "gate bias")
    for name, group, experts in groups(model.mmae, twin):
        expected = [stacked(expert, lambda p: p.grad) for expert in experts]
        for key in expected[0]:
            gradient = torch.stack([one[key] for one in expected])
            close(getattr(group, key).grad, gradient, f"{name}.{key}")


def test_the_twin_notices_a_change():
    """Guards the comparison itself: whatever an option changes must show."""
    changes = [("itm", {"matching": "mean"}), ("itm", {"negative_explanation": "positive"}),
               ("vtc_moe", {"mask_padding": False}), ("vtc_moe", {"crossed": True})]  # fmt: skip
    for term, option in changes:
        case = make_case(5, EntityCLIPConfig(2, 2, 2), torch.float64)
        ours = both_losses(*case)[0]
        case[0].config = case[0].mmae.config = EntityCLIPConfig(2, 2, 2, **option)
        theirs = both_losses(*case)[1]
        assert (ours[term] - theirs[term]).abs() > 1e-6, option


# -------------------------------------------------------------------- on pictures and texts


@pytest.fixture(scope="module")
def batch(backbone):
    texts = ("caption number {} of Ghana", "Ghana lies by the sea and {} more words")
    sides = (backbone.tokenize([text.format(i) for i in range(5)]) for text in texts)
    return torch.randn(5, 3, 64, 64), *sides


@pytest.mark.parametrize(
    "counts", [(4, 4, 4), (0, 0, 0), (1, 0, 0), (0, 3, 0), (0, 0, 2), (16, 1, 5)]
)
def test_terms_and_gradients_of_every_grouping(backbone, batch, counts):
    config = EntityCLIPConfig(*counts, heads=4)
    model = EntityCLIP(copy.deepcopy(backbone), config)
    terms = model.losses(model(*batch))
    expected = {"loss", "vtc"} | ({"vtc_moe", "itm", "itm_accuracy"} if sum(counts) else set())
    assert set(terms) == expected
    terms["loss"].backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (NO_EXPERTS | {"name_views": 0.5}, "name_views needs explanation_experts, a bridge"),
        ({"name_views": 1.1}, "name_views\n.* less than or equal to 1"),
        ({"views_of": "verbs"}, "views_of"),
    ],
)
def test_impossible_settings_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        EntityCLIPConfig(**change)


def test_without_experts_the_loss_is_clips(backbone, batch):
    model = EntityCLIP(backbone, EntityCLIPConfig(0, 0, 0))
    images, captions, _ = batch
    ours, clip = model.losses(model(images, captions))["loss"], backbone.clip
    sides = clip.encode_image(images, normalize=True), clip.encode_text(captions, normalize=True)
    torch.testing.assert_close(ours, vtc_loss(*sides, clip.logit_scale.exp()))


def test_inference_does_not_depend_on_the_experts(backbone, batch):
    plain, full = (EntityCLIP(backbone, EntityCLIPConfig(n, n, n)) for n in (0, 4))
    with torch.no_grad():
        assert torch.equal(plain.encode_image(batch[0]), full.encode_image(batch[0]))
        assert torch.equal(plain.encode_text(batch[1]), full.encode_text(batch[1]))


def test_batches_it_cannot_train_on_are_refused(backbone, batch):
    model = EntityCLIP(backbone, EntityCLIPConfig(1, 1, 1))
    for size in (0, 1):
        with pytest.raises(ValueError, match=f"a batch of {size}"):
            model(*(part[:size] for part in batch))
    with pytest.raises(ValueError, match="trains on explanations"):
        model(*batch[:2])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=5 does not divide"):
        ExpertGroup(2, 96, heads=5)


def test_hand_computed_losses():
    # both picture rows equally near both texts: log 2 each way
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert vtc_loss(same, same, torch.tensor(5.0)).item() == pytest.approx(math.log(2), abs=1e-6)
    # pairs apart and scale 10: log(1 + e^-10)
    apart = torch.eye(2)
    assert vtc_loss(apart, apart, torch.tensor(10.0)).item() == pytest.approx(
        math.log1p(math.exp(-10)), abs=1e-7
    )


def test_pairs_without_negative_count_in_the_first_term_only():
    logits = torch.tensor(
        [[[0.0, 2.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 9.0]], [[2.0, 0.0], [0.0, 9.0]]]
    )
    valid = torch.tensor([True, False])
    each = -torch.tensor([0.0, 2.0]).log_softmax(-1)[1]
    assert itm_loss(logits, valid).item() == pytest.approx(each.item(), abs=1e-6)
    assert itm_accuracy(logits, valid).item() == 1.0
    nothing = itm_loss(logits, torch.tensor([False, False]))
    assert nothing.item() == pytest.approx(each.item() / 3, abs=1e-6)


def test_bf16_autocast_keeps_losses_in_fp32(backbone, batch):
    model = EntityCLIP(backbone, EntityCLIPConfig(2, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.losses(model(*batch))
    assert terms["loss"].dtype == torch.float32
    assert torch.isfinite(terms["loss"])


@pytest.mark.parametrize(
    "config",
    [{}, {"bridge": 1.0, "crossed": True}, {"negatives": "uniform"}, {"reference_compat": True}],
)
def test_a_step_asks_no_tensor_for_its_value(config):
    """On a GPU that would make the host wait; meta tensors have no values to ask for."""
    model = EntityCLIP(create_backbone("newsroom-tiny"), EntityCLIPConfig(**config))
    captions = torch.randint(1, 99, (4, model.backbone.clip.context_length))
    lengths = model.text_lengths(captions, captions)  # on the CPU, before the batch is sent
    batch = torch.empty(4, 3, 64, 64), captions, captions, torch.arange(4)
    model, batch = model.to("meta"), [x.to("meta") for x in batch]
    model.losses(model(*batch, lengths=lengths))["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP waits for each of them
    with pytest.raises(RuntimeError, match="meta"):
        model(*batch)  # what asks how long the texts are
