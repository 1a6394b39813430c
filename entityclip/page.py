"""Things put at a place of a figure's page, in inches from its upper left corner."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

GAP = 0.12  # inches between pictures
POINT = 1 / 72  # inch
_LINE = 1.25  # line height, of the font size
_PIXELS = 320  # a photograph is shrunk to this, enough at 200 dpi


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place of the page."""
    page, long = figure.get_size_inches()
    return figure.add_axes((left / page, 1 - (top + height) / long, width / page, height / long))


def show_picture(axis: Axes, picture: Image.Image, frame: str | None = None) -> None:
    """A picture in its own pixels, framed in a colour or not at all."""
    picture = picture.convert("RGB")
    if max(picture.size) > _PIXELS:
        picture = ImageOps.contain(picture, (_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
    # own pixels, not resampled again: a drawn 64 px picture stays small in the file
    axis.imshow(picture, interpolation="none")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=frame is not None, edgecolor=frame, linewidth=2.5)


def write(figure: Figure, left: float, top: float, text: str, **style: object) -> None:
    """Text as it stands, its upper left corner at a place of the page."""
    width, height = figure.get_size_inches()
    # parse_math: captions hold dollar signs
    figure.text(
        left / width,
        1 - top / height,
        text,
        va="top",
        linespacing=_LINE,
        parse_math=False,
        **style,
    )


def text_height(text: str, points: float) -> float:
    """Inches that wrapped text takes."""
    return (text.count("\n") + 1) * line_height(points) if text else 0.0


def line_height(points: float) -> float:
    """Inches from one line to the next."""
    return points * _LINE * POINT


def blank_page(width: float, height: float) -> Figure:
    """A figure without a layout engine: everything stands where it is put."""
    return plt.figure(figsize=(width, height))
