"""`kill -9` at chosen and at random moments of a training run, which is then resumed."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.training_setup import read_log

WRITING, BETWEEN, STARTING, ANY = "writing a checkpoint", "between epochs", "starting", "any moment"


class Killer:
    """Kills a run in `folder`, in processes that `start` starts; `done` counts kills by moment."""

    def __init__(self, folder: Path, start: Callable[[], Any], seed: int):
        self.folder, self.start = folder, start
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()

    def kill(self, moment: str) -> bool:
        """Start the run, or go on with it, and kill it then; False if it ended before."""
        seen = self._validations()
        process = self.start()
        if moment == STARTING:  # imports, data, reading the checkpoint, cutting the log
            self._wait(process, lambda: False, self.random.uniform(0, 12))
        elif moment == BETWEEN:  # the row of a validation is written, its checkpoint is not
            self._wait(process, lambda: self._validations() > seen)
        elif moment == WRITING:
            self._wait(process, self._partial)
        else:
            grown = self._size()
            self._wait(process, lambda: self._size() != grown)
            self._wait(process, lambda: False, self.random.uniform(0, 3))
        killed = process.is_alive()
        process.kill()
        process.join()
        if not killed:
            assert process.exitcode == 0, f"the run failed by itself: {process.exitcode}"
            return False
        torn = moment == WRITING and self._partial()
        self.done[f"{moment}, half of it there" if torn else moment] += 1
        return True

    def finish(self) -> None:
        """Let the run end."""
        process = self.start()
        process.join()
        assert process.exitcode == 0

    @staticmethod
    def _wait(process: Any, until: Callable[[], bool], limit: float = 300) -> None:
        end = time.monotonic() + limit
        while process.is_alive() and time.monotonic() < end and not until():
            time.sleep(0.0005)

    def _partial(self) -> bool:
        # safetensors writes to a .tmp file and renames it, to what we rename once more
        return any([*self.folder.glob(".*.partial"), *self.folder.glob(".tmp*")])

    def _size(self) -> int:
        log = self.folder / "log.jsonl"
        return log.stat().st_size if log.exists() else 0

    def _validations(self) -> int:
        log = self.folder / "log.jsonl"
        return log.read_bytes().count(b'"val_loss"') if log.exists() else 0


def differences_between(one: Path, other: Path) -> list[str]:
    """What two finished runs' folders differ in, times aside: weights, state, log, record."""
    found = []
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (load_file(folder / name) for folder in (one, other))
        found += [f"{name}: {key}" for key in a.keys() ^ b.keys()]
        found += [f"{name}: {k}" for k in a.keys() & b.keys() if not torch.equal(a[k], b[k])]
    found += ["log.jsonl"] if read_log(one) != read_log(other) else []
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, other)]
    times = {"wall_time_s": 0, "resumed_from": 0}
    # as text: 1 is 1.0 for Python, and not for what reads it back
    texts = [json.dumps(record | times, sort_keys=True) for record in records]
    found += ["run.json"] if texts[0] != texts[1] else []
    names = [{p.name for p in folder.iterdir()} for folder in (one, other)]
    return found + [f"file {name}" for name in names[0] ^ names[1]]
