"""What benchmarks share: their command line, clocks, and ways that take turns."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


def options(about: str, **defaults: Any) -> argparse.Namespace:
    """The command line: ``--name VALUE`` of each default's type; a flag where that is False.

    `about`, the module's text, is what ``--help`` prints. A tuple takes as many whole numbers.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(flag, type=int, nargs=len(default), default=default)
        else:
            kind = str if default is None else type(default)
            parser.add_argument(flag, type=kind, default=default, help=f"default: {default}")
    return parser.parse_args()


class Taken(NamedTuple):
    """Seconds on the clock, and of processors in this process and in workers that have ended."""

    wall: float
    processor: float


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Taken]:
    """What a call gives, and what it takes."""
    wall, processor = time.perf_counter(), _processor()
    result = function(*arguments)
    return result, Taken(time.perf_counter() - wall, _processor() - processor)


def _processor() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def take_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, Any], dict[str, list[Taken]]]:
    """Call each way in turn, so that what else the machine does hits all alike.

    Gives each way's last result and what each round took.
    """
    results, taken = {}, {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            results[name], spent = timed(way)
            taken[name].append(spent)
    return results, taken


def medians(rounds: Sequence[Taken]) -> Taken:
    """Of wall and of processor time."""
    return Taken(*map(statistics.median, zip(*rounds, strict=True)))
