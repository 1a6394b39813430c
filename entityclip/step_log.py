"""The step log of a training run, which also notices a loss that is no number."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from entityclip.files import atomic_write_text


class TrainingError(RuntimeError):
    """Training can't start or go on; the message says where it stood and what to do."""


class StepLog:
    """``log.jsonl`` of a run: a row a step, a row a validation, a row for broken pictures.

    On a GPU rows wait in memory, `every` at a time, so that no step waits for its loss to arrive.
    Of several processes only the `main` one writes; all of them look at the loss.
    """

    def __init__(self, path: Path, every: int, *, main: bool = True):
        self.path, self.every, self.main = path, every, main
        self.waiting: list[tuple[dict[str, Any], list[str]]] = []

    def add(
        self, row: dict[str, Any], ids: list[str], last_good: Callable[[], str]
    ) -> list[dict[str, Any]]:
        """Take one step's row (numbers or scalar tensors); the rows written by now, if any."""
        self.waiting.append((row, ids))
        return self.flush(last_good) if len(self.waiting) >= self.every else []

    def flush(self, last_good: Callable[[], str]) -> list[dict[str, Any]]:
        """Write what waits. Raises TrainingError at the first loss that is not finite."""
        rows = []
        for row, ids in self.waiting:
            row = {k: v.item() if isinstance(v, Tensor) else v for k, v in row.items()}
            if not math.isfinite(row["loss"]):
                raise TrainingError(
                    f"loss is {row['loss']} at step {row['step']}; {last_good()}. "
                    f"The batch: {', '.join(ids)}"
                )
            rows.append(row)
        self.waiting = []
        self.write(*rows)
        return rows

    def write(self, *rows: dict[str, Any]) -> None:
        """Append rows at once, a validation's for instance."""
        if not self.main:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def sync(self) -> None:
        """Wait until the disk holds what is written: a checkpoint must not outlive its log."""
        if self.main and self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def truncate(self, step: int) -> list[dict[str, Any]]:
        """Forget rows after `step`, which a stopped run does again; the rows that stay."""
        if not self.path.exists():
            return []
        kept, rows = [], []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # the line a killed run was writing
            if row["step"] <= step:
                kept.append(line + "\n")
                rows.append(row)
        atomic_write_text(self.path, "".join(kept))
        return rows
