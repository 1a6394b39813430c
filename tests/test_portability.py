"""What Windows and macOS lack is not needed; neither is run here, so their ways are acted out."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from entityclip import files
from entityclip.config import REPOSITORY

IMPORT_ALL = """
import builtins, os, pkgutil, signal, sys
import accelerate, IPython, ipywidgets, matplotlib.pyplot, open_clip, papermill, psutil, pydantic
import scipy.stats, seaborn, sklearn.cluster, torchvision  # these know for themselves

absent = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog"}
real = builtins.__import__

def guarded(name, globals=None, *rest):
    if (globals or {}).get("__name__", "").startswith("entityclip") and name in absent:
        raise ImportError(f"no {name} on Windows")
    return real(name, globals, *rest)

builtins.__import__ = guarded
for name in ("fork", "forkpty", "register_at_fork", "pread", "pwrite", "getuid", "killpg", "setsid",
             "sched_getaffinity", "memfd_create", "sysconf", "WNOHANG", "mkfifo", "fchmod"):
    vars(os).pop(name, None)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGUSR1"):
    vars(signal).pop(name, None)

import entityclip
names = [m.name for m in pkgutil.walk_packages(entityclip.__path__, "entityclip.")]
for name in names:
    real(name)
from entityclip import files
assert files.fcntl is None and len(names) > 60, names
print(len(names))
"""


def test_every_module_is_imported_where_posix_is_not():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def windows(monkeypatch):
    """No fcntl and no pread; msvcrt's locks, of which a second open file gets none."""
    held = {}

    def locking(descriptor, mode, size):
        at = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), size
        if mode == "unlock":
            assert held.pop(at) == descriptor
        elif held.setdefault(at, descriptor) != descriptor:
            raise PermissionError(13, "Permission denied")

    fake = SimpleNamespace(LK_NBLCK="lock", LK_UNLCK="unlock", locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.delattr(os, "pread")
    return held


def test_rows_are_appended_and_mended_under_windows_locks(windows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    with files.locked(path) as descriptor:
        files.mend_tail(descriptor, path, lambda first: first.startswith(b'{"a"'), ValueError)
        files.append(descriptor, b'{"a": 3}\n', path)
        assert len(windows) == 1
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    assert (tmp_path / "rows.jsonl.torn").read_bytes() == b'{"a"\n'
    assert not windows


def test_a_claim_excludes_others_under_windows_locks(windows, tmp_path):
    for path in (tmp_path / "work.lock", tmp_path):  # a folder gets a file of its own
        with files.claimed(path, wait=False) as ours:
            assert ours
            with files.claimed(path, wait=False) as theirs:
                assert not theirs
            assert path.is_dir() or path.read_bytes() == b""  # readers are not kept out
        windows.clear()  # closing a file unlocks it
    assert (tmp_path / ".lock").exists()


def test_windows_waits_for_a_lock(windows, monkeypatch, tmp_path):
    first, second = (files.open_to_append(tmp_path / "rows.jsonl") for _ in range(2))
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            files._unlock(first)

    monkeypatch.setattr(files.time, "sleep", nap)
    assert files._lock(first)
    with files.lock(second):
        assert list(windows.values()) == [second]
    assert len(naps) == 3
    for descriptor in (first, second):
        os.close(descriptor)


def test_windows_replaces_a_file_once_its_reader_is_done(monkeypatch, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new")
    old.write_text("old")
    real, tries = os.replace, []

    def busy(source, target):
        tries.append(source)
        if len(tries) < 3:
            raise PermissionError(13, "Access is denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(PermissionError):  # here at once: the folder is not ours
        files.replace(new, old)
    monkeypatch.setattr(files, "os", SimpleNamespace(**vars(os) | {"name": "nt"}))
    files.replace(new, old)
    assert old.read_text() == "new"
    assert len(tries) == 3


def test_no_signal_asks_windows_whether_a_process_lives(monkeypatch):
    def ctrl_c(pid, number):
        raise AssertionError("signal 0 is Ctrl-C there")

    monkeypatch.setattr(files, "os", SimpleNamespace(**vars(os) | {"name": "nt", "kill": ctrl_c}))
    assert files._alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not files._alive(child.pid)


def test_peak_memory_needs_no_resource_module(monkeypatch):
    from entityclip.evaluation import provenance

    monkeypatch.setattr(provenance.Path, "read_text", lambda *a, **k: "")  # no /proc
    in_mb = provenance.peak_memory_mb()
    assert 50 < in_mb < 1e5
    monkeypatch.setitem(sys.modules, "resource", None)
    info = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setattr("psutil.Process", lambda: info)
    monkeypatch.setattr(provenance, "os", SimpleNamespace(**vars(os) | {"name": "nt"}))
    assert provenance.peak_memory_mb() == 3


def test_texts_are_read_and_written_as_utf8_everywhere():
    """ruff knows which calls would take the system's encoding, Windows' cp1252 for one."""
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "check", "--preview", "--select", "PLW1514", "--no-cache", "entityclip"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["evaluate", "--no-such-λ"], ["sweep", "--help"]]
)
def test_a_terminal_that_lacks_signs_stops_nothing(arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "cp437:strict"}
    command = [sys.executable, "-m", "entityclip", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert b"UnicodeEncodeError" not in done.stderr
    assert done.returncode == (2 if "evaluate" in arguments else 0), done.stderr
