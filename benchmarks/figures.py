"""How long ``make figures`` takes: ``python -m benchmarks.figures``.

Redraws all tables and figures of the shipped rows twice, start and imports included: by one process
and by as many as it takes by default. Refuses to print where the two differ in a byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.turns import timed
from entityclip.config import REPOSITORY


def redraw(figures: Path, runs: Path, *options: str) -> None:
    """Run the command to fill `figures`, with nothing in `runs`."""
    command = [sys.executable, "-m", "entityclip", "figures", "--figures", str(figures), *options]
    environment = {**os.environ, "ENTITYCLIP_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs, alone, together = (Path(scratch, name) for name in ("runs", "alone", "together"))
        redraw(together, runs)  # the files are in the system's cache from here on
        one = timed(redraw, alone, runs, "--workers", "1")[1].wall
        several = min(timed(redraw, together, runs)[1].wall for _ in range(3))
        if contents(alone) != contents(together):
            raise SystemExit("several processes drew other bytes than one")
        names = contents(together)
        same = [n for n in names if names[n] == (REPOSITORY / "figures" / n).read_bytes()]
        print(f"{len(names)} files, {len(same)} the very bytes of figures/")
        print(f"one process {one:.1f} s, several {several:.1f} s, ratio {one / several:.2f} x")


if __name__ == "__main__":
    main()
