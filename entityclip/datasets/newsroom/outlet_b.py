"""The drawn newsroom's style B: the same countries and flags, another outlet's pictures and words.

Other scenes, light, colours, grain and camera, flags hung from a cord, other caption templates: a
second domain to test on what was learnt on the first (EntityCLIP's cross-domain retrieval). Splits
share no fact, (two countries, scene), and no scene is style A's.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.datasets.newsroom.outlet_a import DrawnPicture, Facts, Row
from entityclip.datasets.newsroom.scenes import COATS, TIMES_B, Stage, by_name, lit
from entityclip.datasets.newsroom.wording import (
    EVENTS_B,
    WORDS_B,
    entity_caption,
    explanation,
)
from entityclip.datasets.pair import Pair


def _courtroom(s: Stage) -> None:
    s.indoors = True
    if s.time == "dusk":  # the lamps are on
        s.light = (0.8, 0.68, 0.56)
    s.box(0, 0, 1, 1, "5e4636")
    for x in np.arange(0.02, 1, 0.14):
        s.box(x, 0.04, x + 0.11, 0.56, "75583f")
        s.box(x + 0.02, 0.08, x + 0.09, 0.52, "6a4e38")
    s.box(0.36, 0.36, 0.64, 0.66, "2f231c")
    s.person(0.5, 0.68, 0.3, "1c1c22", False)
    s.box(0.2, 0.62, 0.8, 0.66, "a67c52")
    s.box(0.23, 0.66, 0.77, 0.82, "8a6239")
    centre = s.rng.uniform(0.47, 0.53)
    s.box(centre - 0.006, 0.68, centre + 0.006, 0.79, "e2c779")
    s.line((centre - 0.07, 0.7), (centre + 0.07, 0.69), 0.012, "e2c779")
    for side in (-0.07, 0.07):
        s.disc(centre + side, 0.74, 0.032, "e2c779", 0.5)
    s.box(0, 0.82, 1, 1, "4a382b")
    for y, height in ((0.9, 0.2), (1.02, 0.24)):
        for x in np.arange(0.06, 1, 0.15):
            s.person(x + s.rng.uniform(-0.02, 0.02), y, height, s.one_of(COATS), False)
        s.box(-0.02, y - 0.03, 1.02, y + 0.03, "8f6a42")


def _rocket_launch(s: Stage) -> None:
    s.box(0, 0.8, 1, 1, "8a7f66")
    s.box(0, 0.79, 1, 0.81, "6d6f55")
    x = s.rng.uniform(0.46, 0.56)
    for y in np.arange(0.34, 0.84, 0.05):
        s.line((x - 0.19, y), (x - 0.1, y + 0.05), 0.01, "a2453a")
        s.line((x - 0.1, y), (x - 0.19, y + 0.05), 0.01, "a2453a")
    for side in (-0.2, -0.1):
        s.box(x + side, 0.3, x + side + 0.014, 0.86, "a2453a")
    s.box(x - 0.1, 0.46, x - 0.04, 0.475, "a2453a")
    for side in (-0.075, 0.075):
        s.box(x + side - 0.022, 0.46, x + side + 0.022, 0.72, "d8d2c4")
        s.polygon([(x + side - 0.022, 0.46), (x + side, 0.4), (x + side + 0.022, 0.46)], "57606a")
    s.box(x - 0.045, 0.32, x + 0.045, 0.74, "f2efe6")
    s.polygon([(x - 0.045, 0.32), (x, 0.2), (x + 0.045, 0.32)], "3d464f")
    s.box(x - 0.045, 0.5, x + 0.045, 0.54, "3d464f")
    for offset, colour in ((0.06, "f39a2b"), (0.035, "ffe9a0")):
        s.lamps.polygon([(x - offset, 0.73), (x + offset, 0.73), (x, 0.73 + 3 * offset)], colour)
    for _ in range(22):
        away, up = s.rng.normal(0, 0.24), s.rng.uniform(0, 0.06)
        radius = s.rng.uniform(0.05, 0.1)
        s.disc(x + away, 0.93 - up, radius, s.one_of(("efe6da", "d9cdbf", "c7bcb2")), 0.8)


def _ski_race(s: Stage) -> None:
    ridge = [(0, 0.62), (0.24, 0.3), (0.45, 0.58), (0.7, 0.36), (1, 0.64)]
    s.polygon([*ridge, (1, 1), (0, 1)], "8593a3")
    s.polygon([(0.17, 0.4), (0.24, 0.3), (0.31, 0.4), (0.24, 0.42)], "f4f6f8")
    s.polygon([(0.62, 0.43), (0.7, 0.36), (0.78, 0.43), (0.7, 0.46)], "f4f6f8")
    s.polygon([(0, 0.56), (1, 0.78), (1, 1), (0, 1)], "f0f3f6")
    for x in (*np.arange(0.02, 0.4, 0.075), *np.arange(0.72, 1, 0.08)):
        x, base = x + s.rng.uniform(-0.02, 0.02), 0.575 + 0.22 * x
        for step in range(3):
            wide, y = 0.045 - 0.01 * step, base - 0.05 * step
            s.polygon([(x - wide, y), (x, y - 0.1), (x + wide, y)], "2c4a3e")
    for number in range(4):
        x, y = 0.14 + 0.22 * number + s.rng.uniform(-0.02, 0.02), 0.76 + 0.045 * (number % 2)
        colour = "c23a4b" if number % 2 else "2d6fa6"
        for pole in (0.0, 0.09):
            s.box(x + pole, y, x + pole + 0.012, y + 0.15, colour)
        s.box(x, y + 0.02, x + 0.1, y + 0.075, colour)
    x, y = s.rng.uniform(0.3, 0.7), 0.95
    s.line((x - 0.13, y - 0.03), (x + 0.14, y + 0.03), 0.014, "22252b")
    s.polygon([(x - 0.02, y), (x + 0.04, y), (x + 0.07, y - 0.1), (x + 0.02, y - 0.12)], "26262e")
    coat = [(x, y - 0.09), (x + 0.07, y - 0.08), (x + 0.12, y - 0.17), (x + 0.05, y - 0.19)]
    s.polygon(coat, "e4b22f")
    s.disc(x + 0.11, y - 0.2, 0.034, "c23a4b")


def _concert(s: Stage) -> None:
    s.indoors = True
    s.lamps.box(0, 0, 1, 1, "1d1626")
    for x, colour in ((0.08, "7c2f6e"), (0.36, "2b6a78"), (0.64, "8a6a24"), (0.92, "7c2f6e")):
        foot = 1 - x + s.rng.uniform(-0.2, 0.2)
        s.lamps.polygon([(x, 0), (foot + 0.16, 0.8), (foot - 0.12, 0.8)], colour)
    s.lamps.box(0, 0.0, 1, 0.035, "0c0a10")
    s.lamps.box(0, 0.7, 1, 0.8, "3a2c48")
    for x in (0.03, 0.83):
        for y in (0.46, 0.57, 0.68):
            s.lamps.box(x, y - 0.05, x + 0.14, y + 0.05, "08070b")
            s.lamps.disc(x + 0.07, y, 0.036, "4b4656")
    for x in (0.3, 0.5, 0.7):
        x += s.rng.uniform(-0.04, 0.04)
        s.light = (0.95, 0.85, 0.95)
        s.person(x, 0.74, 0.26, s.one_of(("d94f4f", "e7e0d4", "3f7fae")))
        s.line((x - 0.07, 0.66), (x + 0.09, 0.6), 0.026, "c98a3c")
    s.light = (1.0, 1.0, 1.0)
    for y, ink in ((0.9, "16111d"), (1.0, "0a080d")):
        for x in np.arange(-0.02, 1.05, 0.1):
            x = x + s.rng.uniform(-0.02, 0.02)
            s.disc(x, y - 0.06, 0.044, ink)
            s.box(x - 0.06, y - 0.04, x + 0.06, y + 0.12, ink)
            if s.rng.random() < 0.5:
                s.line((x + 0.04, y), (x + s.rng.uniform(0.02, 0.08), y - 0.16), 0.02, ink)


def _flood(s: Stage) -> None:
    left = -0.04
    while left < 1:
        right, top = left + s.rng.uniform(0.22, 0.3), s.rng.uniform(0.46, 0.54)
        wall = s.one_of(("b9a48c", "9aa79c", "c2b39a", "a58f86"))
        s.box(left, top, right, 0.8, wall)
        roof = s.one_of(("6d4038", "4f4a4c", "7a5544"))
        s.polygon([(left - 0.02, top), (left + 0.12, top - 0.13), (right + 0.02, top)], roof)
        for x in np.arange(left + 0.04, right - 0.05, 0.08):
            s.window(x, top + 0.05, x + 0.045, top + 0.12, "3f4a50")
        left = right + 0.03
    s.box(0, 0.7, 1, 1, "77684f")
    for _ in range(30):
        x, y, wide = s.rng.uniform(-0.1, 1), s.rng.uniform(0.71, 1), s.rng.uniform(0.06, 0.2)
        s.box(x, y, x + wide, y + 0.008, s.one_of(("948566", "665940", "a39675")))
    lamp = s.rng.uniform(0.08, 0.2)
    s.box(lamp, 0.5, lamp + 0.014, 0.76, "35383a")
    s.lamps.disc(lamp + 0.007, 0.49, 0.022, "f4e3b0")
    car = s.rng.uniform(0.68, 0.78)
    s.polygon([(car, 0.75), (car + 0.04, 0.7), (car + 0.14, 0.7), (car + 0.19, 0.75)], "8f3b36")
    s.box(car - 0.04, 0.745, car + 0.23, 0.775, "8f3b36")
    boat = s.rng.uniform(0.24, 0.36)
    for x in (0.08, 0.19, 0.3):
        s.person(boat + x, 0.86, 0.2, s.one_of(("e08a2c", "d9c33a", "e08a2c")), False)
    hull = [(boat - 0.04, 0.84), (boat + 0.42, 0.84), (boat + 0.36, 0.93), (boat + 0.03, 0.93)]
    s.polygon(hull, "37506a")
    s.box(boat - 0.02, 0.84, boat + 0.4, 0.86, "e6e0d0")


def _quarry(s: Stage) -> None:
    for row, colour in enumerate(("a98b62", "967649", "b0885a", "8a6b46", "a37f52")):
        top = 0.5 + 0.085 * row
        s.polygon([(0, top + 0.03 * (row % 2)), (1, top + 0.03), (1, 1), (0, 1)], colour)
        s.box(0, top + 0.07, 1, top + 0.08, "6f5638")
    for _ in range(16):
        x, y = s.rng.uniform(0, 1), s.rng.uniform(0.92, 1)
        s.disc(x, y, s.rng.uniform(0.012, 0.03), s.one_of(("6f5638", "c4a477")), 0.7)
    x = s.rng.uniform(0.0, 0.06)
    s.polygon([(x + 0.02, 0.72), (x + 0.34, 0.7), (x + 0.29, 0.82), (x + 0.05, 0.82)], "dba520")
    s.polygon([(x + 0.05, 0.71), (x + 0.18, 0.64), (x + 0.31, 0.71)], "7f6a52")
    s.box(x + 0.3, 0.72, x + 0.39, 0.84, "dba520")
    s.window(x + 0.32, 0.735, x + 0.38, 0.78, "2e3b42")
    for wheel in (0.09, 0.2, 0.34):
        s.disc(x + wheel, 0.86, 0.05, "1f1f22")
        s.disc(x + wheel, 0.86, 0.02, "8b8b86")
    x = s.rng.uniform(0.66, 0.74)
    s.box(x - 0.02, 0.85, x + 0.26, 0.91, "26262a")
    s.box(x, 0.72, x + 0.22, 0.85, "c98f18")
    s.window(x + 0.02, 0.735, x + 0.1, 0.8, "2e3b42")
    s.line((x + 0.04, 0.76), (x - 0.1, 0.52), 0.04, "c98f18")
    s.line((x - 0.1, 0.53), (x - 0.2, 0.72), 0.034, "c98f18")
    s.polygon([(x - 0.25, 0.7), (x - 0.15, 0.72), (x - 0.17, 0.8), (x - 0.27, 0.78)], "3a3a3e")


SCENES_B = by_name(_courtroom, _rocket_launch, _ski_race, _concert, _flood, _quarry)

# Part of every picture's key. Raise it with any change to what is drawn or written.
NEWSROOM_B_VERSION = 2
_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the facts
SPLITS = tuple(_SHARES)
_STREAMS = (*SPLITS, "facts", "grain")  # where a stream stands is its seed: new ones go to the end
_GRAIN_FIELD = 96  # how many pixels the grain field is larger than a picture

# a faded print: colours bleed into each other, shadows turn teal, highlights warm
_TONE = np.array([[0.74, 0.07, 0.05], [0.1, 0.72, 0.1], [0.04, 0.09, 0.66]], np.float32)
_LIFT = np.array([22, 26, 30], np.float32)


@dataclass(frozen=True)
class NewsroomBPicture(DrawnPicture):
    """One drawn picture of the newsroom's style B."""

    outlet = "the drawn newsroom's style B"
    style = f"newsroom-b-v{NEWSROOM_B_VERSION}"
    entropy, streams = (ord("B"), NEWSROOM_B_VERSION), _STREAMS
    splits, scenes, times, entity = SPLITS, SCENES_B, TIMES_B, SPLITS
    dice = (66,)

    @classmethod
    @lru_cache(maxsize=8)
    def table(cls, seed: int) -> dict[str, list[Row]]:
        """Each split's rows: two countries and a scene, the time open. Disjoint by construction."""
        couples = itertools.combinations(range(len(COUNTRIES)), 2)
        pairs = [(a, b, scene, -1) for a, b in couples for scene in range(len(SCENES_B))]
        facts = [(*pair, number) for number, pair in enumerate(pairs)]
        left = [facts[row] for row in cls.stream("facts", seed).permutation(len(facts))]
        table = {}
        for split in ("val", "test"):
            count = round(_SHARES[split] * len(facts))
            table[split], left = left[:count], left[count:]
        return table | {"train": left}

    def load(self) -> Image.Image:
        """Draw it, in RGB."""
        facts, u, image = self.view(self.rng(0))
        size, sag = self.size, 0.04 + 0.05 * u[15]
        _cord(image, sag)
        places = zip(facts.countries, facts.shown, (0.26, 0.735), (u[4:8], u[8:12]), strict=True)
        for country, there, x, v in places:
            if there:
                _hang(image, country, facts.time, x, sag, v)
        image = image.filter(ImageFilter.BoxBlur(math.sqrt(size / 64) * (0.05 + 0.25 * u[3])))
        pixels = np.asarray(image, np.float32) @ _TONE
        pixels += _LIFT
        pixels *= _vignette(size) * np.float32(0.94 + 0.14 * u[12])
        x, y = (int(v * _GRAIN_FIELD) for v in u[13:15])
        pixels += _grain(size)[y : y + size, x : x + size]
        return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def newsroom_b_pairs(split: str, n: int, *, seed: int = 0, image_size: int = 64) -> list[Pair]:
    """The first `n` pairs of a split; pictures are `image_size` pixels square and drawn on load.

    All carry explanations; `section` is the scene. Raises ValueError for an unknown split, n < 1, a
    negative seed, or pictures below 32 pixels.
    """
    return [_pair(picture) for picture in NewsroomBPicture.first(split, n, seed, image_size)]


