"""Two processes that share a batch equal one that holds it: terms, gradients, whole runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from entityclip.config import AsCLConfig
from entityclip.models import negatives
from entityclip.models.ascl import AsCL
from entityclip.training.loop import train
from entityclip.training.processes import TrainingError, World, this_world
from tests.killing import differences_between
from tests.processes import run_together
from tests.training_setup import (
    CONFIG,
    NO_EXPERTS,
    first_gradients,
    make_file_sets,
    make_model,
    make_sets,
    read_log,
    stopped_at,
    write_pictures,
)

UNEVEN = {"shares": (6, 1)}
# name: the model, how it is trained, and what else
CASES = {
    "entityclip": ({}, {}, {}),
    "local negatives": ({}, {"negatives_from": "local"}, {}),
    "local, uneven": ({"negatives": "uniform"}, {"negatives_from": "local"}, UNEVEN),
    "clip": (NO_EXPERTS, {}, {}),
    "clip in chunks": (NO_EXPERTS, {"chunk": 3}, UNEVEN),
    "bridge, crossed": ({"bridge": 1.0, "crossed": True, "heads": 2}, {}, {}),
    "reference_compat": ({"reference_compat": True}, {}, UNEVEN),
    "ablated": ({"image_experts": 0, "negative_explanation": "positive",
                 "shared_explanation_experts": False}, {}, {}),
    "one row, in chunks": ({"explanation_experts": 2}, {"chunk": 2}, UNEVEN),
    "false negatives masked": ({"bridge": 1.0, "crossed": True, "false_negatives": "masked"}, {},
                               UNEVEN),
    "frozen": (NO_EXPERTS | {"bridge": 1.0, "frozen": "image"}, {}, {}),
    "accumulated": ({}, {}, {"passes": 2}),
    "accumulated in chunks": ({}, {"chunk": 4}, {"passes": 2}),
}  # fmt: skip


def share(world, rows, shares):
    start = sum(shares[: world.rank])
    return list(rows[start : start + shares[world.rank]])


def gradients_in_a_member(folder):
    even = World.share
    for name, (model, config, more) in CASES.items():
        World.share = even
        if "shares" in more:
            World.share = lambda self, rows, s=more["shares"]: share(self, rows, s)
        found = first_gradients(folder, model, config, more.get("passes", 1))
        save_file(found, folder / f"{name}-{this_world().rank}.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    run_together(gradients_in_a_member, 2, folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_terms_and_gradients_equal_one_process_with_the_joined_batch(
    shared, name, tmp_path, monkeypatch
):
    model, config, more = CASES[name]
    if config.get("negatives_from") == "local":  # one process, told whose rows are whose
        sizes = more.get("shares", (4, 3))
        owner = torch.tensor([0] * sizes[0] + [1] * sizes[1])
        plain = negatives.same_pairs
        monkeypatch.setattr(
            negatives, "same_pairs", lambda *given: plain(*given) | (owner[:, None] != owner)
        )
    alone = {k: v for k, v in config.items() if k != "chunk"}
    expected = first_gradients(tmp_path, model, alone, more.get("passes", 1))
    assert len(expected) > 20
    for rank in range(2):
        found = load_file(shared / f"{name}-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-9, rtol=1e-7, msg=key)


def test_wrong_gradients_would_be_seen(shared):
    """The check above can fail: without the other process's part, gradients are far off."""
    whole = load_file(shared / "entityclip-0.safetensors")
    local = load_file(shared / "local negatives-0.safetensors")
    name = "mmae.explanation.fc_weight"
    assert (whole[name] - local[name]).abs().max() > 1e-5


# ------------------------------------------------------------------------------------ whole runs

BROKEN = {"train": [0, 5, 9], "val": [7]}
FILES = replace(CONFIG, checkpoint_every=2, chunk=None)


def runs_in_a_member(folder):
    pictures, rank = folder / "pictures", this_world().rank
    model = make_model()
    train(model, *make_file_sets(pictures), FILES, folder / "whole", progress=rank == 0)
    save_file(model.state_dict(), folder / f"weights-{rank}.safetensors")

    with stopped_at(3):
        train(make_model(), *make_file_sets(pictures), FILES, folder / "parts", progress=False)
    torch.manual_seed(rank)  # whatever happens between the two calls
    train(make_model(), *make_file_sets(pictures), FILES, folder / "parts", progress=False)

    config = replace(FILES, batch_size=2)
    with pytest.raises(TrainingError, match="process's share of a batch has no whole picture"):
        train(make_model(), *make_file_sets(pictures), config, folder / "none", progress=False)
    few = make_file_sets(pictures)
    for dataset in few:
        dataset.max_broken = 0.05
    with pytest.raises(OSError, match="of 24 pairs have a broken picture"):
        train(make_model(), *few, FILES, folder / "many", progress=False)
    ascl = AsCL(model.backbone, AsCLConfig())
    with pytest.raises(TrainingError, match="2 processes"):
        train(ascl, *make_sets(), FILES, folder / "other", progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "pictures").mkdir()
    write_pictures(folder / "pictures", BROKEN)
    run_together(runs_in_a_member, 2, folder)
    train(make_model(), *make_file_sets(folder / "pictures"), FILES, folder / "one", progress=False)
    return folder


def test_a_run_of_two_processes_is_the_run_of_one(runs):
    """Broken pictures make the shares uneven, and are known to both processes."""
    ours, theirs = read_log(runs / "whole"), read_log(runs / "one")
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert {k: a[k] for k in a if isinstance(a[k], str | dict)} == {
            k: b[k] for k in b if isinstance(b[k], str | dict)
        }
        numbers = {k: v for k, v in b.items() if isinstance(v, int | float)}
        assert {k: a[k] for k in numbers} == pytest.approx(numbers, abs=2e-4)
    records = [json.loads((runs / n / "run.json").read_text()) for n in ("whole", "one")]
    assert records[0]["broken"] == records[1]["broken"]
    assert len(records[0]["broken"]["train"]) + len(records[0]["broken"]["val"]) >= 3
    assert records[0]["identity"] == records[1]["identity"]


def test_processes_end_with_the_same_weights_and_one_of_them_writes(runs):
    first, second = (load_file(runs / f"weights-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    last = load_file(runs / "whole" / "last.safetensors")
    assert all(torch.equal(last[f"model.{name}"], value) for name, value in first.items())
    assert [r["step"] for r in read_log(runs / "whole") if "loss" in r] == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_of_two_processes_ends_as_the_uninterrupted(runs):
    assert differences_between(runs / "whole", runs / "parts") == []


# ------------------------------------------------------------------------------------------ shares


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (8, 2), (5, 4), (3, 3), (1, 1)])
def test_shares_are_contiguous_without_overlap_and_even(rows, size):
    parts = [World(rank, size).share(range(rows)) for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_exchanges_with_itself():
    world = World()
    assert world.main
    assert world.exchange([1, 2]) == [[1, 2]]
    assert world.collect({"a": 1}) == [{"a": 1}]
    assert world.agree("x") == "x"


def test_processes_that_do_not_find_each_other_are_told(monkeypatch):
    this_world()  # alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises((RuntimeError, ValueError), match=r"2 processes were started|cpu=True"):
        this_world()
