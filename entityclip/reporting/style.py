"""One look for every figure, and files that are the same bytes whenever the data are.

Colours are Okabe and Ito's (2008) without the yellow, told apart with any colour vision; variants
also differ by marker. A figure is as wide as a column (3.5 in) or a page (7 in).
"""

from __future__ import annotations

import io
import textwrap
from bisect import bisect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogFormatter

from entityclip.files import atomic_write_bytes, atomic_write_text
from entityclip.reporting.markup import (
    from_spreadsheet,
    one_line,
    plain,
    spreadsheet,
    words_changed,
)
from entityclip.results import ResultsError
from entityclip.variants import FLOORS, VARIANT_LABELS, label

COLUMN, PAGE = 3.5, 7.0  # inches
GREY, GREEN, VERMILLION, BLUE = "#6e6e6e", "#009E73", "#D55E00", "#0072B2"
HEAT = "Blues"  # of shares: light is none; one hue, so any colour vision ranks it
PALETTE = (GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", BLUE)
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
# zero-shot CLIP is the grey floor, CLIP the baseline, EntityCLIP the method in question
_FIXED = {
    "zero-shot": (GREY, "o"),
    "clip": (BLUE, "s"),
    "itr": ("#999933", "P"),
    "ascl": ("#000000", "X"),
    "entityclip": (VERMILLION, "D"),
    "bridge": (GREEN, "s"),
    "bridge-entityclip": ("#CC79A7", "D"),
    "name-views": ("#E69F00", "^"),
    "name-views-context": ("#56B4E9", "v"),
}
Marks = dict[str, tuple[str, str]]  # (colour, marker) by variant
# thin lines, apart from all that is trained
FLOOR_LOOK: dict[str, dict[str, Any]] = {
    name: {"color": "0.3", "linewidth": 0.8, "linestyle": (0, dashes)}
    for name, dashes in zip(FLOORS, ((6, 2), (2, 2)), strict=True)
}


class _PlainNames(FuncFormatter):
    """The names at an axis' ticks, as they stand."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return plain(super().__call__(x, pos))


class Page(Figure):
    """A figure that shows all texts as they stand: dollars in captions are no mathematics."""

    def draw(self, renderer: Any) -> None:
        """Draw it, as matplotlib asks."""
        self.make_plain()
        super().draw(renderer)

    def make_plain(self) -> None:
        """Write out control characters, and let nothing but the powers on a log axis be set."""
        axes = []
        for axis in self.findobj(Axis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, LogFormatter):
                axes.append(axis)
            elif type(formatter) is FuncFormatter:  # names, which it hands out at each drawing
                axis.set_major_formatter(_PlainNames(formatter.func))
        ticks = [tick for a in axes for tick in (*a.get_major_ticks(), *a.get_minor_ticks())]
        powers = {label for tick in ticks for label in (tick.label1, tick.label2)}
        for text in set(self.findobj(Text)) - powers:
            text.set_parse_math(False)
            text.set_text(plain(text.get_text()))


def apply_style() -> None:
    """Set the house style for all figures and tables shown from now on in this process."""
    pd.set_option("display.html.use_mathjax", False)
    sns.set_theme(context="paper", style="ticks", font="DejaVu Sans")
    mpl.rc("figure", dpi=90, facecolor="white")
    mpl.rc("savefig", facecolor="white")
    mpl.rc("font", size=8)
    mpl.rc("axes", titlesize=9, labelsize=8, linewidth=0.8)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc(("xtick", "ytick"), labelsize=7.5)
    mpl.rc("legend", fontsize=7.5, title_fontsize=8, frameon=False)
    mpl.rc("lines", linewidth=1.5, markersize=4.5)


def panels(
    rows: int, columns: int, height: float, width: float = PAGE, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure, inches high and wide, and its axes [rows, columns], laid out so that all fits."""
    if not rows * columns:
        raise ResultsError("nothing to show: no rows, so no panels")
    size = {"figsize": (width, height), "squeeze": False, "layout": "constrained"}
    return plt.subplots(rows, columns, FigureClass=Page, **size, **options)


def grid(axis: Axes, which: str = "y", color: str = "0.92") -> None:
    """Faint lines to read values by."""
    axis.grid(axis=which, color=color, linewidth=0.6)


def head(axis: Axes, text: str, columns: int) -> None:
    """A panel's title, on as many lines as one of so many columns leaves room for."""
    axis.set_title(textwrap.fill(text, max(14, 85 // columns)), loc="left")


def beside(axis: Axes, text: str, y: float, offset: tuple[float, float], **look: Any) -> None:
    """A small text at the axes' right edge, `offset` points from there."""
    axis.annotate(
        text, (1, y), xycoords=axis.get_yaxis_transform(), xytext=offset,
        textcoords="offset points", fontsize=6.5, **look,
    )  # fmt: skip


def marks(variants: list[str]) -> Marks:
    """(colour, marker) of each variant; the three main ones look the same in every figure."""
    shapes = MARKERS[1:]  # the circle is zero-shot's
    used = {_FIXED[v][0] for v in variants if v in _FIXED}
    free = [colour for colour in PALETTE if colour not in used]
    others = [v for v in variants if v not in _FIXED]
    # more variants than colours: the markers move on against the colours
    spare = {
        v: (free[i % len(free)], shapes[(i + i // len(free)) % len(shapes)])
        for i, v in enumerate(others)
    }
    return {v: _FIXED.get(v) or spare[v] for v in variants}


def variant_legend(
    figure: Figure,
    variants: Marks,
    ends: Mapping[str, str] | None = None,
    floors: Iterable[str] = (),
) -> None:
    """A legend of variants and `floors` below the figure, variants followed by `ends` if given."""
    most = 3 if ends else 4
    lines = []
    for name, (colour, marker) in variants.items():
        said = label(name, VARIANT_LABELS) + (ends[name] if ends else "")
        lines.append(Line2D([], [], color=colour, marker=marker, label=said))
    lines += [Line2D([], [], label=FLOORS[name], **FLOOR_LOOK[name]) for name in floors]
    columns = legend_columns(len(lines), most)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns)


def legend_columns(entries: int, most: int) -> int:
    """How many columns, `most` at the most, a legend needs so that its rows are about equal."""
    rows = -(-entries // most)
    return -(-entries // rows)


def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Inches that a line of text takes as set, by the font's own widths."""
    font = FontProperties(family="DejaVu Sans", size=points, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def wrap(text: str, inches: float, points: float, lines: int, weight: str = "normal") -> str:
    """Text in at most `lines` lines that fit `inches` as set, "…" where it was cut.

    Widths are the font's own, so that capitals and East Asian text fit too; words longer than a
    line are broken.
    """
    narrow = int(inches * 72 / (points * 0.2)) + 1  # more letters never fit

    def fits(line: str) -> bool:
        return len(line) < narrow and text_width(line[:narrow], points, weight) <= inches

    wrapped = [""]
    for word in one_line(text).split():
        if wrapped[-1] and fits(f"{wrapped[-1]} {word}"):
            wrapped[-1] += f" {word}"
            continue
        wrapped += [word] if wrapped[-1] else []
        wrapped[-1] = word
        while len(wrapped) <= lines and len(wrapped[-1]) > 1 and not fits(wrapped[-1]):
            long = wrapped[-1]
            cut = bisect(range(1, min(len(long), narrow)), 0, key=lambda n, w=long: not fits(w[:n]))
            wrapped[-1:] = long[: max(cut, 1)], long[max(cut, 1) :]
        if len(wrapped) > lines:
            break
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and not fits(last + "…"):
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], last.rstrip() + "…"]
    return "\n".join(wrapped)


def save_figure(figure: Figure, folder: str | Path, name: str, made_by: str = "") -> list[Path]:
    """Write ``name.png`` (200 dpi) and ``name.svg`` into `folder`; the paths.

    The same data give the same bytes: no date, no program version, and fixed ids in the SVG. Both
    files say the command that they are `made_by`, as the PNG's comment and the SVG's description.
    """
    # laid out once, and drawn by the canvases themselves: `savefig` would draw twice for each file
    engine, dpi, canvas = figure.get_layout_engine(), figure.dpi, figure.canvas
    figure.set_dpi(200)
    if isinstance(figure, Page):
        figure.make_plain()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    paths, said = [], one_line(made_by) or None
    try:
        with mpl.rc_context({"svg.hashsalt": "entityclip", "svg.fonttype": "path"}):
            for kind, new, metadata in (
                ("png", FigureCanvasAgg, {"Software": None, "Comment": said}),
                ("svg", FigureCanvasSVG, {"Date": None, "Creator": None, "Description": said}),
            ):
                buffer = io.BytesIO()
                getattr(new(figure), f"print_{kind}")(buffer, metadata=metadata)
                paths.append(Path(folder) / f"{name}.{kind}")
                atomic_write_bytes(paths[-1], buffer.getvalue())
    finally:
        figure.set_canvas(canvas)
        figure.set_layout_engine(engine)
        figure.set_dpi(dpi)
    return paths


def preview(
    figure: Figure,
    width: int = 680,
    quality: int = 75,
    alt: str | None = None,
    drawn: Path | None = None,
) -> Any:
    """The figure small, for a notebook's page, `width` pixels wide; the saved file stays sharp.

    Pictures become a JPEG, a chart a PNG of 64 colours: each weighs a fraction of the full PNG.
    `alt` is what who cannot see it is told; None: what its axes say. `drawn` is this chart's PNG by
    `save_figure`, if there is one: a chart is then not drawn again. Closes the figure, so that the
    notebook does not show it a second time.
    """
    import IPython.display  # what notebooks alone need

    shown = [image for axis in figure.axes for image in axis.images]
    pictures = [image for image in shown if image.get_array().ndim == 3]  # a matrix is a chart
    for picture in pictures:
        picture.set_interpolation("bicubic")  # enlarged pixels have edges, which JPEG pays for
    alt = alt or describe_axes(figure)
    sharp, small = io.BytesIO(), io.BytesIO()
    if drawn is None or pictures:
        figure.savefig(sharp, format="png", dpi=200, bbox_inches=None)
    plt.close(figure)
    # drawn large, then shrunk: text keeps its proportions
    with PIL.Image.open(sharp if sharp.tell() else drawn) as page:
        page = page.convert("RGB").resize((width, round(width * page.height / page.width)))
        if pictures:
            page.save(small, "jpeg", quality=quality)
        else:
            # an octree keeps rare colours, which a median cut would blend into the frequent ones
            page = page.quantize(64, PIL.Image.Quantize.FASTOCTREE, dither=PIL.Image.Dither.NONE)
            page.save(small, "png", optimize=True)
    kind = "jpeg" if pictures else "png"
    return IPython.display.Image(small.getvalue(), format=kind, width=width, alt=alt)


def describe_axes(figure: Figure) -> str:
    """A figure in words, as far as its titles and axis labels tell."""
    charts = [axis for axis in figure.axes if not axis.images]
    sides = [(axis.get_ylabel(), axis.get_xlabel()) for axis in charts]
    labels = dict.fromkeys(" by ".join(filter(None, side)) for side in sides if any(side))
    titles = dict.fromkeys(axis.get_title() for axis in figure.axes if axis.get_title())
    shown = len(figure.axes) - len(charts)
    parts = [f"{shown} pictures" if shown else "Chart", *labels, *list(titles)[:12]]
    return "; ".join(" ".join(part.split()) for part in parts)


def save_table(table: pd.DataFrame, folder: str | Path, name: str, made_by: str = "") -> Path:
    """Write ``name.csv`` into `folder` (six significant digits, LF, unknown values blank).

    Its first line is a comment, the command that it is `made_by`; `read_table` passes over it. An
    apostrophe stands before texts that a spreadsheet would compute; `read_table` takes it away.
    """
    path = Path(folder) / f"{name}.csv"
    text = words_changed(table, spreadsheet).to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )
    atomic_write_text(path, f"# {one_line(made_by)}\n{text}" if made_by else text)
    return path


def read_table(path: str | Path, **options: Any) -> pd.DataFrame:
    """What `save_table` wrote, with or without its comment, by ``pandas.read_csv``."""
    with Path(path).open(encoding="utf-8") as file:
        commented = file.read(2) == "# "
    return words_changed(pd.read_csv(path, skiprows=int(commented), **options), from_spreadsheet)
