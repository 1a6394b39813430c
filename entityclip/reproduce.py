"""Run the notebooks in order with a profile: ``python -m entityclip.reproduce --profile demo``.

Names and types are checked before anything starts. Each notebook runs in a staging folder; its
figures and executed copy replace the last good ones only when it succeeded. Finished work is not
done again unless its sources, settings or package changed, or ``--force`` is given.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import difflib
import fcntl
import json
import logging
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
import yaml

from entityclip.commit import git_commit
from entityclip.config import REPOSITORY, Profile, ProfileError, as_dict, config_hash, load_profile
from entityclip.files import atomic_write_text
from entityclip.notebook_runs import (
    Folders,
    PeakMemory,
    execute,
    failure_reason,
    find_notebooks,
    finished_run,
    keep_failed,
    promote_run,
    run_key,
)
from entityclip.promotion import recover

NOTEBOOKS = REPOSITORY / "notebooks"
FIGURES = REPOSITORY / "figures"
CELL_TIMEOUTS = {"smoke": 600, "demo": 3600}  # seconds; other profiles train for days: no limit
_KERNEL_DEFAULTS = {
    "TQDM_MININTERVAL": "1",  # bars redraw once a second at most, in the log and in the outputs
    "TOKENIZERS_PARALLELISM": "false",  # no warning about forks from data-loading workers
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning from the kernel's debugger
}


class ReproduceError(ValueError):
    """The command line, a notebook or another running process keeps the run from starting."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came. A KeyboardInterrupt, so that asyncio passes it on at once."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass(frozen=True)
class Plan:
    """A checked command line: what to run, with what, where."""

    profile: Profile
    parameters: dict[str, Any]  # passed to each notebook, beside output_dir
    notebooks: list[Path]
    folders: Folders
    force: bool
    timeout: int | None  # seconds a cell
    whole: bool = True  # all notebooks but those left out by --skip


@dataclass(frozen=True)
class Row:
    """What became of one notebook; times and memory are those of the run that made its results."""

    notebook: str
    status: str  # done, up to date, failed, skipped
    seconds: float | None = None
    peak_mb: float | None = None
    reason: str | None = None


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
            print(_table(preview(plan)))
            return 0
        with _stoppable(), _locked(plan), _kernel_environment(plan):
            if recover(plan.folders.journal):
                print("undid what a killed run had half put in place", file=sys.stderr)
            rows = run_chain(plan)
            print(_table(rows), flush=True)
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


def make_plan(arguments: argparse.Namespace, notebooks: Path, figures: Path) -> Plan:
    """Check profile, settings, notebook names and parameters; nothing is run or written.

    Raises ProfileError or ReproduceError naming what is wrong and what there is instead.
    """
    settings = parse_settings(arguments.set)
    profile = load_profile(arguments.profile, seed=arguments.seed, settings=settings)
    if arguments.timeout is not None and arguments.timeout < 0:
        raise ReproduceError(f"--timeout is {arguments.timeout}; give seconds, or 0 for no limit")
    timeout = arguments.timeout
    if timeout is None:
        timeout = CELL_TIMEOUTS.get(profile.name)
    parameters = {"profile": profile.name, "seed": arguments.seed, "settings": settings}
    chosen = select_notebooks(notebooks, arguments.only, arguments.skip)
    for notebook in chosen:
        check_parameters(notebook, {*parameters, "output_dir"})
    runs = profile.runs.resolve()
    # figures/ shows the demo profile as it is shipped, never somebody's variation of it
    shipped = profile.name == "demo" and not settings and arguments.seed is None
    folders = Folders(notebooks.resolve(), runs, figures.resolve() if shipped else runs / "figures")
    whole = not arguments.only
    return Plan(profile, parameters, chosen, folders, arguments.force, timeout or None, whole)


def select_notebooks(folder: Path, only: Sequence[str], skip: Sequence[str] = ()) -> list[Path]:
    """The notebooks of `folder` named in `only` (all if empty) less `skip`, in running order."""
    known = {path.stem: path for path in find_notebooks(folder)}
    if not known:
        raise ReproduceError(f"there is no NN_name.ipynb in {folder}")
    wanted, skipped = (
        {Path(name).name.removesuffix(".ipynb") for name in names} for names in (only, skip)
    )
    for name in sorted((wanted | skipped) - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ReproduceError(f"no notebook {name!r}; {hint}there are {', '.join(known)}")
    chosen = (wanted or set(known)) - skipped
    if not chosen:
        raise ReproduceError("--skip leaves no notebook to run")
    return [path for name, path in known.items() if name in chosen]


def check_parameters(notebook: Path, names: set[str]) -> None:
    """Raise ReproduceError unless the cell tagged `parameters` assigns all `names`.

    papermill itself only warns, and the notebook would run with its defaults.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        body = ast.parse(tagged[0].source).body if tagged else []
    except (OSError, ValueError, SyntaxError, nbformat.ValidationError) as error:
        raise ReproduceError(f"{notebook.name} cannot be read: {error}") from error
    if len(tagged) != 1:
        raise ReproduceError(
            f"{notebook.name}: {len(tagged)} cells are tagged `parameters`; tag exactly one"
        )
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    missing = names - {target.id for target in targets if isinstance(target, ast.Name)}
    if missing:
        raise ReproduceError(
            f"{notebook.name}: its `parameters` cell lacks {', '.join(sorted(missing))}; "
            "assign each a default there"
        )


class _Loader(yaml.SafeLoader):
    """YAML as people type it: 1e-4 is a number, not the string YAML 1.1 makes of it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=2"]`` as ``{"model": {"heads": 2}}``; values are read as YAML.

    Raises ReproduceError for what is no assignment and for names that contradict each other.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise ReproduceError(f"--set {assignment}: write name=value, e.g. finetuning.epochs=3")
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ReproduceError(f"--set {assignment}: the value is not YAML: {error}") from error
        *groups, last = name.split(".")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ReproduceError(f"--set {assignment}: {group} is already set to {place!r}")
        if last in place:
            raise ReproduceError(f"--set {assignment}: {name} is already set to {place[last]!r}")
        place[last] = value
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m entityclip.reproduce", description=__doc__.split("\n\n")[1]
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
def _locked(plan: Plan) -> Iterator[None]:
    runs = plan.folders.runs
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ReproduceError(
                f"profile {plan.profile.name} is already being run by process {file.read()}; "
                "wait for it or stop it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        with _alone_with(plan.folders.figures):
            yield


@contextlib.contextmanager
def _alone_with(figures: Path) -> Iterator[None]:
    """A run with another folder of runs must not promote into the same figures meanwhile."""
    figures.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(figures, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ReproduceError(
                f"{figures} is being filled by a run with another ENTITYCLIP_RUNS; wait for it"
            ) from error
        yield
    finally:
        os.close(descriptor)  # and so unlocks


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


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Stopped; a second one acts as it would without us."""
    others = set(psutil.Process().children(recursive=True))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(signum: int, frame: object) -> None:
        restore()
        for kernel in set(psutil.Process().children(recursive=True)) - others:
            with contextlib.suppress(psutil.Error):
                kernel.kill()  # asked politely, it first prints a traceback and may take seconds
        raise Stopped(signum)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


# ------------------------------------------------------------------------------------------- report


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


def _table(rows: list[Row]) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
