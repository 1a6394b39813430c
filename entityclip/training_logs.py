"""What training logged, as tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.results import ResultsError

log = logging.getLogger(__name__)

Log = tuple[pd.DataFrame, pd.DataFrame]  # a row a step, a row a validation


def read_log(path: str | Path) -> Log:
    """A run's ``log.jsonl`` as (steps, validations), a row each, a column a logged number.

    A step logged twice, as after a resume, counts as logged last. Rows that list broken pictures
    are passed over. The line a running or killed run was still writing is left out with a warning;
    any other line that is no log row raises ResultsError naming it.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines.pop():
        log.warning("%s: its last line is incomplete and left out", path)
    found: dict[str, dict[int, Any]] = {"loss": {}, "val_loss": {}, "broken": {}}
    for number, line in enumerate(lines, start=1):
        kind, row = _log_row(line, f"{path}, line {number}")
        found[kind][row["step"]] = row
    steps, validations = (
        pd.DataFrame([rows[step] for step in sorted(rows)] or {"epoch": [], "step": [], kind: []})
        for kind, rows in found.items()
        if kind != "broken"
    )
    return steps, validations


def log_table(logs: Mapping[str, str | Path]) -> pd.DataFrame:
    """The numbers behind the training curves: a row a step or validation, a column a number.

    `logs` holds each variant's ``log.jsonl``. Speeds are left out: they are the machine's.
    """
    parts = [
        part.assign(variant=name)
        for name, path in logs.items()
        for part in read_log(path)
        if not part.empty
    ]
    table = pd.concat(parts, ignore_index=True).drop(columns="pairs_per_s", errors="ignore")
    first = ["variant", "step", "epoch"]
    return table[first + [column for column in table if column not in first]]


def _log_row(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if isinstance(row, dict) and "step" in row:
        for kind in ("loss", "val_loss", "broken"):
            if kind in row and ("epoch" in row or kind == "broken"):
                return kind, row
    raise ResultsError(f"{where} is neither a step nor a validation: {line[:200]!r}")
