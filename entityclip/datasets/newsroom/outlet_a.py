"""The drawn newsroom: news pictures of two countries and a scene, with captions that name them.

Real facts (countries, cities, flags), made-up news; everything follows from (split, seed, index).
The entity splits share no fact, (two countries, scene), and repeat one only once exhausted. As in
news, training has few countries often and many seldom (Zipf), an article has one to four pictures,
and one picture in five shows but one of the flags. Four query sets tell the pictures of `test` in
the same sentences by names of different kinds (`wording.Naming`), and `val_longtail` those of `val`
by rare names and aliases in turn. Generic splits, which pretrain a small CLIP, share no (two
countries, scene, time of day), nor do relation splits, whose texts and pictures relate in
different ways.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from PIL import Image, ImageFilter

from entityclip.datasets.newsroom import wording
from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.datasets.newsroom.scenes import SCENES, TIMES, Draw, backdrop, flagpole
from entityclip.datasets.newsroom.wording import Relation, draw_relation, relation_text
from entityclip.datasets.pair import Pair


@dataclass(frozen=True)
class Facts:
    """What a picture shows. `countries` stand from left to right."""

    countries: tuple[Country, Country]
    scene: str
    time: str
    event: int  # which one of the scene's: all pictures of an article share it
    shown: tuple[bool, bool]  # whose flags hang


Namings = tuple[wording.Naming, wording.Naming, wording.Naming]
Row = tuple[int, int, int, int, int]  # two countries, scene, time of day (-1: open), article
ONE_FLAG = 0.2  # share of entity pictures that show one of the two flags


@dataclass(frozen=True)
class DrawnPicture(ABC):
    """One drawn picture, `size` pixels square; the same fields always draw the same bytes."""

    outlet: ClassVar[str]  # as errors name it
    style: ClassVar[str]  # and its version
    entropy: ClassVar[tuple[int, ...]]  # of all its random numbers
    streams: ClassVar[tuple[str, ...]]  # where one stands is its seed: new names go to the end
    splits: ClassVar[tuple[str, ...]]
    scenes: ClassVar[dict[str, Draw]]
    times: ClassVar[tuple[str, ...]]
    dice: ClassVar[tuple[int, ...]] = ()  # what sets its scenes' dice apart from the other's
    entity: ClassVar[tuple[str, ...]]  # the splits whose pictures are news

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
        """Its own random numbers; 0: of facts and drawing, 1: of caption, 9: of explanation."""
        return self.stream(self.split, self.seed, self.index, purpose)

    @classmethod
    @abstractmethod
    def table(cls, seed: int) -> dict[str, list[Row]]:
        """Each split's rows, a picture each. Splits share no (two countries, scene, time)."""

    @property
    def row(self) -> Row:
        """Its row of the table, over again once they are exhausted."""
        rows = self.table(self.seed)[self.split]
        return rows[self.index % len(rows)]

    def facts(self, rng: np.random.Generator | None = None) -> Facts:
        """What it shows, by the first numbers of ``rng(0)``."""
        first, second, scene, time, article = self.row
        swap, clock, bare = (self.rng(0) if rng is None else rng).random(3)
        pair = (COUNTRIES[first], COUNTRIES[second])
        if time < 0:
            time = int(clock * len(self.times))
        event = int(self.stream(self.split, self.seed, article, 10).integers(3))
        news = self.split in self.entity and bare < ONE_FLAG
        shown = (not news or bare < ONE_FLAG / 2, not news or bare >= ONE_FLAG / 2)
        ordered = pair[::-1] if swap < 0.5 else pair
        return Facts(ordered, [*self.scenes][scene], self.times[time], event, shown)

    def told(self) -> tuple[np.random.Generator, tuple[Country, Country], Country | None]:
        """The numbers that texts draw from, the countries in the order they are told in, a third.

        Apart from the drawing's: which flag hangs left tells nothing of the caption's order.
        """
        rng, countries = self.rng(1), self.facts().countries
        if rng.random() < 0.5:
            countries = countries[::-1]
        third, place = rng.random(2)
        others = [number for number in range(len(COUNTRIES)) if number not in self.row[:2]]
        if self.split == "train":
            others = [number for number in others if self._training_knows(number)]
        named = COUNTRIES[others[int(place * len(others))]]
        return rng, countries, named if third < wording.THIRD else None

    def _training_knows(self, third: int) -> bool:
        """Whether no fact of another split is told where a caption names a third country, too."""
        *pair, scene, _, _ = self.row
        split_of = self.split_of(self.seed)
        return all(split_of[min(third, one), max(third, one), scene] == "train" for one in pair)

    @classmethod
    @lru_cache(maxsize=8)
    def split_of(cls, seed: int) -> dict[tuple[int, int, int], str]:
        """The entity split of each fact: two countries, in COUNTRIES' order, and a scene."""
        table = cls.table(seed)
        return {row[:3]: split for split in cls.entity for row in table[split]}

    def view(self, rng: np.random.Generator) -> tuple[Facts, list[float], Image.Image]:
        """Facts, 16 numbers for the drawing (four are used), and the scene before any flag."""
        facts = self.facts(rng)
        u, scene = rng.random(16).tolist(), [*self.scenes].index(facts.scene)
        draw, dice = self.scenes[facts.scene], (*self.dice, scene)
        image = backdrop(draw, dice, facts.time, int(u[0] * 4), self.size)
        margin = image.width - self.size
        left, top = round(u[1] * margin), round(u[2] * margin)
        return facts, u, image.crop((left, top, left + self.size, top + self.size))


