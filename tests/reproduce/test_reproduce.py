"""The chain of notebooks: what is refused, run, promoted, kept, skipped and not done twice."""

import errno
import json
import os
import shutil
import signal
import stat
from importlib import metadata

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from entityclip.config import load_profile, parse_settings
from entityclip.console import guarded
from entityclip.reproduce import __main__, notebook
from entityclip.reproduce import chain as chaining
from entityclip.reproduce.notebook import run_key
from entityclip.reproduce.plan import Plan
from entityclip.reproduce.staging import promote

PARAMETERS = 'profile = "smoke"\nseed = None\noutput_dir = ""\nsettings = {}  # e.g. a=b'
DRAW = """
import json, os, pathlib
figures = pathlib.Path(output_dir) / "figures"
figures.mkdir()
names = ("ENTITYCLIP_FORCE", "ENTITYCLIP_RUNS", "TQDM_MININTERVAL")
facts = dict(profile=profile, seed=seed, settings=settings, cwd=os.getcwd())
facts["env"] = {name: os.environ.get(name) for name in names}
(figures / "facts.json").write_text(json.dumps(facts))
"""


def write_notebook(folder, name, *code, parameters=PARAMETERS):
    cells = [new_markdown_cell(f"# {name}"), new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [new_code_cell(source.strip()) for source in code]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


class House:
    """A repository in miniature: its notebooks, its runs, its committed figures."""

    def __init__(self, root):
        self.notebooks = root / "notebooks"
        self.figures = root / "figures"
        self.runs = root / "runs"

    def main(self, *argv):
        where = {"notebooks": self.notebooks, "figures": self.figures}
        return guarded(__main__.main, argv, **where)

    def statuses(self, profile="smoke"):
        report = json.loads((self.runs / profile / "reproduce.json").read_text())
        return {row["notebook"]: row["status"] for row in report["notebooks"]}


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ENTITYCLIP_FORCE", raising=False)
    # sources of its own, so that nobody editing the package makes finished work stale meanwhile
    monkeypatch.setattr(notebook, "PACKAGE", tmp_path / "package")
    return House(tmp_path)


@pytest.fixture
def ran(monkeypatch):
    """Replace papermill by a copy and a figure; returns the list of notebooks that 'ran'."""
    names = []

    def execute(notebook, plan, *, bar):
        names.append(notebook.stem)
        stage = plan.staging(notebook.stem)
        shutil.rmtree(stage, ignore_errors=True)
        (stage / "figures").mkdir(parents=True)
        shutil.copy(notebook, stage)
        for letter in "ab":
            (stage / "figures" / f"{notebook.stem}_{letter}.csv").write_text(f"{len(names)}")

    monkeypatch.setattr(chaining, "execute", execute)
    return names


# ------------------------------------------------------------------------------- in real kernels


def test_success_is_promoted_and_not_done_twice(house, capsys):
    write_notebook(house.notebooks, "00_draw", DRAW)
    assert house.main("--profile", "demo", "--timeout", "60") == 0
    table = capsys.readouterr().out
    assert "00_draw" in table
    assert "done" in table

    runs, figure = house.runs / "demo", house.figures / "facts.json"
    facts = json.loads(figure.read_text())
    assert (facts["profile"], facts["seed"], facts["settings"]) == ("demo", None, {})
    assert facts["cwd"] == str(house.notebooks)
    assert facts["env"] == {
        "ENTITYCLIP_FORCE": None,
        "ENTITYCLIP_RUNS": str(house.runs),
        "TQDM_MININTERVAL": "1",
    }
    executed = runs / "notebooks" / "00_draw.ipynb"
    assert nbformat.read(executed, as_version=4).cells[-1].execution_count == 3
    for path in (figure, executed, runs / "done" / "00_draw.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert not (runs / "staging" / "00_draw").exists()

    report = json.loads((runs / "reproduce.json").read_text())
    assert report["machine"]["cores"] >= 1
    (row,) = report["notebooks"]
    assert row["seconds"] > 0.5
    assert 20 < row["peak_mb"] < 2000  # a bare kernel

    before = figure.stat().st_mtime_ns, executed.stat().st_mtime_ns
    assert house.main("--profile", "demo") == 0
    assert house.statuses("demo") == {"00_draw": "up to date"}
    assert (figure.stat().st_mtime_ns, executed.stat().st_mtime_ns) == before


def test_force_reaches_the_kernel_and_variations_spare_the_committed_figures(house):
    write_notebook(house.notebooks, "00_draw", DRAW)
    house.figures.mkdir()
    (house.figures / "facts.json").write_text("committed")
    command = ["--profile", "demo", "--force", "--seed", "7", "--set", "finetuning.lr=1e-4"]
    assert house.main(*command) == 0
    facts = json.loads((house.runs / "demo" / "figures" / "facts.json").read_text())
    assert facts["env"]["ENTITYCLIP_FORCE"] == "1"
    assert (facts["seed"], facts["settings"]) == (7, {"finetuning": {"lr": 1e-4}})
    assert (house.figures / "facts.json").read_text() == "committed"
    assert "ENTITYCLIP_FORCE" not in os.environ


SPOIL = (
    'import os, pathlib\nf = pathlib.Path(output_dir) / "figures"\nf.mkdir()\n(f / "a.csv").touch()'
)
FAILURES = {
    "error": ('raise ValueError("boom\\nmore")', "ValueError: boom (in cell [4])"),
    "timeout": ("import time; time.sleep(60)", "CellTimeoutError: A cell timed out"),
    "dead": ("os._exit(1)", "DeadKernelError: Kernel died (in cell [4])"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failure_leaves_the_last_good_results(house, capsys, kind):
    last_line, reason = FAILURES[kind]
    write_notebook(house.notebooks, "00_bad", SPOIL, last_line, "print('not reached')")
    write_notebook(house.notebooks, "01_never", "1")
    runs = house.runs / "smoke"
    for good in (runs / "figures" / "a.csv", runs / "notebooks" / "00_bad.ipynb"):
        good.parent.mkdir(parents=True)
        good.write_text("good")

    assert house.main("--profile", "smoke", "--timeout", "3") == 1
    assert house.statuses() == {"00_bad": "failed", "01_never": "skipped"}
    kept = runs / "failed" / "00_bad" / "00_bad.ipynb"
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("00_bad failed")]
    assert reason in line
    assert "(in cell [4])" in line
    assert str(kept) in line
    assert kept.exists()
    assert (kept.parent / "figures" / "a.csv").exists()
    assert (runs / "figures" / "a.csv").read_text() == "good"
    assert (runs / "notebooks" / "00_bad.ipynb").read_text() == "good"
    assert not (runs / "done").exists()
    assert not (runs / "staging" / "00_bad").exists()


# ------------------------------------------------------------------------------ refused at once


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--profile", "demmo"], "no profile 'demmo'"),
        (["--set", "finetuning.epoch=3"], "settings.finetuning.epoch: there is no such setting"),
        (["--set", "finetuning.epochs=three"], "settings.finetuning.epochs"),
        (["--set", "finetuning.epochs"], "write name=value"),
        (["--set", "finetuning..epochs=3"], "write name=value"),
        (["--set", "test_splits=[test"], "line 1: expected"),
        (["--set", "model.heads=2", "model.heads=4"], "'model.heads' is already set to 2"),
        (["--set", "model=2", "model.heads=4"], "'model' is already set to 2"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0 (got -1)"),
        (["--timeout", "-1"], "--timeout is -1"),
        (["--only", "00_drawn"], "no notebook '00_drawn'; did you mean 00_draw?"),
        (["--only", "report"], "no notebook 'report'; there are 00_draw, 01_lacking"),
        (["--only", "01_lacking"], "01_lacking.ipynb: its `parameters` cell lacks seed, settings"),
        (["--only", "02_untagged"], "02_untagged.ipynb: 0 cells are tagged"),
        (["--only", "03_torn"], "03_torn.ipynb cannot be read"),
        (["--only", "04_syntax"], "04_syntax.ipynb cannot be read"),
    ],
)
def test_refused_before_anything_runs(house, ran, capsys, argv, message):
    write_notebook(house.notebooks, "00_draw", "1")
    only_two = 'profile = "smoke"\noutput_dir: str = ""\nsettings_ = {}'
    write_notebook(house.notebooks, "01_lacking", parameters=only_two)
    untagged = new_notebook(cells=[new_code_cell(PARAMETERS)])
    nbformat.write(untagged, house.notebooks / "02_untagged.ipynb")
    (house.notebooks / "03_torn.ipynb").write_text('{"cells": [')
    write_notebook(house.notebooks, "04_syntax", parameters="profile =")
    only = [] if "--only" in argv else ["--only", "00_draw"]
    assert house.main(*only, *argv) == 2
    assert message in capsys.readouterr().err
    assert ran == []
    assert not house.runs.exists()


def test_no_notebooks_at_all(house, capsys):
    assert house.main() == 2
    assert "there is no NN_name.ipynb" in capsys.readouterr().err


def test_values_are_read_as_people_mean_them():
    texts = ["a.b=1e-4", "a.c=false", "d=[0.9, 1E3, .5e-3]", "e=null", "f=1.0e-4", "g=1e", "h=3"]
    assert parse_settings(texts) == {
        "a": {"b": 1e-4, "c": False},
        "d": [0.9, 1000.0, 5e-4],
        "e": None,
        "f": 1e-4,
        "g": "1e",
        "h": 3,
    }


# --------------------------------------------------------------------------------- what is redone


@pytest.fixture
def chain(house, ran):
    """Three notebooks that have all run once."""
    for name in ("00_a", "01_b", "02_c"):
        write_notebook(house.notebooks, name, "1")
    assert house.main("--profile", "smoke") == 0
    assert ran == ["00_a", "01_b", "02_c"]
    ran.clear()
    return house


def edit_source(house):
    write_notebook(house.notebooks, "01_b", "2")


def damage_figure(house):
    (house.runs / "smoke" / "figures" / "01_b_a.csv").write_text("changed by hand")


def remove_executed(house):
    (house.runs / "smoke" / "notebooks" / "01_b.ipynb").unlink()


def tear_record(house):
    (house.runs / "smoke" / "done" / "01_b.json").write_text('{"key"')


def empty_record(house):
    (house.runs / "smoke" / "done" / "01_b.json").write_text("[]")


@pytest.mark.parametrize(
    "change", [edit_source, damage_figure, remove_executed, tear_record, empty_record]
)
def test_changed_notebook_and_those_after_it_run_again(chain, ran, capsys, change):
    change(chain)
    capsys.readouterr()
    assert chain.main("--profile", "smoke", "--list") == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == [["00_a", "up"], ["01_b", "to"], ["02_c", "to"]]
    assert chain.main("--profile", "smoke") == 0
    assert ran == ["01_b", "02_c"]
    assert chain.statuses() == {"00_a": "up to date", "01_b": "done", "02_c": "done"}


def test_a_notebook_rerun_alone_makes_later_ones_stale(chain, ran):
    assert chain.main("--profile", "smoke", "--force", "--only", "01_b.ipynb") == 0
    assert chain.main("--profile", "smoke") == 0
    assert ran == ["01_b", "02_c"]


def test_stored_outputs_do_not_count(chain, ran):
    path = chain.notebooks / "01_b.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].execution_count = 3
    nbformat.write(notebook, path)
    assert chain.main("--profile", "smoke") == 0
    assert ran == []


def test_key_covers_seed_settings_package_and_versions(house, tmp_path, monkeypatch):
    notebook = write_notebook(house.notebooks, "00_a", "1")
    package = tmp_path / "package" / "sub"
    package.mkdir(parents=True)
    (package / "module.py").write_text("a = 1")

    def key(**overrides):
        profile = load_profile("smoke", **overrides)
        plan = Plan(profile, {}, [notebook], house.notebooks, house.runs, house.figures)
        return run_key(notebook, plan)

    keys = [key(), key(seed=5), key(settings={"finetuning": {"epochs": 3}})]
    monkeypatch.setattr(metadata, "version", lambda name: "0")
    keys.append(key())
    (package / "module.py").write_text("a = 2")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1]


def test_only_runs_in_file_order(house, ran):
    for name in ("00_a", "01_b", "02_c"):
        write_notebook(house.notebooks, name, "1")
    command = ["--profile", "smoke", "--only", "02_c", "notebooks/00_a.ipynb"]
    assert house.main(*command) == 0
    assert ran == ["00_a", "02_c"]


def test_what_skip_leaves_out_keeps_its_place_in_the_report_beside_the_figures(house, ran):
    for name in ("00_a", "01_b", "02_c"):
        write_notebook(house.notebooks, name, "1")
    report = house.figures / "reproduce.json"

    def seconds():
        rows = json.loads(report.read_text())["notebooks"]
        return {row["notebook"]: row["seconds"] for row in rows}

    assert house.main("--profile", "demo", "--skip", "01_b") == 0
    assert (ran, list(seconds())) == (["00_a", "02_c"], ["00_a", "02_c"])
    chain = seconds()
    assert house.main("--profile", "demo", "--only", "01_b", "02_c", "--force") == 0
    whole = seconds()
    assert list(whole) == ["00_a", "01_b", "02_c"]  # what the report lacked, and nothing else
    assert {name: whole[name] for name in chain} == chain
    assert house.main("--profile", "demo", "--skip", "01_b", "--force") == 0
    assert list(seconds()) == list(whole)
    assert seconds()["01_b"] == whole["01_b"]
    report.write_text("[]")  # an unreadable report is nobody's last good result
    assert house.main("--profile", "demo", "--only", "01_b", "--force") == 0
    assert report.read_text() == "[]"  # a notebook alone is no report of a chain
    assert house.main("--profile", "demo", "--skip", "01_b", "--force") == 0
    assert list(seconds()) == ["00_a", "02_c"]


# ----------------------------------------------------------------------------------------- faults


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "failed" not in path.parts and path.name != "reproduce.json"
    }


