"""`entityclip figures`: what rows are enough for, by several processes, put in place together."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import matplotlib as mpl
import psutil
import pytest

from entityclip.config import load_profile
from entityclip.console import guarded
from entityclip.reporting import catalogue
from entityclip.reporting.style import apply_style
from entityclip.reproduce import __main__
from entityclip.reproduce import figures as redrawing
from entityclip.reproduce.staging import alone_with

NOT_SHIPPED = ("07_generalization", "08_itr", "09_ascl")
FEW = ("leak", "matching", "recall_curves")


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The shipped profile with nothing of one's own: what is drawn comes from committed rows."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    return load_profile("demo")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def figure(rows):
    """A figure whose rows are chosen by `rows`."""
    return catalogue.Figure("00_none", "csv", rows, lambda found: catalogue.Drawn(table=found))


def test_processes_draw_the_bytes_that_one_draws_alone(demo, tmp_path, capfd):
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert redrawing.redraw(demo, together, FEW, workers=2) == 0
    said = capfd.readouterr().out
    assert f"8 files in {together}" in said
    assert {line.partition(":")[0] for line in said.splitlines()[:-1]} == set(FEW)
    with mpl.rc_context():
        apply_style()
        for name in FEW:
            catalogue.save(catalogue.draw(demo, name), name, alone)
        mpl.pyplot.close("all")
    assert contents(together) == contents(alone)
    assert len(contents(together)) == 8
    assert redrawing.redraw(demo, together, FEW, workers=1) == 0
    assert contents(together) == contents(alone)
    assert not (demo.runs / "staging" / "redraw").exists()


def test_a_failed_figure_is_named_and_changes_no_file(demo, tmp_path, monkeypatch, capfd):
    def broken(profile):
        raise RuntimeError("no such colour")

    monkeypatch.setitem(catalogue.FIGURES, "broken", figure(broken))
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "leak.csv").write_text("the last good one")
    assert redrawing.redraw(demo, figures, ["broken", *FEW], workers=1) == 1
    said = capfd.readouterr()
    assert "broken failed" in said.err
    assert "no such colour" in said.err
    assert "leak:" in said.out  # the others were tried all the same
    assert contents(figures) == {"leak.csv": b"the last good one"}


def test_a_killed_process_changes_no_file(demo, tmp_path, monkeypatch, capfd):
    def killed(profile):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setitem(catalogue.FIGURES, "killed", figure(killed))
    assert redrawing.redraw(demo, tmp_path / "figures", ["killed"], workers=1) == 1
    assert "stays as it was" in capfd.readouterr().err
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        *((["--workers", number], "--workers") for number in ("0", "-2", "two")),
        (["leek"], "no figure 'leek'; did you mean leak?"),
        (["pairs"], "needs a model; run `entityclip reproduce --only 00_setup_and_data`"),
    ],
)
def test_what_cannot_be_drawn_is_refused(command, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.figures(command)
    assert said in capsys.readouterr().err


def test_only_what_is_named_is_drawn(demo, tmp_path):
    assert __main__.figures(["search", "main_rsum", "--figures", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"search.csv", "main_rsum.csv"}


def test_what_has_no_rows_is_skipped_aloud(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    command = ["--profile", "smoke", "--workers", "2", "--figures", str(tmp_path / "there")]
    assert __main__.figures(command) == 0
    said = capfd.readouterr().out
    assert said.count(": skipped: ") == len(catalogue.FROM_ROWS)
    assert f"0 files in {tmp_path / 'there'}" in said


def test_processes_that_inherit_nothing_draw_too(demo, tmp_path, monkeypatch):
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(redrawing.multiprocessing, "get_context", lambda _: spawn)
    names = ["ablation_mmae_doses"]
    assert redrawing.redraw(demo, tmp_path / "figures", names, workers=1) == 0
    assert sorted(contents(tmp_path / "figures")) == [f"{names[0]}.png", f"{names[0]}.svg"]


@pytest.mark.parametrize("options", [["--profile", "none-such"], ["--profile", "smoke"]])
def test_a_command_that_cannot_start_says_why(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    with alone_with(load_profile("smoke"), tmp_path / "smoke" / "figures"):
        assert guarded(__main__.figures, options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "none-such" in said or f"run by process {os.getpid()}" in said


def test_a_stopped_command_leaves_no_process_behind(tmp_path):
    command = f"""
import os, pathlib, sys, time
from entityclip.reporting import catalogue
from entityclip.reproduce.__main__ import figures as main
def slow(profile):
    pathlib.Path({str(tmp_path)!r}, f"{{os.getpid()}}.pid").touch()
    time.sleep(120)
slowly = catalogue.Figure("00_none", "csv", slow, lambda rows: None)
catalogue.FIGURES.update(one=slowly, two=slowly)
sys.exit(main(["one", "two", "--profile", "smoke", "--workers", "2"]))
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


NO_TORCH = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "open_clip", "torchvision"):
            raise RuntimeError(f"{name} was imported")

sys.meta_path.insert(0, Refusing())
from entityclip.reproduce.__main__ import figures as main
code = main(sys.argv[1:])
rooms = ("datasets", "models", "training", "evaluation", "explanations", "experiments", "search")
loaded = [name for name in sys.modules if name.split(".")[1:2] and name.split(".")[1] in rooms
          and name.startswith("entityclip.")]
assert not loaded, loaded
sys.exit(code)
"""


def test_all_is_drawn_where_importing_torch_raises_and_says_what_made_it(
    tmp_path, committed_figures
):
    """As committed, too: a file is what its command makes of the committed rows."""
    environment = {**os.environ, "ENTITYCLIP_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-c", NO_TORCH, "--figures", str(tmp_path / "figures")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    skipped = set(re.findall(r"^(\w+): skipped", ran.stdout, re.MULTILINE))
    chapters = {
        name for name in catalogue.FROM_ROWS if catalogue.FIGURES[name].notebook in NOT_SHIPPED
    }
    # which the demo does not list, and what no rows of this drawing are shipped of
    assert skipped == {"grid", "backbones", "backbones_differences", *chapters}
    drawn = contents(tmp_path / "figures")
    expected = {f"{name}.{kind}" for name in catalogue.FROM_ROWS if name not in skipped
                for kind in catalogue.FIGURES[name].kinds.split()}  # fmt: skip
    assert set(drawn) == expected
    for name, data in drawn.items():
        assert f"entityclip figures {name.partition('.')[0]}".encode() in data
        if name.endswith((".csv", ".md", ".tex")):  # pictures may differ by library versions
            assert data == (committed_figures / name).read_bytes(), name
