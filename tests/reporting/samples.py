"""Rows, logs and tables whose values can be computed in the head."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image

from entityclip.reporting.differences import COLUMNS
from entityclip.statistics import DIRECTIONS, METRICS

LEVELS = {"zero-shot": 1.0, "clip": 70.0, "entityclip": 65.0}
NAN = float("nan")


def make_rows(variants=LEVELS, splits=("test", "test_alias"), seeds=(0,), **changes):
    """Rows as read_rows gives them: a metric is its variant's level, its place and its seed."""
    rows = []
    for split, variant, direction, seed in itertools.product(splits, variants, DIRECTIONS, seeds):
        for i, metric in enumerate(METRICS):
            value = variants[variant] + i + seed
            row = {
                "variant": variant, "dataset": "newsroom", "split": split, "direction": direction,
                "metric": metric, "value": value, "low": value - 0.5, "high": value + 0.5,
                "n_queries": 400, "n_candidates": 300, "seed": seed,
                "config": {"variant": variant, "train": {"lr": 1.0, "seed": seed}},
                "config_hash": f"{variant}{seed}", "data_fingerprint": f"data of {split}",
            }  # fmt: skip
            rows.append(row | changes)
    return pd.DataFrame(rows)


def make_floors(splits=("test",), **changes):
    """Rows of kind "floor": no interval, text to image alone, no recall beyond 10."""
    rows = make_rows({"scene-only": 20.0, "names-cut": 10.0}, splits, **changes)
    shown = ~rows["metric"].isin(["R@50", "R@100"]) & (rows["direction"] == "text_to_image")
    return rows[shown].assign(low=np.nan, high=np.nan).reset_index(drop=True)


def make_ranks(ranks, *, clusters=None, fingerprint="f"):
    """Stored rows of kind "ranks" from {(variant, seed): ranks}."""
    return pd.DataFrame(
        {
            "variant": variant, "seed": seed, "dataset": "d", "split": "test",
            "direction": "text_to_image", "data_fingerprint": fingerprint, "ranks": list(values),
            "clusters": clusters,
        }
        for (variant, seed), values in ranks.items()
    )  # fmt: skip


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


def make_differences():
    """Two groups; by the intervals: better, not separable, untested, worse; one survives."""
    lines = [
        ("a", "A & more $x^", "Test, R@1", 2.0, 0.5, 3.5, 3, True),
        ("b", "B", "Test, R@1", 1.0, -1.0, 3.0, 3, False),
        ("c", "C", "Test, R@1", 4.0, NAN, NAN, 1, False),
        ("a", "A & more $x^", "Aliases, R@1", -2.0, -3.0, -1.0, 3, False),
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def make_words(*weights, words=("⟨start⟩", "the", "flag", "costs", "$5", "⟨end⟩")):
    """A word table of pairs whose words are read with rising `weights` by one side."""
    parts = []
    for pair, top in enumerate(weights):
        sides = {"from_image": np.linspace(0, top, len(words))}
        sides["from_text"] = sides["from_image"][::-1]
        parts.append(pd.DataFrame({"pair": f"p{pair}", "word": list(words)} | sides))
    return pd.concat(parts, ignore_index=True)


def make_gates():
    """Two pairs, an image gate of two experts and a fusion gate of three."""
    shares = {
        ("image", "image 1"): (0.25, 0.35),
        ("image", "explanation 1"): (0.75, 0.65),
        ("fusion", "image 1"): (0.5, 0.3),
        ("fusion", "explanation 1 from image"): (0.2, 0.3),
        ("fusion", "explanation 1 from text"): (0.3, 0.4),
    }
    return pd.DataFrame(
        {"pair": pair, "gate": gate, "expert": expert, "weight": weights[pair]}
        for pair in (0, 1)
        for (gate, expert), weights in shares.items()
    )


def make_plane(n=6, labels=("harbour", "match")):
    """Points on a wave, captions and pictures of n pairs, as `evaluation.inspection.plane` has."""
    kinds, pairs = ["caption"] * n + ["picture"] * n, [*range(n)] * 2
    x, y = np.sin(np.arange(4.0 * n)).reshape(2, 2 * n)
    points = {"kind": kinds, "pair": pairs, "label": [labels[p % len(labels)] for p in pairs]}
    numbers = {"alignment": 0.5, "uniformity_images": -1.25, "uniformity_texts": -2.5}
    points = pd.DataFrame(points | {"x": x, "y": y})
    return SimpleNamespace(points=points, explained=(0.6, 0.2), **numbers)


def picture(colour, size=(64, 64), mode="RGB"):
    return Image.new(mode, size, colour)
