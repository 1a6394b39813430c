"""The step benchmark compares what it says it compares."""

import argparse

import pytest
import torch

from benchmarks.step import WAYS, Choices, Literal, make_batch, make_step, measure
from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.negatives import Negatives
from tests.literal import Sides, twin_of

OPTIONS = argparse.Namespace(
    device="cpu", backbone="newsroom-tiny", batch=5, steps=1, warmup=1, caption_tokens=9
)


def test_the_literal_way_has_the_loss_of_ours_and_of_the_textbook():
    torch.manual_seed(0)
    config = EntityCLIPConfig(2, 2, 2)
    ours = EntityCLIP(create_backbone("newsroom-tiny"), config)
    literal = Literal(ours.backbone, config)
    twin = literal.experts = twin_of(ours.mmae, ours.matching, config)
    batch = make_batch(OPTIONS, ours.backbone, Choices("fp32"))
    torch.manual_seed(7)
    found = ours.losses(ours(**batch))["loss"]
    torch.manual_seed(7)  # the same negatives are drawn
    given = literal(**batch)
    torch.testing.assert_close(found, given, atol=1e-5, rtol=1e-5)

    image = ours.backbone.image_tokens(batch["images"])
    text, explanation = ours.backbone.texts_tokens(
        batch["captions"], batch["explanations"], trim=False
    )
    rows = torch.arange(5)
    negatives = Negatives(rows.roll(1), rows.roll(2), rows < 4)
    unit = [torch.nn.functional.normalize(side.pooled, dim=-1) for side in (image, text)]
    scale = torch.tensor(7.0)
    mine = literal.loss(image, text, explanation, negatives, unit, scale)
    sides = Sides.of(image, text, explanation)
    torch.testing.assert_close(mine, twin(sides, scale, *negatives)["loss"])


def test_texts_have_the_length_asked_for():
    backbone = create_backbone("newsroom-tiny")
    batch = make_batch(OPTIONS, backbone, Choices("fp32"))
    assert backbone.eot(batch["captions"]).tolist() == [8] * 5
    assert backbone.eot(batch["explanations"]).tolist() == [63] * 5


@pytest.mark.parametrize("way", WAYS)
def test_each_way_trains_all_it_has(way):
    step, model = make_step(way, OPTIONS, Choices("fp32"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    step()
    still = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    # softmax ignores a key's bias, and so does the loss
    assert {name for name in still if "in_proj_bias" not in name} == set()


def test_explanations_cost_something_and_nothing_is_left_behind():
    names = {way: len(dict(make_step(way, OPTIONS, Choices("fp32"))[1].named_parameters()))
             for way in WAYS}  # fmt: skip
    assert names["clip"] == names["explanations"] < min(names["entityclip"], names["literal"])
    for way in WAYS:
        found = measure(way, OPTIONS, Choices("bf16", fused=False, channels_last=True))
        assert found.seconds > 0
