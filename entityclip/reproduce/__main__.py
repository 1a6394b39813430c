"""Run the notebooks in order with a profile: ``entityclip reproduce --profile demo``.

Names and types are checked before anything starts. Each notebook runs in a staging folder; its
figures and executed copy replace the last good ones only when it succeeded. Finished work is not
done again unless its sources, settings or package changed, or ``--force`` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from entityclip.config import REPOSITORY, ProfileError, as_dict, config_hash
from entityclip.files import atomic_write_text, cores
from entityclip.reproduce.notebook import (
    PeakMemory,
    execute,
    failure_reason,
    find_notebooks,
    finished_run,
    keep_failed,
    promote_run,
    run_key,
)
from entityclip.reproduce.plan import Plan, ReproduceError, make_plan
from entityclip.reproduce.staging import Stopped, alone_with, stoppable
from entityclip.results import git_commit


@dataclass(frozen=True)
class Row:
    """What became of one notebook; times and memory are those of the run that made its results."""

    notebook: str
    status: str  # done, up to date, failed, skipped
    seconds: float | None = None
    peak_mb: float | None = None
    reason: str | None = None


def write_report(rows: list[Row], plan: Plan) -> None:
    """Write the table, the settings, the commit and the machine to ``<runs>/reproduce.json``.

    A chain without gaps is told of beside its figures too: these took that long, on that machine.
    Of notebooks left out by ``--skip`` that report keeps what it said before, and it takes from a
    run of a few what it lacks: chapters that take an hour are rarely part of a chain.
    """
    report = {
        "profile": plan.profile.name,
        "seed": plan.profile.seed,
        "settings": as_dict(plan.profile.settings),
        "config_hash": config_hash(plan.profile.settings),
        "git_commit": git_commit(),
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": cores(),
            "memory_mb": round(psutil.virtual_memory().total / 2**20),
        },
        "notebooks": [dataclasses.asdict(row) for row in rows],
    }
    atomic_write_text(plan.folders.runs / "reproduce.json", json.dumps(report, indent=2) + "\n")
    _write_beside_figures(report, plan)


def _write_beside_figures(report: dict[str, Any], plan: Plan) -> None:
    path = plan.folders.figures / "reproduce.json"
    earlier, present = _read(path), {row["notebook"]: row for row in report["notebooks"]}
    known = {row["notebook"]: row for row in earlier["notebooks"]} if earlier else {}
    statuses = {row["status"] for row in report["notebooks"]}
    if plan.whole and "done" in statuses <= {"done", "up to date"}:
        known |= present
    elif earlier:
        report = earlier
        known = {name: row for name, row in present.items() if row["status"] == "done"} | known
    else:  # where nothing was run, the figures' own report still tells what they took
        return
    names = [notebook.stem for notebook in find_notebooks(plan.folders.notebooks)]
    report = {**report, "notebooks": [known[name] for name in names if name in known]}
    atomic_write_text(path, json.dumps(report, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """An earlier report; None where there is none to be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        report = json.loads(path.read_text(encoding="utf-8"))
        if all(row["notebook"] for row in report["notebooks"]):
            return report
    return None


def report_table(rows: list[Row]) -> str:
    """The rows in columns: notebook, status, time, peak memory."""
    cells = [("notebook", "status", "time", "peak memory")]
    for row in rows:
        time_taken = "" if row.seconds is None else f"{row.seconds:.1f} s"
        memory = "" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"
        cells.append((row.notebook, row.status, time_taken, memory))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, status, time_taken, memory in cells:
        left = f"{name:<{widths[0]}}  {status:<{widths[1]}}"
        lines.append(f"{left}  {time_taken:>{widths[2]}}  {memory:>{widths[3]}}".rstrip())
    return "\n".join(lines)


NOTEBOOKS = REPOSITORY / "notebooks"


FIGURES = REPOSITORY / "figures"


_KERNEL_DEFAULTS = {
    "TQDM_MININTERVAL": "1",  # bars redraw once a second at most, in the log and in the outputs
    "TOKENIZERS_PARALLELISM": "false",  # no warning about forks from data-loading workers
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning from the kernel's debugger
}


# ------------------------------------------------------------------------------------- command line


