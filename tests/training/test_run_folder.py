"""Runs on disk: which may go on from what, damage, full disks, kills (the long form: tests/soak).

A run that is killed and resumed ends as if nothing had happened.
"""

from __future__ import annotations

import copy
import resource
import signal
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from entityclip.checkpoints import CheckpointError, read_meta, read_tensors, write_checkpoint
from entityclip.training.loop import train
from entityclip.training.run_folder import _set_aside
from tests import SHIPPED
from tests.killing import ANY, BETWEEN, WRITING, Killer, differences_between
from tests.processes import start
from tests.training_setup import CONFIG, NO_EXPERTS, make_model, make_sets


@pytest.fixture(scope="module")
def sets():
    return make_sets()


def test_a_checkpoint_of_another_run_is_refused_by_field(sets, tmp_path):
    def go(model=None, sets=sets, data="a", **change):
        config = replace(CONFIG, epochs=1, **change)
        train(model or make_model(), *sets, config, tmp_path, identity={"data": data},
              progress=False)  # fmt: skip

    go()
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="data: 'a' there, 'b' here"):
        go(data="b")
    with pytest.raises(CheckpointError, match=r"\(train.lr: 0.001 there, 0.002 here\)"):
        go(lr=2e-3)
    # what the caller did not name: the model and the pairs
    with pytest.raises(CheckpointError, match=r"\(model.bridge: 0.0 there, 1.0 here\)"):
        go(make_model(bridge=1.0))
    fewer = copy.copy(sets[0])
    fewer.pairs = sets[0].pairs[:23]
    with pytest.raises(CheckpointError, match=r"train_data: '24 .* there, '23 .* here"):
        go(sets=[fewer, sets[1]])
    assert (tmp_path / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_corrupt_checkpoint_is_named_and_left_alone(sets, tmp_path, damage):
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, {"model.x": torch.zeros(100)}, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "garbage": b"x" * 99, "empty": b""}[damage]
    )
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
        train(make_model(), *sets, CONFIG, tmp_path, progress=False)
    assert path.read_bytes() == before


def test_the_last_k_checkpoints_stay_and_a_damaged_one_is_passed_over(sets, tmp_path, caplog):
    config = replace(CONFIG, checkpoint_every=1, keep=3)
    plain = train(make_model(), *sets, CONFIG, tmp_path / "plain", progress=False).folder
    folder = train(make_model(), *sets, config, tmp_path / "kept", progress=False).folder
    names = ["last.safetensors", "step-000000005.safetensors", "step-000000004.safetensors"]
    there = {path.name for path in folder.glob("*.safetensors")}
    assert there == {"best.safetensors", *names}
    assert [read_meta(folder / name)["step"] for name in names] == [6, 5, 4]
    whole = load_file(folder / "last.safetensors")
    assert all(torch.equal(whole[k], v) for k, v in load_file(plain / "last.safetensors").items())
    # how many are kept is no part of what a run is
    for name in names[:2]:
        (folder / name).unlink()  # `whole` is a view of the file
        (folder / name).write_bytes(b"x")
    resumed = train(make_model(), *sets, replace(config, keep=1), folder, progress=False)
    assert resumed.resumed_from == 4
    assert "last.safetensors is damaged" in caplog.text
    again = load_file(folder / "last.safetensors")
    assert all(torch.equal(again[k], v) for k, v in whole.items())
    assert {path.name for path in folder.glob("*.safetensors")} == {"best.safetensors", names[0]}


def test_what_a_killed_process_was_writing_is_removed(sets, tmp_path):
    config = replace(CONFIG, epochs=1)
    written = (".last.safetensors.7.partial", ".log.jsonl.abc", ".tmpAbc", ".step-000000001.x.p")
    for name in written:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".other").write_bytes(b"mine")
    train(make_model(**NO_EXPERTS), *sets, config, tmp_path, progress=False)
    assert [path.name for path in tmp_path.glob(".*")] == [".other"]


def test_a_write_the_kernel_refuses_keeps_the_last_good_checkpoint(tmp_path):
    """As on a full disk: the process may not write files beyond 64 KiB."""
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, {"x": torch.zeros(10)}, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not write.*File too large.*untouched"):
            write_checkpoint(path, {"x": torch.ones(1_000_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]
    assert read_meta(path) == {"step": 1}
    assert torch.equal(read_tensors(path)["x"], torch.zeros(10))


# -------------------------------------------------------------------------------------------- kills

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
        train(make_model(**NO_EXPERTS), *make_sets(),
              replace(config, epochs=1), tmp_path / name, progress=False)  # fmt: skip
    found = differences_between(tmp_path / "a", tmp_path / "b")
    assert {"log.jsonl", "run.json"} < set(found)
    assert any("model.backbone.clip" in name for name in found)
