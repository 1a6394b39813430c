"""What a set of explanations is like: failed checks, lengths, and a small model's as an example."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from entityclip.explanations.checks import CHECKS, failed_checks
from entityclip.explanations.prompts import DEFAULT_PROMPT
from entityclip.style import PAGE, marks

_SAMPLE = "smollm2-135m.jsonl"


@dataclass(frozen=True)
class SampleRow:
    """A caption of the drawn newsroom and what a small real model made of it."""

    caption: str
    text: str
    finish_reason: str

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks it fails, judged now, so that they follow changes to the checks."""
        return failed_checks(self.text, self.caption, DEFAULT_PROMPT, self.finish_reason)


def smollm_sample() -> list[SampleRow]:
    """48 explanations as SmolLM2-135M-Instruct gave them, kept with the package.

    Weights: 4-bit GGUF (Q4_1), served by llama.cpp; prompt "entities-v1", temperature 0.7, top-p
    0.95, at most 96 tokens, after the one retry. Recorded in November 2026, not edited. The model
    is far too small for the task: its claims are often false, and its failures are the point.
    """
    lines = files("entityclip.explanations").joinpath(_SAMPLE).read_text(encoding="utf-8")
    return [SampleRow(**json.loads(line)) for line in lines.splitlines()]


def checks_table(checks: Mapping[str, Sequence[tuple[str, ...]]]) -> pd.DataFrame:
    """A row a check: what it means, and the percentage of each set's rows that fail it.

    `checks` holds, by the name of the set, each row's failed checks. The last row, "any", is the
    percentage that fail at least one. Raises ValueError for an empty set.
    """
    empty = [name for name, rows in checks.items() if not rows]
    if empty:
        raise ValueError(f"no explanations in {', '.join(empty)}")
    table = pd.DataFrame({"meaning": {**CHECKS, "any": "fails at least one check"}})
    for name, rows in checks.items():
        failed = {check: sum(check in row for row in rows) for check in CHECKS}
        failed["any"] = sum(bool(row) for row in rows)
        table[name] = pd.Series({k: 100 * n / len(rows) for k, n in failed.items()})
    return table.rename_axis("check")


def plot_checks(table: pd.DataFrame) -> Figure:
    """`checks_table` as points, a line a check, a mark a set of explanations."""
    sets = [column for column in table if column != "meaning"]
    figure, axis = plt.subplots(figsize=(PAGE, 0.9 + 0.2 * len(table)), layout="constrained")
    height = np.arange(len(table))[::-1]
    for name, (colour, marker) in marks(sets).items():
        axis.plot(
            *(table[name], height),
            linestyle="none",
            marker=marker,
            markersize=6,
            color=colour,
            label=name,
            clip_on=False,
            zorder=3,  # above the axis
        )
    axis.set_yticks(height, labels=[check.replace("_", " ") for check in table.index])
    # one check in ten rows must still be told from none
    right = min(100.0, max(20.0, 1.1 * table[sets].to_numpy().max()))
    axis.set(xlim=(0, right), ylim=(-0.6, len(table) - 0.4), xlabel="explanations that fail (%)")
    axis.grid(axis="both", color="0.9", linewidth=0.6)
    axis.tick_params(axis="y", length=0, pad=8)
    figure.legend(loc="outside lower center", ncols=len(sets))
    return figure


def cut_table(lengths: Mapping[str, Sequence[int]], limits: Sequence[int]) -> pd.DataFrame:
    """How much of each kind of text an encoder that reads `limits` tokens would cut off.

    `lengths` holds, by kind, each text's tokens with start and end (`Backbone.lengths`). A row a
    kind and limit: median and longest text, the percentage of texts that are cut, and the
    percentage of all tokens that are lost.
    """
    rows = [
        {
            "text": kind,
            "limit": limit,
            "median": median(tokens),
            "longest": max(tokens),
            "texts cut (%)": 100 * sum(n > limit for n in tokens) / len(tokens),
            "tokens lost (%)": 100 * sum(max(0, n - limit) for n in tokens) / sum(tokens),
        }
        for kind, tokens in lengths.items()
        for limit in limits
    ]
    return pd.DataFrame(rows).round(1)
