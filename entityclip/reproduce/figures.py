"""Redraw every table and figure that needs no model: ``entityclip figures``.

They are those of notebook 10, drawn from stored rows by several processes at once and shown to
nobody. All are put in place together when all are drawn, or none.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import multiprocessing
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

from entityclip import left_out
from entityclip.config import REPOSITORY, SHIPPED_PROFILE, Profile, ProfileError, load_profile
from entityclip.files import cores
from entityclip.reproduce.staging import InUse, Stopped, alone_with, journal_in, promote, stoppable

# seaborn would import them for densities, dendrograms and sliders, none of which are drawn here:
# a second and a half
with left_out("scipy.stats", "scipy.cluster", "ipywidgets"):
    from entityclip.experiments.experiment import Experiment
    from entityclip.reporting import catalogue
    from entityclip.reporting.style import apply_style


Draw = Callable[..., None]  # (experiment, figures=, save=)


# what takes longest first, so that all processes end at about the same time
STEPS: dict[str, Draw] = {
    "ablation_mmae": partial(catalogue.draw_table, table="ablation_mmae"),
    "cross_domain": catalogue.draw_cross_domain,
    "relations": catalogue.draw_relations,
    "ascl": catalogue.draw_ascl,
    "seed_curves": catalogue.draw_seed_curves,
    "differences": catalogue.draw_differences,
    "sections": catalogue.draw_sections,
    "controls": partial(catalogue.draw_table, table="controls"),
    "ablation_gi_itm": partial(catalogue.draw_table, table="ablation_gi_itm"),
    "retrieval_table": catalogue.draw_retrieval_table,
    "retrieval": catalogue.draw_retrieval,
    "recall_curves": catalogue.draw_recall_curves,
    "doses": catalogue.draw_doses,
    "search": catalogue.draw_search,
    "matching": catalogue.draw_matching,
    "leak": catalogue.draw_leak,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: all drawn; 1: a step failed and nothing was changed; 2: refused; 130, 143: stopped by SIGINT,
    SIGTERM.
    """
    parser = argparse.ArgumentParser(
        prog="entityclip figures", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("--profile", default=SHIPPED_PROFILE, help="one of notebooks/profiles/")
    parser.add_argument("--figures", type=Path, help="where to; default: figures/ here for demo")
    parser.add_argument("--workers", type=int, help="processes; default: one a core, 4 at most")
    options = parser.parse_args(argv)
    workers = min(cores(), 4) if options.workers is None else options.workers
    if workers < 1:
        parser.error(f"--workers is {workers}; at least one process must draw")
    try:
        profile = load_profile(options.profile)
        shipped = profile.name == SHIPPED_PROFILE
        home = REPOSITORY / "figures" if shipped else profile.figures()
        figures = (options.figures or home).resolve()
        with stoppable(), alone_with(profile, figures):
            return redraw(profile, figures, workers=workers)
    except (ProfileError, InUse, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"stopped by {stop}: the last good figures stay", file=sys.stderr)
        return 128 + stop.signum


def redraw(
    profile: Profile, figures: Path, *, workers: int, steps: Mapping[str, Draw] = STEPS
) -> int:
    """Draw `steps` in `workers` processes and put their files into `figures`; 0, or 1 if one fails.

    Each says in a line how long it took, and what it skipped for want of rows.
    """
    start = time.monotonic()
    stage = profile.runs / "staging" / "redraw"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    # a fork has everything imported; elsewhere than on Linux forks of such processes may hang
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    taken = context.Value("i", 0)
    drawing = [
        context.Process(target=_draw, args=(profile, stage, steps, taken))
        for _ in range(min(workers, len(steps)))
    ]
    for process in drawing:
        process.start()
    for process in drawing:
        process.join()
    if any(process.exitcode for process in drawing):
        print(f"failed: {figures} stays as it was", file=sys.stderr)
        return 1
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    promote([(path, figures / path.relative_to(stage)) for path in files], journal_in(profile.runs))
    shutil.rmtree(stage)
    print(f"{len(files)} files in {figures}, {time.monotonic() - start:.1f} s")
    return 0


def _draw(profile: Profile, folder: Path, steps: Mapping[str, Draw], taken: Any) -> None:
    """Draw the first step that nobody has `taken` (a shared count) yet, until none is left.

    Exits with 1 after the last step if any has failed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's: it stops its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # a few figures leave little behind, and looking for it takes a tenth of the time
    mpl.use("agg")
    apply_style()
    experiment, failed = Experiment(profile, progress=False), False
    while step := _take(steps, taken):
        name, draw = step
        start, said = time.monotonic(), io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                draw(experiment, figures=folder, save=True)
        except Exception:  # the other steps' errors are worth knowing too
            failed = True
            print(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            continue
        skipped = [line for line in said.getvalue().splitlines() if line.startswith("skipped")]
        took = f"{name}: {time.monotonic() - start:.1f} s"
        print("\n".join([took, *(f"  {line}" for line in skipped)]), flush=True)
    if failed:
        sys.exit(1)


def _take(steps: Mapping[str, Draw], taken: Any) -> tuple[str, Draw] | None:
    with taken.get_lock():
        at = taken.value
        taken.value += 1
    return list(steps.items())[at] if at < len(steps) else None
