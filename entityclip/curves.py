"""Training curves as result rows: the mean of each epoch, so that figures need no logs.

A log has a line a step and stays in ``runs/``; what a figure over seeds needs of it is a few rows,
which `ship_rows` puts into the repository with the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from entityclip.experiments import Experiment, device
from entityclip.results import Row, append_rows, measurement_rows, provenance
from entityclip.run_state import RECORD
from entityclip.stored import find_rows
from entityclip.training_logs import Log, read_log

TERM = "vtc"  # the one that all variants have, so the one to compare
_SPLITS = {"train": TERM, "val": f"val_{TERM}"}  # a split, and the log's column for it


def store_curves(experiment: Experiment, variants: Iterable[str]) -> int:
    """Store rows of kind "curves" for each finished run that has none; how many rows were added.

    The loss stands as the value, with the pairs of an epoch as `n_queries`.
    """
    variants = list(variants)
    logs = experiment.logs(variants)
    known = find_rows(experiment, "curves")
    done = set() if known.empty else set(known.loc[known["seed"] == experiment.seed, "variant"])
    rows: list[Row] = []
    for name in variants:
        if name in logs and name not in done and (logs[name].parent / RECORD).exists():
            rows += _rows(experiment, name, logs[name])
    append_rows(experiment.results / "curves.jsonl", rows)
    return len(rows)


def stored_curves(experiment: Experiment, variants: Iterable[str]) -> dict[str, list[Log]]:
    """The stored curves of each variant that has any, a (training, validation) pair a seed."""
    rows = find_rows(experiment, "curves", variants=variants)
    found: dict[str, list[Log]] = {}
    if rows.empty:
        return found
    epochs = rows["metric"].str.extract(r"epoch (\d+)$", expand=False).astype(int)
    rows = rows[["variant", "seed", "split", "value"]].assign(epoch=epochs)
    for (variant, _), run in rows.groupby(["variant", "seed"], sort=True):
        parts = [
            run[run["split"] == split].rename(columns={"value": column})[["epoch", column]]
            for split, column in _SPLITS.items()
        ]
        steps, validations = (part.sort_values("epoch", ignore_index=True) for part in parts)
        found.setdefault(str(variant), []).append((steps, validations))
    return found


def _rows(experiment: Experiment, variant: str, log: Path) -> list[Row]:
    record = json.loads((log.parent / RECORD).read_text(encoding="utf-8"))
    tables: list[pd.DataFrame] = list(read_log(log))
    rows: list[Row] = []
    for (split, column), table in zip(_SPLITS.items(), tables, strict=True):
        pairs = experiment.pairs(split)
        means = table.groupby("epoch")[column].mean()
        rows += measurement_rows(
            {f"{TERM}, epoch {epoch}": float(mean) for epoch, mean in means.items()},
            {},
            variant=variant,
            dataset=experiment.settings.dataset,
            split=split,
            direction="pairs",
            n_queries=len(pairs),
            n_candidates=experiment.settings.finetuning.batch_size,
            provenance=provenance(
                config=experiment.identity(variant),
                seed=experiment.seed,
                data_fingerprint=experiment.fingerprint(split),
                device=device(),
                wall_time_s=record["wall_time_s"],
            ),
        )
    return rows
