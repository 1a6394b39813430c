"""The chain of notebooks: each run or found finished, none after a failure, all reported."""

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

from entityclip.config import Joined, as_dict, config_hash, parts_of
from entityclip.console import Refused, in_one_line
from entityclip.files import atomic_write_text, cores, git_commit
from entityclip.reproduce.notebook import (
    execute,
    failure_reason,
    finished_run,
    keep_failed,
    peak_memory,
    promote_run,
    run_key,
)
from entityclip.reproduce.plan import Plan, find_notebooks, make_plans
from entityclip.reproduce.staging import Stopped, alone_with, stoppable

_KERNEL_DEFAULTS = {
    "TQDM_MININTERVAL": "1",  # bars redraw once a second at most, in the log and in the outputs
    "TOKENIZERS_PARALLELISM": "false",  # no warning about forks from data-loading workers
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning from the kernel's debugger
}


@dataclass(frozen=True)
class Row:
    """What became of one notebook; times and memory are those of the run that made its results."""

    notebook: str
    status: str  # done, up to date, failed, skipped; in a preview: up to date, to run
    seconds: float | None = None
    peak_mb: float | None = None
    reason: str | None = None


def run(arguments: argparse.Namespace, notebooks: Path, figures: Path) -> int:
    """Do what the command line asks; its exit code, as `entityclip.reproduce.__main__` has it."""
    # what papermill logs of the cells' output is the only sign of life in a long run
    logging.basicConfig(format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.INFO)
    try:
        plans, said = make_plans(arguments, notebooks, figures)
        print(*said, sep="\n", end="\n" if said else "")
        if arguments.list:
            print("\n\n".join(_titled(plan, preview(plan), plans) for plan in plans))
            return 0
        failed = False
        with stoppable():
            for plan in plans:
                with alone_with(plan.profile, plan.figures), _kernel_environment(plan):
                    rows = run_chain(plan)
                    print(_titled(plan, rows, plans), flush=True)
                    write_report(rows, plan)
                failed |= any(row.status == "failed" for row in rows)
            if parts_of(arguments.profile):
                failed |= bool(join_figures(arguments.profile, plans))
    except OSError as error:  # InUse, or what keeps a report from being written
        raise Refused(in_one_line(error)) from error
    except Stopped as stop:
        print(
            f"stopped by {stop}: the last good results stay; the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + stop.signum
    return int(failed)


def _titled(plan: Plan, rows: list[Row], plans: list[Plan]) -> str:
    """The rows' table, under its profile's name where there are several."""
    title = f"{plan.profile.name}, figures in {plan.figures}\n" if len(plans) > 1 else ""
    return title + report_table(rows)


def join_figures(name: str, plans: Sequence[Plan]) -> int:
    """Draw what rows of several data sets show together; 0, or 1 if a figure failed."""
    from entityclip.reproduce.figures import redraw

    joined = Joined(name, tuple(plan.profile for plan in plans))
    with alone_with(joined, joined.figures()):
        return redraw(joined, joined.figures().resolve(), workers=min(cores(), 4))


def preview(plan: Plan) -> list[Row]:
    """What a run of the plan would do now; nothing is run."""
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

    def skipped(notebook: Path) -> Row | None:
        after = rows and rows[-1].status in ("failed", "skipped")
        return Row(notebook.stem, "skipped") if after else None

    try:
        for notebook in plan.notebooks:
            rows.append(skipped(notebook) or _run_or_keep(notebook, plan))
    except Stopped as stop:
        for notebook in plan.notebooks[len(rows) :]:
            stopped = Row(notebook.stem, "failed", reason=f"stopped by {stop}")
            rows.append(skipped(notebook) or stopped)
        with contextlib.suppress(OSError):  # a full disk must not hide that it was stopped
            write_report(rows, plan)
        raise
    return rows


def _finished(notebook: Path, plan: Plan) -> tuple[str, Row | None]:
    """The notebook's key and, if it need not be run, its row."""
    key = run_key(notebook, plan)
    record = None if plan.force else finished_run(notebook.stem, key, plan)
    if record is None:
        return key, None
    return key, Row(notebook.stem, "up to date", record["seconds"], record["peak_mb"])


def _run_or_keep(notebook: Path, plan: Plan) -> Row:
    name, start = notebook.stem, time.monotonic()
    with peak_memory() as peak_mb:
        try:
            key, fresh = _finished(notebook, plan)
            if fresh:
                return fresh
            print(f"running {name} (profile {plan.profile.name})", flush=True)
            execute(notebook, plan, bar=sys.stderr.isatty())
            took = time.monotonic() - start
            record = promote_run(name, key, plan, seconds=took, peak_mb=peak_mb())
        except Exception as error:  # whatever it was, the rest of the chain must be told
            took = round(time.monotonic() - start, 1)
            reason = failure_reason(error, plan.staging(name) / notebook.name)
            print(f"{name} failed: {reason}{keep_failed(name, plan)}", file=sys.stderr, flush=True)
            return Row(name, "failed", took, round(peak_mb()), reason)
    return Row(name, "done", record["seconds"], record["peak_mb"])


@contextlib.contextmanager
def _kernel_environment(plan: Plan) -> Iterator[None]:
    """What the kernels inherit; the path is made absolute because they run in notebooks/."""
    before = dict(os.environ)
    os.environ |= _KERNEL_DEFAULTS | before | {"ENTITYCLIP_RUNS": str(plan.runs.parent)}
    if plan.force:
        os.environ["ENTITYCLIP_FORCE"] = "1"  # trainings are redone, not taken from checkpoints
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


# ----------------------------------------------------------------------------------------- reports


def report_table(rows: list[Row]) -> str:
    """The rows in columns: notebook, status, time, peak memory."""
    lines = [f"{'notebook':<24} {'status':<10} {'time':>9} {'peak memory':>12}"]
    for row in rows:
        took = "" if row.seconds is None else f"{row.seconds:.1f} s"
        memory = "" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"
        lines.append(f"{row.notebook:<24} {row.status:<10} {took:>9} {memory:>12}".rstrip())
    return "\n".join(lines)


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
        "left_out": plan.left_out,
    }
    atomic_write_text(plan.runs / "reproduce.json", json.dumps(report, indent=2) + "\n")
    _write_beside_figures(report, plan)


def _write_beside_figures(report: dict[str, Any], plan: Plan) -> None:
    path = plan.figures / "reproduce.json"
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
    names = [notebook.stem for notebook in find_notebooks(plan.sources)]
    report = {**report, "notebooks": [known[name] for name in names if name in known]}
    atomic_write_text(path, json.dumps(report, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """An earlier report; None where there is none to be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        report = json.loads(path.read_text(encoding="utf-8"))
        if all(row["notebook"] for row in report["notebooks"]):
            return report
    return None
