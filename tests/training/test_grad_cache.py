"""Gradients through chunks equal those through the whole batch, and hold a chunk's activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from entityclip.config import AsCLConfig, as_dict
from entityclip.models.ascl import AsCL
from entityclip.models.entityclip import EntityCLIP
from entityclip.training.loop import refuse_random_towers, train
from entityclip.training.run_folder import TrainingError
from tests.training_setup import CONFIG, first_gradients, make_model, make_sets

NO_EXPERTS = {"image_experts": 0, "text_experts": 0, "explanation_experts": 0}
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


def test_a_graph_never_spans_more_than_a_chunk(tmp_path, monkeypatch):
    seen = []
    encode = EntityCLIP.encode

    def watched(self, images, *rest, **named):
        seen.append((len(images), torch.is_grad_enabled()))
        return encode(self, images, *rest, **named)

    monkeypatch.setattr(EntityCLIP, "encode", watched)
    first_gradients(tmp_path, {}, {"chunk": 3})
    assert seen == [(n, False) for n in (3, 3, 1)] + [(n, True) for n in (3, 3, 1)]


def test_a_run_in_chunks_is_the_run_without_and_says_so_in_its_identity(tmp_path):
    chunked = replace(CONFIG, chunk=3, accumulate=2)
    results = [
        train(make_model(), *make_sets(), config, tmp_path / str(config.chunk), progress=False)
        for config in (replace(CONFIG, accumulate=2), chunked)
    ]
    assert results[0].best_val_loss == pytest.approx(results[1].best_val_loss, abs=1e-4)
    assert as_dict(chunked)["chunk"] == 3
    assert "chunk" not in as_dict(CONFIG)


def test_towers_that_draw_are_refused(tmp_path):
    model = make_model()
    refuse_random_towers(model.backbone)
    visual = model.backbone.clip.visual
    visual.patch_dropout = torch.nn.Dropout(0.1)
    with pytest.raises(TrainingError, match=r"clip\.visual\.patch_dropout \(Dropout\)"):
        train(model, *make_sets(), replace(CONFIG, chunk=3), tmp_path, progress=False)
    visual.patch_dropout = torch.nn.BatchNorm1d(4)
    with pytest.raises(TrainingError, match="BatchNorm1d"):
        refuse_random_towers(model.backbone)


def test_dropped_explanations_are_refused(tmp_path):
    model = make_model(explanation_dropout=0.5)
    with pytest.raises(TrainingError, match="explanation_dropout would drop others"):
        train(model, *make_sets(), replace(CONFIG, chunk=3), tmp_path, progress=False)


def test_models_that_compare_within_their_forward_pass_are_refused(tmp_path):
    model = AsCL(make_model().backbone, AsCLConfig())
    with pytest.raises(TrainingError, match=r"AsCL .* chunk=3; use one process without chunk"):
        train(model, *make_sets(), replace(CONFIG, chunk=3), tmp_path, progress=False)
