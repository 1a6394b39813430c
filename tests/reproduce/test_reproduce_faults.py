"""The chain of notebooks when it is killed, hangs, finds the disk full or is started twice."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest

from entityclip.reproduce import chain as chaining
from entityclip.reproduce.staging import JournalError, _remove_leftovers, promote, recover
from tests.reproduce.test_reproduce import (  # noqa: F401
    SPOIL,
    chain,
    everything,
    house,
    ran,
    write_notebook,
)

RUN = (
    "import sys, pathlib; from entityclip.reproduce.__main__ import main; "
    "n, f = map(pathlib.Path, sys.argv[1:]); "
    "sys.exit(main(['--profile', 'smoke', '--timeout', '60'], notebooks=n, figures=f))"
)


def start(house, **options):  # noqa: F811
    command = [sys.executable, "-c", RUN, str(house.notebooks), str(house.figures)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def wait_for(path, process=None, seconds=90):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def good_results(house, name):  # noqa: F811
    runs = house.runs / "smoke"
    paths = runs / "figures" / "a.csv", runs / "notebooks" / f"{name}.ipynb"
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("good")
    return paths


def report(house):  # noqa: F811
    rows = json.loads((house.runs / "smoke" / "reproduce.json").read_text())["notebooks"]
    return [(row["notebook"], row["status"], row["reason"]) for row in rows]


# ------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_a_notebook(house, capsys, number):  # noqa: F811
    started = house.runs / "started"
    wait = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(120)"
    write_notebook(house.notebooks, "00_long", SPOIL, wait)
    write_notebook(house.notebooks, "01_next", "1")
    good = good_results(house, "00_long")
    first = start(house)
    try:
        wait_for(started, first)
        kernels = psutil.Process(first.pid).children(recursive=True)
        assert kernels
        assert house.main("--profile", "smoke") == 2  # a second run is refused meanwhile
        assert f"already being run by process {first.pid}" in capsys.readouterr().err
        first.send_signal(number)
        _, errors = first.communicate(timeout=60)
    finally:
        first.kill()
    assert psutil.wait_procs(kernels, timeout=30)[1] == []  # an orphan would go on computing
    assert [path.read_text() for path in good] == ["good", "good"]
    assert not (house.runs / "smoke" / "done").exists()
    if number == signal.SIGTERM:
        assert first.returncode == 128 + number
        assert errors.splitlines()[-1].startswith("stopped by SIGTERM")
        assert "Traceback" not in errors
        assert report(house) == [
            ("00_long", "failed", "stopped by SIGTERM"),
            ("01_next", "skipped", None),
        ]

    # whoever was killed holds nothing: the same notebook is run anew
    write_notebook(house.notebooks, "00_long", SPOIL)
    assert house.main("--profile", "smoke", "--only", "00_long") == 0
    assert house.statuses() == {"00_long": "done"}
    assert good[0].read_text() == ""
    assert not (house.runs / "smoke" / "staging" / "00_long").exists()


# of the journal, two figures, the notebook and the record
@pytest.mark.parametrize("after", range(6))
def test_killed_while_promoting(chain, ran, monkeypatch, capsys, after):  # noqa: F811
    before = everything(chain.runs)
    child = os.fork()
    if child == 0:  # dies without a chance to clean up
        real, done = os.replace, []

        def deadly(source, target):
            if len(done) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
            real(source, target)

        os.replace = deadly
        code = chain.main("--profile", "smoke", "--force", "--only", "01_b")
        os._exit(99 + code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert after in (0, 1, 5) or everything(chain.runs) != before  # half done

    def broken(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(chaining, "execute", broken)  # so that what is seen was recovered
    assert chain.main("--profile", "smoke", "--force", "--only", "00_a") == 1
    # the others: killed while writing the report or the journal; the next process removes them
    left = ("staging", ".reproduce.json.", ".promoting.json.")
    found = everything(chain.runs).items()
    recovered = {n: data for n, data in found if not any(part in n for part in left)}
    if after < 5:
        assert recovered == before
        undid = "undid what a killed run had half put in place" in capsys.readouterr().err
        assert undid == (after > 0)
    else:  # killed after the record, which vouches for the rest
        assert recovered.keys() == before.keys()
        assert recovered != before
    assert not (chain.runs / "smoke" / "promoting.json").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[["', "is not JSON"),
        ("{}", "Input should be a valid (list|array)"),
        ('[["a"]]', "0.1: Field required"),
        ("[[1, true]]", "0.0: Input should be a valid string"),
        ('[["/etc/passwd", false]]', "/etc/passwd is no file of this run"),
        ('[["{out}/../precious", false]]', "precious is no file of this run"),
    ],
)
def test_a_journal_of_another_shape_is_refused_and_nothing_touched(tmp_path, content, says):
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    precious.write_text("mine")
    (tmp_path / ".precious.new").write_text("mine, too")
    journal = tmp_path / "promoting.json"
    journal.write_text(content.replace("{out}", str(out)))
    with pytest.raises(JournalError, match=f"{says}.*move") as caught:
        recover(journal, [out])
    assert len(str(caught.value).splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} == {
        "out", "precious", ".precious.new", "promoting.json",
    }  # fmt: skip


def test_copies_of_a_run_killed_before_its_journal_go(tmp_path):
    for name in (".a.png.new", ".b.csv.old", ".notes.old", "a.png"):
        (tmp_path / name).touch()
    _remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".notes.old", "a.png"}


def test_recovering_twice(tmp_path):
    journal, target = tmp_path / "promoting.json", tmp_path / "out" / "a"
    assert not recover(journal, [tmp_path])
    # killed after the first of two targets: one is new, the other was there
    target.parent.mkdir()
    (tmp_path / "b").write_text("old b")
    target.write_text("new a")
    (tmp_path / ".b.old").write_text("old b")
    (tmp_path / ".b.new").write_text("new b")
    entries = [[str(target), False], [str(tmp_path / "b"), True]]
    for _ in range(2):  # as if killed once more right after the work
        journal.write_text(json.dumps(entries))
        recover(journal, [tmp_path])
        assert (tmp_path / "b").read_text() == "old b"
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["b", "out"]


def test_a_promotion_leaves_no_journal(tmp_path):
    (tmp_path / "new").write_text("new")
    journal = tmp_path / "promoting.json"
    promote([(tmp_path / "new", tmp_path / "out" / "a")], journal)
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert not journal.exists()


# --------------------------------------------------------------------------------- hangs


def test_a_deaf_notebook_and_what_it_started_are_ended(house, capsys):  # noqa: F811
    child = house.runs / "child"
    source = (
        "import pathlib, signal, subprocess, time\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "process = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(process.pid))\n"
        "while True:\n    time.sleep(1)"
    )
    write_notebook(house.notebooks, "00_deaf", source)
    write_notebook(house.notebooks, "01_never", "1")
    good = good_results(house, "00_deaf")
    assert house.main("--profile", "smoke", "--timeout", "4") == 1
    assert house.statuses() == {"00_deaf": "failed", "01_never": "skipped"}
    assert "CellTimeoutError: A cell timed out" in capsys.readouterr().err
    assert [path.read_text() for path in good] == ["good", "good"]
    pid = int(child.read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "what the notebook started still runs"
        time.sleep(0.1)


# ----------------------------------------------------------------------------- the disk is full

FILLS = {
    "a figure": (
        "(pathlib.Path(output_dir) / 'figures' / 'b.csv').write_bytes(bytes(400_000))",
        "OSError: [Errno 27] File too large",
    ),
    "the notebook's own output": ("print('x' * 400_000)", "OSError: [Errno 27] File too large"),
}


@pytest.mark.parametrize("what", FILLS)
def test_the_disk_fills_up(house, what):  # noqa: F811
    """A limit on the size of files stands in for the disk: the kernel inherits it."""
    source, reason = FILLS[what]
    write_notebook(house.notebooks, "00_fills", SPOIL, source)
    write_notebook(house.notebooks, "01_never", "1")
    good = good_results(house, "00_fills")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = start(house, preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    (line,) = [x for x in errors.splitlines() if x.startswith("00_fills failed")]
    assert reason in line
    assert [(name, status) for name, status, _ in report(house)] == [
        ("00_fills", "failed"),
        ("01_never", "skipped"),
    ]
    assert [path.read_text() for path in good] == ["good", "good"]
    assert not (house.runs / "smoke" / "done").exists()


def test_no_room_to_start(chain, ran, monkeypatch, capsys):  # noqa: F811
    before = everything(chain.runs)

    def full(*_, **__):
        raise OSError(28, "No space left on device", "staging")

    monkeypatch.setattr(chaining, "execute", full)
    assert chain.main("--profile", "smoke", "--force") == 1
    assert "00_a failed: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    assert chain.statuses() == {"00_a": "failed", "01_b": "skipped", "02_c": "skipped"}
    assert everything(chain.runs) == before


# -------------------------------------------------------------------- changed, twice, left out


@pytest.mark.parametrize("change", ["torn", "gone"])
def test_a_notebook_spoilt_during_the_run(chain, ran, monkeypatch, capsys, change):  # noqa: F811
    real, path = chaining.execute, chain.notebooks / "01_b.ipynb"

    def execute(notebook, plan, *, bar):
        path.write_text("{") if change == "torn" else path.unlink()
        real(notebook, plan, bar=bar)

    monkeypatch.setattr(chaining, "execute", execute)
    assert chain.main("--profile", "smoke", "--force") == 1
    assert chain.statuses() == {"00_a": "done", "01_b": "failed", "02_c": "skipped"}
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "failed" in x]
    assert line.startswith("01_b failed: ")
    assert ran == ["00_a"]


def test_two_folders_of_runs_do_not_share_figures(house, ran, monkeypatch, capsys):  # noqa: F811
    write_notebook(house.notebooks, "00_a", "1")
    real, codes = chaining.execute, []

    def meanwhile(*arguments, **options):
        if not codes:
            codes.append(None)
            with monkeypatch.context() as patch:
                patch.setenv("ENTITYCLIP_RUNS", str(house.runs / "others"))
                codes[0] = house.main("--profile", "demo")
        real(*arguments, **options)

    monkeypatch.setattr(chaining, "execute", meanwhile)
    assert house.main("--profile", "demo") == 0
    assert codes == [2]
    assert "is being filled by a run with another ENTITYCLIP_RUNS" in capsys.readouterr().err
    assert ran == ["00_a"]
    assert house.main("--profile", "demo") == 0  # freed again


def test_skip_leaves_out(house, ran, capsys):  # noqa: F811
    for name in ("00_a", "01_b", "02_c"):
        write_notebook(house.notebooks, name, "1")
    assert house.main("--profile", "smoke", "--skip", "01_b", "notebooks/00_a.ipynb") == 0
    assert ran == ["02_c"]
    assert house.statuses() == {"02_c": "done"}
    ran.clear()
    command = ["--profile", "smoke", "--only", "00_a", "01_b", "--skip", "01_b", "--skip", "02_c"]
    assert house.main(*command) == 0
    assert ran == ["00_a"]
    capsys.readouterr()
    assert house.main("--profile", "smoke", "--list", "--skip", "00_a") == 0
    assert [x.split()[0] for x in capsys.readouterr().out.splitlines()[1:]] == ["01_b", "02_c"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--skip", "01_bb"], "no notebook '01_bb'; did you mean 01_b?"),
        (["--skip", "00_a", "01_b"], "--skip leaves no notebook to run"),
        (["--only", "00_a", "--skip", "00_a"], "--skip leaves no notebook to run"),
    ],
)
def test_a_wrong_skip_is_refused(house, ran, capsys, argv, says):  # noqa: F811
    for name in ("00_a", "01_b"):
        write_notebook(house.notebooks, name, "1")
    assert house.main("--profile", "smoke", *argv) == 2
    assert says in capsys.readouterr().err
    assert ran == []


def test_a_notebook_alone_says_nothing_beside_the_figures(house, ran):  # noqa: F811
    for name in ("00_a", "01_b"):
        write_notebook(house.notebooks, name, "1")
    told = house.runs / "smoke" / "figures" / "reproduce.json"
    assert house.main("--profile", "smoke", "--only", "00_a") == 0
    assert not told.exists()
    assert house.main("--profile", "smoke") == 0
    assert json.loads(told.read_text())["notebooks"][1]["status"] == "done"
