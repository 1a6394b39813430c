"""Flags as data: one list of layers gives both the drawing and the English words for it.

Lengths are in flag heights: a flag is 1.5 wide and 1 high, whatever its official ratio. The origin
is the upper corner at the hoist (the pole). A colour is a word and its RGB, "red CE1126". First
come the bases, then what stands upon them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from entityclip.datasets.newsroom.canvas import Canvas, join, star, word

RATIO = 1.5  # width over height of every tile
_SUPERSAMPLING = 6  # then shrunk by averaging, which is the antialiasing
_COUNTS = {1: "a", 2: "two", 5: "five", 9: "nine", 13: "thirteen", 50: "fifty"}


class Layer(NamedTuple):
    """A part of a flag: what it looks like, and how it is drawn above the parts before it."""

    words: str
    draw: Callable[[Canvas], None]


class Flag(NamedTuple):
    """A flag: its base and what is drawn upon it."""

    layers: tuple[Layer, ...]

    def words(self) -> str:
        """What it looks like, e.g. "red, yellow and green horizontal bands with a black star"."""
        base, *charges = [layer.words for layer in self.layers]
        return f"{base} with {join(charges)}" if charges else base

    def draw(self, width: int) -> Image.Image:
        """An antialiased RGB picture, `width` pixels wide and two thirds as high."""
        height = round(width / RATIO)
        fine = Image.new("RGB", (round(height * _SUPERSAMPLING * RATIO), height * _SUPERSAMPLING))
        canvas = Canvas(fine)
        for layer in self.layers:
            layer.draw(canvas)
        return fine.resize((width, height), Image.Resampling.BOX)


def pales(*colours: str) -> Layer:
    """Vertical bands of equal width, from the hoist on."""

    def draw(canvas: Canvas) -> None:
        start = 0.0
        for colour in colours:
            end = start + 1 / len(colours)
            canvas.box(start * RATIO, 0, end * RATIO, 1, colour)
            start = end

    return Layer(f"{join([word(colour) for colour in colours])} vertical bands", draw)


def fesses(*colours: str, weights: tuple[int, ...] = ()) -> Layer:
    """Horizontal bands from the top down; `weights` are their relative heights."""

    def draw(canvas: Canvas) -> None:
        heights, start = weights or (1,) * len(colours), 0.0
        for colour, height in zip(colours, heights, strict=True):
            end = start + height / sum(heights)
            canvas.box(0, start, RATIO, end, colour)
            start = end

    names = [word(colour) for colour in colours]
    thin = [weight < 0.4 * max(weights) for weight in weights]
    for row, weight in enumerate(weights):
        # beside thin bands the others need no word
        wide = not any(thin) and weight > min(weights)
        names[row] = ("thin " if thin[row] else "wide " if wide else "") + names[row]
    return Layer(f"{join(names)} horizontal bands", draw)


def stripes(first: str, second: str, count: int) -> Layer:
    """Horizontal bands of two colours by turns."""
    bands = fesses(*((first, second) * count)[:count])
    return Layer(f"{_COUNTS[count]} {word(first)} and {word(second)} stripes", bands.draw)


def field(colour: str) -> Layer:
    """One colour all over."""
    return Layer(f"a {word(colour)} field", lambda canvas: canvas.box(0, 0, RATIO, 1, colour))


def quarters(*colours: str) -> Layer:
    """Four rectangles: upper hoist, upper fly, lower hoist, lower fly."""

    def draw(canvas: Canvas) -> None:
        for row, colour in enumerate(colours):
            left, top = row % 2 * RATIO / 2, row // 2 / 2
            canvas.box(left, top, left + RATIO / 2, top + 0.5, colour)

    return Layer(f"{join([word(colour) for colour in colours])} quarters", draw)


def slope(upper: str, lower: str) -> Layer:
    """Two triangles parted by the diagonal that rises to the fly."""

    def draw(canvas: Canvas) -> None:
        canvas.polygon([(0, 0), (RATIO, 0), (0, 1)], upper)
        canvas.polygon([(RATIO, 1), (RATIO, 0), (0, 1)], lower)

    return Layer(f"{word(upper)} and {word(lower)} triangles", draw)


def diagonal(colour: str, edge: str, width: float, edge_width: float) -> Layer:
    """A bar that rises from corner to corner, edged on both sides."""

    def draw(canvas: Canvas) -> None:
        start, end = (-RATIO, 2.0), (2 * RATIO, -1.0)
        canvas.line(start, end, width + 2 * edge_width, edge)
        canvas.line(start, end, width, colour)

    return Layer(f"a {word(edge)}-edged {word(colour)} diagonal", draw)


def hoist(colour: str, reach: float, shape: str = "bar", teeth: int = 0) -> Layer:
    """A shape at the pole, `reach` wide: a bar, a triangle, or a bar with `teeth`."""
    corners = [(reach, 0.5)] if shape == "triangle" else [(reach, 0), (reach, 1)]
    if teeth:
        step = 1 / (2 * teeth)
        corners = [(reach + (0.2 if n % 2 else 0), n * step) for n in range(2 * teeth + 1)]
    words = f"a {'serrated ' if teeth else ''}{word(colour)} hoist {shape}"
    return Layer(words, lambda canvas: canvas.polygon([(0, 0), *corners, (0, 1)], colour))


def cross(
    colour: str,
    width: float,
    x: float | None = None,
    edge: str | None = None,
    edge_width: float = 0,
    arm: float = 9,
) -> Layer:
    """A cross with arms `width` wide; `x` moves it off the centre, `arm` cuts it short."""

    def draw(canvas: Canvas) -> None:
        centre = canvas.width / 2 if x is None else x
        for ink, wide in ((edge, width + 2 * edge_width), (colour, width)):
            half = wide / 2
            if ink:
                canvas.box(centre - arm, 0.5 - half, centre + arm, 0.5 + half, ink)
                canvas.box(centre - half, 0.5 - arm, centre + half, 0.5 + arm, ink)

    edged = f"{word(edge)}-edged " if edge else ""
    return Layer(f"a {edged}{word(colour)} {'Nordic ' if x else ''}cross", draw)


def saltire(
    colour: str, width: float, sides: str | None = None, pinwheel: str | None = None
) -> Layer:
    """A diagonal cross; `sides` fills the triangles at hoist and fly, above and below stay.

    `pinwheel` lays a third of the width along each arm, beside the diagonal (the Union Flag).
    """

    def draw(canvas: Canvas) -> None:
        for edge in (0, RATIO) if sides else ():
            canvas.polygon([(edge, 0), (RATIO / 2, 0.5), (edge, 1)], sides)
        canvas.line((-RATIO, -1), (2 * RATIO, 2), width, colour)
        canvas.line((-RATIO, 2), (2 * RATIO, -1), width, colour)
        third = width / 3
        shift = third / 2 / math.hypot(RATIO, 1)
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)) if pinwheel else ():
            # it lies below the diagonals at the hoist and above them at the fly
            x, y = RATIO / 2 + sy * shift, 0.5 - sx * RATIO * shift
            canvas.line((x, y), (x + sx * RATIO, y + sy), third, pinwheel)

    counterchanged = f"{word(pinwheel)} and " if pinwheel else ""
    between = f" between {word(sides)} sides" if sides else ""
    return Layer(f"a {counterchanged}{word(colour)} saltire{between}", draw)


def disc(colour: str, x: float, radius: float) -> Layer:
    """A filled circle."""
    return Layer(f"a {word(colour)} disc", lambda canvas: canvas.disc(x, 0.5, radius, colour))


def wheel(colour: str, radius: float, spokes: int) -> Layer:
    """A spoked wheel in the centre (India's, of 24 spokes)."""

    def draw(canvas: Canvas) -> None:
        x, r = RATIO / 2, radius
        canvas.ring(x, 0.5, r, r * 0.16, colour)
        canvas.disc(x, 0.5, r * 0.2, colour)
        for spoke in range(spokes):
            angle = 2 * math.pi * spoke / spokes
            end = (x + 0.95 * r * math.cos(angle), 0.5 + 0.95 * r * math.sin(angle))
            canvas.line((x, 0.5), end, r * 0.07, colour)

    return Layer(f"a {word(colour)} wheel", draw)


def stars(colour: str, *at: tuple[float, ...], outline: bool = False) -> Layer:
    """Stars at (x, y, radius) or (x, y, radius, turn clockwise in degrees).

    With `outline`, only the lines of a pentagram.
    """

    def draw(canvas: Canvas) -> None:
        for x, y, radius, *turn in at:
            corners = star(x, y, radius, *turn)
            if not outline:
                canvas.polygon(corners, colour)
                continue
            tips = corners[::2]
            for tip in range(5):
                canvas.line(tips[tip], tips[(tip + 2) % 5], radius * 0.17, colour)

    shape = f"star{' outline' if outline else ''}{'s' if len(at) > 1 else ''}"
    return Layer(f"{_COUNTS[len(at)]} {word(colour)} {shape}", draw)


def crescent(
    colour: str,
    outer: tuple[float, float, float],
    inner: tuple[float, float, float],
    at: tuple[float, ...],
) -> Layer:
    """A disc less a second one, given as (x, y, radius), and a star as `stars` takes it."""

    def draw(canvas: Canvas) -> None:
        cut = Canvas(Image.new("RGB", canvas.image.size))
        cut.disc(*outer, "FFFFFF")
        cut.disc(*inner, "000000")
        canvas.image.paste(canvas.ink(colour), mask=cut.image.convert("L"))
        stars(colour, at).draw(canvas)

    return Layer(f"a {word(colour)} crescent and star", draw)


def canton(
    colour: str, width: float, height: float, charge: Layer, *, own_units: bool = False
) -> Layer:
    """A rectangle in the upper corner at the hoist, holding a charge.

    The charge is measured in flag heights or, with `own_units`, in heights of the canton.
    """

    def draw(canvas: Canvas) -> None:
        x, y = round(width * canvas.scale), round(height * canvas.scale)
        part = Image.new("RGB", (x, y), canvas.ink(colour))
        inside = Canvas(part)
        if not own_units:
            inside.scale = canvas.scale
        charge.draw(inside)
        canvas.image.paste(part)

    return Layer(f"a {word(colour)} canton holding {charge.words}", draw)
