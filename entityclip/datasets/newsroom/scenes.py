"""The newsroom's eight scenes, drawn in units of the backdrop's side.

The flags hang over a scene's upper half, so it shows what it is in the lower one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from entityclip.datasets.newsroom.canvas import Canvas
from entityclip.datasets.newsroom.countries import Country

_SUPERSAMPLING = 4  # then shrunk by averaging, which is the antialiasing


class Time(NamedTuple):
    """A time of day or weather: the sky's RGB at the top and at the horizon, and two lights."""

    top: tuple[int, int, int]
    horizon: tuple[int, int, int]
    light: tuple[float, float, float]
    cloth: tuple[float, float, float]  # the light on flags, which must be told apart
    lamps: bool = False  # whether windows are lit


_TIME = {
    "day": Time((88, 158, 226), (206, 230, 246), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "sunset": Time((92, 66, 132), (252, 160, 84), (0.95, 0.78, 0.7), (1.0, 0.9, 0.84)),
    "night": Time((8, 12, 36), (38, 48, 88), (0.4, 0.43, 0.58), (0.74, 0.76, 0.86), True),
    "dawn": Time((150, 132, 176), (250, 214, 178), (1.0, 0.9, 0.84), (1.0, 0.95, 0.88)),
    "rain": Time((104, 112, 116), (168, 174, 172), (0.74, 0.78, 0.78), (0.86, 0.88, 0.88)),
    "dusk": Time((16, 50, 62), (178, 92, 104), (0.52, 0.46, 0.52), (0.84, 0.76, 0.78), True),
}
TIMES, TIMES_B = tuple(_TIME)[:3], tuple(_TIME)[3:]  # of outlet A and of outlet B

_CARGO = ("b5523b", "3e6b8a", "c9a24a", "5f7f5a", "8a8f98", "7a4a6a")
COATS = ("35495e", "7a3b3b", "4f6d4a", "8a6d3b", "5b4a7a", "2f6f73", "444444", "a0522d")
SKIN = ("f1c9a5", "c68642", "8d5524", "e0ac69", "5c3a21")


class Stage(Canvas):
    """A canvas with lamps, whose colour the time of day does not change, and its own dice."""

    def __init__(self, image: Image.Image, time: str, rng: np.random.Generator) -> None:
        super().__init__(image, _TIME[time].light)
        self.lamps = Canvas(image)
        self.time = time
        self.indoors = False
        self.rng = rng

    def one_of(self, colours: tuple[str, ...]) -> str:
        """A colour by chance."""
        return colours[int(self.rng.integers(len(colours)))]

    def window(self, left: float, top: float, right: float, bottom: float, dark: str) -> None:
        """A pane, lit from inside when it is dark."""
        if _TIME[self.time].lamps:
            self.lamps.box(left, top, right, bottom, "f6d27a")
        else:
            self.box(left, top, right, bottom, dark)

    def person(self, x: float, y: float, height: float, coat: str, legs: bool = True) -> None:
        """A standing figure whose feet, or whose belt without `legs`, are at (x, y)."""
        h = height
        if legs:
            self.box(x - 0.1 * h, y - 0.45 * h, x + 0.1 * h, y, "26262e")
        body = y - 0.4 * h if legs else y
        neck = body - 0.42 * h
        corners = [(-0.2, body), (-0.15, neck), (0.15, neck), (0.2, body)]
        self.polygon([(x + side * h, edge) for side, edge in corners], coat)
        self.disc(x, body - 0.5 * h, 0.13 * h, self.one_of(SKIN))


Draw = Callable[[Stage], None]  # a scene


def sky(image: Image.Image, time: str, part: tuple[float, float, float, float]) -> None:
    """Paint the sky into a part of the picture, given as left, top, right, bottom."""
    left, top, right, bottom = (round(value * image.width) for value in part)
    high, low = (np.array(colour, np.float32) for colour in _TIME[time][:2])
    slope = np.clip(np.arange(top, bottom) / (0.6 * image.height), 0, 1, dtype=np.float32)[:, None]
    column = np.rint(high + (low - high) * slope).astype(np.uint8)[:, None, :]
    image.paste(Image.fromarray(np.repeat(column, right - left, axis=1)), (left, top))


@lru_cache(maxsize=2048)
def flagpole(country: Country, time: str, width: int) -> Image.Image:
    """A country's flag, `width` pixels wide, on its pole: RGBA, to be pasted. Read only."""
    cloth = np.asarray(country.flag.draw(width), np.float32)
    height = cloth.shape[0]
    folds = 1 + 0.07 * np.sin(np.linspace(0.6, 2.3 * np.pi + 0.6, width, dtype=np.float32))
    cloth = lit(cloth * folds[None, :, None], time)
    pole = max(1, round(width / 22))
    sprite = Image.new("RGBA", (width + pole + 2, round(height * 2.3)))
    sprite.paste((60, 62, 70, 255), (0, 0, pole, sprite.height))
    # a thin dark edge parts a white flag from a bright sky
    sprite.paste((20, 22, 30, 120), (pole, 0, width + pole + 2, height + 2))
    sprite.paste(cloth, (pole, 1))
    return sprite


@lru_cache(maxsize=1024)
def backdrop(draw: Draw, dice: tuple[int, ...], time: str, variant: int, size: int) -> Image.Image:
    """A scene without flags for pictures of `size` pixels, and a margin to crop. Read only.

    `dice` seed its random numbers, the same for every time of day and size: only the light differs.
    """
    side = round(size * 1.12)
    fine = Image.new("RGB", (side * _SUPERSAMPLING,) * 2)
    sky(fine, time, (0, 0, 1, 1))
    rng = np.random.default_rng([*dice, variant])
    stage = Stage(fine, time, rng)
    if time == "night":
        for x, y in rng.random((40, 2)):
            stage.lamps.disc(x, y * 0.5, 0.004, "d8def0")
    draw(stage)
    if time == "rain" and not stage.indoors:
        for x, y in rng.random((60, 2)):
            stage.line((x, y), (x - 0.02, y + 0.07), 0.004, "b8c2c6")
    picture = fine.resize((side, side), Image.Resampling.BOX)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if variant % 2 else picture


def lit(cloth: np.ndarray, time: str) -> Image.Image:
    """A flag's [H, W, 3] float32 pixels in the light of a time of day."""
    cloth = cloth * np.array(_TIME[time].cloth, np.float32)
    return Image.fromarray(np.clip(cloth, 0, 255).astype(np.uint8))


def by_name(*scenes: Draw) -> dict[str, Draw]:
    """Scenes by the names of their functions, in words: "wind farm" for ``_wind_farm``."""
    return {draw.__name__.strip("_").replace("_", " "): draw for draw in scenes}


def _summit(s: Stage) -> None:
    if s.time == "night":  # indoors the lamps are on
        s.light = (0.72, 0.64, 0.54)
    s.box(0, 0, 1, 0.64, "c9b48e")
    for left in (0.06, 0.39, 0.72):
        sky(s.image, s.time, (left, 0.05, left + 0.22, 0.52))
        s.box(left + 0.1, 0.05, left + 0.12, 0.52, "efe6d2")
        s.box(left, 0.26, left + 0.22, 0.28, "efe6d2")
    s.box(0, 0.6, 1, 0.64, "8a6a48")
    s.box(0, 0.64, 1, 1, "8c2f39")
    shift = s.rng.uniform(-0.03, 0.03)
    for x in np.linspace(0.12, 0.88, 6) + shift:
        s.person(x, 0.8, 0.26, s.one_of(("1f2a44", "2b2b2b", "3b3b4f", "23395b")), False)
    s.polygon([(0.04, 0.78), (0.96, 0.78), (1.06, 0.94), (-0.06, 0.94)], "7b4a26")
    s.box(-0.06, 0.94, 1.06, 0.99, "5a3419")
    for x in np.linspace(0.14, 0.86, 6) + shift:
        s.box(x - 0.035, 0.81, x + 0.035, 0.85, "f6f4ec")


def _match(s: Stage) -> None:
    s.box(0, 0.4, 1, 0.6, "5d6470")
    for row in range(5):
        for x in np.arange(0.01, 1, 0.028):
            y = 0.425 + row * 0.036
            s.disc(x + s.rng.uniform(-0.006, 0.006), y, 0.011, s.one_of((*COATS, *SKIN)))
    s.box(0, 0.59, 1, 0.625, "e8e8ec")
    for row in range(6):
        top = 0.625 + 0.38 * (row / 6) ** 1.3
        s.box(0, top, 1, 1, "3f9b43" if row % 2 else "348a3a")
    s.box(0, 0.66, 1, 0.672, "ffffff")
    s.ring(0.5, 1.0, 0.3, 0.014, "ffffff", 0.5)
    goal = s.rng.uniform(0.3, 0.5)
    for x in np.linspace(goal, goal + 0.26, 8):
        s.box(x, 0.56, x + 0.004, 0.69, "cfd8dc")
    s.box(goal, 0.545, goal + 0.27, 0.562, "ffffff")
    for post in (goal, goal + 0.254):
        s.box(post, 0.545, post + 0.016, 0.69, "ffffff")
    for x, shirt in ((0.14, "e8b923"), (0.33, "6a3d9a"), (0.66, "e8b923"), (0.87, "6a3d9a")):
        s.person(x + s.rng.uniform(-0.05, 0.05), s.rng.uniform(0.84, 0.95), 0.2, shirt)
    s.disc(s.rng.uniform(0.42, 0.58), 0.92, 0.024, "ffffff")


def _harbour(s: Stage) -> None:
    s.box(0, 0.58, 1, 1, "1f6f93")
    for _ in range(26):
        x, y = s.rng.uniform(0, 1), s.rng.uniform(0.62, 1)
        s.box(x, y, x + 0.09, y + 0.009, "4d9cba")
    x = s.rng.uniform(0.0, 0.08)
    s.polygon([(x, 0.74), (x + 0.74, 0.74), (x + 0.67, 0.88), (x + 0.07, 0.88)], "22313f")
    s.polygon([(x + 0.048, 0.84), (x + 0.69, 0.84), (x + 0.67, 0.88), (x + 0.07, 0.88)], "9c3328")
    for column in range(5):
        for row in range(int(s.rng.integers(2, 4))):
            left, top = x + 0.2 + column * 0.1, 0.685 - row * 0.055
            s.box(left, top, left + 0.093, top + 0.05, s.one_of(_CARGO))
    s.box(x + 0.06, 0.56, x + 0.17, 0.74, "f4f4f0")
    s.window(x + 0.07, 0.59, x + 0.16, 0.62, "2b3e50")
    for leg in (0.83, 0.93):
        s.box(leg, 0.5, leg + 0.022, 0.92, "e07b1f")
    s.box(0.5, 0.49, 1, 0.52, "e07b1f")
    s.line((0.84, 0.4), (0.55, 0.5), 0.012, "e07b1f")
    s.box(0.58, 0.52, 0.586, 0.6, "333333")
    s.box(0.78, 0.9, 1, 1, "8d8d85")


def _airport(s: Stage) -> None:
    s.box(0, 0.57, 1, 1, "7d8288")
    s.box(0, 0.555, 1, 0.6, "6f9a55")
    s.box(0.02, 0.5, 0.3, 0.58, "b9c4cc")
    s.window(0.03, 0.52, 0.29, 0.55, "54707f")
    s.box(0.84, 0.46, 0.9, 0.6, "d9d4c8")
    s.polygon([(0.79, 0.39), (0.95, 0.39), (0.92, 0.47), (0.82, 0.47)], "c8c2b4")
    s.window(0.805, 0.405, 0.935, 0.445, "35566b")
    for x in np.arange(-0.1, 1, 0.2):
        s.box(x, 0.94, x + 0.12, 0.965, "f2d23c")
    x, tail = s.rng.uniform(-0.05, 0.05), s.one_of(("1c7c7d", "6a3d9a", "c2571a"))
    s.disc(x + 0.5, 0.885, 0.36, "62666b", 0.06)
    s.polygon([(x + 0.1, 0.72), (x + 0.06, 0.52), (x + 0.13, 0.52), (x + 0.26, 0.72)], tail)
    s.disc(x + 0.5, 0.755, 0.42, "fbfbfb", 0.17)
    s.box(x + 0.3, 0.684, x + 0.78, 0.826, "fbfbfb")
    s.polygon([(x + 0.1, 0.775), (x + 0.9, 0.775), (x + 0.84, 0.8), (x + 0.16, 0.8)], tail)
    for window in np.arange(0.26, 0.8, 0.05):
        s.window(x + window, 0.725, x + window + 0.024, 0.75, "35566b")
    s.polygon([(x + 0.5, 0.79), (x + 0.62, 0.79), (x + 0.42, 0.9), (x + 0.34, 0.9)], "c9ced3")
    s.disc(x + 0.53, 0.855, 0.06, "8b9299", 0.55)


def _protest(s: Stage) -> None:
    left = -0.02
    while left < 1:
        right, top = left + s.rng.uniform(0.16, 0.24), s.rng.uniform(0.3, 0.44)
        s.box(left, top, right, 0.72, s.one_of(("8f7f74", "a58b78", "77808c", "98706a")))
        for x in np.arange(left + 0.03, right - 0.03, 0.055):
            for y in np.arange(top + 0.04, 0.66, 0.075):
                s.window(x, y, x + 0.028, y + 0.042, "4a5560")
        left = right
    s.box(0, 0.7, 1, 1, "4b4d52")
    for y, height in ((0.82, 0.2), (0.92, 0.24), (1.03, 0.28)):
        for x in np.arange(0.03, 1, height * 0.52):
            x = x + s.rng.uniform(-0.02, 0.02)
            if s.rng.random() < 0.34:
                _placard(s, x, y - height * 0.75)
            s.person(x, y, height, s.one_of(COATS), False)


def _placard(s: Stage, x: float, y: float) -> None:
    s.box(x - 0.006, y - 0.12, x + 0.006, y + 0.08, "8a6a48")
    s.box(x - 0.075, y - 0.17, x + 0.075, y - 0.06, s.one_of(("fbf7ec", "fff3b0", "f7f7f7")))
    for row in range(3):
        line = y - 0.15 + row * 0.03
        s.box(x - 0.055, line, x + 0.05 - row * 0.02, line + 0.012, "333333")


def _market(s: Stage) -> None:
    s.box(0, 0.42, 1, 0.72, "c58f65")
    for x in np.arange(0.04, 1, 0.16):
        s.window(x, 0.45, x + 0.07, 0.52, "6b4630")
    s.box(0, 0.72, 1, 1, "bfae95")
    left = s.rng.uniform(-0.08, 0)
    for awning in s.rng.permutation(["c8442f", "1f8a83", "6b3fa0", "d98a1f"])[:3]:
        s.box(left + 0.03, 0.6, left + 0.045, 0.95, "5f452f")
        s.box(left + 0.305, 0.6, left + 0.32, 0.95, "5f452f")
        s.box(left + 0.03, 0.68, left + 0.32, 0.78, "6b4a34")
        if s.time == "night":
            s.lamps.disc(left + 0.175, 0.7, 0.022, "ffe9a8")
        s.box(left + 0.01, 0.82, left + 0.34, 0.95, "8a5a34")
        for stripe in range(7):
            x, colour = left + stripe * 0.05, "fbf7ec" if stripe % 2 else str(awning)
            s.box(x, 0.56, x + 0.05, 0.65, colour)
            s.disc(x + 0.025, 0.65, 0.025, colour)
        fruit = s.one_of(("d8342a", "f08a1d", "7fb23a", "f2c12e"))
        for x in np.arange(left + 0.035, left + 0.33, 0.04):
            s.disc(x, 0.815, 0.022, fruit)
            s.disc(x + 0.02, 0.785, 0.02, fruit)
        left += 0.36


def _railway(s: Stage) -> None:
    s.box(0, 0.52, 1, 0.6, "6f8f5a")
    s.box(0, 0.6, 1, 1, "8b8378")
    for mast in (0.08, 0.92):
        s.box(mast, 0.36, mast + 0.016, 0.8, "4a4f55")
    s.box(0, 0.455, 1, 0.463, "3b3f44")
    end = s.rng.uniform(0.8, 0.9)
    nose = [(-0.1, 0.53), (end - 0.14, 0.53), (end - 0.03, 0.62), (end, 0.72), (end, 0.78)]
    s.polygon([*nose, (-0.1, 0.78)], "e9edf0")
    stripe = s.one_of(("1f5fa8", "b3261e", "1b7f5c"))
    s.polygon([(-0.1, 0.69), (end - 0.012, 0.69), (end, 0.72), (end, 0.75), (-0.1, 0.75)], stripe)
    cab = [(end - 0.13, 0.56), (end - 0.075, 0.56), (end - 0.03, 0.64), (end - 0.13, 0.64)]
    s.polygon(cab, "26323b")
    for x in np.arange(-0.02, end - 0.24, 0.13):
        s.window(x, 0.57, x + 0.095, 0.645, "2d3c48")
    s.box(-0.1, 0.78, end - 0.03, 0.81, "2a2d31")
    for x in np.arange(0, 1, 0.075):
        s.polygon([(x, 0.82), (x + 0.035, 0.82), (x + 0.025, 0.89), (x - 0.015, 0.89)], "5b4636")
    s.box(0, 0.822, 1, 0.835, "c9ced3")
    s.box(0, 0.866, 1, 0.884, "c9ced3")
    s.box(0, 0.91, 1, 1, "c3c0b8")
    s.box(0, 0.92, 1, 0.94, "f2c12e")


def _wind_farm(s: Stage) -> None:
    s.disc(0.2, 0.95, 0.6, "6fa653", 0.6)
    s.disc(0.85, 0.98, 0.62, "5c9547", 0.6)
    turbines = ((0.16, 0.74, 0.2), (0.5, 0.8, 0.42), (0.8, 0.76, 0.24), (0.34, 0.78, 0.16))
    for x, base, height in turbines:
        x += s.rng.uniform(-0.03, 0.03)
        hub = base - height
        tower = [(x - 0.014, base), (x - 0.007, hub), (x + 0.007, hub), (x + 0.014, base)]
        s.polygon(tower, "f2f4f5")
        turn = s.rng.uniform(0, 2)
        for blade in range(3):
            angle = turn + blade * 2.0944
            tip = (x + 0.6 * height * np.sin(angle), hub - 0.6 * height * np.cos(angle))
            s.line((x, hub), tip, 0.018, "ffffff")
        s.disc(x, hub, 0.016, "dfe3e6")
    s.disc(0.45, 1.22, 0.85, "86bb5c", 0.5)
    for x in np.arange(-0.2, 1.2, 0.14):
        far = [(0.5 + (x - 0.5) * 0.72, 0.86), (0.46 + (x - 0.5) * 0.7, 0.86)]
        s.polygon([(x, 1), (x + 0.06, 1), *far], "c9c25a")


SCENES = by_name(_summit, _match, _harbour, _airport, _protest, _market, _railway, _wind_farm)
