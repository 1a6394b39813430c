"""What would stop a run later is said at its start."""

import collections

import pytest
import torch
from PIL import Image

from entityclip.config import load_profile
from entityclip.console import Refused
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
        Experiment(load_profile("n24news")).check(training=training)
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

    n24 = {"dataset": "n24news", "data_root": str(tmp_path), "test_splits": ["test"]}
    assert "settings.pretrained: there is no file" in problem(pretrained=str(tmp_path / "w.bin"))
    assert f"no n24news in {tmp_path}; `entityclip data verify n24news" in problem(**n24)
    assert "is no folder" in problem(dataset="n24news", data_root=str(tmp_path / "none"))
    layouts.n24news(tmp_path)
    assert problem(**n24) == ""
    copy = problem(**n24, prepared=str(tmp_path / "copy"))
    assert "copy has no prepared.json; `entityclip data prepare n24news" in copy


def refused(settings, splits=("test",), training=True):
    splits_of = Experiment(load_profile("smoke", settings=settings), progress=False)

    def check():
        preflight.refuse_impossible(splits_of, splits)
        if training:
            preflight.refuse_training(splits_of, splits)

    with pytest.raises(Refused) as caught:
        check()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_full_disk_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "not" / "yet"))
    experiment = Experiment(load_profile("smoke"))
    preflight.refuse_training(experiment, ["test"])
    weights = sum(p.numel() for p in experiment.backbone.parameters())
    for free, enough in ((28 * weights, True), (28 * weights - 1, False)):
        usage = collections.namedtuple("usage", "total used free")(10**9, 0, free)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert (preflight.disk_problems(experiment) == []) is enough
    assert "GiB free for runs, and a run's checkpoints take" in refused({})


def test_folders_that_take_no_writing_and_misspelt_names_are_told(tmp_path, monkeypatch):
    assert "newsroom has no split 'tset'; it has train, val" in refused({"test_splits": ["tset"]})
    assert "newsroom has no split 'x'" in refused({}, ["x"])
    assert "there is no 'newsrom'; there is newsroom" in refused({"dataset": "newsrom"})
    (tmp_path / "runs").write_text("a file")
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    assert "runs is no folder: set ENTITYCLIP_RUNS" in refused({}, training=False)


@pytest.fixture
def own_data(tmp_path):
    """A folder of pictures with a table of theirs, and the settings that name it."""
    for number in range(8):
        Image.new("RGB", (20, 20), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")

    def write(*splits):
        rows = [f"{n}.png,Ada Torv in Oslo {n},{split}" for n, split in enumerate(splits)]
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *rows, ""]))
        return {"dataset": "folder", "data_root": str(tmp_path), "test_splits": ["test"],
                "explanation_policy": "caption"}  # fmt: skip

    return write


def test_a_split_to_measure_on_must_be_there_and_whole_before_training(own_data, tmp_path):
    settings = own_data(*["train"] * 4, "val", "val", "test", "test")
    experiment = Experiment(load_profile("smoke", settings=settings), progress=False)
    preflight.refuse_training(experiment, ["test"])
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:50])
    message = refused(settings)
    assert message.startswith("test: ")
    assert "7.png" in message
    missing = own_data(*["train"] * 4, "val", "val")
    assert "folder test below" in refused(missing)
