"""Files put in place together, by one process at a time: all or none, also where it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from entityclip.config import Profile


def journal_in(runs: Path) -> Path:
    """Where a profile's promotions keep their journal, whichever command makes them."""
    return runs / "promoting.json"


def promote(pairs: Sequence[tuple[Path, Path]], journal: Path) -> None:
    """Copy each (source, target) into place in order, all or none, with mode 0644.

    Copies are complete beside their targets before the first target changes (the staging folder may
    be on another disk). Whatever stops it half-way, `recover` undoes by the journal what was done:
    at once after an error, and by the next process where this one was killed.
    """
    targets = [target for _, target in pairs]
    try:
        for source, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            _beside(target, "old").unlink(missing_ok=True)  # a killed run's leftover, no backup
            _copy(source, _beside(target, "new"))
            if target.exists():
                _copy(target, _beside(target, "old"))
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("w", encoding="utf-8") as file:
            json.dump([[str(target), target.exists()] for target in targets], file)
            file.flush()
            os.fsync(file.fileno())
        for target in targets:
            os.replace(_beside(target, "new"), target)
    except BaseException:
        recover(journal)
        raise
    finally:
        _clear(targets, journal)


def recover(journal: Path) -> bool:
    """Undo a promotion that was stopped half-way; whether there was one.

    One that had come to its last target is finished instead: only its leftovers go.
    """
    try:
        entries = json.loads(journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        entries = []  # killed while writing it, before anything was replaced
    targets = [(Path(target), existed) for target, existed in entries]
    undone = bool(targets) and _beside(targets[-1][0], "new").exists()
    for target, existed in targets if undone else []:
        with contextlib.suppress(OSError):  # go on: restore as many as can be
            if _beside(target, "old").exists():
                os.replace(_beside(target, "old"), target)
            elif not existed:
                target.unlink(missing_ok=True)
    _clear([target for target, _ in targets], journal)
    return undone


def _clear(targets: Sequence[Path], journal: Path) -> None:
    for leftover in (*(_beside(t, kind) for t in targets for kind in ("new", "old")), journal):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o644)


class InUse(OSError):
    """Another process fills the same folder of runs or of figures."""


@contextlib.contextmanager
def alone_with(profile: Profile, figures: Path) -> Iterator[None]:
    """Hold a profile's runs and a folder of figures, once what a killed run left there is undone.

    Raises InUse if another process holds one.
    """
    runs = profile.runs.resolve()
    lock = runs / ".lock"
    for folder in (runs, figures):
        folder.mkdir(parents=True, exist_ok=True)
    running = f"profile {profile.name} is already being run by process {{}}; wait for it or stop it"
    # a run with another folder of runs must not promote into the same figures meanwhile
    filling = f"{figures} is being filled by a run with another ENTITYCLIP_RUNS; wait for it"
    with _held(lock, running), _held(figures, filling):
        lock.write_text(str(os.getpid()), encoding="utf-8")
        if recover(journal_in(runs)):
            print("undid what a killed run had half put in place", file=sys.stderr)
        yield


@contextlib.contextmanager
def _held(path: Path, refused: str) -> Iterator[None]:
    """Hold a folder, or a file that is made as needed; InUse if another process does."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = path.read_text(encoding="utf-8") if path.is_file() else ""
            raise InUse(refused.format(said)) from error
        yield
    finally:
        os.close(descriptor)  # and so unlocks


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came. A KeyboardInterrupt, so that asyncio passes it on at once."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Stopped; a second one acts as it would without us.

    Processes started within are killed at once.
    """
    others = set(psutil.Process().children(recursive=True))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(signum: int, frame: object) -> None:
        restore()
        for child in set(psutil.Process().children(recursive=True)) - others:
            with contextlib.suppress(psutil.Error):
                child.kill()  # asked politely, a kernel first prints a traceback: seconds
        raise Stopped(signum)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
