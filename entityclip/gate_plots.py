"""How the three gates share themselves out among the experts, over a split."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from entityclip.style import GREY, PAGE, PALETTE, VERMILLION

_COLOURS = {
    "image": PALETTE[5],
    "explanation from image": PALETTE[3],
    "explanation from text": PALETTE[2],
    "text": VERMILLION,
}
_TITLES = {"image": "Image gate", "text": "Text gate", "fusion": "Fusion gate"}
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def gate_table(weights: pd.DataFrame) -> pd.DataFrame:
    """`inspection.gate_weights` in one row a gate and expert, in their own order.

    Columns: `gate`, `expert`, `pairs`, `mean`, the quantiles `q05`, `q25`, `q50`, `q75`, `q95`, and
    `even`, what each expert would get of a gate without preference.
    """
    groups = weights.groupby(["gate", "expert"], sort=False)["weight"]
    quantiles = groups.quantile(list(_QUANTILES)).unstack()
    quantiles.columns = [f"q{round(100 * q):02d}" for q in _QUANTILES]
    table = groups.agg(pairs="size", mean="mean").join(quantiles).reset_index()
    return table.assign(even=1 / table.groupby("gate")["expert"].transform("size"))


def plot_gates(table: pd.DataFrame) -> Figure:
    """Weights of each gate's experts from `gate_table`: 5-95 % whiskers, quartile box, median.

    The dashed line is the even share. Raises ValueError for an empty table.
    """
    gates = [gate for gate in _TITLES if gate in set(table["gate"])]
    if not gates:
        raise ValueError("nothing to show: no gate weights")
    sides = [gate for gate in gates if gate != "fusion"]
    rows = max(table.groupby("gate")["expert"].size())
    figure = plt.figure(figsize=(PAGE, 0.9 + 0.19 * max(rows, 8)), layout="constrained")
    columns = [[[gate] for gate in sides], [["fusion"]] if "fusion" in gates else []]
    subfigures = figure.subfigures(1, sum(map(bool, columns)), squeeze=False)[0]
    for part, mosaic in zip(subfigures, filter(None, columns), strict=True):
        for gate, axis in part.subplot_mosaic(mosaic).items():
            _boxes(axis, table[table["gate"] == gate])
            axis.set_title(_TITLES[gate], loc="left")
            if gate == mosaic[-1][0]:
                axis.set_xlabel("weight")
    used = {
        _source(gate, expert) for gate, expert in zip(table["gate"], table["expert"], strict=True)
    }
    handles = [
        Patch(color=c, alpha=0.75, label=name) for name, c in _COLOURS.items() if name in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _boxes(axis: Axes, rows: pd.DataFrame) -> None:
    names = ("whislo", "q1", "med", "q3", "whishi")
    stats = [
        dict(zip(names, row[["q05", "q25", "q50", "q75", "q95"]], strict=True))
        for _, row in rows.iterrows()
    ]
    boxes = axis.bxp(
        stats,
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.65,
        medianprops={"color": "black", "linewidth": 1.2},
        **{f"{part}props": {"linewidth": 0.7} for part in ("box", "whisker", "cap")},
    )
    for box, gate, expert in zip(boxes["boxes"], rows["gate"], rows["expert"], strict=True):
        box.set(facecolor=_COLOURS[_source(gate, expert)], alpha=0.75)
    axis.axvline(rows["even"].iloc[0], color=GREY, linestyle="--", linewidth=0.9, zorder=0)
    axis.set_yticks(range(1, len(rows) + 1), labels=[_short(name) for name in rows["expert"]])
    axis.tick_params(axis="y", length=0, labelsize=6.5)
    axis.invert_yaxis()
    axis.set_xlim(0)


def _source(gate: str, expert: str) -> str:
    """What an expert read, and for whom."""
    kind, _, rest = expert.partition(" ")
    if kind != "explanation":
        return kind
    return f"explanation {rest.partition(' ')[2] or f'from {gate}'}"


def _short(expert: str) -> str:
    return expert.partition(" from ")[0]  # the colour tells from where