# Part of every picture's key. Raise it with any change to what is drawn or written.
NEWSROOM_VERSION = 2
CAPTIONS_A_PICTURE = 5  # as Flickr30K and MSCOCO have
_NAMING = 2  # of them, the first, name entities as captions of the entity splits do

# split -> its share of the facts; of the combinations with the time of day (generic, relations)
_ENTITY = {"train": 0.75, "val": 0.04, "test": 0.21}
_GENERIC = {"generic": 0.8, "generic_val": 0.2}
RELATION_SPLITS = {"relation_unlabelled": 0.6, "relation_train": 0.2, "relation_test": 0.2}

# split -> the entity split whose pictures it tells by other names; by which, in turn
_QUERIES: dict[str, tuple[str, tuple[wording.Naming, ...]]] = {
    "val_longtail": ("val", ("rare", "alias")),
    "test_rare": ("test", ("rare",)),
    "test_alias": ("test", ("alias",)),
    "test_unseen": ("test", ("unseen",)),
}
# split of several captions a picture -> the entity split whose pictures it describes
_CAPTIONS = {"captions_train": "train", "captions_val": "val", "captions_test": "test"}
SPLITS = (*_ENTITY, *_QUERIES, *_GENERIC, *_CAPTIONS, *RELATION_SPLITS)

# where a stream of random numbers stands here is its seed: new names go to the end
_STREAMS = (*_ENTITY, *_GENERIC, "facts", "generic", "noise", *RELATION_SPLITS, "relations", "news")
_NOISE_FIELD = 96  # how many pixels the noise field is larger than a picture

_ZIPF = 1.0  # the r-th country's share of training goes as 1 / (r + _ZIPF)
_PICTURES = (0.4, 0.3, 0.2, 0.1)  # shares of training articles with 1 to 4 pictures
_RARE = 3  # training captions at most that tell a country by its rare name


