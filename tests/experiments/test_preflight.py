"""What would stop a run later is said at its start."""

import collections

import pytest
import torch

from entityclip.config import load_profile
from entityclip.experiments import preflight
from entityclip.experiments.experiment import Experiment
from tests.fixtures import layouts


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """The disk of whoever runs the tests is not their subject."""
    usage = collections.namedtuple("usage", "total used free")(10**15, 0, 10**15)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)


def test_the_drawn_profiles_have_no_problem_here(capsys):
    for name in ("smoke", "demo"):
        Experiment(load_profile(name)).check()
    assert capsys.readouterr().out == ""


def test_a_check_prints_each_problem_and_without_training_those_of_data(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for training in (True, False):
        Experiment(load_profile("paper")).check(training=training)
        data, *gpu = capsys.readouterr().out.splitlines()
        assert data.startswith("CHECK THIS FIRST: settings.data_root is not set, and n24news lies")
        assert len(gpu) == training
        assert all("no GPU, and ViT-B-32-quickgelu is of CLIP's own size" in line for line in gpu)


def test_missing_packages_are_named_together():
    (problem,) = preflight.missing_packages(("torch", "no_such_a", "no_such_b"))
    assert problem.startswith("no_such_a, no_such_b not installed; pip install")


def test_missing_data_and_weights_are_named(tmp_path):
    def problem(**change):
        found = load_profile("smoke", settings=change).settings
        return "; ".join(preflight.data_problems(found))

    n24 = {"dataset": "n24news", "data_root": str(tmp_path)}
    assert "settings.pretrained: there is no file" in problem(pretrained=str(tmp_path / "w.bin"))
    assert f"no n24news in {tmp_path}; `entityclip data verify n24news" in problem(**n24)
    assert "is no folder" in problem(dataset="n24news", data_root=str(tmp_path / "none"))
    layouts.n24news(tmp_path)
    assert problem(**n24) == ""
    copy = problem(**n24, prepared=str(tmp_path / "copy"))
    assert "copy has no prepared.json; `entityclip data prepare n24news" in copy


def test_a_full_disk_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "not" / "yet"))
    profile = load_profile("demo")
    assert preflight.disk_problems(profile) == []
    usage = collections.namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    (problem,) = preflight.disk_problems(profile)
    assert "a run's checkpoints take up to 1; free some" in problem
