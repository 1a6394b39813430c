"""What became of each notebook of a run: as a table to read and as ``reproduce.json``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from entityclip.commit import git_commit
from entityclip.files import atomic_write_text
from entityclip.identity import as_dict, config_hash
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
    Of notebooks left out by ``--skip`` that report keeps what it said before.
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
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "memory_mb": round(psutil.virtual_memory().total / 2**20),
        },
        "notebooks": [dataclasses.asdict(row) for row in rows],
    }
    atomic_write_text(plan.folders.runs / "reproduce.json", json.dumps(report, indent=2) + "\n")
    # where nothing was run, the figures' own report still tells what they took
    if (
        plan.whole
        and any(row.status == "done" for row in rows)
        and all(row.status in ("done", "up to date") for row in rows)
    ):
        beside = plan.folders.figures / "reproduce.json"
        present = {row["notebook"]: row for row in report["notebooks"]}
        known = _reported(beside) | present
        names = [path.stem for path in find_notebooks(plan.folders.notebooks)]
        report["notebooks"] = [known[name] for name in names if name in known]
        atomic_write_text(beside, json.dumps(report, indent=2) + "\n")


def _reported(report: Path) -> dict[str, dict[str, Any]]:
    """What an earlier report says of each notebook; nothing where there is none to be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        rows = json.loads(report.read_text(encoding="utf-8"))["notebooks"]
        return {row["notebook"]: row for row in rows}
    return {}


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