@dataclass(frozen=True)
class NewsroomPicture(DrawnPicture):
    """One drawn picture of the newsroom."""

    outlet = "the drawn newsroom"
    style = f"newsroom-v{NEWSROOM_VERSION}"
    entropy, streams = (NEWSROOM_VERSION,), _STREAMS
    splits, scenes, times, entity = SPLITS, SCENES, TIMES, tuple(_ENTITY)

    @classmethod
    @lru_cache(maxsize=8)
    def table(cls, seed: int) -> dict[str, list[Row]]:
        """See `DrawnPicture.table`."""
        couples = list(itertools.combinations(range(len(COUNTRIES)), 2))
        facts = [(a, b, s) for a, b in couples for s in range(len(SCENES))]
        left = [facts[row] for row in cls.stream("facts", seed).permutation(len(facts))]
        table: dict[str, list[Row]] = {}
        for split in ("val", "test"):
            count = round(_ENTITY[split] * len(facts))
            table[split] = [(*fact, -1, number) for number, fact in enumerate(left[:count])]
            left = left[count:]
        table["train"] = cls._articles(left, seed)
        seen = [(*fact, time, 0) for fact in facts for time in range(len(TIMES))]
        for stream, shares in (("generic", _GENERIC), ("relations", RELATION_SPLITS)):
            rows = [seen[row] for row in cls.stream(stream, seed).permutation(len(seen))]
            for split, share in shares.items():
                count = round(share * len(seen))
                table[split], rows = rows[:count], rows[count:]
        return table

    @classmethod
    def _articles(cls, facts: list[tuple[int, int, int]], seed: int) -> list[Row]:
        """Training's rows: an article a fact, those of frequent countries first, Zipf's way.

        Drawn without replacement, each with a chance as the product of its countries' weights
        (Gumbel's trick): however many are asked for, the first ones are Zipf's.
        """
        rng = cls.stream("news", seed)
        weight = -np.log(rng.permutation(len(COUNTRIES)) + 1 + _ZIPF)
        countries = np.array([fact[:2] for fact in facts])
        order = np.argsort(-(weight[countries].sum(1) + rng.gumbel(size=len(facts))))
        sizes = 1 + rng.choice(len(_PICTURES), len(facts), p=_PICTURES)
        return [
            (*facts[fact], -1, number)
            for number, fact in enumerate(order.tolist())
            for _ in range(sizes[number])
        ]

    @classmethod
    @lru_cache(maxsize=8)
    def rarely(cls, seed: int) -> dict[int, frozenset[int]]:
        """By training picture, the countries whose rare name its caption tells.

        The first picture of one to `_RARE` of a country's articles, each third one, so that neither
        the first pairs alone nor more of them than asked for have it.
        """
        found: dict[int, set[int]] = {}
        met, last = [0] * len(COUNTRIES), -1
        for index, (*pair, _, _, article) in enumerate(cls.table(seed)["train"]):
            if article == last:
                continue
            last = article
            for country in pair:
                turn, due = divmod(met[country], 3)
                met[country] += 1
                if not due and turn < 1 + country % _RARE:
                    found.setdefault(index, set()).add(country)
        return {index: frozenset(of) for index, of in found.items()}

    def naming(self) -> Namings:
        """By which of their names its own caption tells its two countries and a third."""
        rare = self.rarely(self.seed).get(self.index, ()) if self.split == "train" else ()
        countries = self.told()[1]
        first, second = ("rare" if COUNTRIES.index(c) in rare else "common" for c in countries)
        return first, second, "common"

    def load(self) -> Image.Image:
        """Draw it, in RGB."""
        rng = self.rng(0)
        facts, u, image = self.view(rng)
        hung = (False, False) if _without_flags(self) else facts.shown
        places = zip(facts.countries, hung, (0.28, 0.745), (u[4:9], u[9:14]), strict=True)
        for country, there, x, v in places:
            if there:
                _hang(image, country, facts.time, x, v)
        blur = math.sqrt(self.size / 64) * (0.05 + 0.3 * u[3])
        image = image.filter(ImageFilter.BoxBlur(blur))
        pixels = np.asarray(image, np.float32) * np.float32(0.92 + 0.14 * u[14])
        field = _noise(self.size)
        x, y = rng.integers(_NOISE_FIELD, size=2)
        pixels += field[y : y + self.size, x : x + self.size] * np.float32(2 + 4 * u[15])
        return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def newsroom_pairs(split: str, n: int, *, seed: int = 0, image_size: int = 64) -> list[Pair]:
    """The first `n` pairs of a split; pictures are `image_size` pixels square and drawn on load.

    Entity splits and query sets carry explanations; their `section` is the scene, the `group` of a
    training pair its article. The `captions_` splits hold CAPTIONS_A_PICTURE pairs a picture, one
    after the other, with that picture as `group`. Labelled
    relation splits carry the relation's label as `section`, which `tweets.relation_labels` takes
    apart. Raises ValueError for an unknown split, n < 1, a negative seed, or pictures below 32
    pixels.
    """
    if split in _QUERIES:
        of, kinds = _QUERIES[split]
        pictures = NewsroomPicture.first(of, n, seed, image_size)
        return [
            _news(picture, split, (kinds[number % len(kinds)],) * 3)
            for number, picture in enumerate(pictures)
        ]
    if split not in _CAPTIONS:
        return [_pair(picture) for picture in NewsroomPicture.first(split, n, seed, image_size)]
    pictures = math.ceil(n / CAPTIONS_A_PICTURE)
    described = NewsroomPicture.first(_CAPTIONS[split], pictures, seed, image_size)
    return [pair for picture in described for pair in _captions(picture, split)][:n]


