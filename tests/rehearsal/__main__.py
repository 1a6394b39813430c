"""The paper's chain over three drawn archives on a tiny backbone, and whether every cell is filled.

    python -m tests.rehearsal [--pairs 300] [--without visualnews] [--out runs/rehearsal]

What it says of numbers is nothing; what it says of the chain is all: the same command, layouts,
picture sizes and quirks as with the real archives. It draws them once below ``--out``, prepares
their pictures, runs ``entityclip reproduce --profile paper`` there and ends with a line a table or
figure: cells expected, cells filled. Stopped, it goes on where it was. Exit 0 if all are filled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from entityclip.config import REPOSITORY
from tests.rehearsal.archives import draw_archives
from tests.rehearsal.cells import count_cells

# a backbone that two cores train in seconds; a table of each kind, with a backbone to be refused
SETTINGS = {
    "backbone": "newsroom-tiny",
    "image_size": 64,
    "pretrained": None,
    "from_scratch": True,
    "finetuning": {"epochs": 1, "batch_size": 32, "lr": 5e-4, "workers": 0},
    "main_seeds": [42, 43],
    "ablation_seeds": [42],
    "bootstrap": 100,
    "backbones": [{"backbone": "newsroom-tiny-p8"}, {"backbone": "RN50"}],
    "mixes": ["0-4-4", "4-4-0", "1-1-1", "3-1-2"],
    "grid": {"lambda_moe": [0.1, 1.0], "eta_itm": [0.1, 1.0]},
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    parser.add_argument("--pairs", type=int, default=300, help="an archive")
    parser.add_argument("--without", nargs="*", default=[], help="archives to rename away")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "rehearsal")
    parser.add_argument("--only", nargs="+", default=[], help="notebooks; cells are not counted")
    options = parser.parse_args()
    out = options.out.resolve()
    roots = draw_archives(out / "archives", pairs=options.pairs)
    gone = {name: roots[name].with_name(f"{name}-away") for name in options.without}
    for name, away in gone.items():
        roots[name].rename(away)
    try:
        code = rehearse(roots, out, options.only)
    finally:
        for name, away in gone.items():
            away.rename(roots[name])
    if options.only:
        return code
    there = [name for name in roots if name not in gone]
    lacking = count_cells(out, there, SETTINGS)
    return code or int(lacking > 0)


def rehearse(roots: dict[str, Path], out: Path, only: list[str], **change: object) -> int:
    """Prepare the pictures and run the chain as a user would; its exit code."""
    told = next(root.parent for root in roots.values()) / "llm_explanations.jsonl"
    sources = {"authors": "own", "an LLM": str(told)}
    settings = SETTINGS | {"explanation_sources": sources, "prepared": "auto"} | change
    command = [sys.executable, "-m", "entityclip"]
    # one thread: a tiny model gains nothing by two, and loses much where others compute beside it
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "TQDM_DISABLE": "1"}
    environment["ENTITYCLIP_RUNS"] = str(out)
    run = partial(subprocess.run, env=environment, cwd=out)
    for name, root in roots.items():
        if root.is_dir():
            prepare = [*command, "data", "prepare", name, "--root", root, "--quiet"]
            run(prepare, check=True, stdout=subprocess.DEVNULL)
    command += ["reproduce", "--profile", "paper"]
    command += ["--roots", *(f"{name}={root}" for name, root in roots.items())]
    command += ["--set", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    return run([*command, *(["--only", *only] if only else [])]).returncode


if __name__ == "__main__":
    sys.exit(main())
