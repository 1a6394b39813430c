"""The training command and its form for notebooks: one process or two, the same run."""

from __future__ import annotations

import json
import os
import sys
import threading

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from entityclip.__main__ import main as command_line
from entityclip.config import REPOSITORY, ProfileError, load_profile, parse_settings
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure
from entityclip.experiments.train import train_on_all_gpus
from entityclip.models.clip import create_backbone
from entityclip.results import read_rows
from entityclip.statistics import METRICS
from entityclip.training.run_folder import TrainingError
from tests import SHIPPED
from tests.fixtures.ports import free_port
from tests.killing import differences_between
from tests.processes import start

SETTINGS = [
    *("train_pairs=24", "val_pairs=10", "test_pairs=8", "test_splits=[test]"),
    *("pretraining.pairs=16", "pretraining.eval_pairs=8", "pretraining.train.batch_size=8"),
    *("finetuning.epochs=2", "finetuning.batch_size=7", "finetuning.precision=fp32"),
    *("explanation_source=own", "bootstrap=20"),
]


def train(arguments):
    return command_line(["train", *arguments])


def evaluate(arguments):
    return command_line(["evaluate", *arguments])


def accelerate_launch(runs, *arguments):
    """`accelerate launch`, less the start of its own Python; the two it starts are new ones."""
    os.environ |= {
        "ENTITYCLIP_RUNS": str(runs), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    os.chdir(REPOSITORY)
    sys.argv = ["accelerate launch", *arguments]
    from accelerate.commands.launch import main

    main()


def train_as_a_notebook(runs):
    """In a process of its own: what tests before this one ran in theirs, a fork might not bear."""
    os.environ |= {"ENTITYCLIP_RUNS": str(runs), "CUDA_VISIBLE_DEVICES": ""}
    open_clip.add_model_config(SHIPPED)
    torch.rand(2000, 2000) @ torch.rand(2000, 2000)  # starts threads that a fork does not have
    train_on_all_gpus("smoke", "clip", processes=2, settings=parse_settings(SETTINGS))


def test_a_notebook_and_accelerate_launch_train_the_same_run(tmp_path):
    """Two processes each; the notebook's are forked from one that has computed something."""
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
    notebook = start(train_as_a_notebook, tmp_path / "notebook", log=str(tmp_path / "told"))
    notebook.join()
    assert notebook.exitcode == 0, (tmp_path / "told").read_text()[-3000:]
    folder = next((tmp_path / "notebook/smoke/checkpoints").glob("clip-*[!k]"))
    assert differences_between(folder, tmp_path / "command/smoke/checkpoints" / folder.name) == []
    columns = ["metric", "direction", "value", "config_hash", "data_fingerprint"]
    ours, theirs = (
        read_rows(tmp_path / name / "smoke/results/retrieval.jsonl")
        for name in ("notebook", "command")
    )
    assert ours["metric"].isin(METRICS).sum() == 2 * len(METRICS)  # measured once
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
    assert train(["--profile", "smoke", "--variant", "clip", "--set", *large]) == 2
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


# ------------------------------------------------------------------------------------- own data

OWN = [
    *("dataset=folder", "image_size=64", "test_splits=[test]", "explanation_policy=caption"),
    *("train_pairs=null", "val_pairs=null", "test_pairs=null", "finetuning.epochs=1"),
    *("pretraining=null", "finetuning.batch_size=4", "finetuning.warmup_steps=0", "bootstrap=20"),
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """How to train on a folder of pictures of which some splits or files are amiss."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    weights = tmp_path / "start.safetensors"
    save_file(create_backbone("newsroom-tiny").clip.state_dict(), weights)
    root = tmp_path / "data"
    root.mkdir()
    for n in range(12):
        Image.new("RGB", (70, 70), (20 * n, 0, 99)).save(root / f"{n}.png")

    def run(splits, *more, caption="Mayor Ada Torv in Oslo, {n}"):
        rows = [f'{n}.png,"{caption.format(n=n)}",{split}' for n, split in enumerate(splits)]
        (root / "captions.csv").write_text("\n".join(["image,caption,split", *rows, ""]))
        settings = [*OWN, f"data_root={root}", f"pretrained={weights}", *more]
        settings = {one.partition("=")[0]: one for one in settings}  # the last of a name
        return train(["--profile", "smoke", "--variant", "clip", "--set", *settings.values()])

    return run, root


WHOLE = ["train"] * 6 + ["val"] * 3 + ["test"] * 3


def told(capsys):
    """The one line that a refused command prints, its log apart."""
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("splits", "more", "says"),
    [
        (WHOLE, ["data_root=/nowhere"], "/nowhere does not exist"),
        (["train"] * 6 + ["test"] * 3, [], "val"),
        (WHOLE[:9], [], "test"),
        (WHOLE, ["test_splits=[tset]"], "folder has no split 'tset'"),
        (WHOLE, ["pretrained=/nowhere.safetensors"], "no file /nowhere.safetensors"),
        (WHOLE, ["explanation_source=/nowhere.jsonl"], "/nowhere.jsonl"),
        (WHOLE, ["explanation_source=own", "explanation_policy=drop"], "leaves no pair"),
    ],
)
def test_what_is_wrong_with_own_data_is_one_line_before_anything_is_written(
    own, capsys, splits, more, says
):
    run, root = own
    assert run(splits, *more) == 2
    assert says in told(capsys)
    assert not list((root.parent / "runs").rglob("*.safetensors"))


def test_broken_pictures_refuse_a_training_or_are_counted(own, capsys):
    run, root = own
    (root / "11.png").write_bytes(b"no picture")
    assert run(WHOLE) == 2
    assert "error: test: " in (line := told(capsys))
    assert "11.png" in line
    Image.new("RGB", (70, 70)).save(root / "11.png")
    (root / "0.png").write_bytes(b"no picture")
    assert run(WHOLE) == 1
    assert "1 of 6 pairs have a broken picture, more than the share 0.01" in told(capsys)


def test_texts_longer_than_the_model_reads_are_told_and_recorded(own, caplog):
    run, root = own
    assert run(WHOLE, caption="Torv " * 70 + "{n}") == 0
    told = [f"{n} of {n} captions of {split} are longer than 64 tokens and were cut"
            for split, n in (("train", 6), ("val", 3))]  # fmt: skip
    assert all(line in caplog.text for line in told)
    (record,) = (root.parent / "runs").rglob("run.json")
    assert json.loads(record.read_text())["cut"] == told


def test_debug_shows_where_an_error_came_from(capsys):
    with pytest.raises(ProfileError):
        train(["--debug", "--profile", "none"])


def test_a_second_process_that_measures_finds_the_rows_of_the_first(tmp_path, monkeypatch):
    """Both found none before; the second waits for the claim and looks again."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    profile = load_profile("smoke", settings=parse_settings(SETTINGS))
    threads = [
        threading.Thread(
            target=lambda: measure(Experiment(profile, progress=False), ["zero-shot"], ["test"])
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "smoke/results/ranks.jsonl").read_text().splitlines()
    assert len(lines) == 2  # one a direction
