"""Rows and logs whose values can be computed in the head."""

from __future__ import annotations

import json

import pandas as pd
from PIL import Image

from entityclip.statistics import METRICS

LEVELS = {"zero-shot": 1.0, "clip": 70.0, "entityclip": 65.0}


def make_rows(variants=LEVELS, splits=("test", "test_longtail"), seeds=(0,), **changes):
    """Rows as read_rows gives them: a value each can be computed in the head."""
    rows = []
    for split in splits:
        for variant, level in variants.items():
            for direction in ("text_to_image", "image_to_text"):
                for seed in seeds:
                    for i, metric in enumerate(METRICS):
                        value = level + i + seed
                        row = {
                            "variant": variant, "dataset": "newsroom", "split": split,
                            "direction": direction, "metric": metric, "value": value,
                            "low": value - 0.5, "high": value + 0.5, "n_queries": 400,
                            "n_candidates": 300, "seed": seed,
                            "config": {"variant": variant, "train": {"lr": 1.0, "seed": seed}},
                            "config_hash": f"{variant}{seed}",
                            "data_fingerprint": f"data of {split}",
                        }  # fmt: skip
                        rows.append(row | changes)
    return pd.DataFrame(rows)


def make_log(path, n=20, epochs=2, terms=("vtc",), level=1.0):
    per_epoch, lines = n // epochs, []
    for step in range(1, n + 1):
        row = {"step": step, "epoch": (step - 1) // per_epoch + 1, "lr": 1e-5, "pairs_per_s": 9.0}
        row |= {"loss": level + 1 / step} | {term: level + 1 / step for term in terms}
        lines.append(row)
        if step % per_epoch == 0:
            vtc = level + 0.1 * (step - per_epoch)  # rises: the first epoch is the best
            lines.append({"epoch": row["epoch"], "step": step, "val_loss": vtc, "val_vtc": vtc / 2})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def picture(colour, size=(64, 64), mode="RGB"):
    return Image.new(mode, size, colour)
