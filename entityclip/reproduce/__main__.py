"""Run the notebooks in order with a profile: ``entityclip reproduce --profile demo``.

Names and types are checked before anything starts. Each notebook runs in a staging folder; its
figures and executed copy replace the last good ones only when it succeeded. Finished work is not
done again unless its sources, settings or package changed, or ``--force`` is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from entityclip.config import REPOSITORY

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
    from entityclip.reproduce.chain import run  # papermill's imports take longer than --help should

    return run(arguments, notebooks, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entityclip reproduce", description=__doc__.split("\n\n")[1]
    )
    add, several = parser.add_argument, dict(nargs="+", action="extend", default=[])
    add("--profile", default="demo", help="one of notebooks/profiles/ (default: demo)")
    add("--only", **several, metavar="NOTEBOOK", help="e.g. 03_train")
    add("--skip", **several, metavar="NOTEBOOK", help="all but these")
    add("--set", **several, metavar="NAME=VALUE", help="override a setting; figures: below runs/")
    add("--seed", type=int, help="instead of the profile's; figures: below runs/")
    add("--force", action="store_true", help="redo finished notebooks and trainings")
    add("--list", action="store_true", help="only say what there is and what would be run")
    limits = "limit for one cell; 0: none (default: 600 for smoke, 3600 for demo, else none)"
    add("--timeout", type=int, metavar="SECONDS", help=limits)
    return parser


if __name__ == "__main__":
    sys.exit(main())
