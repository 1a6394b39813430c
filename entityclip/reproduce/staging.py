"""Files put in place together, by one process at a time: all or none, also where it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from entityclip.config import Joined, Profile
from entityclip.console import Refused
from entityclip.files import atomic_write_text, claimed, read_json, replace


def journal_in(runs: Path) -> Path:
    """Where a profile's promotions keep their journal, whichever command makes them."""
    return runs / "promoting.json"


def promote(pairs: Sequence[tuple[Path, Path]], journal: Path) -> None:
    """Copy each (source, target) into place in order, all or none.

    Copies are complete beside their targets before the first target changes (the staging folder may
    be on another disk). Whatever stops it half-way, `recover` undoes by the journal what was done:
    at once after an error, and by the next process where this one was killed.
    """
    targets = [target for _, target in pairs]
    try:
        for source, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            _beside(target, "old").unlink(missing_ok=True)  # a killed run's leftover, no backup
            shutil.copyfile(source, _beside(target, "new"))
            if target.exists():
                shutil.copyfile(target, _beside(target, "old"))
        journal.parent.mkdir(parents=True, exist_ok=True)
        entries = [[str(target), target.exists()] for target in targets]
        atomic_write_text(journal, json.dumps(entries))
        for target in targets:
            replace(_beside(target, "new"), target)
    except BaseException:
        recover(journal, [target.parent for target in targets])
        raise
    finally:
        _clear(targets, journal)


class JournalError(Refused):
    """A promotion's journal is none; the message names it and what to do. Nothing was touched."""


def recover(journal: Path, folders: Sequence[Path]) -> bool:
    """Undo a promotion that was stopped half-way; whether there was one.

    One that had come to its last target is finished instead: only its leftovers go. Raises
    JournalError for a journal of another shape or with files that lie outside `folders`.
    """
    try:
        entries = read_json(journal, JournalError, list[tuple[str, bool]])
    except FileNotFoundError:
        return False
    except JournalError as error:
        raise JournalError(f"{error}; no promotion wrote that: move it away") from error
    homes = [folder.resolve() for folder in folders]
    targets = [(Path(target), existed) for target, existed in entries]
    for target, _ in targets:
        if not any(target.resolve().is_relative_to(home) for home in homes):
            raise JournalError(f"{journal}: {target} is no file of this run: move the journal away")
    undone = bool(targets) and _beside(targets[-1][0], "new").exists()
    for target, existed in targets if undone else []:
        with contextlib.suppress(OSError):  # go on: restore as many as can be
            if _beside(target, "old").exists():
                replace(_beside(target, "old"), target)
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


class InUse(OSError):
    """Another process fills the same folder of runs or of figures."""


@contextlib.contextmanager
def alone_with(profile: Profile | Joined, figures: Path) -> Iterator[None]:
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
        if recover(journal_in(runs), (runs, figures)):
            print("undid what a killed run had half put in place", file=sys.stderr)
        for folder in (figures, *filter(Path.is_dir, runs.iterdir())):
            _remove_leftovers(folder)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Delete the copies that a run left beside its files when killed before it had a journal."""
    for leftover in (path for kind in ("new", "old") for path in folder.glob(f".*.{kind}")):
        if Path(leftover.stem).suffix in (".png", ".svg", ".csv", ".md", ".tex", ".ipynb", ".json"):
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path, refused: str) -> Iterator[None]:
    """Hold a folder, or a file that is made as needed; InUse if another process does."""
    with claimed(path, wait=False) as ours:
        if not ours:
            said = path.read_text(encoding="utf-8") if path.is_file() else ""
            raise InUse(refused.format(said))
        yield


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
