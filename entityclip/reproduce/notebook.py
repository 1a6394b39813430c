"""One notebook's run: executed in a staging folder, measured, and promoted only if it succeeded.

A finished run leaves a record below ``<runs>/done/``. Its key covers all that could change the
outcome, so a notebook whose key and promoted files still match needs no second run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from entityclip import left_out
from entityclip.config import Profile, as_dict
from entityclip.reproduce.staging import journal_in, promote

# jsonschema, by which nbformat checks notebooks, would compile a grammar of internationalised
# addresses here: three seconds, and a notebook has no such field
with left_out("rfc3987_syntax"):
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError


PACKAGE = Path(__file__).resolve().parent.parent


_VERSIONED = ("torch", "open_clip_torch", "numpy", "matplotlib")


@dataclass(frozen=True)
class Folders:
    """Where one profile's notebooks come from and where their results go."""

    notebooks: Path  # the sources, also the kernels' working directory
    runs: Path  # the profile's
    figures: Path  # where promoted figures go

    def staging(self, name: str) -> Path:
        """The folder the notebook `name` runs in; emptied before each run."""
        return self.runs / "staging" / name

    def failed(self, name: str) -> Path:
        """Where the last failed run of `name` is kept."""
        return self.runs / "failed" / name

    def executed(self, name: str) -> Path:
        """The last good executed notebook."""
        return self.runs / "notebooks" / f"{name}.ipynb"

    def done(self, name: str) -> Path:
        """The record of the last good run."""
        return self.runs / "done" / f"{name}.json"

    @property
    def journal(self) -> Path:
        """What `entityclip.reproduce.staging.recover` undoes a killed promotion by."""
        return journal_in(self.runs)


# ------------------------------------------------------------------------------------ finished work


def run_key(notebook: Path, profile: Profile, folders: Folders) -> str:
    """Hex digest of all that decides a notebook's results; outputs stored in it do not count.

    Covers its cells, the resolved settings and seed, the package's sources, the versions that
    matter, and the records of all earlier notebooks: once one of those was rerun, the later ones
    must be too. Raises OSError or ValueError if the notebook cannot be read.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    parts = {
        "cells": [[cell.cell_type, cell.source] for cell in cells],
        "profile": [profile.name, profile.seed, as_dict(profile.settings)],
        "package": {str(p.relative_to(PACKAGE)): _sha256(p) for p in PACKAGE.rglob("*.py")},
        "versions": {"python": platform.python_version(), **_versions()},
        "earlier": {
            name: _sha256(folders.done(name))
            for name in (path.stem for path in find_notebooks(folders.notebooks))
            if name < notebook.stem and folders.done(name).exists()
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find_notebooks(folder: Path) -> list[Path]:
    """The notebooks of the chain, ``NN_name.ipynb``, in the order they run."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def finished_run(name: str, key: str, folders: Folders) -> dict[str, Any] | None:
    """The record of the last good run if it still holds: same key, promoted files unchanged."""
    try:
        record = json.loads(folders.done(name).read_text(encoding="utf-8"))
        hashes = [(folders.executed(name), record["notebook"])]
        hashes += [(folders.figures / figure, h) for figure, h in record["figures"].items()]
        holds = record["key"] == key and all(_sha256(path) == known for path, known in hashes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # a missing or damaged record or file: the run is simply done again
    return record if holds else None


def _versions() -> dict[str, str]:
    versions = dict.fromkeys(_VERSIONED, "absent")
    for package in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------- execution


class PeakMemory:
    """Context manager: the peak resident memory of the processes started inside it (`mb`, MiB).

    The kernel and what it starts are sampled together five times a second; between samples the
    kernel's own high-water mark (Linux) still counts.
    """

    def __init__(self) -> None:
        self.mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._others: set[int] = set()

    def __enter__(self) -> PeakMemory:
        self._others = {child.pid for child in psutil.Process().children(recursive=True)}
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            resident = [0]
            for child in psutil.Process().children(recursive=True):
                if child.pid not in self._others:
                    with contextlib.suppress(psutil.Error):  # it may just have ended
                        resident.append(child.memory_info().rss)
                        self.mb = max(self.mb, _high_water(child.pid) / 2**20)
            self.mb = max(self.mb, sum(resident) / 2**20)


def _high_water(pid: int) -> int:
    """The peak resident set of a process in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return 0


def execute(
    notebook: Path, parameters: dict[str, Any], folders: Folders, timeout: int | None, bar: bool
) -> Path:
    """Run a notebook in its emptied staging folder and return that folder.

    `parameters` are passed on, with ``output_dir`` set to the staging folder; `timeout` is in
    seconds a cell (None: no limit). Raises what papermill raises: PapermillExecutionError for a
    failed cell, CellTimeoutError, DeadKernelError.
    """
    stage = folders.staging(notebook.stem)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    papermill.execute_notebook(
        notebook,
        stage / notebook.name,
        parameters={**parameters, "output_dir": str(stage)},
        kernel_name="python3",
        cwd=folders.notebooks,
        log_output=True,
        progress_bar=bar,
        autosave_cell_every=30,
        execution_timeout=timeout,
    )
    return stage


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


# ---------------------------------------------------------------------------------------- promotion


def promote_run(
    name: str, key: str, folders: Folders, *, seconds: float, peak_mb: float
) -> dict[str, Any]:
    """Move a staged run's figures, its notebook and its record to their places, all or none.

    Only what lies below ``figures/`` of the staging folder is kept beside the notebook. Returns the
    record. Raises OSError (e.g. a full disk) with the last good files as they were.
    """
    stage = folders.staging(name)
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
    promote(
        [
            *((path, folders.figures / figure) for figure, path in figures.items()),
            (stage / f"{name}.ipynb", folders.executed(name)),
            (staged_record, folders.done(name)),  # last: it vouches for the others
        ],
        folders.journal,
    )
    shutil.rmtree(stage, ignore_errors=True)
    return record


def keep_failed(name: str, folders: Folders) -> Path:
    """Move a failed run out of staging; returns where its notebook now lies."""
    stage, kept = folders.staging(name), folders.failed(name)
    try:
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage, kept)
    except OSError:
        kept = stage  # a full disk must not hide why the run failed
    return kept / f"{name}.ipynb"
