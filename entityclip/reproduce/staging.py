"""Files put in place together: all or none, also where the process is killed in the middle."""

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


def promote(pairs: Sequence[tuple[Path, Path]], journal: Path | None = None) -> None:
    """Copy each (source, target) into place in order, all or none, with mode 0644.

    Copies are complete beside their targets before the first target changes (the staging folder may
    be on another disk); if a step fails, targets already replaced get their old content back. A
    process that is killed in between leaves `journal`, by which `recover` undoes what it did.
    """
    targets = [target for _, target in pairs]
    new, old = ([_beside(target, kind) for target in targets] for kind in ("new", "old"))
    touched: list[int] = []
    try:
        for (source, target), copy, backup in zip(pairs, new, old, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            backup.unlink(missing_ok=True)  # a killed run's leftover is no backup of ours
            _copy(source, copy)
            if target.exists():
                _copy(target, backup)
        if journal is not None:
            _write_journal(journal, targets)
        for index, target in enumerate(targets):
            touched.append(index)  # before, so that a signal in between is undone as well
            os.replace(new[index], target)
    except BaseException:
        for index in touched:
            with contextlib.suppress(OSError):  # go on: restore as many as can be
                _restore(old[index], targets[index], existed=False)
        raise
    finally:
        for leftover in (*new, *old, *([] if journal is None else [journal])):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def recover(journal: Path) -> bool:
    """Undo a promotion that was killed half-way; whether there was one.

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
    for target, existed in targets:
        if undone:
            _restore(_beside(target, "old"), target, existed=existed)
        for kind in ("new", "old"):
            _beside(target, kind).unlink(missing_ok=True)
    journal.unlink()
    return undone


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _write_journal(journal: Path, targets: Sequence[Path]) -> None:
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("w", encoding="utf-8") as file:
        json.dump([[str(target), target.exists()] for target in targets], file)
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o644)


def _restore(backup: Path, target: Path, *, existed: bool) -> None:
    """Put the backup back; without one, what is new there goes (unless it `existed` before)."""
    if backup.exists():
        os.replace(backup, target)
    elif not existed:
        target.unlink(missing_ok=True)


class InUse(OSError):
    """Another process fills the same folder of runs or of figures."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came. A KeyboardInterrupt, so that asyncio passes it on at once."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def alone_with(profile: Profile, figures: Path) -> Iterator[None]:
    """Hold a profile's runs and a folder of figures, once what a killed run left there is undone.

    Raises InUse if another process holds one.
    """
    runs = profile.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise InUse(
                f"profile {profile.name} is already being run by process {file.read()}; "
                "wait for it or stop it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        with _holding(figures):
            if recover(journal_in(runs)):
                print("undid what a killed run had half put in place", file=sys.stderr)
            yield


@contextlib.contextmanager
def _holding(figures: Path) -> Iterator[None]:
    """A run with another folder of runs must not promote into the same figures meanwhile."""
    figures.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(figures, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(
                f"{figures} is being filled by a run with another ENTITYCLIP_RUNS; wait for it"
            ) from error
        yield
    finally:
        os.close(descriptor)  # and so unlocks


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