def newsroom_size(split: str) -> int:
    """How many pairs a split holds before a fact (for generic splits, a combination) repeats."""
    NewsroomPicture.known(split)
    if split in _QUERIES:
        return newsroom_size(_QUERIES[split][0])
    if split in _CAPTIONS:
        return CAPTIONS_A_PICTURE * len(NewsroomPicture.table(0)[_CAPTIONS[split]])
    return len(NewsroomPicture.table(0)[split])


def newsroom_facts(pair: Pair | NewsroomPicture) -> Facts:
    """What a newsroom pair or picture shows. Raises TypeError for a pair of another data set."""
    return NewsroomPicture.of(pair).facts()


def second_caption(pair: Pair) -> str:
    """Another caption of a train, val or test pair's picture: of its own kind, in other words.

    It names and does not describe: the first such caption of the ``captions_`` split that is not
    the pair's own. Raises TypeError as `newsroom_facts` does and ValueError for another split.
    """
    picture = NewsroomPicture.of(pair)
    if picture.split not in _CAPTIONS.values():
        raise ValueError(f"{pair.id} is of split {picture.split}, which has no second captions")
    naming = _captions(picture, picture.split)[:_NAMING]
    return next(other.caption for other in naming if other.caption != pair.caption)


def newsroom_relation(pair: Pair | NewsroomPicture) -> Relation:
    """How text and picture of a relation split's pair relate, also where the label is not told.

    Raises TypeError as `newsroom_facts` does and ValueError for a pair of another split.
    """
    picture = NewsroomPicture.of(pair)
    if picture.split not in RELATION_SPLITS:
        raise ValueError(
            f"{picture.key} is of split {picture.split}; only {', '.join(RELATION_SPLITS)} relate "
            "in different ways"
        )
    return draw_relation(picture.rng(2))


def generated_caption(pair: Pair | NewsroomPicture) -> str:
    """What a captioning model would say of the picture alone: all that is seen, nothing named."""
    picture = NewsroomPicture.of(pair)
    facts = picture.facts()
    rng = picture.rng(8)
    if _without_flags(picture):
        return wording.scene_caption(rng, facts.scene, facts.time)
    shown = [c for c, there in zip(facts.countries, facts.shown, strict=True) if there]
    return wording.generic_caption(rng, shown, facts.scene, facts.time)


