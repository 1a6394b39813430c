"""Your own pictures and captions: what one option chooses, and README's commands as they stand."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import yaml

from entityclip.__main__ import main
from entityclip.config import REPOSITORY, ProfileError, load_profile
from entityclip.console import Refused
from entityclip.datasets import load_pairs
from entityclip.experiments.options import add_options, choose
from entityclip.results import read_rows
from tests.fake_llm_server import FakeServer

README = (REPOSITORY / "entityclip" / "README.md").read_text()
TINY = ["--backbone", "newsroom-tiny", "--from-scratch"]
SHORT = ["finetuning.epochs=1", "finetuning.batch_size=8", "finetuning.workers=0"]


def photographs(root: Path, count: int, *, seed: int = 0, explained: bool = False) -> Path:
    """A folder of drawn pictures of two sizes, with a table of their captions."""
    root.mkdir(parents=True)
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"] + ["explanation"] * explained)
        for number, pair in enumerate(load_pairs("newsroom", "train", limit=count, seed=seed)):
            name = f"IMG_{number:04}.jpg"
            picture = pair.load_image()
            picture.resize((160, 120) if number % 2 else picture.size).save(root / name)
            table.writerow([name, pair.caption] + [pair.explanation] * explained)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with runs below it, as an installed package has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    return tmp_path


def chosen(*words: str):
    parser = ArgumentParser()
    add_options(parser)
    return choose(parser.parse_args(words))


def test_readmes_commands_run_as_they_stand(here):
    photographs(here / "photos", 200)
    block = re.search(r"## Your own pictures and captions.*?```bash\n(.*?)```", README, re.DOTALL)[
        1
    ]
    assert len(block.splitlines()) == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e"], input=block, text=True, capture_output=True, cwd=here,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "batches of 4" in done.stderr
    assert "entityclip explain --data" in done.stderr
    assert done.stderr.count("step") < 30  # a log file, not a bar a step
    weights, log, rows = re.findall(r"^(?:weights|log|rows): +(.+)$", done.stdout, re.MULTILINE)
    assert all(Path(name).is_file() for name in (weights, log, rows))
    tables = re.findall(r"^test .*text (?:→ image|.*) .*\[.*$", done.stdout, re.MULTILINE)
    assert len(tables) == 2
    assert tables[0] == tables[1]  # measured at the end of training, and again from the checkpoint
    assert (here / "photos.parquet").is_file()
    assert (here / "exported" / "tokenizer.json").is_file()
    written = {path.name for path in here.iterdir()}
    assert written == {"photos", "runs", "photos.parquet", "photos.report.json", "exported"}


def test_the_front_pages_last_commands_take_one_run_of_several(here):
    photographs(here / "photos", 24, explained=True)
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Your own pictures, in five lines.*?```bash\n(.*?)```", page, re.DOTALL)
    commands = block[1].splitlines()
    assert len(commands) == 5
    train = f"entityclip train --data photos {' '.join(TINY)} --no-measure --set {' '.join(SHORT)}"
    trained = [f"{train} --seed {seed}" for seed in (42, 43)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e"], input="\n".join(trained + commands[3:]), text=True, capture_output=True,
        cwd=here, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (here / "photos.parquet").is_file()
    assert (here / "exported" / "tokenizer.json").is_file()


def test_own_data_need_no_more_than_a_folder(here):
    profile, variant = chosen("--data", str(photographs(here / "my photos", 40)))
    assert (profile.name, variant) == ("own", "clip")
    assert profile.settings.data_root == str(here / "my photos")
    assert (profile.settings.backbone, profile.settings.pretrained) == (
        "ViT-B-32-quickgelu", "openai"
    )  # fmt: skip
    assert profile.runs.parent == here / "runs" / "own"
    assert profile.runs.name.startswith("my-photos-")
    profile, variant = chosen("--data", "my photos", "--set", "finetuning.batch_size=30")
    assert profile.settings.finetuning.batch_size == 30
    explained = photographs(here / "explained", 12, explained=True)
    assert chosen("--data", str(explained))[1] == "entityclip"
    assert chosen("--data", str(explained), "--variant", "clip")[1] == "clip"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere"], "--data: .*nowhere is no folder"),
        (["--data", "photos", "--backbone", "newsroom-tiny"], "has no weights; add --from-scratch"),
        (["--data", "photos", "--set", "data_root=/x"], "data_root is given twice"),
        (["--data", "photos", "--profile", "mine.yaml"], "there is no file .*mine.yaml"),
        (["--data", "photos", "--profile", "owm"], "no profile 'owm'; there are demo, "),
        (["--data", "empty"], "is missing|there is no|no .*captions.csv|expected"),
    ],
)
def test_what_contradicts_itself_is_refused(words, said, here):
    photographs(here / "photos", 4)
    (here / "empty").mkdir()
    with pytest.raises(Refused, match=said) as caught:
        chosen(*words)
    assert "\n" not in str(caught.value)


def test_a_profile_of_ones_own_is_a_file(here):
    file = here / "mine.yaml"
    told = yaml.safe_load((REPOSITORY / "entityclip" / "profiles" / "own.yaml").read_text())
    file.write_text(yaml.safe_dump(told | {"profile": "mine", "seed": 7}))
    profile = load_profile(str(file))
    assert (profile.name, profile.seed, profile.asked) == ("mine", 7, str(file))
    assert profile.runs == here / "runs" / "mine"
    file.write_text(yaml.safe_dump(told | {"profile": "mine", "data_folder": "../../x"}))
    with pytest.raises(ProfileError, match="data_folder: there is no such setting"):
        load_profile(str(file))
    for name in ("demo.yaml", "a b.yaml", "..yaml"):
        (here / name).write_text(yaml.safe_dump(told))
        with pytest.raises(ProfileError):
            load_profile(str(here / name))


def test_two_folders_of_one_name_share_nothing(here, capsys):
    for side, seed in (("a", 0), ("b", 1)):
        photographs(here / side / "photos", 100, seed=seed)
        assert main(["train", "--data", f"{side}/photos", *TINY, "--set", *SHORT]) == 0
    first, second = (here / "runs" / "own").iterdir()
    data = [set(read_rows(f / "results" / "retrieval.jsonl")["data_fingerprint"])
            for f in (first, second)]  # fmt: skip
    assert len(data[0]) == len(data[1]) == 1
    assert data[0] != data[1]
    capsys.readouterr()
    # pictures were added: what is measured on other data is measured anew, not mixed
    with (here / "a" / "photos" / "captions.csv").open("a", encoding="utf-8") as file:
        file.write("".join(f"IMG_000{n}.jpg,another caption {n}\n" for n in range(9)))
    assert main(["train", "--data", "a/photos", *TINY, "--set", *SHORT]) == 0
    assert main(["sweep", "--data", "a/photos", *TINY, "--set", *SHORT, "--seeds", "42"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"zero-shot +\d+\.\d \[", table)
    assert re.search(r" clip +\d+\.\d \[", table)
    assert "rows: " in table


def test_explanations_are_written_by_a_server_and_found_by_training(here, capsys):
    photographs(here / "photos", 100)
    with FakeServer(faults=lambda caption, asked: None) as server:
        asking = ["explain", "--data", "photos", "--server", server.url]
        assert main(asking) == 0
        assert {body["model"] for body in server.bodies} == {"fake"}
        told = server.bodies[0]["messages"][-1]["content"]
        assert "animals, plants" in told  # pictures that are no news
        assert main(asking) == 0
        assert len(server.asked) == 100
        server.models = []
        assert main(["explain", "--data", "photos", "--server", server.url]) == 2
        assert "serves no model; name one by --model" in capsys.readouterr().err
    profile, variant = chosen("--data", "photos", *TINY)
    assert variant == "entityclip"
    assert profile.settings.explanation_source == str(profile.extracted)
    assert main(["train", "--data", "photos", *TINY, "--set", *SHORT]) == 0
    assert "entityclip-seed42" in capsys.readouterr().out


def test_options_are_told_again_in_the_command_that_trains(here, capsys):
    photographs(here / "photos", 100)
    words = ["--data", "photos", *TINY, "--set", *SHORT]
    assert main(["evaluate", *words]) == 1
    command = capsys.readouterr().err.strip().splitlines()[-1]
    assert main(shlex.split(command)[1:]) == 0
    assert main(["evaluate", *words]) == 0


def test_without_data_nothing_changes():
    assert chosen() == (load_profile("demo"), "entityclip")
    given = Namespace(set=["bootstrap=50"], data=None, profile="smoke", backbone=None,
                      from_scratch=False)  # fmt: skip
    assert choose(given)[0].settings.bootstrap == 50


def test_too_few_pictures_to_measure_on_are_refused_before_the_first_step(here, capsys):
    photographs(here / "photos", 30)
    assert main(["train", "--data", "photos", *TINY, "--set", *SHORT]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "folder test has 1 pair(s) of fewer than 2 pictures" in line
    assert not [*(here / "runs").rglob("*.safetensors")]


def test_a_variant_without_its_explanations_is_refused_with_the_command(here, capsys):
    photographs(here / "photos", 100)
    words = ["train", "--data", "photos", *TINY, "--variant", "entityclip", "--set", *SHORT]
    assert main(words) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "entityclip reads explanations, and train has none" in line
    assert f"entityclip explain --data {here / 'photos'} --server URL" in line


def test_a_training_starts_from_whatever_is_a_model(here, capsys):
    photographs(here / "photos", 100)
    assert main(["train", "--data", "photos", *TINY, "--set", *SHORT]) == 0
    (run,) = (here / "runs" / "own").glob("*/checkpoints/clip-*/best.safetensors")
    for form in ("open_clip", "transformers"):
        assert main(["export", str(run.parent), form, "--format", form]) == 0
    capsys.readouterr()
    losses = set()
    starts = ["pretrained=./open_clip", "pretrained=./transformers", f"pretrained={run.parent}"]
    for start in starts:
        words = ["train", "--data", "photos", "--set", "backbone=newsroom-tiny", "image_size=64"]
        assert main([*words, start, *SHORT]) == 0
        out = capsys.readouterr().out
        losses.add(re.search(r"with validation loss ([\d.]+)$", out, re.MULTILINE)[1])
    assert len(losses) == 1
    assert main([*words, "pretrained=./photos", *SHORT]) == 2
    assert "no checkpoint at photos/best.safetensors" in capsys.readouterr().err
