"""``entityclip reproduce`` (``python -m entityclip.reproduce``) and ``entityclip figures``.

What runs notebooks or draws is imported late: help need not wait for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from entityclip.config import (
    IN_CHECKOUT,
    REPOSITORY,
    SHIPPED_PROFILE,
    Joined,
    load_profile,
    parts_of,
)
from entityclip.console import Refused, guarded, in_one_line
from entityclip.files import cores

NOTEBOOKS = REPOSITORY / "notebooks"
FIGURES = REPOSITORY / "figures"


def main(
    argv: Sequence[str] | None = None, *, notebooks: Path = NOTEBOOKS, figures: Path = FIGURES
) -> int:
    """Run the command line and return its exit code.

    0: all done; 1: a notebook failed; 2: refused before the start, or no report could be written;
    130, 143: stopped by SIGINT, SIGTERM.
    """
    arguments = _parser().parse_args(argv)
    if notebooks == NOTEBOOKS and not IN_CHECKOUT:
        raise Refused(
            "the notebooks are no part of an installed package: get the repository and run "
            "`make reproduce` there (`entityclip figures` redraws what needs no notebook)"
        )
    from entityclip.reproduce.chain import run  # papermill's imports take longer than --help should

    return run(arguments, notebooks, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entityclip reproduce",
        description="Run the notebooks in order with a profile. Names and types are checked before "
        "anything starts. Each notebook runs in a staging folder; its figures and executed copy "
        "replace the last good ones only when it succeeded. Finished work is not done again unless "
        "its sources, settings or package changed, or --force is given.",
    )
    add, several = parser.add_argument, dict(nargs="+", action="extend", default=[])
    add("--profile", default="demo", help="one of entityclip/profiles/ (default: demo)")
    add("--roots", **several, metavar="DATASET=FOLDER", help="where data sets lie; of the profile "
        "paper those that are given take part")  # fmt: skip
    add("--only", **several, metavar="NOTEBOOK", help="e.g. 03_train")
    add("--skip", **several, metavar="NOTEBOOK", help="all but these")
    add("--set", **several, metavar="NAME=VALUE", help="override a setting; figures: below runs/")
    add("--seed", type=int, help="instead of the profile's; figures: below runs/")
    add("--force", action="store_true", help="redo finished notebooks and trainings")
    add("--list", action="store_true", help="only say what there is and what would be run")
    limits = "limit for one cell; 0: none (default: 600 for smoke, 3600 for demo, else none)"
    add("--timeout", type=int, metavar="SECONDS", help=limits)
    return parser


def figures(argv: Sequence[str] | None = None) -> int:
    """``entityclip figures``; its exit code.

    0: all drawn; 1: a figure failed and nothing was changed; 2: refused; 130, 143: stopped by
    SIGINT, SIGTERM.
    """
    parser = argparse.ArgumentParser(
        prog="entityclip figures",
        description="Redraw tables and figures that need no model, from stored rows, by several "
        "processes at once. All are put in place together when all are drawn, or none.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a file's stem; none: all figures")
    parser.add_argument("--profile", default=SHIPPED_PROFILE, help="one of entityclip/profiles/")
    parser.add_argument("--figures", type=Path, help="where to; default: the checkout's for demo")
    parser.add_argument("--workers", type=int, help="processes; default: one a core, 4 at most")
    options = parser.parse_args(argv)
    workers = min(cores(), 4) if options.workers is None else options.workers
    if workers < 1:
        parser.error(f"--workers is {workers}; at least one process must draw")
    from entityclip.reproduce.figures import redraw, why_not
    from entityclip.reproduce.staging import Stopped, alone_with, stoppable

    parts = parts_of(options.profile)
    for problem in filter(None, (why_not(name, bool(parts)) for name in options.names)):
        parser.error(problem)
    try:
        if parts:
            profile = Joined(options.profile, tuple(map(load_profile, parts)))
        else:
            profile = load_profile(options.profile)
        shipped = IN_CHECKOUT and profile.name == SHIPPED_PROFILE
        home = FIGURES if shipped else profile.figures()
        folder = (options.figures or home).resolve()
        with stoppable(), alone_with(profile, folder):
            return redraw(profile, folder, options.names, workers=workers)
    except OSError as error:
        raise Refused(in_one_line(error)) from error
    except Stopped as stop:
        print(f"stopped by {stop}: the last good figures stay", file=sys.stderr)
        return 128 + stop.signum


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
