"""A split's joint embedding space, seen in two dimensions."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from entityclip.embedding_space import Plane
from entityclip.style import GREY, PAGE, PALETTE

_LIGHT = "#b0b0b0"
_SIDES = {"picture": ("o", 16), "caption": ("^", 18)}


def space_table(planes: dict[str, Plane]) -> pd.DataFrame:
    """The points of all planes, with their plane's title as `model`."""
    parts = [seen.points.assign(model=title) for title, seen in planes.items()]
    return pd.concat(parts, ignore_index=True)[["model", "kind", "pair", "label", "x", "y"]]


def space_numbers(planes: dict[str, Plane]) -> pd.DataFrame:
    """A row a plane: `model`, `alignment`, `uniformity_images`, `uniformity_texts`."""
    names = ("alignment", "uniformity_images", "uniformity_texts")
    return pd.DataFrame(
        [{"model": title} | {n: getattr(seen, n) for n in names} for title, seen in planes.items()]
    )


def plot_space(planes: dict[str, Plane], pictures: int = 150) -> Figure:
    """Discs for pictures, triangles for captions, a thin line between those of a pair.

    `planes` holds `embedding_space.plane` by title, a panel each. The numbers above a panel are the
    whole split's, the marks those of some `pictures` only, for more would hide each other. Colours
    are labels (the six most frequent; others grey). Axes are principal components and mean nothing
    across panels. Raises ValueError for no planes.
    """
    if not planes:
        raise ValueError("nothing to show: no planes")
    labels = next(iter(planes.values())).points.query("kind == 'caption'")["label"]
    counts = labels[labels != ""].value_counts()
    # by frequency, then by alphabet: a tie must not change colours
    shown = sorted(counts.index, key=lambda name: (-counts[name], name))[: len(PALETTE)]
    colours = dict(zip(shown, PALETTE, strict=False))
    width = min(PAGE, 3.4 * len(planes) + 0.2)
    figure, axes = plt.subplots(
        1, len(planes), figsize=(width, 3.9), squeeze=False, layout="constrained"
    )
    for axis, (title, seen) in zip(axes[0], planes.items(), strict=True):
        _scatter(axis, seen, colours, pictures)
        axis.set_title(f"{title}\n{_numbers(seen)}", loc="left", fontsize=7.5)
    handles = [
        Line2D([], [], linestyle="", marker=mark, color=GREY, label=f"{side}s")
        for side, (mark, _) in _SIDES.items()
    ]
    handles += [Line2D([], [], linewidth=4, color=c, label=name) for name, c in colours.items()]
    if len(counts) > len(colours):
        handles.append(Line2D([], [], linewidth=4, color=_LIGHT, label="others"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def _scatter(axis: Axes, seen: Plane, colours: dict[str, str], limit: int) -> None:
    points = seen.points[seen.points["pair"] < limit]
    pictures = points[points["kind"] == "picture"].set_index("pair")[["x", "y"]]
    captions = points[points["kind"] == "caption"]
    ends = zip(
        captions[["x", "y"]].to_numpy(), pictures.loc[captions["pair"]].to_numpy(), strict=True
    )
    axis.add_collection(LineCollection(list(ends), colors="0.65", linewidths=0.5, zorder=1))
    for side, (mark, size) in _SIDES.items():
        part = points[points["kind"] == side]
        axis.scatter(
            part["x"],
            part["y"],
            c=[colours.get(name, _LIGHT) for name in part["label"]],
            marker=mark,
            s=size,
            linewidths=0.3,
            edgecolors="white",
            zorder=2,
        )
    first, second = (f"{100 * share:.0f} %" for share in seen.explained)
    axis.set(xlabel=f"component 1 ({first} of variance)", ylabel=f"component 2 ({second})")
    axis.set(xticks=[], yticks=[])


def _numbers(seen: Plane) -> str:
    return (
        f"alignment {seen.alignment:.2f}, uniformity {seen.uniformity_images:.2f} (pictures), "
        f"{seen.uniformity_texts:.2f} (captions)"
    )
