# ruff: noqa: D102 - flags.Layer documents draw and words for every layer
"""What stands upon a flag's base: crosses, discs, stars, cantons. Units as in `flags`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from entityclip.datasets.drawn.canvas import Canvas, star, word
from entityclip.datasets.drawn.flags import RATIO

_COUNTS = {1: "a", 2: "two", 5: "five", 50: "fifty"}


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
        return f"{_COUNTS[count]} {word(self.colour)} {shape}{'s' if count > 1 else ''}"


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
