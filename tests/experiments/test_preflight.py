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


def settings(**change):
    return load_profile("smoke", settings=change).settings


def test_the_drawn_profiles_have_no_problem_here(capsys):
    for name in ("smoke", "demo"):
        Experiment(load_profile(name)).check()
    assert capsys.readouterr().out == ""


def test_a_check_prints_each_problem(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Experiment(load_profile("paper")).check()
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("CHECK THIS FIRST: ") for line in lines] == [True, True]
    assert "settings.data_root is not set, and n24news lies in files" in lines[0]
    assert "no GPU, and ViT-B-32-quickgelu has about 15" in lines[1]


def test_who_does_not_train_is_told_of_data_alone(capsys):
    Experiment(load_profile("paper")).check(training=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert "settings.data_root is not set" in line


def test_missing_packages_are_named_together():
    (problem,) = preflight.missing_packages(("torch", "no_such_a", "no_such_b"))
    assert problem.startswith("no_such_a, no_such_b not installed; pip install")


def test_missing_data_and_weights_are_named(tmp_path):
    (problem,) = preflight.data_problems(settings(pretrained=str(tmp_path / "w.safetensors")))
    assert "settings.pretrained: there is no file" in problem
    n24 = {"dataset": "n24news", "data_root": str(tmp_path)}
    (problem,) = preflight.data_problems(settings(**n24))
    assert f"no n24news in {tmp_path}; `entityclip data verify n24news" in problem
    (problem,) = preflight.data_problems(settings(**n24 | {"data_root": str(tmp_path / "none")}))
    assert "is no folder" in problem
    layouts.n24news(tmp_path)
    assert preflight.data_problems(settings(**n24)) == []
    (problem,) = preflight.data_problems(settings(**n24, prepared=str(tmp_path / "copy")))
    assert "copy has no prepared.json; `entityclip data prepare n24news" in problem


def test_parameters_are_estimated_within_a_tenth(backbone):
    counted = sum(p.numel() for p in backbone.clip.parameters())
    assert preflight.training_memory(settings()).parameters == pytest.approx(counted, rel=0.1)


def test_memory_grows_with_the_batch_and_not_the_weights():
    small, large = (
        preflight.training_memory(settings(finetuning={"batch_size": size})) for size in (32, 64)
    )
    assert large.activations == 2 * small.activations
    assert large.weights == small.weights


@pytest.mark.parametrize(("free", "said"), [(80 * 2**30, 0), (2**20, 1)])
def test_a_gpu_that_is_too_small_is_told_before_training(free, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    problems = preflight.memory_problems(load_profile("demo").settings)
    assert len(problems) == said
    assert all("lower settings.finetuning.batch_size" in problem for problem in problems)


def test_a_full_disk_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "not" / "yet"))
    profile = load_profile("demo")
    assert preflight.disk_problems(profile) == []
    usage = collections.namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    (problem,) = preflight.disk_problems(profile)
    assert "two checkpoints take" in problem