@pytest.mark.parametrize("at", range(4))  # two figures, the notebook, the record
@pytest.mark.parametrize("step", ["copyfile", "replace"])
def test_full_disk_while_promoting(chain, monkeypatch, step, at):
    before = everything(chain.runs)
    module, real, calls = {
        "copyfile": (shutil, shutil.copyfile, []),
        "replace": (os, os.replace, []),
    }[step]

    def full(source, target, **rest):
        if step == "replace" or str(target).endswith(".new"):
            calls.append(target)
            if len(calls) == at + 1:
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return real(source, target, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, full)
        assert chain.main("--profile", "smoke", "--force", "--only", "01_b") == 1
    assert everything(chain.runs) == before
    report = json.loads((chain.runs / "smoke" / "reproduce.json").read_text())
    assert "No space left" in report["notebooks"][0]["reason"]
    assert (chain.runs / "smoke" / "failed" / "01_b" / "figures" / "01_b_a.csv").exists()


def test_first_promotion_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "new").write_text("new")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    pairs = [(tmp_path / "new", tmp_path / "out" / "a"), (tmp_path / "absent", blocked / "b")]
    with pytest.raises(FileNotFoundError):
        promote(pairs, tmp_path / "journal")
    assert list((tmp_path / "out").iterdir()) == list(blocked.iterdir()) == []


def test_leftover_of_a_killed_promotion_is_no_backup(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "out" / "a"
    source.write_text("new")
    target.parent.mkdir()
    (target.parent / ".a.old").write_text("long ago")

    def broken(*paths):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="Input/output"):
        promote([(source, target)], tmp_path / "journal")
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_promoting_undoes_it(chain, monkeypatch, capsys, number):
    before, handlers = everything(chain.runs), signal.getsignal(number)
    real, sent = os.replace, []

    def interrupted(source, target):
        real(source, target)
        if str(target).endswith("01_b.ipynb") and not sent:  # once: the rollback replaces it too
            sent.append(number)
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert chain.main("--profile", "smoke", "--force", "--only", "01_b") == 128 + number
    assert capsys.readouterr().err.startswith(f"stopped by {number.name}")
    after = {name: data for name, data in everything(chain.runs).items() if "staging" not in name}
    assert after == before
    assert signal.getsignal(number) == handlers


def test_report_that_cannot_be_written(chain, capsys):
    report = chain.runs / "smoke" / "reproduce.json"
    report.unlink()
    report.mkdir()
    assert chain.main("--profile", "smoke") == 2
    captured = capsys.readouterr()
    assert "up to date" in captured.out
    assert "reproduce.json" in captured.err
