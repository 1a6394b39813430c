"""The light of a time of day: the stage a scene is drawn on, the sky, and flags on their poles."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from entityclip.datasets.drawn.canvas import Canvas
from entityclip.datasets.drawn.countries import Country

TIMES = ("day", "sunset", "night")
TIMES_B = ("dawn", "rain", "dusk")  # of the drawn newsroom's style B
_LAMPS_ON = frozenset({"night", "dusk"})
_SKY = {  # colours at the top and at the horizon
    "day": ((88, 158, 226), (206, 230, 246)),
    "sunset": ((92, 66, 132), (252, 160, 84)),
    "night": ((8, 12, 36), (38, 48, 88)),
    "dawn": ((150, 132, 176), (250, 214, 178)),
    "rain": ((104, 112, 116), (168, 174, 172)),
    "dusk": ((16, 50, 62), (178, 92, 104)),
}
_LIGHT = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (0.95, 0.78, 0.7),
    "night": (0.4, 0.43, 0.58),
    "dawn": (1.0, 0.9, 0.84),
    "rain": (0.74, 0.78, 0.78),
    "dusk": (0.52, 0.46, 0.52),
}
CLOTH_LIGHT = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.9, 0.84),
    "night": (0.74, 0.76, 0.86),
    "dawn": (1.0, 0.95, 0.88),
    "rain": (0.86, 0.88, 0.88),
    "dusk": (0.84, 0.76, 0.78),
}
COATS = ("35495e", "7a3b3b", "4f6d4a", "8a6d3b", "5b4a7a", "2f6f73", "444444", "a0522d")
SKIN = ("f1c9a5", "c68642", "8d5524", "e0ac69", "5c3a21")


class Stage(Canvas):
    """A canvas with lamps, whose colour the time of day does not change, and its own dice."""

    def __init__(self, image: Image.Image, time: str, rng: np.random.Generator) -> None:
        super().__init__(image, _LIGHT[time])
        self.lamps = Canvas(image)
        self.time = time
        self.rng = rng

    def one_of(self, colours: tuple[str, ...]) -> str:
        """A colour by chance."""
        return colours[int(self.rng.integers(len(colours)))]

    def window(self, left: float, top: float, right: float, bottom: float, dark: str) -> None:
        """A pane, lit from inside when it is dark."""
        if self.time in _LAMPS_ON:
            self.lamps.box(left, top, right, bottom, "f6d27a")
        else:
            self.box(left, top, right, bottom, dark)

    def person(self, x: float, y: float, height: float, coat: str, legs: bool = True) -> None:
        """A standing figure whose feet, or whose belt without `legs`, are at (x, y)."""
        h = height
        if legs:
            self.box(x - 0.1 * h, y - 0.45 * h, x + 0.1 * h, y, "26262e")
        body = y - 0.4 * h if legs else y
        self.polygon(
            [(x - 0.2 * h, body), (x - 0.15 * h, body - 0.42 * h), (x + 0.15 * h, body - 0.42 * h),
             (x + 0.2 * h, body)], coat,
        )  # fmt: skip
        self.disc(x, body - 0.5 * h, 0.13 * h, self.one_of(SKIN))


def sky(image: Image.Image, time: str, part: tuple[float, float, float, float]) -> None:
    """Paint the sky into a part of the picture, given as left, top, right, bottom."""
    left, top, right, bottom = (round(value * image.width) for value in part)
    high, low = (np.array(colour, np.float32) for colour in _SKY[time])
    slope = np.clip(np.arange(top, bottom) / (0.6 * image.height), 0, 1, dtype=np.float32)[:, None]
    column = np.rint(high + (low - high) * slope).astype(np.uint8)[:, None, :]
    image.paste(Image.fromarray(np.repeat(column, right - left, axis=1)), (left, top))


@lru_cache(maxsize=2048)
def flagpole(country: Country, time: str, width: int) -> Image.Image:
    """A country's flag, `width` pixels wide, on its pole: RGBA, to be pasted. Read only."""
    cloth = np.asarray(country.flag.draw(width), np.float32)
    height = cloth.shape[0]
    folds = 1 + 0.07 * np.sin(np.linspace(0.6, 2.3 * np.pi + 0.6, width, dtype=np.float32))
    cloth = cloth * folds[None, :, None] * np.array(CLOTH_LIGHT[time], np.float32)
    pole = max(1, round(width / 22))
    sprite = Image.new("RGBA", (width + pole + 2, round(height * 2.3)))
    sprite.paste((60, 62, 70, 255), (0, 0, pole, sprite.height))
    # a thin dark edge parts a white flag from a bright sky
    sprite.paste((20, 22, 30, 120), (pole, 0, width + pole + 2, height + 2))
    sprite.paste(Image.fromarray(np.clip(cloth, 0, 255).astype(np.uint8)), (pole, 1))
    return sprite