def _without_flags(picture: NewsroomPicture) -> bool:
    return picture.split in RELATION_SPLITS and not newsroom_relation(picture).flags_shown


def _pair(picture: NewsroomPicture) -> Pair:
    if picture.split in _ENTITY:
        return _news(picture, picture.split, picture.naming())
    facts, (rng, countries, _) = picture.facts(), picture.told()
    section = None
    if picture.split in RELATION_SPLITS:
        relation = newsroom_relation(picture)
        caption = relation_text(rng, relation, countries, facts.scene, facts.time)
        section = None if picture.split == "relation_unlabelled" else relation.label
    else:
        caption = wording.generic_caption(rng, countries, facts.scene, facts.time)
        section = facts.scene
    return Pair(_name(picture, picture.split), picture, caption, section=section)


def _news(picture: NewsroomPicture, split: str, naming: Namings) -> Pair:
    """An entity picture told by names of these kinds, as a pair of `split`."""
    (rng, countries, third), facts = picture.told(), picture.facts()
    event = wording.EVENTS[facts.scene][facts.event]
    caption = wording.entity_caption(rng, countries, event, naming=naming, third=third)
    explanation = wording.explanation(picture.rng(9), caption)
    group = f"{split}-{picture.seed}-article-{picture.row[4]}" if split == "train" else None
    name = _name(picture, split)
    return Pair(name, picture, caption, explanation, group=group, section=facts.scene)


def _name(picture: NewsroomPicture, split: str) -> str:
    return f"{split}-{picture.seed}-{picture.index:06d}"


def _captions(picture: NewsroomPicture, split: str) -> list[Pair]:
    """A picture's captions of unequal information: two name, two describe, one says little."""
    group = _name(picture, split)
    texts: list[str] = []
    for number in range(CAPTIONS_A_PICTURE):
        rng = picture.rng(2 + number)
        text = _caption(rng, picture, number)
        while text in texts:  # few words describe a picture: say it otherwise
            text = _caption(rng, picture, number)
        texts.append(text)
    section = picture.facts().scene
    return [
        Pair(f"{group}#{number}", picture, text, group=group, section=section)
        for number, text in enumerate(texts)
    ]


def _caption(rng: np.random.Generator, picture: NewsroomPicture, number: int) -> str:
    facts, third = picture.facts(), picture.told()[2]
    event = wording.EVENTS[facts.scene][facts.event]
    countries = facts.countries if rng.random() < 0.5 else facts.countries[::-1]
    if number < _NAMING:
        return wording.entity_caption(rng, countries, event, third=third)
    shown = [c for c in countries if facts.shown[facts.countries.index(c)]]
    if number < 4:
        return wording.generic_caption(rng, shown, facts.scene, facts.time)
    return wording.short_caption(rng, shown[0], event)


def _hang(image: Image.Image, country: Country, time: str, x: float, u: list[float]) -> None:
    """Paste a country's flag on its pole, its cloth centred near (x, 0.26) of the picture."""
    size = image.width
    width = round(size * (0.4 + 0.02 * int(u[0] * 3)))
    sprite = flagpole(country, time, width)
    angle = round(14 * u[1] - 7)
    turned = sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    # the pole reaches far below the cloth: keep the cloth, not the sprite's centre, in its place
    drop = sprite.height / 2 - width / 3
    cx = size * (x + 0.024 * (u[2] - 0.5)) + drop * math.sin(math.radians(angle))
    cy = size * (0.25 + 0.08 * (u[3] - 0.5)) + drop
    image.paste(turned, (round(cx - turned.width / 2), round(cy - turned.height / 2)), turned)


@lru_cache(maxsize=4)
def _noise(size: int) -> np.ndarray:
    """[size + _NOISE_FIELD, same, 3] unit Gaussian noise, of which each picture takes a window."""
    side = size + _NOISE_FIELD
    return NewsroomPicture.stream("noise", 0).standard_normal((side, side, 3), np.float32)