def main(
    argv: Sequence[str] | None = None, *, notebooks: Path = NOTEBOOKS, figures: Path = FIGURES
) -> int:
    """Run the command line and return its exit code.

    0: all done; 1: a notebook failed; 2: refused before the start, or no report could be written;
    130, 143: stopped by SIGINT, SIGTERM.
    """
    arguments = _parser().parse_args(argv)
    # what papermill logs of the cells' output is the only sign of life in a long run
    logging.basicConfig(format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.INFO)
    try:
        plan = make_plan(arguments, notebooks, figures)
        if arguments.list:
            print(report_table(preview(plan)))
            return 0
        with stoppable(), alone_with(plan.profile, plan.folders.figures), _kernel_environment(plan):
            rows = run_chain(plan)
            print(report_table(rows), flush=True)
            write_report(rows, plan)
    except (ProfileError, ReproduceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(
            f"stopped by {stop}: the last good results stay; the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + stop.signum
    return int(any(row.status == "failed" for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entityclip reproduce", description=__doc__.split("\n\n")[1]
    )
    add = parser.add_argument
    add("--profile", default="demo", help="one of notebooks/profiles/ (default: demo)")
    add("--only", nargs="+", action="extend", default=[], metavar="NOTEBOOK", help="e.g. 03_train")
    add("--skip", nargs="+", action="extend", default=[], metavar="NOTEBOOK", help="all but these")
    add(
        *("--set",),
        **dict(nargs="+", action="extend", default=[], metavar="NAME=VALUE"),
        help="override a setting, e.g. finetuning.epochs=3; figures then go below runs/",
    )
    add("--seed", type=int, help="instead of the profile's; figures then go below runs/")
    add("--force", action="store_true", help="redo finished notebooks and trainings")
    add("--list", action="store_true", help="only say what there is and what would be run")
    add(
        *("--timeout",),
        **dict(type=int, metavar="SECONDS"),
        help="limit for one cell; 0: none (default: 600 for smoke, 3600 for demo, else none)",
    )
    return parser


# ------------------------------------------------------------------------------------------ the run


def preview(plan: Plan) -> list[Row]:
    """What a run of the plan would do now: rows "up to date" or "to run"; nothing is run."""
    rows: list[Row] = []
    for notebook in plan.notebooks:
        fresh = None if rows and rows[-1].status == "to run" else _finished(notebook, plan)[1]
        rows.append(fresh or Row(notebook.stem, "to run"))
    return rows


def run_chain(plan: Plan) -> list[Row]:
    """Run the plan's notebooks in order; after a failure the rest is skipped.

    A signal is reported like a failure of the notebook it stopped, and raised again.
    """
    rows: list[Row] = []
    try:
        for notebook in plan.notebooks:
            if rows and rows[-1].status in ("failed", "skipped"):
                rows.append(Row(notebook.stem, "skipped"))
            else:
                rows.append(_run_or_keep(notebook, plan))
    except Stopped as stop:
        for path in plan.notebooks[len(rows) :]:
            after = rows and rows[-1].status in ("failed", "skipped")
            stopped = Row(path.stem, "failed", reason=f"stopped by {stop}")
            rows.append(Row(path.stem, "skipped") if after else stopped)
        with contextlib.suppress(OSError):  # a full disk must not hide that it was stopped
            write_report(rows, plan)
        raise
    return rows


def _run_or_keep(notebook: Path, plan: Plan) -> Row:
    try:
        key, fresh = _finished(notebook, plan)
    except (OSError, ValueError) as error:  # edited or deleted since the plan was made
        reason = failure_reason(error, notebook)
        print(f"{notebook.stem} failed: {reason}", file=sys.stderr, flush=True)
        return Row(notebook.stem, "failed", reason=reason)
    return fresh or _run(notebook, key, plan)


def _finished(notebook: Path, plan: Plan) -> tuple[str, Row | None]:
    """The notebook's key and, if it need not be run, its row."""
    key = run_key(notebook, plan.profile, plan.folders)
    record = None if plan.force else finished_run(notebook.stem, key, plan.folders)
    if record is None:
        return key, None
    return key, Row(notebook.stem, "up to date", record["seconds"], record["peak_mb"])


def _run(notebook: Path, key: str, plan: Plan) -> Row:
    name, folders = notebook.stem, plan.folders
    print(f"running {name} (profile {plan.profile.name})", flush=True)
    memory = PeakMemory()
    start = time.monotonic()
    try:
        with memory:
            execute(notebook, plan.parameters, folders, plan.timeout, sys.stderr.isatty())
        seconds = time.monotonic() - start
        record = promote_run(name, key, folders, seconds=seconds, peak_mb=memory.mb)
    except Exception as error:  # whatever it was, the rest of the chain must be told
        seconds = round(time.monotonic() - start, 1)
        reason = failure_reason(error, folders.staging(name) / notebook.name)
        kept = keep_failed(name, folders)
        print(f"{name} failed: {reason}; see {kept}", file=sys.stderr, flush=True)
        return Row(name, "failed", seconds, round(memory.mb), reason)
    return Row(name, "done", record["seconds"], record["peak_mb"])


@contextlib.contextmanager
def _kernel_environment(plan: Plan) -> Iterator[None]:
    """What the kernels inherit; the path is made absolute because they run in notebooks/."""
    wanted = {name: os.environ.get(name, value) for name, value in _KERNEL_DEFAULTS.items()}
    wanted["ENTITYCLIP_RUNS"] = str(plan.folders.runs.parent)
    if plan.force:
        wanted["ENTITYCLIP_FORCE"] = "1"  # trainings are redone, not taken from checkpoints
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


if __name__ == "__main__":
    sys.exit(main())
