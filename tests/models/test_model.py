"""The whole model on pictures and texts: shapes, options, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.experts import ExpertGroup
from entityclip.models.losses import itm_accuracy, itm_loss, vtc_loss


@pytest.fixture(scope="module")
def batch(backbone):
    captions = backbone.tokenize([f"caption number {i} of Ghana" for i in range(5)])
    explanations = backbone.tokenize(
        [f"Ghana lies by the sea and {i} more words" for i in range(5)]
    )
    return torch.randn(5, 3, 64, 64), captions, explanations


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


def test_dropped_explanations_are_their_captions_and_only_in_training(backbone, batch):
    images, captions, explanations = batch
    config = EntityCLIPConfig(0, 0, 0, bridge=1.0, explanation_dropout=0.5)
    model = EntityCLIP(backbone, config)
    lengths = model.text_lengths(explanations, captions)  # captions are the shorter ones here
    assert lengths[1] == lengths[0] == backbone.longest(explanations)

    torch.manual_seed(0)
    got = model.train()(images, captions, explanations).explanation
    torch.manual_seed(0)
    dropped = torch.rand(5) < 0.5
    assert 0 < dropped.sum() < 5
    plain = model.eval()(images, captions, explanations)
    torch.testing.assert_close(plain.explanation, model.encode_text(explanations))
    expected = torch.where(dropped[:, None], plain.text, plain.explanation)
    torch.testing.assert_close(got, expected)


def test_lambda_goes_linearly_from_its_start_to_its_end(backbone, batch):
    model = EntityCLIP(backbone, EntityCLIPConfig(1, 1, 1, lambda_moe=0.4, lambda_end=0.1))
    outputs = model(*batch)
    at_end = model.losses(outputs)
    for progress, weight in ((0.0, 0.4), (0.5, 0.25), (1.0, 0.1)):
        terms = model.losses(outputs, progress)
        expected = terms["vtc"] + weight * terms["vtc_moe"] + 0.1 * terms["itm"]
        torch.testing.assert_close(terms["loss"], expected)
        torch.testing.assert_close(terms["vtc_moe"], at_end["vtc_moe"])  # unweighted, as all terms
    assert EntityCLIPConfig(lambda_moe=0.1).lambda_at(0.3) == 0.1


@pytest.mark.parametrize("change", [{"lambda_end": -0.1}, {"lambda_end": float("inf")}])
def test_an_impossible_end_of_lambda_is_refused(change):
    with pytest.raises(ValueError, match="lambda_end is"):
        EntityCLIPConfig(**change)
    with pytest.raises(ValueError, match="lambda_end needs experts"):
        EntityCLIPConfig(0, 0, 0, lambda_end=0.1)


def test_an_explanation_dropout_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"explanation_dropout is 1\.0"):
        EntityCLIPConfig(explanation_dropout=1.0)
    with pytest.raises(ValueError, match="needs explanation_experts or a bridge"):
        EntityCLIPConfig(0, 0, 0, explanation_dropout=0.1)


def test_without_experts_the_loss_is_clips(backbone, batch):
    model = EntityCLIP(backbone, EntityCLIPConfig(0, 0, 0))
    images, captions, _ = batch
    ours = model.losses(model(images, captions))["loss"]
    clip = backbone.clip
    expected = vtc_loss(
        clip.encode_image(images, normalize=True),
        clip.encode_text(captions, normalize=True),
        clip.logit_scale.exp(),
    )
    torch.testing.assert_close(ours, expected)


def test_inference_does_not_depend_on_the_experts(backbone, batch):
    plain, full = (EntityCLIP(backbone, EntityCLIPConfig(n, n, n)) for n in (0, 4))
    with torch.no_grad():
        assert torch.equal(plain.encode_image(batch[0]), full.encode_image(batch[0]))
        assert torch.equal(plain.encode_text(batch[1]), full.encode_text(batch[1]))


def test_reference_compat_changes_numbers_only_through_padding_and_eot(backbone, batch):
    losses = []
    for compat in (False, True):
        torch.manual_seed(0)
        model = EntityCLIP(backbone, EntityCLIPConfig(2, 2, 2, reference_compat=compat))
        torch.manual_seed(1)
        losses.append(model.losses(model(*batch)))
    assert losses[0]["vtc"].item() == pytest.approx(losses[1]["vtc"].item(), abs=1e-5)
    assert losses[0]["vtc_moe"] != losses[1]["vtc_moe"]


@pytest.mark.parametrize("size", [0, 1])
def test_batches_too_small_to_contrast_are_refused(backbone, batch, size):
    model = EntityCLIP(backbone, EntityCLIPConfig(1, 1, 1))
    with pytest.raises(ValueError, match=f"a batch of {size}"):
        model(*(part[:size] for part in batch))


def test_missing_explanations_are_refused(backbone, batch):
    model = EntityCLIP(backbone, EntityCLIPConfig(1, 1, 1))
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


@pytest.mark.parametrize("config", [{}, {"bridge": 1.0, "crossed": True}, {"negatives": "uniform"}])
def test_a_step_asks_no_tensor_for_its_value(config):
    """On a GPU that would make the host wait; meta tensors have no values to ask for."""
    model = EntityCLIP(create_backbone("newsroom-tiny"), EntityCLIPConfig(**config))
    captions = torch.randint(1, 99, (4, model.backbone.clip.context_length))
    lengths = model.text_lengths(captions, captions)  # on the CPU, before the batch is sent
    model.to("meta")
    images = torch.empty(4, 3, 64, 64, device="meta")
    captions = captions.to("meta")
    keys = torch.empty(4, dtype=torch.long, device="meta")
    outputs = model(images, captions, captions, keys, lengths=lengths)
    model.losses(outputs)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP waits for each of them
    with pytest.raises(RuntimeError, match="meta"):
        model(images, captions, captions, keys)  # what asks how long the texts are
