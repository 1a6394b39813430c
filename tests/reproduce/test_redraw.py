"""`make figures`: all steps of notebook 10, by several processes, put in place together or not."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import matplotlib as mpl
import psutil
import pytest

from entityclip.config import REPOSITORY, load_profile
from entityclip.experiments.experiment import Experiment
from entityclip.reporting import catalogue
from entityclip.reporting.style import apply_style
from entityclip.reproduce import figures as redrawing
from entityclip.reproduce.staging import alone_with

FEW = {name: redrawing.STEPS[name] for name in ("leak", "matching", "recall_curves")}


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The shipped profile with nothing of one's own: what is drawn comes from committed rows."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    return load_profile("demo")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def call(draw):
    """(module, function, table) of a step."""
    table = draw.keywords["table"] if isinstance(draw, partial) else None
    function = draw.func if isinstance(draw, partial) else draw
    return function.__module__.rpartition(".")[2], function.__name__, table


def test_the_steps_are_those_of_notebook_10():
    notebook = REPOSITORY / "notebooks" / "10_tables_and_figures.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = re.findall(r'(\w+)\.(draw_\w+)\(experiment, (?:"(\w+)", )?figures, save=True\)', source)
    called = [(module, function, table or None) for module, function, table in found]
    assert source.count(".draw_") == len(called) > 10
    assert sorted(called, key=str) == sorted(map(call, redrawing.STEPS.values()), key=str)


def test_processes_draw_the_bytes_that_one_draws_alone(demo, tmp_path, capfd):
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert redrawing.redraw(demo, together, workers=2, steps=FEW) == 0
    said = capfd.readouterr().out
    assert f"8 files in {together}" in said
    assert {line.partition(":")[0] for line in said.splitlines()[:-1]} == set(FEW)
    with mpl.rc_context():
        apply_style()
        for draw in FEW.values():
            draw(Experiment(demo, progress=False), figures=alone, save=True)
    assert contents(together) == contents(alone)
    assert len(contents(together)) == 8
    assert redrawing.redraw(demo, together, workers=1, steps=FEW) == 0
    assert contents(together) == contents(alone)
    assert not (demo.runs / "staging" / "redraw").exists()


def test_a_failed_step_is_named_and_changes_no_file(demo, tmp_path, capfd):
    def broken(experiment, figures, *, save):
        raise RuntimeError("no such colour")

    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "leak.csv").write_text("the last good one")
    steps = {"broken": broken, **FEW}
    assert redrawing.redraw(demo, figures, workers=1, steps=steps) == 1
    said = capfd.readouterr()
    assert "broken failed" in said.err
    assert "no such colour" in said.err
    assert "leak:" in said.out  # the others were tried all the same
    assert contents(figures) == {"leak.csv": b"the last good one"}


def test_a_killed_process_changes_no_file(demo, tmp_path, capfd):
    def killed(experiment, figures, *, save):
        os.kill(os.getpid(), signal.SIGKILL)

    assert redrawing.redraw(demo, tmp_path / "figures", workers=1, steps={"killed": killed}) == 1
    assert "stays as it was" in capfd.readouterr().err
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("workers", ["0", "-2", "two"])
def test_somebody_has_to_draw(workers, capsys):
    with pytest.raises(SystemExit, match="2"):
        redrawing.main(["--workers", workers])
    assert "--workers" in capsys.readouterr().err


def test_what_has_no_rows_is_skipped_aloud(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    command = ["--profile", "smoke", "--workers", "2", "--figures", str(tmp_path / "there")]
    assert redrawing.main(command) == 0
    said = capfd.readouterr().out
    assert said.count("  skipped: ") == len(redrawing.STEPS)
    assert f"0 files in {tmp_path / 'there'}" in said


def test_processes_that_inherit_nothing_draw_too(demo, tmp_path, monkeypatch):
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(redrawing.multiprocessing, "get_context", lambda _: spawn)
    steps = {"doses": catalogue.draw_doses}
    assert redrawing.redraw(demo, tmp_path / "figures", workers=1, steps=steps) == 0
    assert sorted(contents(tmp_path / "figures")) == [
        "ablation_mmae_doses.png",
        "ablation_mmae_doses.svg",
    ]


@pytest.mark.parametrize("options", [["--profile", "none-such"], ["--profile", "smoke"]])
def test_a_command_that_cannot_start_says_why(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    with alone_with(load_profile("smoke"), tmp_path / "smoke" / "figures"):
        assert redrawing.main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "none-such" in said or f"run by process {os.getpid()}" in said


def test_a_stopped_command_leaves_no_process_behind(tmp_path):
    command = f"""
import os, pathlib, sys, time
from entityclip.reproduce import figures as redrawing
def slow(experiment, figures, *, save):
    pathlib.Path({str(tmp_path)!r}, f"{{os.getpid()}}.pid").touch()
    time.sleep(120)
redrawing.STEPS.clear()
redrawing.STEPS.update(one=slow, two=slow)
sys.exit(redrawing.main(["--profile", "smoke", "--workers", "2"]))
"""
    environment = {**os.environ, "ENTITYCLIP_RUNS": str(tmp_path / "runs")}
    process = subprocess.Popen(
        [sys.executable, "-c", command], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(found := list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in said
    assert len(found) == 2
    assert not any(psutil.pid_exists(int(path.stem)) for path in found)
