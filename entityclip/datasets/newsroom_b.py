"""The drawn newsroom's style B: the same countries and flags, another outlet's pictures and words.

Other scenes, light, colours, grain and camera, flags hung from a cord instead of poles, other
caption templates: a second domain to test on what was learnt on the first (EntityCLIP's
cross-domain retrieval). Everything follows from (split, seed, index), as in style A.

A fact is (two countries, scene); the splits share none, and no scene is style A's.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from entityclip.datasets.drawn.countries import COUNTRIES, Country
from entityclip.datasets.drawn.picture import DrawnPicture
from entityclip.datasets.drawn.scenes_b import SCENES_B, backdrop_b
from entityclip.datasets.drawn.stage import CLOTH_LIGHT, TIMES_B
from entityclip.datasets.drawn.wording import explanation
from entityclip.datasets.drawn.wording_b import entity_caption_b
from entityclip.datasets.newsroom import Facts, check_request
from entityclip.datasets.record import Pair

# Part of every picture's key. Raise it with any change to what is drawn or written.
NEWSROOM_B_VERSION = 1

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

    style = f"newsroom-b-v{NEWSROOM_B_VERSION}"

    def load(self) -> Image.Image:
        """Draw it, in RGB."""
        rng = _rng(self.split, self.seed, self.index, 0)
        facts = _facts(self, rng)
        size, u = self.size, rng.random(16).tolist()
        image = backdrop_b(facts.scene, facts.time, int(u[0] * 4), size)
        margin = image.width - size
        left, top = round(u[1] * margin), round(u[2] * margin)
        image = image.crop((left, top, left + size, top + size))
        sag = 0.04 + 0.05 * u[15]
        _cord(image, sag)
        for country, x, v in zip(facts.countries, (0.26, 0.735), (u[4:8], u[8:12]), strict=True):
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
    _known(split)
    check_request(n, seed, image_size)
    return [_pair(NewsroomBPicture(split, seed, index, image_size)) for index in range(n)]


def newsroom_b_size(split: str) -> int:
    """How many pairs a split holds before a fact repeats, with another picture and other words."""
    _known(split)
    return len(_table(0)[split])


def newsroom_b_facts(pair: Pair | NewsroomBPicture) -> Facts:
    """What a pair or picture of style B shows. Raises TypeError for a pair of another data set."""
    picture = pair.image if isinstance(pair, Pair) else pair
    if not isinstance(picture, NewsroomBPicture):
        raise TypeError(f"{pair!r} is not a picture of the drawn newsroom's style B")
    return _facts(picture, _rng(picture.split, picture.seed, picture.index, 0))


def _pair(picture: NewsroomBPicture) -> Pair:
    facts = newsroom_b_facts(picture)
    # texts draw from their own stream: which flag hangs left tells nothing of the caption's order
    rng = _rng(picture.split, picture.seed, picture.index, 1)
    countries = facts.countries if rng.random() < 0.5 else facts.countries[::-1]
    caption = entity_caption_b(rng, countries, facts.scene)
    name = f"b-{picture.split}-{picture.seed}-{picture.index:06d}"
    return Pair(name, picture, caption, explanation(rng, countries), section=facts.scene)


def _facts(picture: NewsroomBPicture, rng: np.random.Generator) -> Facts:
    rows = _table(picture.seed)[picture.split]
    first, second, scene = rows[picture.index % len(rows)]
    swap, clock = rng.random(2)
    pair = (COUNTRIES[first], COUNTRIES[second])
    return Facts(pair[::-1] if swap < 0.5 else pair, SCENES_B[scene], TIMES_B[int(clock * 3)])


@lru_cache(maxsize=8)
def _table(seed: int) -> dict[str, list[tuple[int, int, int]]]:
    """Each split's rows: two countries and a scene. Disjoint by construction."""
    couples = itertools.combinations(range(len(COUNTRIES)), 2)
    facts = [(a, b, scene) for a, b in couples for scene in range(len(SCENES_B))]
    left = [facts[row] for row in _rng("facts", seed, 0, 0).permutation(len(facts))]
    table = {}
    for split in ("val", "test"):
        count = round(_SHARES[split] * len(facts))
        table[split], left = left[:count], left[count:]
    return table | {"train": left}


# ------------------------------------------------------------------------------------------ flags


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
    cloth = cloth * light[:, :, None] * np.array(CLOTH_LIGHT[time], np.float32)
    sprite = Image.new("RGBA", (width + 2, height + 2), (26, 20, 18, 130))
    sprite.paste(Image.fromarray(np.clip(cloth, 0, 255).astype(np.uint8)), (1, 1))
    return sprite


# ------------------------------------------------------------------------------------------ print


@lru_cache(maxsize=4)
def _vignette(size: int) -> np.ndarray:
    """[size, size, 1] darker towards the corners."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    return (1.04 - 0.15 * (x * x + y * y))[:, :, None]


@lru_cache(maxsize=4)
def _grain(size: int) -> np.ndarray:
    """[size + _GRAIN_FIELD, same, 1] grey grain two pixels coarse; a picture takes a window."""
    side = (size + _GRAIN_FIELD) // 2 + 1
    field = _rng("grain", 0, 0, 0).standard_normal((side, side), np.float32)
    return 7 * field.repeat(2, axis=0).repeat(2, axis=1)[:, :, None]


def _rng(stream: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    # "B" stands first, so no stream is one of style A's; numbers by name, never hash()
    number = _STREAMS.index(stream)
    entropy = [ord("B"), NEWSROOM_B_VERSION, number, seed, index, purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _known(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"newsroom-b has no split {split!r}; there are {', '.join(SPLITS)}")
