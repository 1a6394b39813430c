"""Heat maps: sections taken for each other, and training on one domain tested on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from entityclip.reporting.charts import panels
from entityclip.reporting.style import HEAT, PAGE
from entityclip.variants import DIRECTION_LABELS, NOT_FINETUNED, VARIANT_LABELS, in_order, label

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
    """Heat maps of `tables.confusions`, one a variant; colour: share of a true section.

    Counts stand in the cells, but for zeros. Raises ValueError for none.
    """
    if not confusions:
        raise ValueError("no confusion matrix to show")
    variants = in_order(pd.Series(list(confusions)), VARIANT_LABELS)
    k = max(len(counts) for counts in confusions.values())
    columns = len(variants) if k <= _SIDE_BY_SIDE else 1
    rows = -(-len(variants) // columns)
    cell = (PAGE - 1.6) / (columns * k)
    height = min(cell * k, PAGE) + (1.1 if k > _SIDE_BY_SIDE else 0.9)
    alike = columns > 1 and len({tuple(c.index) for c in confusions.values()}) == 1
    figure, axes = panels(rows, columns, rows * height, sharey=alike)
    points = float(np.clip(26 * cell, 3.5, 7.0))
    for axis, variant in zip(axes.flat, variants, strict=True):
        counts = confusions[variant]
        shares = 100 * counts.to_numpy(float) / counts.to_numpy(float).sum(1, keepdims=True)
        texts = np.where(counts > 0, counts.astype(str), "")
        _heat_map(axis, shares, texts, (list(counts.index), list(counts.columns)), points)
        axis.set_title(label(variant, VARIANT_LABELS), loc="left")
        axis.set(xlabel="predicted section", ylabel="")
    for axis in axes[:, 0]:
        axis.set_ylabel("true section")
    _colour_bar(figure, axes, "share of the true section (%)")
    return figure


def plot_cross_domain(table: pd.DataFrame, direction: str = "text_to_image") -> Figure:
    """Heat maps of `cross_domain_table`, a variant each: trained on (row) × tested on (column).

    Cells say R@1 with its 95 % interval; what is only pretrained is every map's last row. What was
    not measured is left blank. Raises ValueError for no rows.
    """
    chosen = table[table["direction"] == direction]
    without = chosen["trained_on"] == NOT_FINETUNED
    variants = in_order(chosen.loc[~without, "variant"], VARIANT_LABELS)
    if not variants:
        raise ValueError(f"nothing to show of R@1, {direction}: {len(chosen)} rows")
    trained, tested = (in_order(chosen[name], DOMAINS) for name in ("trained_on", "dataset"))
    names = [[label(name, DOMAINS) for name in side] for side in (trained, tested)]
    figure, axes = panels(1, len(variants), 1.1 + 0.5 * len(trained), sharey=True)
    for axis, variant in zip(axes[0], variants, strict=True):
        mine = chosen[(chosen["variant"] == variant) | without]
        values, low, high = (
            mine.pivot(index="trained_on", columns="dataset", values=f"R@1{end}")
            .reindex(index=trained, columns=tested).to_numpy(float)
            for end in ("", "_low", "_high")
        )  # fmt: skip
        texts = np.full(values.shape, "", dtype=object)
        for at in zip(*np.nonzero(~np.isnan(values)), strict=True):
            texts[at] = f"{values[at]:.1f}\n[{low[at]:.1f}, {high[at]:.1f}]"
        _heat_map(axis, values, texts, names, 6.5, slant=0)
        axis.set_title(label(variant, VARIANT_LABELS), loc="left")
        axis.set_xlabel("tested on")
    axes[0, 0].set_ylabel("trained on")
    _colour_bar(figure, axes, f"R@1 (%), {label(direction, DIRECTION_LABELS)}")
    return figure


def _heat_map(
    axis: Axes, values: np.ndarray, texts: np.ndarray, names: Sequence[list[str]], points: float,
    slant: float = 90,
) -> None:  # fmt: skip
    """Cells coloured by `values` in percent, with their `texts`; `names` of rows and of columns."""
    axis.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    rows, columns = names
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
