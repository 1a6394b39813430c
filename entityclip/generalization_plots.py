"""Figures of generalisation: who confuses which news sections, and what training elsewhere costs.

Like `report`, they read stored rows and tables only; `style.apply_style` first.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from entityclip.cross_domain import NOT_FINETUNED
from entityclip.style import DIRECTIONS, HEAT, PAGE, VARIANTS, in_order, label

DOMAINS = {
    "newsroom": "Newsroom A",
    "newsroom-b": "Newsroom B",
    "n24news": "N24News",
    "visualnews": "VisualNews",
    "goodnews": "GoodNews",
    NOT_FINETUNED: "not fine-tuned",
}
_SIDE_BY_SIDE = 10  # sections; larger matrices stand one above the other


def plot_confusions(confusions: Mapping[str, pd.DataFrame]) -> Figure:
    """Heat maps of `section_tables.confusions`, one a variant; colour: share of a true section.

    Counts stand in the cells, but for zeros. Raises ValueError for none.
    """
    if not confusions:
        raise ValueError("no confusion matrix to show")
    variants = in_order(pd.Series(list(confusions)), VARIANTS)
    k = max(len(counts) for counts in confusions.values())
    columns = len(variants) if k <= _SIDE_BY_SIDE else 1
    rows = -(-len(variants) // columns)
    cell = (PAGE - 1.6) / (columns * k)
    height = min(cell * k, PAGE) + (1.1 if k > _SIDE_BY_SIDE else 0.9)
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=(PAGE, rows * height),
        squeeze=False,
        sharey=columns > 1 and len({tuple(c.index) for c in confusions.values()}) == 1,
        layout="constrained",
    )
    points = float(np.clip(26 * cell, 3.5, 7.0))
    for axis, variant in zip(axes.flat, variants, strict=True):
        counts = confusions[variant]
        shares = 100 * counts.to_numpy(float) / counts.to_numpy(float).sum(1, keepdims=True)
        texts = np.where(counts > 0, counts.astype(str), "")
        _heat_map(axis, shares, texts, list(counts.index), list(counts.columns), points)
        axis.set_title(label(variant, VARIANTS), loc="left")
        axis.set(xlabel="predicted section", ylabel="")
    for axis in axes[:, 0]:
        axis.set_ylabel("true section")
    _colour_bar(figure, axes, "share of the true section (%)")
    return figure


def plot_cross_domain(
    table: pd.DataFrame, metric: str = "R@1", direction: str = "text_to_image"
) -> Figure:
    """Heat maps of `cross_domain_table`, a variant each: trained on (row) × tested on (column).

    Cells say the metric with its 95 % interval; what is only pretrained is every map's last row.
    What was not measured is left blank. `metric` is one in percent. Raises ValueError for no rows.
    """
    chosen = table[table["direction"] == direction]
    without = chosen["trained_on"] == NOT_FINETUNED
    variants = in_order(chosen.loc[~without, "variant"], VARIANTS)
    if not variants or not metric.startswith("R@"):
        raise ValueError(f"nothing to show of {metric}, {direction}: {len(chosen)} rows")
    tested = in_order(chosen["dataset"], DOMAINS)
    trained = in_order(chosen["trained_on"], DOMAINS)
    figure, axes = plt.subplots(
        *(1, len(variants)),
        figsize=(PAGE, 1.1 + 0.5 * len(trained)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, variant in zip(axes[0], variants, strict=True):
        mine = chosen[(chosen["variant"] == variant) | without]
        keyed = mine.set_index(["trained_on", "dataset"])
        values, texts = _matrix(keyed, trained, tested, metric)
        names = [[label(name, DOMAINS) for name in side] for side in (trained, tested)]
        _heat_map(axis, values, texts, *names, 6.5, slant=0)
        axis.set_title(label(variant, VARIANTS), loc="left")
        axis.set_xlabel("tested on")
    axes[0, 0].set_ylabel("trained on")
    _colour_bar(figure, axes, f"{metric} (%), {label(direction, DIRECTIONS)}")
    return figure


def _matrix(
    keyed: pd.DataFrame, trained: list[str], tested: list[str], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    values = np.full((len(trained), len(tested)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for i, source in enumerate(trained):
        for j, target in enumerate(tested):
            if (source, target) in keyed.index:
                value, low, high = keyed.loc[
                    (source, target), [metric, f"{metric}_low", f"{metric}_high"]
                ]
                values[i, j] = value
                texts[i, j] = f"{value:.1f}\n[{low:.1f}, {high:.1f}]"
    return values, texts


def _heat_map(
    axis: Axes,
    values: np.ndarray,
    texts: np.ndarray,
    rows: list[str],
    columns: list[str],
    points: float,
    slant: float = 90,
) -> None:
    axis.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    axis.set_xticks(range(len(columns)), labels=columns, rotation=slant)
    axis.set_yticks(range(len(rows)), labels=rows)
    axis.tick_params(length=0)
    axis.spines[:].set(visible=True, color="0.8")  # a pale cell needs an edge
    for (i, j), text in np.ndenumerate(texts):
        if text:  # the upper end of the scale is dark
            colour = "white" if values[i, j] > 60 else "black"
            axis.text(j, i, text, ha="center", va="center", fontsize=points, color=colour)


def _colour_bar(figure: Figure, axes: np.ndarray, text: str) -> None:
    scale = ScalarMappable(Normalize(0, 100), HEAT)
    bar = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.01, ticks=range(0, 101, 25))
    bar.set_label(text)
    bar.outline.set_visible(False)
