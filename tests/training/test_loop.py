"""Training: what is learned, logged, saved and resumed; what stops it and what stays then."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset

from entityclip.checkpoints import read_meta
from entityclip.config import TrainConfig
from entityclip.training.loop import epoch_batches, learning_rate, make_optimizer, train
from entityclip.training.processes import TrainingError, covering_batches
from tests.killing import differences_between
from tests.training_setup import CONFIG as SMALL
from tests.training_setup import (
    NO_EXPERTS,
    VAL,
    first_gradients,
    make_model,
    make_sets,
    read_log,
    stopped_at,
)

CONFIG = replace(SMALL, batch_size=5)  # 4 steps an epoch, 2 batches of validation


@pytest.fixture(scope="module")
def sets():
    return make_sets()


def test_a_run_learns_logs_and_saves(sets, tmp_path):
    config = replace(CONFIG, epochs=4)
    result = train(make_model(), *sets, config, tmp_path / "run", progress=False)
    rows = read_log(tmp_path / "run")
    steps = [r for r in rows if "loss" in r]
    validations = [r for r in rows if "val_loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 17))
    assert [r["epoch"] for r in validations] == [1, 2, 3, 4]
    assert {"vtc", "vtc_moe", "itm", "itm_accuracy", "lr", "logit_scale"} <= set(steps[0])
    assert sum(r["loss"] for r in steps[-4:]) < sum(r["loss"] for r in steps[:4])
    best = min(validations, key=lambda r: r["val_loss"])
    assert (result.best_epoch, result.best_val_loss) == (best["epoch"], best["val_loss"])
    assert read_meta(result.best)["best"]["val_loss"] == best["val_loss"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 16
    assert record["identity"]["train"]["lr"] == 1e-3
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.safetensors", "last.safetensors", "log.jsonl", "run.json"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "step"),
    [
        (CONFIG, 5),  # within the second epoch: goes on from the end of the first
        (replace(CONFIG, checkpoint_every=1), 6),
        (replace(CONFIG, accumulate=2, checkpoint_every=1), 7),
        (CONFIG, 2),  # before any checkpoint: starts over
    ],
)
def test_an_interrupted_run_ends_as_the_uninterrupted(sets, tmp_path, config, step):
    train(make_model(), *sets, config, tmp_path / "whole", progress=False)
    with stopped_at(step):
        train(make_model(), *sets, config, tmp_path / "parts", progress=False)
    torch.manual_seed(99)  # whatever happens between the two processes
    result = train(make_model(), *sets, config, tmp_path / "parts", progress=False)
    assert (result.resumed_from is not None) == (step > 4)
    assert differences_between(tmp_path / "whole", tmp_path / "parts") == []


def test_accumulation_averages_the_gradients_of_its_passes(sets, tmp_path):
    found = first_gradients(tmp_path, NO_EXPERTS, {}, passes=2)
    model, data = make_model(**NO_EXPERTS).double(), sets[0]
    for rows in epoch_batches(len(data), SMALL.batch_size, SMALL.seed, 0)[:2]:
        batch = data.collate([data[i] for i in rows])
        loss = model.losses(model(batch.images.double(), batch.captions))["loss"]
        (loss / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_schedule_warms_up_then_follows_a_cosine_to_zero():
    config = TrainConfig(lr=1.0, warmup_steps=4)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[54] == pytest.approx(0.5)
    assert rates[104] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(rates[3:]))


def test_epochs_are_shuffled_without_overlap_and_reproducibly():
    batches = epoch_batches(10, 3, seed=1, epoch=0)
    rows = [i for batch in batches for i in batch]
    assert len(batches) == 3
    assert len(set(rows)) == 9
    assert batches == epoch_batches(10, 3, seed=1, epoch=0)
    assert batches != epoch_batches(10, 3, seed=1, epoch=1)
    assert batches != epoch_batches(10, 3, seed=2, epoch=0)


def test_gains_biases_and_logit_scale_are_not_decayed():
    model = make_model()
    decayed, kept = make_optimizer(model, TrainConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    kept_names = {names[id(p)] for p in kept["params"]}
    for name in ("backbone.clip.logit_scale", "mmae.image.ln1_weight", "mmae.image.fc_bias"):
        assert name in kept_names
    assert "mmae.image.fc_weight" not in kept_names
    assert len(names) == len(decayed["params"]) + len(kept["params"])


@pytest.mark.parametrize("limit", [100.0, 20.0, None])
def test_the_logit_scale_is_held_at_its_limit_and_the_log_says_so(sets, tmp_path, caplog, limit):
    model = make_model(**NO_EXPERTS)
    model.backbone.clip.logit_scale.data.fill_(math.log(150.0))
    config = replace(CONFIG, epochs=1, max_logit_scale=limit)
    train(model, *sets, config, tmp_path, progress=False)
    steps = [row for row in read_log(tmp_path) if "loss" in row]
    told = [record for record in caplog.records if "max_logit_scale" in record.message]
    if limit is None:
        assert all(row["logit_scale"] > 140 for row in steps)
        assert not told
        assert not any("logit_scale_held" in row for row in steps)
        return
    assert max(row["logit_scale"] for row in steps) == pytest.approx(limit, rel=1e-5)
    assert steps[0]["logit_scale_held"] is True
    assert len(told) == 1
    assert "step 1:" in told[0].message


def test_a_logit_scale_below_its_limit_is_not_mentioned(sets, tmp_path, caplog):
    train(make_model(**NO_EXPERTS), *sets, replace(CONFIG, epochs=1), tmp_path, progress=False)
    assert "max_logit_scale" not in caplog.text
    assert "held" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("n", "size", "least", "sizes"),
    [
        (10, 4, 2, [4, 4, 2]), (9, 4, 2, [4, 5]), (8, 4, 2, [4, 4]), (3, 4, 2, [3]),
        (5, 2, 2, [2, 3]), (10, 4, 3, [4, 6]), (400, 32, 2, [32] * 12 + [16]), (1, 4, 2, [1]),
    ],
)  # fmt: skip
def test_validation_batches_cover_every_pair_once(n, size, least, sizes):
    batches = covering_batches(n, size, least)
    assert [row for batch in batches for row in batch] == list(range(n))
    assert [len(batch) for batch in batches] == sizes


@pytest.mark.parametrize("by", ["loss", "vtc"])
def test_every_validation_pair_counts_and_the_best_is_what_was_asked_for(sets, tmp_path, by):
    """Each batch's losses, as the model gave them, weigh as much as it has pairs."""
    model, seen = make_model(), []
    losses = model.losses

    def watched(outputs):
        terms = losses(outputs)
        if not model.training:
            seen.append((len(outputs.image), terms["vtc"].item(), terms["loss"].item()))
        return terms

    model.losses = watched
    config = replace(CONFIG, batch_size=4, best_by=by)  # 4, 4 and 2 pairs
    result = train(model, *sets, config, tmp_path, progress=False)
    validations = [row for row in read_log(tmp_path) if "val_loss" in row]
    per_epoch = len(seen) // len(validations)
    for number, row in enumerate(validations):
        here = seen[number * per_epoch : (number + 1) * per_epoch]
        pairs = sum(size for size, *_ in here)
        assert pairs == VAL
        for column, name in ((1, "val_vtc"), (2, "val_loss")):
            mean = sum(one[0] * one[column] for one in here) / pairs
            assert row[name] == pytest.approx(mean, rel=1e-5)
    best = min(validations, key=lambda row: row[f"val_{by}"])
    assert (result.best_epoch, result.best_val_loss) == (best["epoch"], best["val_loss"])


