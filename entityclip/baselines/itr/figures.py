"""Figures of ITR: weighted F1 before and after, and Grad-CAM maps over pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from entityclip.style import GREY, MARKERS, PAGE, PALETTE, wrap

_LABELS = {"text": "text\nrepresented", "image": "image\nadds", "combined": "both\n(4 classes)"}
_COLOURS = (GREY, *PALETTE)  # the start weights come first
_COLUMN = 1.6  # inches of a picture's column


def plot_relation_scores(rows: pd.DataFrame) -> Figure:
    """Weighted F1 of each label: a panel a protocol, a small mark a seed, a bar at their mean.

    `rows` are `relations.RelationStudy.rows` of one data set. Raises ValueError for none.
    """
    if rows.empty:
        raise ValueError("nothing to show: no rows")
    protocols, variants = rows["protocol"].unique(), list(rows["variant"].unique())
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(PAGE, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    width = 0.8 / len(variants)
    for axis, protocol in zip(axes[0], protocols, strict=True):
        for i, variant in enumerate(variants):
            chosen = rows[(rows["protocol"] == protocol) & (rows["variant"] == variant)]
            for place, label in enumerate(_LABELS):
                values = chosen.loc[chosen["label"] == label, "value"]
                x = place + (i - (len(variants) - 1) / 2) * width
                style = {"color": _COLOURS[i % len(_COLOURS)], "zorder": 3}
                axis.scatter([x] * len(values), values, s=9, marker=MARKERS[i % len(MARKERS)],
                             label=variant if place == 0 else None, **style)  # fmt: skip
                axis.hlines(values.mean(), x - 0.4 * width, x + 0.4 * width, **style)
        axis.set_title(protocol, loc="left")
        axis.set_xticks(range(len(_LABELS)), list(_LABELS.values()))
    axes[0, 0].set_ylabel("weighted F1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_cams(
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    cams: Mapping[str, NDArray[np.float32]],
) -> Figure:
    """Pictures in a row, and below them Grad-CAM maps [N, H, W] of each of several models.

    Raises ValueError for no pictures and for maps of another number of them.
    """
    for name, maps in cams.items():
        if len(maps) != len(pictures) or not pictures:
            raise ValueError(f"{len(maps)} maps of {name!r} for {len(pictures)} pictures")
    rows, size = 1 + len(cams), (PAGE - 0.4) / max(len(pictures), 1)
    figure, axes = plt.subplots(
        rows, len(pictures), figsize=(PAGE, 0.75 + rows * min(size, _COLUMN)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        axes[0, column].set_title(wrap(text, min(size, _COLUMN), 6.5, 5), fontsize=6.5)
        for axis, maps in zip(axes[:, column], (None, *cams.values()), strict=True):
            axis.imshow(picture, interpolation="none")
            if maps is not None:
                extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
                axis.imshow(maps[column], cmap="inferno", alpha=0.5, vmin=0, vmax=1, extent=extent)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, name in zip(axes[:, 0], ("picture", *cams), strict=True):
        axis.set_ylabel(wrap(name, 1.3, 7.5, 3), fontsize=7.5)
    return figure