def newsroom_b_size(split: str) -> int:
    """How many pairs a split holds before a fact repeats, with another picture and other words."""
    NewsroomBPicture.known(split)
    return len(NewsroomBPicture.table(0)[split])


def newsroom_b_facts(pair: Pair | NewsroomBPicture) -> Facts:
    """What a pair or picture of style B shows. Raises TypeError for a pair of another data set."""
    return NewsroomBPicture.of(pair).facts()


def _pair(picture: NewsroomBPicture) -> Pair:
    (rng, countries, third), facts = picture.told(), picture.facts()
    event = EVENTS_B[facts.scene][facts.event]
    caption = entity_caption(rng, countries, event, WORDS_B, third=third)
    told = explanation(picture.rng(9), caption)
    name = f"b-{picture.split}-{picture.seed}-{picture.index:06d}"
    return Pair(name, picture, caption, told, section=facts.scene)


def _cord(image: Image.Image, sag: float) -> None:
    """The cord the flags hang from, lowest in the middle."""
    size = image.width
    points = [(x * size / 8, size * _height(x / 8, sag)) for x in range(9)]
    ImageDraw.Draw(image).line(points, (48, 44, 46), max(1, round(size / 64)))


def _height(x: float, sag: float) -> float:
    return 0.03 + sag * (1 - (2 * x - 1) ** 2)


