"""Every variant's forward pass and losses on a pretended GPU: torch knows devices and shapes.

An operation on tensors of two devices is refused, and so is whatever must know a GPU tensor's
values, which on a real one waits for all that was queued. (A backward pass needs a real one.)
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from entityclip import identities
from entityclip.config import EntityCLIPConfig, ITRConfig, load_profile
from entityclip.datasets.dataset import Batch
from entityclip.models.ascl import AsCL
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.itr import ITRModel
from entityclip.variants import VARIANTS

ROWS = 4


@pytest.fixture(scope="module")
def gpu():
    """A pretended GPU: batch, backbone and all else made under it lie there."""
    tokenize = create_backbone("newsroom-tiny").tokenize
    captions, explanations = (
        tokenize([f"{word} number {i} of " + "Ghana " * i for i in range(ROWS)])
        for word in ("caption", "explanation")
    )
    pictures = torch.zeros(ROWS, 3, 64, 64)
    sides = {"images": pictures, "captions": captions, "explanations": explanations,
             "image_keys": torch.arange(ROWS), "others": explanations}  # fmt: skip
    with FakeTensorMode() as mode:
        there = {name: mode.from_tensor(side).to("cuda") for name, side in sides.items()}
    return mode, there


def on_gpu(model, mode):
    """The model with its weights and buffers there; ``Module.to`` cannot move pretended ones."""

    def there(tensor):
        pretended = mode.from_tensor(tensor.detach())
        with mode:
            return pretended.to("cuda")

    for module in model.modules():
        for name, tensor in [*module.named_buffers(recurse=False)]:
            module._buffers[name] = there(tensor)
        for name, weight in [*module.named_parameters(recurse=False)]:
            module._parameters[name] = nn.Parameter(there(weight))
    return model


def stay(terms):
    """Losses on the GPU, each; `loss` a number that has a gradient."""
    assert {term.device.type for term in terms.values()} == {"cuda"}
    assert terms["loss"].shape == ()
    assert terms["loss"].requires_grad


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.finetuned])
def test_a_forward_pass_stays_on_the_gpu(name, gpu):
    mode, batch = gpu
    settings, spec = load_profile("demo").settings, VARIANTS[name]
    config = identities.model_config(settings, name)
    kind = AsCL if spec.method == "ascl" else EntityCLIP
    model = on_gpu(kind(create_backbone("newsroom-tiny"), config), mode).train()
    with mode:
        inputs = {k: v for k, v in batch.items() if k != "others" or model.needs_others}
        if not model.needs_explanations:
            del inputs["explanations"]
        stay(model.losses(model(**inputs, lengths=[20, 20])))


@pytest.mark.parametrize("tasks", [("cluster_image",), ("cluster_generated", "contrast")])
def test_itr_stays_on_the_gpu(tasks, gpu):
    mode, batch = gpu
    config = ITRConfig(tasks=tasks, subset=64, clusters=2)
    model = on_gpu(ITRModel(create_backbone("newsroom-tiny"), config), mode)
    with mode:
        fields = {k: v for k, v in batch.items() if k != "others"}
        rows = Batch(**fields, ids=[""] * ROWS, groups=[None] * ROWS, lengths=[20, 20])
        sides = model.encode(rows, generated=config.needs_generated)
        labels = {task: batch["image_keys"] % 2 for task in config.clustering}
        stay(model.losses(sides, labels))


def test_what_waits_or_mixes_devices_would_be_seen(gpu):
    mode, batch = gpu
    model = on_gpu(EntityCLIP(create_backbone("newsroom-tiny"), EntityCLIPConfig()), mode)
    with mode:
        with pytest.raises(DataDependentOutputException):
            int(batch["captions"].max())
        with pytest.raises(DynamicOutputShapeException):
            batch["captions"].nonzero()
        with pytest.raises(RuntimeError, match="device"):
            batch["images"] + torch.zeros(ROWS, 3, 64, 64)
        inputs = {name: side for name, side in batch.items() if name != "others"}
        with pytest.raises(DataDependentOutputException):  # texts whose lengths are not told
            model(**inputs)
