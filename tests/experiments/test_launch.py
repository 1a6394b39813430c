"""The training command and its form for notebooks: one process or two, the same run."""

from __future__ import annotations

import os
import sys

import open_clip
import pytest
import torch

from entityclip.config import REPOSITORY, parse_settings
from entityclip.experiments.commands import evaluate, train
from entityclip.experiments.train import train_on_all_gpus
from entityclip.results import read_rows
from entityclip.training.run_folder import TrainingError
from tests import NARROW, SHIPPED
from tests.fixtures.ports import free_port
from tests.killing import differences_between
from tests.processes import start

SETTINGS = [
    *("train_pairs=24", "val_pairs=10", "test_pairs=8", "test_splits=[test]"),
    *("pretraining.pairs=16", "pretraining.eval_pairs=8", "pretraining.train.batch_size=8"),
    *("finetuning.epochs=2", "finetuning.batch_size=7", "finetuning.precision=fp32"),
    *("explanation_source=own", "bootstrap=20"),
]


@pytest.fixture
def shipped_backbone():
    """The model that a command started anew has."""
    open_clip.add_model_config(SHIPPED)
    yield
    open_clip.add_model_config(NARROW)


def accelerate_launch(runs, *arguments):
    """`accelerate launch`, less the start of its own Python; the two it starts are new ones."""
    os.environ |= {
        "ENTITYCLIP_RUNS": str(runs), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    os.chdir(REPOSITORY)
    sys.argv = ["accelerate launch", *arguments]
    from accelerate.commands.launch import main

    main()


@pytest.mark.usefixtures("shipped_backbone")
def test_a_notebook_and_accelerate_launch_train_the_same_run(tmp_path, monkeypatch):
    """Two processes each; the notebook's are forked from this one, whatever it did before."""
    command = start(
        accelerate_launch, tmp_path / "command",
        *("--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())),
        *("-m", "entityclip", "train", "--profile", "smoke", "--variant", "clip"),
        *("--set", *SETTINGS), log=str(tmp_path / "output"),
    )  # fmt: skip
    command.join()
    told = (tmp_path / "output").read_text()
    assert command.exitcode == 0, told[-3000:]
    assert told.count("on 2 process(es), best epoch") == 1  # the first process speaks
    torch.rand(2000, 2000) @ torch.rand(2000, 2000)  # starts threads that a fork does not have
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "notebook"))
    folder = train_on_all_gpus("smoke", "clip", processes=2, settings=parse_settings(SETTINGS))
    assert differences_between(folder, tmp_path / "command/smoke/checkpoints" / folder.name) == []
    columns = ["metric", "direction", "value", "config_hash", "data_fingerprint"]
    ours, theirs = (
        read_rows(tmp_path / name / "smoke/results/retrieval.jsonl")
        for name in ("notebook", "command")
    )
    assert len(ours) == 14  # measured once
    assert ours[columns].equals(theirs[columns])


def test_a_notebook_that_has_used_the_gpu_is_told_to_restart(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(TrainingError, match="restart the kernel"):
        train_on_all_gpus("smoke", "clip", processes=2, settings=parse_settings(SETTINGS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "none"], "no profile 'none'"),
        (["--set", "finetuning.epoch=3"], "did you mean epochs?"),
        (
            ["--set", "finetuning.chunk=0"],
            "finetuning.chunk: Input should be greater than or equal to 1 (got 0)",
        ),
        (["--set", "finetuning"], "write name=value"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message, capsys):
    assert train(["--profile", "smoke", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_only_variants_that_are_trained_are_offered(capsys):
    with pytest.raises(SystemExit):
        train(["--variant", "zero-shot"])
    assert "invalid choice: 'zero-shot'" in capsys.readouterr().err


def test_training_that_cannot_start_ends_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    large = [s for s in SETTINGS if "finetuning.batch_size" not in s] + ["finetuning.batch_size=99"]
    assert train(["--profile", "smoke", "--variant", "clip", "--set", *large]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 24 training pairs don't fill one batch of 99")


def test_evaluating_trains_nothing_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    command = ["--profile", "smoke", "--variant", "clip", "--seed", "3", "--set", *SETTINGS]
    assert evaluate(command) == 1
    said = capsys.readouterr().err
    assert "entityclip train --profile smoke --variant clip --seed 3 --set train_pairs=24" in said
    assert not list(tmp_path.rglob("*.safetensors"))
    assert evaluate([*command, "--train"]) == 0
    table = capsys.readouterr().out
    head, *lines = table.splitlines()
    assert {"R@1", "R@5", "R@10", "MedR", "MeanR"} <= set(head.split())
    assert [line.split()[0] for line in lines[1:]] == ["test", "text"]
    assert evaluate(command) == 0
    assert capsys.readouterr().out == table
    measured = read_rows(tmp_path / "smoke/results/retrieval.jsonl")
    assert evaluate([*command, "--splits", "nowhere"]) == 2
    assert "error: " in capsys.readouterr().err
    assert len(read_rows(tmp_path / "smoke/results/retrieval.jsonl")) == len(measured)
