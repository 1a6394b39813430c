"""What both outlets share: all that a picture shows and says follows from its fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from PIL import Image

from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.datasets.newsroom.scenes import Stage, backdrop
from entityclip.datasets.pair import Pair


@dataclass(frozen=True)
class Facts:
    """What a picture shows. `countries` stand from left to right."""

    countries: tuple[Country, Country]
    scene: str
    time: str


@dataclass(frozen=True)
class DrawnPicture:
    """One drawn picture, `size` pixels square; the same fields always draw the same bytes."""

    outlet: ClassVar[str]  # as errors name it
    style: ClassVar[str]  # and its version
    entropy: ClassVar[tuple[int, ...]]  # of all its random numbers
    streams: ClassVar[tuple[str, ...]]  # where one stands is its seed: new names go to the end
    splits: ClassVar[tuple[str, ...]]
    scenes: ClassVar[dict[str, Callable[[Stage], None]]]
    times: ClassVar[tuple[str, ...]]
    dice: ClassVar[tuple[int, ...]] = ()  # what sets its scenes' dice apart from the other's

    split: str
    seed: int
    index: int
    size: int

    @property
    def key(self) -> str:
        """Names what is drawn, e.g. ``newsroom-v1/train/0/17/64``."""
        return f"{self.style}/{self.split}/{self.seed}/{self.index}/{self.size}"

    @classmethod
    def first(cls, split: str, n: int, seed: int, size: int) -> list[Self]:
        """The first `n` of a split. Raises ValueError for what no outlet draws."""
        cls.known(split)
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one pair")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be an integer >= 0")
        if size < 32:
            raise ValueError(f"image_size is {size}; flags cannot be told apart below 32 pixels")
        return [cls(split, seed, index, size) for index in range(n)]

    @classmethod
    def known(cls, split: str) -> None:
        """Raise ValueError for an unknown split."""
        if split not in cls.splits:
            known = ", ".join(cls.splits)
            raise ValueError(f"{cls.outlet} has no split {split!r}; there are {known}")

    @classmethod
    def of(cls, pair: Pair | DrawnPicture) -> Self:
        """A pair's picture. Raises TypeError for a pair of another data set."""
        picture = pair.image if isinstance(pair, Pair) else pair
        if not isinstance(picture, cls):
            raise TypeError(f"{pair!r} is not a picture of {cls.outlet}")
        return picture

    @classmethod
    def stream(cls, name: str, seed: int, index: int = 0, purpose: int = 0) -> np.random.Generator:
        """Random numbers that follow from these alone."""
        # numbers by name, never hash(): it differs from one process to the next
        entropy = [*cls.entropy, cls.streams.index(name), seed, index, purpose]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def rng(self, purpose: int) -> np.random.Generator:
        """Its own random numbers; 0: of facts and drawing, 1: of caption and explanation."""
        return self.stream(self.split, self.seed, self.index, purpose)

    @classmethod
    def table(cls, seed: int) -> dict[str, list[tuple[int, int, int, int]]]:
        """Each split's rows: two countries, scene, time of day (-1: open). They share none."""
        raise NotImplementedError

    def facts(self, rng: np.random.Generator | None = None) -> Facts:
        """What it shows, by the first numbers of ``rng(0)``."""
        rows = self.table(self.seed)[self.split]
        first, second, scene, time = rows[self.index % len(rows)]
        swap, clock = (self.rng(0) if rng is None else rng).random(2)
        pair = (COUNTRIES[first], COUNTRIES[second])
        if time < 0:
            time = int(clock * len(self.times))
        return Facts(pair[::-1] if swap < 0.5 else pair, [*self.scenes][scene], self.times[time])

    def told(self) -> tuple[np.random.Generator, tuple[Country, ...]]:
        """The numbers that texts draw from, and the countries in the order they are told in.

        Apart from the drawing's: which flag hangs left tells nothing of the caption's order.
        """
        rng, countries = self.rng(1), self.facts().countries
        return rng, countries if rng.random() < 0.5 else countries[::-1]

    def view(self, rng: np.random.Generator) -> tuple[Facts, list[float], Image.Image]:
        """Facts, 16 numbers for the drawing (four are used), and the scene before any flag."""
        facts = self.facts(rng)
        u, scene = rng.random(16).tolist(), [*self.scenes].index(facts.scene)
        draw, dice = self.scenes[facts.scene], (*self.dice, scene)
        image = backdrop(draw, dice, facts.time, int(u[0] * 4), self.size)
        margin = image.width - self.size
        left, top = round(u[1] * margin), round(u[2] * margin)
        return facts, u, image.crop((left, top, left + self.size, top + self.size))
