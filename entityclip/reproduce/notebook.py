"""One notebook's run: executed in a staging folder, measured, and promoted only if it succeeded.

A finished run leaves a record below ``<runs>/done/``. Its key covers all that could change the
outcome, so a notebook whose key and promoted files still match needs no second run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from entityclip import left_out
from entityclip.config import as_dict
from entityclip.reproduce.plan import Plan, find_notebooks
from entityclip.reproduce.staging import journal_in, promote

with left_out("rfc3987_syntax"):  # as in `plan`
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

PACKAGE = Path(__file__).resolve().parent.parent
_VERSIONED = ("torch", "open_clip_torch", "numpy", "matplotlib")


def run_key(notebook: Path, plan: Plan) -> str:
    """Hex digest of all that decides a notebook's results; outputs stored in it do not count.

    Covers its cells, the resolved settings and seed, the package's sources, the versions that
    matter, and the records of all earlier notebooks: once one of those was rerun, the later ones
    must be too. Raises OSError or ValueError if the notebook cannot be read.
    """
    versions = dict.fromkeys(_VERSIONED, "absent")
    for package in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cells = nbformat.read(notebook, as_version=4).cells
    profile = plan.profile
    parts = {
        "cells": [[cell.cell_type, cell.source] for cell in cells],
        "profile": [profile.name, profile.seed, as_dict(profile.settings)],
        "package": {str(p.relative_to(PACKAGE)): _sha256(p) for p in PACKAGE.rglob("*.py")},
        "versions": {"python": platform.python_version(), **versions},
        "earlier": {
            path.stem: _sha256(plan.done(path.stem))
            for path in itertools.takewhile(
                lambda path: path.stem != notebook.stem, find_notebooks(plan.sources)
            )
            if plan.done(path.stem).exists()
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished_run(name: str, key: str, plan: Plan) -> dict[str, Any] | None:
    """The record of the last good run if it still holds: same key, promoted files unchanged."""
    try:
        record = json.loads(plan.done(name).read_text(encoding="utf-8"))
        hashes = [(plan.executed(name), record["notebook"])]
        hashes += [(plan.figures / figure, h) for figure, h in record["figures"].items()]
        holds = record["key"] == key and all(_sha256(path) == known for path, known in hashes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # a missing or damaged record or file: the run is simply done again
    return record if holds else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Gives what says the peak resident memory of the processes started within, MiB.

    The kernel and what it starts are sampled together five times a second; between samples the
    kernel's own high-water mark (Linux) still counts.
    """
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    ended, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            resident = 0
            for child in psutil.Process().children(recursive=True):
                if child.pid not in others:
                    with contextlib.suppress(psutil.Error):  # it may just have ended
                        resident += child.memory_info().rss
                        peak = max(peak, _high_water(child.pid))
            peak = max(peak, resident)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak / 2**20
    finally:
        ended.set()
        thread.join()


def _high_water(pid: int) -> int:
    """The peak resident set of a process in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return 0


def execute(notebook: Path, plan: Plan, *, bar: bool) -> None:
    """Run a notebook in its emptied staging folder, with ``output_dir`` set to that folder.

    Raises what papermill raises: PapermillExecutionError for a failed cell, CellTimeoutError,
    DeadKernelError.
    """
    stage = plan.staging(notebook.stem)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    papermill.execute_notebook(
        notebook,
        stage / notebook.name,
        parameters={**plan.parameters, "output_dir": str(stage)},
        kernel_name="python3",
        cwd=plan.sources,
        log_output=True,
        progress_bar=bar,
        autosave_cell_every=30,
        execution_timeout=plan.timeout,
    )


def failure_reason(error: Exception, executed: Path) -> str:
    """One line: the exception's name, the first line of its message, the cell it came from."""
    name, message, cell = type(error).__name__, str(error), None
    if isinstance(error, PapermillExecutionError):
        name, message, cell = error.ename, error.evalue, error.exec_count
    elif isinstance(error, CellTimeoutError | DeadKernelError):
        cell = _last_started(executed)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "")
    where = f" (in cell [{cell}])" if cell else ""
    return f"{name}{': ' if first else ''}{first[:300]}{where}"


def _last_started(executed: Path) -> int | None:
    # a timeout or a dead kernel leaves no error output; papermill noted when each cell began
    with contextlib.suppress(OSError, ValueError):
        cells = nbformat.read(executed, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        return sum(bool(cell.metadata.papermill.get("start_time")) for cell in code)
    return None


def promote_run(
    name: str, key: str, plan: Plan, *, seconds: float, peak_mb: float
) -> dict[str, Any]:
    """Move a staged run's figures, its notebook and its record to their places, all or none.

    Only what lies below ``figures/`` of the staging folder is kept beside the notebook. Returns the
    record. Raises OSError (e.g. a full disk) with the last good files as they were.
    """
    stage = plan.staging(name)
    drawn = stage / "figures"
    figures = {str(p.relative_to(drawn)): p for p in sorted(drawn.rglob("*")) if p.is_file()}
    record = {
        "key": key,
        "notebook": _sha256(stage / f"{name}.ipynb"),
        "figures": {figure: _sha256(path) for figure, path in figures.items()},
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb),
        "finished": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    staged_record = stage / "done.json"
    staged_record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    pairs = [(path, plan.figures / figure) for figure, path in figures.items()]
    pairs += [(stage / f"{name}.ipynb", plan.executed(name))]
    pairs += [(staged_record, plan.done(name))]  # last: it vouches for the others
    promote(pairs, journal_in(plan.runs))
    shutil.rmtree(stage, ignore_errors=True)
    return record


def keep_failed(name: str, plan: Plan) -> str:
    """Move a failed run out of staging; says where its notebook lies, after the reason."""
    stage, kept = plan.staging(name), plan.failed(name)
    if not stage.exists():  # it failed before it ran: edited or deleted since the plan was made
        return ""
    try:
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage, kept)
    except OSError:
        kept = stage  # a full disk must not hide why the run failed
    return f"; see {kept / name}.ipynb"
