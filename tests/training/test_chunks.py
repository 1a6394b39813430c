"""Gradients through chunks equal those through the whole batch, and hold a chunk's activations."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from entityclip.config import AsCLConfig, as_dict
from entityclip.models import entityclip as module
from entityclip.models.ascl import AsCL
from entityclip.training.loop import train
from entityclip.training.processes import TrainingError
from tests.training_setup import CONFIG, NO_EXPERTS, first_gradients, make_model, make_sets

MODELS = {
    "everything": {"bridge": 1.0, "crossed": True},
    "clip": NO_EXPERTS,
    "reference_compat": {"reference_compat": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_the_whole_batch(name, tmp_path):
    expected = first_gradients(tmp_path, MODELS[name], {})
    for chunk in (1, 3, 50):  # of 7 rows: ones, an uneven last, more than there are
        found = first_gradients(tmp_path, MODELS[name], {"chunk": chunk})
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-11, rtol=1e-9, msg=key)


@pytest.mark.parametrize("kept", [False, True], ids=["checkpointed", "as it would be without"])
def test_only_one_chunk_is_held_at_a_time(kept, monkeypatch):
    """What a chunk's tower computed is gone before the next chunk's is there, both ways."""
    if kept:
        monkeypatch.setattr(module, "checkpoint", lambda encode, *rows, **_: encode(*rows))
    model, data = make_model(), make_sets()[0]
    outputs, seen = [], []

    def watch(_module, _inputs, output):
        seen.append((len(output), sum(earlier() is not None for earlier in outputs)))
        outputs.append(weakref.ref(output))

    model.backbone.clip.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(watch)
    batch = data.collate([data[i] for i in range(7)])
    model.losses(model(**batch.inputs(), chunk=3))["loss"].backward()
    if kept:
        assert seen == [(3, 0), (3, 1), (1, 2)]
    else:
        assert seen == [(n, 0) for n in (3, 3, 1, 1, 3, 3)]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_a_run_in_chunks_is_the_run_without_and_says_so(precision, tolerance, tmp_path):
    plain = replace(CONFIG, accumulate=2, precision=precision)
    chunked = replace(plain, chunk=3)
    results = [
        train(make_model(), *make_sets(), config, tmp_path / str(config.chunk), progress=False)
        for config in (plain, chunked)
    ]
    assert results[0].best_val_loss == pytest.approx(results[1].best_val_loss, abs=tolerance)
    assert as_dict(chunked)["chunk"] == 3
    assert "chunk" not in as_dict(plain)


def test_towers_that_draw_draw_the_same_again():
    """Dropped patches: the gradient is that of what was seen going forward."""
    gradients = []
    for chunk in (None, 7):
        model, data = make_model(bridge=1.0), make_sets()[0]
        model.backbone.clip.visual.patch_dropout = torch.nn.Dropout(0.3)
        batch = data.collate([data[i] for i in range(7)])
        torch.manual_seed(0)
        terms = model.train().losses(model(**batch.inputs(), chunk=chunk))
        terms["loss"].backward()
        gradients.append([p.grad for p in model.parameters()] + [terms["loss"].detach()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_models_that_compare_within_their_forward_pass_are_refused(tmp_path):
    model = AsCL(make_model().backbone, AsCLConfig())
    with pytest.raises(TrainingError, match=r"AsCL .* chunk=3; use one process without chunk"):
        train(model, *make_sets(), replace(CONFIG, chunk=3), tmp_path, progress=False)
