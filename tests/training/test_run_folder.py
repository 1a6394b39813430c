"""Runs on disk: which may go on from what, damage, full disks, kills (the long form: tests/soak).

A run that is killed and resumed ends as if nothing had happened.
"""

from __future__ import annotations

import copy
import resource
import shutil
import signal
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from entityclip.checkpoints import CheckpointError, read_meta, read_tensors, write_checkpoint
from entityclip.training.loop import train
from entityclip.training.run_folder import _set_aside, read_record
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


def tampered(path, change):
    """Write a checkpoint anew, its tensors and meta changed in place."""
    tensors, meta = {k: v.clone() for k, v in read_tensors(path).items()}, read_meta(path)
    path.unlink()
    change(tensors, meta)
    write_checkpoint(path, tensors, meta)


def without(part):
    return lambda t, _: [t.pop(name) for name in list(t) if part in name]


def every_second(tensors, _):
    for name in [name for name in tensors if name.startswith("optimizer.")][::2]:
        del tensors[name]


def with_nan(tensors, _):
    tensors["model.backbone.clip.logit_scale"] *= float("nan")


def as_int8(tensors, _):
    name = "model.backbone.clip.text_projection"
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("optimizer."), r"does not fit: it lacks optimizer\.0\.exp_avg, .* and \d+ more"),
        (every_second, r"does not fit: it lacks optimizer\."),
        (
            lambda t, _: t.update({"optimizer.9999.step": torch.zeros(())}),
            "has optimizer.9999.step",
        ),
        (lambda t, m: m.update(step=10**6), r"step 1000000 of a run of 6$"),
        (lambda t, m: m.update(step="2"), "its metadata: step: "),
        (lambda t, m: m.update(step=-1), "its metadata: step: "),
        (lambda t, m: m.pop("groups"), "its metadata: groups: Field required"),
        (lambda t, m: m.update(groups=[]), "groups: its optimizer is not that of this model"),
        (lambda t, m: m["groups"][0].pop("betas"), "groups: its optimizer"),
        (lambda t, m: m.update(optimized=[-1]), "its metadata: optimized.0"),
        (lambda t, m: m.update(optimized=[10**7]), "does not fit: it lacks optimizer.10000000."),
        (lambda t, m: m.update(best=None), "its metadata: best"),
        (lambda t, m: m.update(elapsed=None), "its metadata: elapsed"),
        (lambda t, m: m.update(identity=[1]), "its metadata: identity"),
        (lambda t, m: m.update(facts="x"), "its metadata: facts"),
        (with_nan, "model.backbone.clip.logit_scale holds NaN"),
        (as_int8, r"text_projection is int8 \[\d+, \d+\], not float32"),
        (
            without("model.backbone.clip.visual.proj"),
            "lacks model.backbone.clip.visual.proj|lacks ",
        ),
        (
            lambda t, _: t.update({"rng.cpu": torch.zeros(3)}),
            r"rng.cpu is float32 \[3\], not uint8",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused(sets, tmp_path, change, message):
    train(make_model(), *sets, CONFIG, tmp_path, progress=False)
    last = tmp_path / "last.safetensors"
    tampered(last, change)
    before = last.read_bytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        train(make_model(), *sets, CONFIG, tmp_path, progress=False)
    assert str(last) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert last.read_bytes() == before


def test_a_checkpoint_of_before_the_list_of_states_is_gone_on_from(sets, tmp_path):
    train(make_model(), *sets, CONFIG, tmp_path / "a", progress=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    tampered(tmp_path / "b" / "last.safetensors", lambda t, m: m.pop("optimized"))
    longer = train(make_model(), *sets, CONFIG, tmp_path / "b", progress=False)
    assert longer.resumed_from == 6


def test_a_run_killed_before_its_record_was_written_leaves_the_same_one(sets, tmp_path):
    train(make_model(), *sets, CONFIG, tmp_path / "a", progress=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "run.json").unlink()
    train(make_model(), *sets, CONFIG, tmp_path / "b", progress=False)
    assert differences_between(tmp_path / "a", tmp_path / "b") == []
    assert read_record(tmp_path / "b")["epoch"] >= 1


@pytest.mark.parametrize(
    "line", ['{"loss": 3', "null", '{"loss": 3.1}', '{"step": "1"}', '{"step": 1, "broken": [1]}']
)
def test_a_log_with_a_broken_line_is_refused_and_kept(sets, tmp_path, line):
    train(make_model(**NO_EXPERTS), *sets, CONFIG, tmp_path, progress=False)
    log = tmp_path / "log.jsonl"
    first, *rest = log.read_text().splitlines()
    log.write_text("\n".join([first, line, *rest, ""]))
    before = log.read_bytes()
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 2"):
        train(make_model(**NO_EXPERTS), *sets, CONFIG, tmp_path, progress=False)
    assert log.read_bytes() == before


def test_a_record_of_another_shape_is_named(sets, tmp_path):
    folder = train(make_model(**NO_EXPERTS), *sets, CONFIG, tmp_path, progress=False).folder
    assert read_record(folder)["steps"] == 6
    (folder / "run.json").write_text('{"identity": {}, "steps": "six", "wall_time_s": 1}')
    with pytest.raises(CheckpointError, match=r"run\.json: steps: "):
        read_record(folder)


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
    shutil.copy(tmp_path / "last.safetensors", tmp_path / "step-000000001.safetensors")
    train(make_model(**NO_EXPERTS), *sets, config, tmp_path, progress=False)
    assert not list(tmp_path.glob("step-*"))  # one beyond `keep`


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
