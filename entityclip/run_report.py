"""What became of each notebook of a run: as a table to read and as ``reproduce.json``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from entityclip.commit import git_commit
from entityclip.files import atomic_write_text
from entityclip.identity import as_dict, config_hash
from entityclip.machine import cores
from entityclip.notebook_runs import find_notebooks
from entityclip.run_plan import Plan


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
