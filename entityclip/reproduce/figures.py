"""Redraw tables and figures from stored rows: what ``entityclip figures [NAME ...]`` does.

Several processes draw at once, and show nobody. All are put in place when all are drawn, or none.
"""

from __future__ import annotations

import difflib
import gc
import multiprocessing
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib as mpl

from entityclip import left_out
from entityclip.config import Joined, Profile
from entityclip.reproduce.staging import journal_in, promote
from entityclip.results import ResultsError

# seaborn would import them for densities, dendrograms and sliders, none of which are drawn here:
# a second and a half
with left_out("scipy.stats", "scipy.cluster", "ipywidgets"):
    from entityclip.reporting import catalogue
    from entityclip.reporting.style import apply_style


def why_not(name: str, joined: bool = False) -> str | None:
    """What keeps a figure from being drawn here, for several data sets if `joined`; or None."""
    if joined and name in catalogue.FIGURES and name not in catalogue.JOINED:
        return f"{name} is of one data set; together there are {', '.join(catalogue.JOINED)}"
    if name in catalogue.FIGURES:
        need = f"{name} needs a model; run `{catalogue.made_by(name)}`"
        return None if catalogue.FIGURES[name].draw else need
    close = difflib.get_close_matches(name, catalogue.FIGURES, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"no figure {name!r}; {hint}there are {', '.join(catalogue.FROM_ROWS)}"


def redraw(
    profile: Profile | Joined, figures: Path, names: Sequence[str] = (), *, workers: int
) -> int:
    """Draw figures in `workers` processes and put their files into `figures`; 0, or 1 if one fails.

    None named are all that need no model. Each says in a line how long it took, and whether it was
    skipped for want of rows.
    """
    start, failed = time.monotonic(), False
    stage = profile.runs / "staging" / "redraw"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    # a fork has everything imported; elsewhere than on Linux forks of such processes may hang
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # what has most files first, so that all processes end at about the same time
    everything = catalogue.JOINED if isinstance(profile, Joined) else catalogue.FROM_ROWS
    names = sorted(names or everything, key=lambda n: -len(catalogue.FIGURES[n].kinds))
    with ProcessPoolExecutor(min(workers, len(names)), context, initializer=_begin) as pool:
        drawing = {name: pool.submit(_draw, profile, name, stage) for name in names}
        for name, drawn in drawing.items():
            try:
                print(drawn.result(), flush=True)
            except Exception as error:  # the other figures' errors are worth knowing too
                failed = True
                print(f"{name} failed:", *traceback.format_exception(error), file=sys.stderr)
    if failed:
        print(f"failed: {figures} stays as it was", file=sys.stderr)
        return 1
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    promote([(path, figures / path.relative_to(stage)) for path in files], journal_in(profile.runs))
    shutil.rmtree(stage)
    print(f"{len(files)} files in {figures}, {time.monotonic() - start:.1f} s")
    return 0


def _begin() -> None:
    """Make a process ready to draw."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's: it stops its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # a few figures leave little behind, and looking for it takes a tenth of the time
    mpl.use("agg")
    apply_style()


def _draw(profile: Profile | Joined, name: str, folder: Path) -> str:
    """Draw a figure into a folder; what there is to say of it."""
    start = time.monotonic()
    try:
        catalogue.save(catalogue.draw(profile, name), name, folder)
    except ResultsError as error:
        return f"{name}: skipped: {error}"
    mpl.pyplot.close("all")
    return f"{name}: {time.monotonic() - start:.1f} s"
