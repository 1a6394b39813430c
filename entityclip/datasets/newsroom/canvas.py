"""A Pillow picture drawn in units of its height; flags and scenes are drawn with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw

Point = tuple[float, float]


class Canvas:
    """Shapes without antialiasing: draw large, then shrink.

    Coordinates run from (0, 0), the upper left corner, to (`width`, 1). A colour is six hex digits,
    which a word may precede ("red CE1126"); `light` multiplies its red, green and blue.
    """

    def __init__(self, image: Image.Image, light: tuple[float, float, float] = (1, 1, 1)) -> None:
        self.image = image
        self.scale = image.height
        self.width = image.width / image.height
        self.light = light
        self._draw = ImageDraw.Draw(image)

    def ink(self, colour: str) -> tuple[int, ...]:
        """The RGB of a colour under this canvas' light."""
        rgb = ImageColor.getrgb(f"#{colour[-6:]}")
        return tuple(min(255, round(v * f)) for v, f in zip(rgb, self.light, strict=True))

    def polygon(self, points: Sequence[Point], colour: str) -> None:
        """Fill a polygon given by its corners."""
        self._draw.polygon([(x * self.scale, y * self.scale) for x, y in points], self.ink(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def disc(self, x: float, y: float, radius: float, colour: str, flatten: float = 1) -> None:
        """Fill a disc, or an ellipse `flatten` times as high as wide."""
        self._draw.ellipse(self._around(x, y, radius, flatten), self.ink(colour))

    def ring(
        self, x: float, y: float, radius: float, width: float, colour: str, flatten: float = 1
    ) -> None:
        """Draw a circle or an ellipse as a line of `width`, inside its radius."""
        pixels = max(1, round(width * self.scale))
        around = self._around(x, y, radius, flatten)
        self._draw.ellipse(around, outline=self.ink(colour), width=pixels)

    def line(self, start: Point, end: Point, width: float, colour: str) -> None:
        """Draw a straight bar of `width` with square ends."""
        (x0, y0), (x1, y1) = start, end
        half = width / 2 / math.hypot(x1 - x0, y1 - y0)
        dx, dy = (y0 - y1) * half, (x1 - x0) * half
        corners = [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]
        self.polygon(corners, colour)

    def _around(self, x: float, y: float, radius: float, flatten: float) -> list[float]:
        high = radius * flatten
        corners = (x - radius, y - high, x + radius, y + high)
        return [value * self.scale for value in corners]


def star(x: float, y: float, radius: float, turn: float = 0) -> list[Point]:
    """The ten corners of a star standing on two tips, turned clockwise by `turn` degrees."""
    corners = []
    for corner in range(10):
        angle = math.pi * corner / 5 + math.radians(turn)
        r = radius * (0.382 if corner % 2 else 1)  # sides opposite each other lie on one line
        corners.append((x + r * math.sin(angle), y - r * math.cos(angle)))
    return corners


def word(colour: str) -> str:
    """The word of a colour, "red" of "red CE1126"."""
    return colour[:-7]


def join(words: Sequence[str]) -> str:
    """List words in English: "red, yellow and green"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
