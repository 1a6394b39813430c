# ruff: noqa: D102 - Layer documents draw and words for every layer
"""Flags as data: one list of layers gives both the drawing and the English words for it.

Lengths are in flag heights: a flag is 1.5 wide and 1 high, whatever its official ratio. The origin
is the upper corner at the hoist (the pole). A colour is a word and its RGB, "red CE1126". Here are
the bases; what stands upon them is in `charges`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from entityclip.datasets.drawn.canvas import Canvas, join, word

RATIO = 1.5  # width over height of every tile
_SUPERSAMPLING = 6  # then shrunk by averaging, which is the antialiasing
_COUNTS = {5: "five", 9: "nine", 13: "thirteen"}


class Layer(Protocol):
    """A part of a flag, drawn above the parts before it."""

    def draw(self, canvas: Canvas) -> None:
        """Draw it."""

    def words(self) -> str:
        """Say what it looks like."""


@dataclass(frozen=True)
class Bands:
    """Bands from the top down, or from the hoist on; `weights` are their relative widths."""

    colours: tuple[str, ...]
    weights: tuple[float, ...] = ()
    vertical: bool = False

    def draw(self, canvas: Canvas) -> None:
        weights = self.weights or (1,) * len(self.colours)
        start = 0.0
        for colour, weight in zip(self.colours, weights, strict=True):
            end = start + weight / sum(weights)
            if self.vertical:
                canvas.box(start * RATIO, 0, end * RATIO, 1, colour)
            else:
                canvas.box(0, start, RATIO, end, colour)
            start = end

    def words(self) -> str:
        names = [word(colour) for colour in self.colours]
        if len(names) > 3 and names == (names[:2] * len(names))[: len(names)]:
            return f"{_COUNTS[len(names)]} {names[0]} and {names[1]} stripes"
        widths = self.weights or (1,)
        thin = [weight < 0.4 * max(widths) for weight in widths]
        for row, weight in enumerate(self.weights):
            # beside thin bands the others need no word
            wide = not any(thin) and weight > min(widths)
            names[row] = ("thin " if thin[row] else "wide " if wide else "") + names[row]
        return f"{join(names)} {'vertical' if self.vertical else 'horizontal'} bands"


@dataclass(frozen=True)
class Field:
    """One colour all over."""

    colour: str

    def draw(self, canvas: Canvas) -> None:
        canvas.box(0, 0, RATIO, 1, self.colour)

    def words(self) -> str:
        return f"a {word(self.colour)} field"


@dataclass(frozen=True)
class Quarters:
    """Four rectangles: upper hoist, upper fly, lower hoist, lower fly."""

    colours: tuple[str, str, str, str]

    def draw(self, canvas: Canvas) -> None:
        for row, colour in enumerate(self.colours):
            left, top = row % 2 * RATIO / 2, row // 2 / 2
            canvas.box(left, top, left + RATIO / 2, top + 0.5, colour)

    def words(self) -> str:
        return f"{join([word(colour) for colour in self.colours])} quarters"


@dataclass(frozen=True)
class Slope:
    """Two triangles parted by the diagonal that rises to the fly."""

    upper: str
    lower: str

    def draw(self, canvas: Canvas) -> None:
        canvas.polygon([(0, 0), (RATIO, 0), (0, 1)], self.upper)
        canvas.polygon([(RATIO, 1), (RATIO, 0), (0, 1)], self.lower)

    def words(self) -> str:
        return f"{word(self.upper)} and {word(self.lower)} triangles"


@dataclass(frozen=True)
class Diagonal:
    """A bar that rises from corner to corner, edged on both sides."""

    colour: str
    edge: str
    width: float
    edge_width: float

    def draw(self, canvas: Canvas) -> None:
        start, end = (-RATIO, 2.0), (2 * RATIO, -1.0)
        canvas.line(start, end, self.width + 2 * self.edge_width, self.edge)
        canvas.line(start, end, self.width, self.colour)

    def words(self) -> str:
        return f"a {word(self.edge)}-edged {word(self.colour)} diagonal"


@dataclass(frozen=True)
class Hoist:
    """A shape at the pole, `reach` wide: a bar, a triangle, or a bar with `teeth`."""

    colour: str
    reach: float
    shape: str = "bar"
    teeth: int = 0

    def draw(self, canvas: Canvas) -> None:
        r, step = self.reach, 1 / max(1, 2 * self.teeth)
        corners = [(r, 0.5)] if self.shape == "triangle" else [(r, 0), (r, 1)]
        if self.teeth:
            rows = range(2 * self.teeth + 1)
            corners = [(r + (0.2 if row % 2 else 0), row * step) for row in rows]
        canvas.polygon([(0, 0), *corners, (0, 1)], self.colour)

    def words(self) -> str:
        toothed = "serrated " if self.teeth else ""
        return f"a {toothed}{word(self.colour)} hoist {self.shape}"


@dataclass(frozen=True)
class Flag:
    """A flag: its base and what is drawn upon it."""

    layers: tuple[Layer, ...]

    def words(self) -> str:
        """What it looks like, e.g. "red, yellow and green horizontal bands with a black star"."""
        base, *charges = [layer.words() for layer in self.layers]
        return f"{base} with {join(charges)}" if charges else base

    def draw(self, width: int) -> Image.Image:
        """An antialiased RGB picture, `width` pixels wide and two thirds as high."""
        height = round(width / RATIO)
        fine = Image.new("RGB", (round(height * _SUPERSAMPLING * RATIO), height * _SUPERSAMPLING))
        canvas = Canvas(fine)
        for layer in self.layers:
            layer.draw(canvas)
        return fine.resize((width, height), Image.Resampling.BOX)
