"""A run watched in TensorBoard: what is shown, once a step, and a run that is the same."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from entityclip.__main__ import main
from entityclip.console import Refused
from entityclip.training import tracking
from entityclip.training.loop import _Trainer, train
from entityclip.training.tracking import Tracking, refuse_missing
from tests.killing import differences_between
from tests.training_setup import CONFIG, Interrupted, make_model, make_sets


@pytest.fixture(scope="module")
def sets():
    return make_sets()


def shown(folder):
    """The scalars of all event files below a folder, steps by name, as TensorBoard shows them."""
    found = EventAccumulator(
        str(next(folder.rglob("events.out.*")).parent), purge_orphaned_data=True
    )
    found.Reload()
    return {name: [event.step for event in found.Scalars(name)]
            for name in found.Tags()["scalars"]}  # fmt: skip


def watching(folder):
    return Tracking(("tensorboard",), folder, lambda model: {"R@1/text_to_image": 50.0})


def test_a_watched_run_is_the_same_and_shows_each_step_once(sets, tmp_path, monkeypatch):
    train(make_model(), *sets, CONFIG, tmp_path / "plain", progress=False)
    config, go_on = replace(CONFIG, checkpoint_every=2), _Trainer._step
    train(make_model(), *sets, config, tmp_path / "plain2", progress=False)
    calls = []

    def dies(trainer, batch):
        calls.append(trainer.step)
        if len(calls) == 6:
            raise Interrupted
        return go_on(trainer, batch)

    monkeypatch.setattr(_Trainer, "_step", dies)
    arguments = (*sets, config, tmp_path / "watched")
    with pytest.raises(Interrupted):
        train(make_model(), *arguments, progress=False, tracking=watching(tmp_path / "shown"))
    train(make_model(), *arguments, progress=False, tracking=watching(tmp_path / "shown"))
    assert differences_between(tmp_path / "plain2", tmp_path / "watched") == []
    found = shown(tmp_path / "shown")
    assert found["training/loss"] == [1, 2, 3, 4, 5, 6]
    assert {"training/lr", "training/logit_scale", "training/vtc"} <= found.keys()
    assert found["validation/val_loss"] == found["validation/val_R@1/text_to_image"] == [3, 6]


def test_a_tracker_that_is_missing_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    command = ["train", "--profile", "smoke", "--track", "tensorboard"]
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert main(command) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "tensorboard: it is not installed; pip install 'entityclip[track]'" in line
    with pytest.raises(Refused, match="there are tensorboard, wandb"):
        refuse_missing(("mlflow",))
    assert not [*tmp_path.rglob("*.safetensors")]


def test_the_command_shows_recall_at_each_validation(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    small = ["train_pairs=16", "val_pairs=8", "test_pairs=8", "test_splits=[test]",
             "pretraining.pairs=16", "pretraining.eval_pairs=8", "finetuning.epochs=2",
             "pretraining.train.batch_size=8", "finetuning.batch_size=8"]  # fmt: skip
    words = ["train", "--profile", "smoke", "--variant", "clip", "--track", "tensorboard"]
    assert main([*words, "--set", *small]) == 0
    (folder,) = re.findall(r"^watched: (.*)$", capsys.readouterr().out, re.MULTILINE)
    found = shown(tmp_path / folder)
    assert found["validation/val_R@10/image_to_text"] == [2, 4]