def _hang(
    image: Image.Image, country: Country, time: str, x: float, sag: float, u: list[float]
) -> None:
    """Paste a country's flag below the cord, centred near x of the picture."""
    size = image.width
    sprite = _cloth(country, time, round(size * (0.39 + 0.02 * int(u[0] * 4))))
    turned = sprite.rotate(round(10 * u[1] - 5), Image.Resampling.BICUBIC, expand=True)
    x += 0.05 * (u[2] - 0.5)
    left = round(size * x - turned.width / 2)
    top = round(size * (_height(x, sag) + 0.03 * u[3]) - (turned.height - sprite.height) / 2)
    image.paste(turned, (left, top), turned)


@lru_cache(maxsize=2048)
def _cloth(country: Country, time: str, width: int) -> Image.Image:
    """A country's flag, `width` pixels wide, lit from the left with slanting folds: RGBA."""
    cloth = np.asarray(country.flag.draw(width), np.float32)
    height = cloth.shape[0]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    light = (1.1 - 0.26 * x) * (1 + 0.1 * np.sin(2 * np.pi * (2.2 * x + 0.7 * y)))
    sprite = Image.new("RGBA", (width + 2, height + 2), (26, 20, 18, 130))
    sprite.paste(lit(cloth * light[:, :, None], time), (1, 1))
    return sprite


@lru_cache(maxsize=4)
def _vignette(size: int) -> np.ndarray:
    """[size, size, 1] darker towards the corners."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    return (1.04 - 0.15 * (x * x + y * y))[:, :, None]


@lru_cache(maxsize=4)
def _grain(size: int) -> np.ndarray:
    """[size + _GRAIN_FIELD, same, 1] grey grain two pixels coarse; a picture takes a window."""
    side = (size + _GRAIN_FIELD) // 2 + 1
    field = NewsroomBPicture.stream("grain", 0).standard_normal((side, side), np.float32)
    return 7 * field.repeat(2, axis=0).repeat(2, axis=1)[:, :, None]
