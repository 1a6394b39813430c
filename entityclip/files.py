"""Writing files that neither a kill, a full disk nor a second process spoils; commit and cores."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

log = logging.getLogger(__name__)

_CHECKOUT = Path(__file__).resolve().parents[1]
_BLOCK = 1 << 16  # bytes read at a time in search of the last newline


def open_to_append(path: Path) -> int:
    """A file descriptor to read and append with; the file is made as needed."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """`open_to_append`, locked against other processes, for one use."""
    descriptor = open_to_append(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)  # and so unlocks


@contextlib.contextmanager
def lock(descriptor: int) -> Iterator[None]:
    """Lock a file that stays open against whoever else has opened it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the work that `path` stands for is ours; a dead process's claim is void.

    With `wait`, waits until it is; else False where another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)  # and so unlocks


def append(descriptor: int, payload: bytes, path: Path, *, sync: bool = True) -> None:
    """Append all of `payload` to a locked file or, raising OSError (a full disk), none of it.

    Without `sync` it survives the death of this process, but not of the machine.
    """
    written = 0
    try:
        written = os.write(descriptor, payload)  # one write: readers see whole rows
        if written != len(payload):
            raise OSError(f"{path}: {written} of {len(payload)} bytes written; is the disk full?")
        if sync:
            os.fsync(descriptor)
    except OSError:
        # under the lock, so nobody else's rows are lost
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise


def mend_tail(descriptor: int, path: Path) -> None:
    """Make a locked JSONL file end in a whole line.

    A torn last line, left by a killed process, is moved to ``<name>.torn`` with a warning; a whole
    row that only lacks its newline gets it.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    kept, tail = size, b""
    while kept and b"\n" not in tail:
        start = max(0, kept - _BLOCK)
        tail = os.pread(descriptor, kept - start, start) + tail
        kept = start
    kept, tail = kept + tail.rfind(b"\n") + 1, tail[tail.rfind(b"\n") + 1 :]
    try:
        json.loads(tail)
    except ValueError:
        torn = path.with_name(path.name + ".torn")
        with torn.open("ab") as file:
            file.write(tail + b"\n")
            file.flush()
            os.fsync(file.fileno())  # safe there before it goes here
        os.ftruncate(descriptor, kept)
        log.warning("%s ended in a torn line; moved it to %s", path, torn.name)
    else:
        append(descriptor, b"\n", path)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part; mode 0644.

    Raises OSError (e.g. a full disk) with the last good file untouched and no temporary left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the file from other users
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text, newlines as given."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write a large file to; it takes `path`'s place if all went well.

    On an error (a full disk) what stood at `path` still does, and no temporary is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield staged
        with open(staged, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def cores() -> int:
    """Cores that this process may run on; where the system does not tell, all there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def progress_bar(*arguments: Any, show: bool, **options: Any) -> tqdm:
    """A tqdm bar, hidden if `show` is False or ``TQDM_DISABLE`` is set."""
    # tqdm's notebook bar draws an empty widget where only the variable hides it
    hidden = not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(*arguments, **options, disable=hidden)


def git_commit(repository: Path = _CHECKOUT) -> str:
    """The checkout's commit, "-dirty" if package files differ from it, "unknown" outside one.

    Only `entityclip/` is compared: figures and executed notebooks change while a run goes on, and
    the settings stand in the row itself.
    """

    def git(*arguments: str) -> str:
        # a git hook's GIT_DIR would point elsewhere than at the package's own checkout
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(repository), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        return done.stdout.strip()

    try:
        # a package installed below some other project's checkout has no commit of its own
        if Path(git("rev-parse", "--show-toplevel")).resolve() != repository.resolve():
            return "unknown"
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", "entityclip") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
