"""A run that is killed and resumed ends as if nothing had happened (the long form: tests/soak)."""

from __future__ import annotations

from dataclasses import replace

import open_clip

from entityclip.training.loop import train
from entityclip.training.run_folder import _set_aside
from tests import SHIPPED
from tests.killing import ANY, BETWEEN, WRITING, Killer, differences_between
from tests.processes import start
from tests.training_setup import CONFIG, make_model, make_sets

EVERY_STEP = replace(CONFIG, epochs=4, checkpoint_every=1, keep=2)


def train_in_a_process(folder):
    open_clip.add_model_config(SHIPPED)  # larger: it takes long enough to write to be killed then
    train(make_model(), *make_sets(), EVERY_STEP, folder, progress=False)


def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    def begin(name):
        return start(train_in_a_process, tmp_path / name, log=str(tmp_path / "output"))

    killer = Killer(tmp_path / "killed", lambda: begin("killed"), seed=1)
    torn = f"{WRITING}, half of it there"
    for _ in range(5):
        assert killer.kill(WRITING), (tmp_path / "output").read_text()
        if killer.done[torn]:  # else the write was over before the signal came
            break
    assert killer.done[torn]
    assert killer.kill(BETWEEN)
    killer.kill(ANY)
    killer.finish()
    whole = begin("whole")
    whole.join()
    assert whole.exitcode == 0, (tmp_path / "output").read_text()
    assert differences_between(tmp_path / "whole", tmp_path / "killed") == []


def test_a_checkpoint_set_aside_twice_leaves_no_third_name(tmp_path):
    """As after a kill between that and the next checkpoint: both names are one file by then."""
    last, kept = tmp_path / "last.safetensors", tmp_path / "step-000000002.safetensors"
    last.write_bytes(b"weights")
    for _ in range(2):
        _set_aside(last, kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [last.name, kept.name]
    assert kept.read_bytes() == b"weights"


def test_a_difference_would_be_seen(tmp_path):
    for name, config in (("a", EVERY_STEP), ("b", replace(EVERY_STEP, lr=1.001e-3))):
        train(make_model(image_experts=0, text_experts=0, explanation_experts=0), *make_sets(),
              replace(config, epochs=1), tmp_path / name, progress=False)  # fmt: skip
    found = differences_between(tmp_path / "a", tmp_path / "b")
    assert {"log.jsonl", "run.json"} < set(found)
    assert any("model.backbone.clip" in name for name in found)
