"""Commands end in one line: what is wrong, and by the exit code how far they came."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from tqdm.auto import tqdm

from entityclip.files import printable

_SECONDS = 30.0  # between a bar's lines in a log file
STOPPED = 130  # the exit code after Ctrl-C, 128 + SIGINT


class Refused(ValueError):
    """What was given, or found beforehand, is wrong: nothing was begun. A command exits with 2."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What is wrong before the work begins, of whatever kind, becomes Refused."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise Refused(in_one_line(error)) from error


def print_anything() -> None:
    """From here on a sign that the terminal's encoding lacks, as Windows' does many, stops nothing.

    It is shown written out.
    """
    for stream in (sys.stdout, sys.stderr):
        if (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8":
            with contextlib.suppress(AttributeError):  # a notebook's stream
                stream.reconfigure(errors="backslashreplace")


def guarded(command: Callable[..., int], arguments: Sequence[str], **options: Any) -> int:
    """Run a command; its exit code, or that of its error, which ends in a line on stderr.

    2 for `Refused`, 1 for all others, 130 for Ctrl-C. With ``--debug`` anywhere among the arguments
    the traceback is shown instead.
    """
    print_anything()
    debug = "--debug" in arguments
    try:
        return command([one for one in arguments if one != "--debug"], **options)
    except KeyboardInterrupt:
        if debug:
            raise
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if debug:
            raise
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, Refused) else 1


def in_one_line(error: BaseException) -> str:
    """What an error says, in one line that may go to a terminal."""
    text = printable(" ".join(str(error).split()))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{printable(str(error.filename))}: {error.strerror}"
    ours = type(error).__module__.startswith("entityclip")
    if ours or isinstance(error, OSError | ValueError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--debug shows where)"


def progress_bar(*arguments: Any, show: bool, **options: Any) -> tqdm:
    """A tqdm bar, hidden if `show` is False or ``TQDM_DISABLE`` is set.

    Where it would go to a file, it is a line now and then: a log keeps no bar that redraws itself.
    """
    # tqdm's notebook bar draws an empty widget where only the variable hides it
    hidden = not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    if not (hidden or "ipykernel" in sys.modules or sys.stderr.isatty()):
        quiet = {"mininterval": _SECONDS, "maxinterval": 2 * _SECONDS, "delay": _SECONDS}
        options = {**quiet, "file": _Lines(sys.stderr), **options}
    return tqdm(*arguments, **options, disable=hidden)


class Part(NamedTuple):
    """One of `count` parts of a work that is done side by side; `index` counts from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, number: int) -> bool:
        """Whether it does the unit of that number, counted from 0; every unit is one part's."""
        return number % self.count == self.index - 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Of ``3/8``. Raises argparse's error for anything else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise argparse.ArgumentTypeError(f"{text!r} is no part such as 3/8, from 1/8 to 8/8")
        return cls(int(found[1]), int(found[2]))


def add_part(parser: argparse.ArgumentParser) -> None:
    """The option ``--shard`` of a command whose work may be done by several jobs."""
    parser.add_argument("--shard", type=Part.parse, metavar="I/N", help="do part I of N, beside "
        "jobs that do the others; then the same command without it puts them together")  # fmt: skip


class _Lines:
    """A stream that ends each state of a bar as a line, and drops what only clears the last."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        state = text.strip()
        if state:
            self.stream.write(state + "\n")

    def flush(self) -> None:
        self.stream.flush()
