"""One command at a time, and one that can be stopped: what whoever fills ``figures/`` needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from entityclip.config import Profile
from entityclip.promotion import journal_in, recover


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