def test_the_best_by_vtc_need_not_be_the_best_by_loss(sets, tmp_path):
    """And compat chooses by VTC, whatever the configuration says."""
    fake = {1: (3.0, 1.0), 2: (2.0, 2.0)}  # epoch -> total loss, VTC
    chosen = {}
    compat = {"reference_compat": True}
    for name, config, options in (
        ("loss", {}, {}), ("vtc", {"best_by": "vtc"}, {}), ("compat", {}, compat),
    ):  # fmt: skip
        model = make_model(**options)
        losses, epochs = model.losses, itertools.count(1)

        def told(outputs, model=model, losses=losses, epochs=epochs):
            terms = losses(outputs)
            if model.training:
                return terms
            loss, vtc = (torch.tensor(x) for x in fake[next(epochs)])
            return terms | {"loss": loss, "vtc": vtc}

        model.losses = told
        training = replace(CONFIG, batch_size=10, **config)  # one batch of validation
        chosen[name] = train(model, *sets, training, tmp_path / name, progress=False).best_epoch
    assert chosen == {"loss": 2, "vtc": 1, "compat": 1}


def test_a_loss_that_is_no_number_names_step_batch_and_checkpoint(sets, tmp_path):
    model, calls = make_model(), itertools.count()
    losses = model.losses

    def poisoned(*given):
        terms = losses(*given)  # 4 steps, 2 batches of validation, 2 steps
        return terms | {"loss": terms["loss"] * float("nan")} if next(calls) == 7 else terms

    model.losses = poisoned
    says = r"loss is nan at step 6.*last\.safetensors of step 4"
    with pytest.raises(TrainingError, match=says) as e:
        train(model, *sets, CONFIG, tmp_path, progress=False)
    wanted = epoch_batches(24, 5, CONFIG.seed, 1)[1]
    assert all(sets[0].pairs[i].id in str(e.value) for i in wanted)
    tensors = load_file(tmp_path / "last.safetensors")
    assert all(torch.isfinite(t.float()).all() for t in tensors.values())


def test_splits_too_small_are_refused(sets, tmp_path, make_dataset):
    with pytest.raises(TrainingError, match="24 training pairs don't fill one batch of 64"):
        train(make_model(), *sets, replace(CONFIG, batch_size=64), tmp_path)
    with pytest.raises(TrainingError, match="1 validation pairs"):
        train(make_model(), sets[0], make_dataset("val", 1), CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"batch_size\n.* equal to 2"):
        replace(CONFIG, batch_size=1)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_different_precision_follow_each_other_in_one_process(sets, tmp_path):
    """As in a notebook; accelerate by itself allows one precision a process."""
    for precision in ("bf16", "fp32"):
        config = replace(CONFIG, epochs=1, precision=precision)
        train(make_model(), *sets, config, tmp_path / precision, progress=False)
    low, full = (load_file(tmp_path / p / "best.safetensors") for p in ("bf16", "fp32"))
    assert all(t.dtype == torch.float32 for t in low.values())
    name = "model.backbone.clip.visual.proj"
    assert not torch.equal(low[name], full[name])
    torch.testing.assert_close(low[name], full[name], atol=0.02, rtol=0)


def test_validation_draws_do_not_disturb_training(sets, tmp_path):
    """One epoch's weights are the same whether or not validation has much to draw."""
    config = replace(CONFIG, epochs=1)
    train(make_model(), *sets, config, tmp_path / "a", progress=False)
    fewer = Subset(sets[1], range(5))
    fewer.collate = sets[1].collate
    train(make_model(), sets[0], fewer, config, tmp_path / "b", progress=False)
    a, b = (load_file(tmp_path / f / "last.safetensors") for f in "ab")
    assert torch.equal(a["rng.cpu"], b["rng.cpu"])
    assert torch.equal(a["model.mmae.image.fc_weight"], b["model.mmae.image.fc_weight"])
