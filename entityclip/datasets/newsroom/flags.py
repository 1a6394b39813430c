# ruff: noqa: D102 - Layer documents draw and words for every layer
"""Flags as data: one list of layers gives both the drawing and the English words for it.

Lengths are in flag heights: a flag is 1.5 wide and 1 high, whatever its official ratio. The origin
is the upper corner at the hoist (the pole). A colour is a word and its RGB, "red CE1126". Here are
the bases; what stands upon them is in `charges`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from entityclip.datasets.newsroom.canvas import Canvas, join, star, word

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


_CHARGE_COUNTS = {1: "a", 2: "two", 5: "five", 50: "fifty"}


@dataclass(frozen=True)
class Cross:
    """A cross with arms `width` wide; `x` moves it off the centre, `arm` cuts it short."""

    colour: str
    width: float
    x: float | None = None
    edge: str | None = None
    edge_width: float = 0
    arm: float = 9

    def draw(self, canvas: Canvas) -> None:
        x, arm = canvas.width / 2 if self.x is None else self.x, self.arm
        if self.edge:
            Cross(self.edge, self.width + 2 * self.edge_width, self.x, arm=arm).draw(canvas)
        half = self.width / 2
        canvas.box(x - arm, 0.5 - half, x + arm, 0.5 + half, self.colour)
        canvas.box(x - half, 0.5 - arm, x + half, 0.5 + arm, self.colour)

    def words(self) -> str:
        edge = f"{word(self.edge)}-edged " if self.edge else ""
        return f"a {edge}{word(self.colour)} {'Nordic ' if self.x else ''}cross"


@dataclass(frozen=True)
class Saltire:
    """A diagonal cross; `sides` fills the triangles at hoist and fly, above and below stay.

    `pinwheel` lays a third of the width along each arm, beside the diagonal (the Union Flag).
    """

    colour: str
    width: float
    sides: str | None = None
    pinwheel: str | None = None

    def draw(self, canvas: Canvas) -> None:
        for edge in (0, RATIO) if self.sides else ():
            canvas.polygon([(edge, 0), (RATIO / 2, 0.5), (edge, 1)], self.sides)
        canvas.line((-RATIO, -1), (2 * RATIO, 2), self.width, self.colour)
        canvas.line((-RATIO, 2), (2 * RATIO, -1), self.width, self.colour)
        width = self.width / 3
        shift = width / 2 / math.hypot(RATIO, 1)
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)) if self.pinwheel else ():
            # it lies below the diagonals at the hoist and above them at the fly
            x, y = RATIO / 2 + sy * shift, 0.5 - sx * RATIO * shift
            canvas.line((x, y), (x + sx * RATIO, y + sy), width, self.pinwheel)

    def words(self) -> str:
        counterchanged = f"{word(self.pinwheel)} and " if self.pinwheel else ""
        sides = f" between {word(self.sides)} sides" if self.sides else ""
        return f"a {counterchanged}{word(self.colour)} saltire{sides}"


@dataclass(frozen=True)
class Disc:
    """A filled circle."""

    colour: str
    x: float
    radius: float

    def draw(self, canvas: Canvas) -> None:
        canvas.disc(self.x, 0.5, self.radius, self.colour)

    def words(self) -> str:
        return f"a {word(self.colour)} disc"


@dataclass(frozen=True)
class Wheel:
    """A spoked wheel in the centre (India's, of 24 spokes)."""

    colour: str
    radius: float
    spokes: int

    def draw(self, canvas: Canvas) -> None:
        x, r = RATIO / 2, self.radius
        canvas.ring(x, 0.5, r, r * 0.16, self.colour)
        canvas.disc(x, 0.5, r * 0.2, self.colour)
        for spoke in range(self.spokes):
            angle = 2 * math.pi * spoke / self.spokes
            end = (x + 0.95 * r * math.cos(angle), 0.5 + 0.95 * r * math.sin(angle))
            canvas.line((x, 0.5), end, r * 0.07, self.colour)

    def words(self) -> str:
        return f"a {word(self.colour)} wheel"


@dataclass(frozen=True)
class Stars:
    """Stars at (x, y, radius) or (x, y, radius, turn clockwise in degrees)."""

    colour: str
    at: tuple[tuple[float, ...], ...]
    outline: bool = False  # only the lines of a pentagram

    def draw(self, canvas: Canvas) -> None:
        for x, y, radius, *turn in self.at:
            corners = star(x, y, radius, *turn)
            if not self.outline:
                canvas.polygon(corners, self.colour)
                continue
            tips = corners[::2]
            for tip in range(5):
                canvas.line(tips[tip], tips[(tip + 2) % 5], radius * 0.17, self.colour)

    def words(self) -> str:
        count = len(self.at)
        shape = "star outline" if self.outline else "star"
        return f"{_CHARGE_COUNTS[count]} {word(self.colour)} {shape}{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Crescent:
    """A disc less a second one, given as (x, y, radius), and a star as `Stars` takes it."""

    colour: str
    outer: tuple[float, float, float]
    inner: tuple[float, float, float]
    star: tuple[float, ...]

    def draw(self, canvas: Canvas) -> None:
        cut = Canvas(Image.new("RGB", canvas.image.size))
        cut.disc(*self.outer, "FFFFFF")
        cut.disc(*self.inner, "000000")
        canvas.image.paste(canvas.ink(self.colour), mask=cut.image.convert("L"))
        Stars(self.colour, (self.star,)).draw(canvas)

    def words(self) -> str:
        return f"a {word(self.colour)} crescent and star"


@dataclass(frozen=True)
class Canton:
    """A rectangle in the upper corner at the hoist, holding stars or a cross.

    Its stars are measured in flag heights, its cross in heights of the canton.
    """

    colour: str
    width: float
    height: float
    charge: Stars | Cross

    def draw(self, canvas: Canvas) -> None:
        x, y = round(self.width * canvas.scale), round(self.height * canvas.scale)
        part = Image.new("RGB", (x, y), canvas.ink(self.colour))
        inside = Canvas(part)
        if isinstance(self.charge, Stars):
            inside.scale = canvas.scale
        self.charge.draw(inside)
        canvas.image.paste(part)

    def words(self) -> str:
        return f"a {word(self.colour)} canton holding {self.charge.words()}"
