"""The drawn newsroom: news pictures of two countries and a scene, with captions that name them.

Real facts (countries, capitals, flags), made-up news. Everything follows from (split, seed, index):
no network, no files, and the same bytes in any process and any order.

Each picture shows two countries' flags before a scene at a time of day. A fact is (two countries,
scene); the entity splits share no fact, and a split repeats one only once it is exhausted. The
generic splits, which pretrain a small CLIP, share no (two countries, scene, time of day), nor do
the relation splits, whose texts and pictures relate in different ways (`drawn.relations`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from entityclip.datasets.newsroom import wording
from entityclip.datasets.newsroom.canvas import DrawnPicture
from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.datasets.newsroom.scenes import SCENES, TIMES, backdrop, flagpole
from entityclip.datasets.newsroom.wording import Relation, draw_relation, relation_text
from entityclip.datasets.pair import Pair

# Part of every picture's key. Raise it with any change to what is drawn or written.
NEWSROOM_VERSION = 1
CAPTIONS_A_PICTURE = 5  # as Flickr30K and MSCOCO have
_NAMING = 2  # of them, the first, name entities as captions of the entity splits do

# split -> its share of the facts (entity splits) or of the combinations (generic and relations)
_ENTITY = {"train": 0.6, "val": 0.1, "test": 0.2, "test_longtail": 0.1}
_GENERIC = {"generic": 0.8, "generic_val": 0.2}
RELATION_SPLITS = {"relation_unlabelled": 0.6, "relation_train": 0.2, "relation_test": 0.2}

# split of several captions a picture -> the entity split whose pictures it describes
_CAPTIONS = {"captions_train": "train", "captions_val": "val", "captions_test": "test"}
SPLITS = (*_ENTITY, *_GENERIC, *_CAPTIONS, *RELATION_SPLITS)

# where a stream of random numbers stands here is its seed: new names go to the end
_STREAMS = (*_ENTITY, *_GENERIC, "facts", "generic", "noise", *RELATION_SPLITS, "relations")
_NOISE_FIELD = 96  # how many pixels the noise field is larger than a picture


@dataclass(frozen=True)
class Facts:
    """What a picture shows. `countries` stand from left to right."""

    countries: tuple[Country, Country]
    scene: str
    time: str


@dataclass(frozen=True)
class NewsroomPicture(DrawnPicture):
    """One drawn picture of the newsroom."""

    style = f"newsroom-v{NEWSROOM_VERSION}"

    def load(self) -> Image.Image:
        """Draw it, in RGB."""
        rng = _rng(self.split, self.seed, self.index, 0)
        facts = _facts(self, rng)
        size, u = self.size, rng.random(16).tolist()
        image = backdrop(facts.scene, facts.time, int(u[0] * 4), size)
        margin = image.width - size
        left, top = round(u[1] * margin), round(u[2] * margin)
        image = image.crop((left, top, left + size, top + size))
        hung = () if _without_flags(self) else facts.countries
        for country, x, v in zip(hung, (0.28, 0.745), (u[4:9], u[9:14]), strict=False):
            _hang(image, country, facts.time, x, v)
        image = image.filter(ImageFilter.BoxBlur(math.sqrt(size / 64) * (0.05 + 0.3 * u[3])))
        pixels = np.asarray(image, np.float32) * np.float32(0.92 + 0.14 * u[14])
        field = _noise(size)
        x, y = rng.integers(_NOISE_FIELD, size=2)
        pixels += field[y : y + size, x : x + size] * np.float32(2 + 4 * u[15])
        return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def newsroom_pairs(split: str, n: int, *, seed: int = 0, image_size: int = 64) -> list[Pair]:
    """The first `n` pairs of a split; pictures are `image_size` pixels square and drawn on load.

    Entity splits carry explanations; their `section` is the scene. The `captions_` splits hold
    CAPTIONS_A_PICTURE pairs a picture, one after the other, with that picture as `group`. Labelled
    relation splits carry the relation's label as `section`, which `tweets.relation_labels` takes
    apart. Raises ValueError for an unknown split, n < 1, a negative seed, or pictures below 32
    pixels.
    """
    _known(split)
    check_request(n, seed, image_size)
    if split in _CAPTIONS:
        base = _CAPTIONS[split]
        pictures = range(math.ceil(n / CAPTIONS_A_PICTURE))
        pairs = [_captions(NewsroomPicture(base, seed, i, image_size), split) for i in pictures]
        return list(itertools.chain.from_iterable(pairs))[:n]
    return [_pair(NewsroomPicture(split, seed, index, image_size)) for index in range(n)]


def check_request(n: int, seed: int, image_size: int) -> None:
    """Raise ValueError for what no style of the newsroom draws."""
    if n < 1:
        raise ValueError(f"n is {n}; ask for at least one pair")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be an integer >= 0")
    if image_size < 32:
        raise ValueError(f"image_size is {image_size}; flags cannot be told apart below 32 pixels")


def newsroom_size(split: str) -> int:
    """How many pairs a split holds before a fact (for generic splits, a combination) repeats."""
    _known(split)
    if split in _CAPTIONS:
        return CAPTIONS_A_PICTURE * len(_table(0)[_CAPTIONS[split]])
    return len(_table(0)[split])


def newsroom_facts(pair: Pair | NewsroomPicture) -> Facts:
    """What a newsroom pair or picture shows. Raises TypeError for a pair of another data set."""
    picture = _picture(pair)
    return _facts(picture, _rng(picture.split, picture.seed, picture.index, 0))


def second_caption(pair: Pair) -> str:
    """Another caption of a train, val or test pair's picture: of its own kind, in other words.

    It names and does not describe: the first such caption of the ``captions_`` split that is not
    the pair's own. Raises TypeError as `newsroom_facts` does and ValueError for another split.
    """
    picture = _picture(pair)
    if picture.split not in _CAPTIONS.values():
        raise ValueError(f"{pair.id} is of split {picture.split}, which has no second captions")
    naming = _captions(picture, picture.split)[:_NAMING]
    return next(other.caption for other in naming if other.caption != pair.caption)


def newsroom_relation(pair: Pair | NewsroomPicture) -> Relation:
    """How text and picture of a relation split's pair relate, also where the label is not told.

    Raises TypeError as `newsroom_facts` does and ValueError for a pair of another split.
    """
    picture = _picture(pair)
    if picture.split not in RELATION_SPLITS:
        raise ValueError(
            f"{picture.key} is of split {picture.split}; only {', '.join(RELATION_SPLITS)} relate "
            "in different ways"
        )
    return draw_relation(_rng(picture.split, picture.seed, picture.index, 2))


def generated_caption(pair: Pair | NewsroomPicture) -> str:
    """What a captioning model would say of the picture alone: all that is seen, nothing named."""
    picture = _picture(pair)
    facts = newsroom_facts(picture)
    rng = _rng(picture.split, picture.seed, picture.index, 8)
    if _without_flags(picture):
        return wording.scene_caption(rng, facts.scene, facts.time)
    return wording.generic_caption(rng, facts.countries, facts.scene, facts.time)


def _picture(pair: Pair | NewsroomPicture) -> NewsroomPicture:
    picture = pair.image if isinstance(pair, Pair) else pair
    if not isinstance(picture, NewsroomPicture):
        raise TypeError(f"{pair!r} is not a picture of the drawn newsroom")
    return picture


def _without_flags(picture: NewsroomPicture) -> bool:
    return picture.split in RELATION_SPLITS and not newsroom_relation(picture).flags_shown


def _pair(picture: NewsroomPicture) -> Pair:
    facts = newsroom_facts(picture)
    # texts draw from their own stream: which flag stands left tells nothing of the caption's order
    rng = _rng(picture.split, picture.seed, picture.index, 1)
    countries = facts.countries if rng.random() < 0.5 else facts.countries[::-1]
    explanation, section = None, facts.scene
    if picture.split in RELATION_SPLITS:
        relation = newsroom_relation(picture)
        caption = relation_text(rng, relation, countries, facts.scene, facts.time)
        section = None if picture.split == "relation_unlabelled" else relation.label
    elif picture.split in _GENERIC:
        caption = wording.generic_caption(rng, countries, facts.scene, facts.time)
    else:
        capitals_only = picture.split == "test_longtail"
        caption = wording.entity_caption(rng, countries, facts.scene, capitals_only=capitals_only)
        explanation = wording.explanation(rng, countries)
    name = f"{picture.split}-{picture.seed}-{picture.index:06d}"
    return Pair(name, picture, caption, explanation, section=section)


def _captions(picture: NewsroomPicture, split: str) -> list[Pair]:
    """A picture's captions of unequal information: two name, two describe, one says little."""
    facts = newsroom_facts(picture)
    group = f"{split}-{picture.seed}-{picture.index:06d}"
    texts: list[str] = []
    for number in range(CAPTIONS_A_PICTURE):
        rng = _rng(picture.split, picture.seed, picture.index, 2 + number)
        text = _caption(rng, facts, number)
        while text in texts:  # few words describe a picture: say it otherwise
            text = _caption(rng, facts, number)
        texts.append(text)
    return [
        Pair(f"{group}#{number}", picture, text, group=group, section=facts.scene)
        for number, text in enumerate(texts)
    ]


def _caption(rng: np.random.Generator, facts: Facts, number: int) -> str:
    countries = facts.countries if rng.random() < 0.5 else facts.countries[::-1]
    if number < _NAMING:
        return wording.entity_caption(rng, countries, facts.scene, capitals_only=False)
    if number < 4:
        return wording.generic_caption(rng, countries, facts.scene, facts.time)
    return wording.short_caption(rng, countries[0], facts.scene)


def _facts(picture: NewsroomPicture, rng: np.random.Generator) -> Facts:
    rows = _table(picture.seed)[picture.split]
    first, second, scene, time = rows[picture.index % len(rows)]
    swap, clock = rng.random(2)
    pair = (COUNTRIES[first], COUNTRIES[second])
    if time < 0:  # entity splits leave the time of day open
        time = int(clock * len(TIMES))
    return Facts(pair[::-1] if swap < 0.5 else pair, SCENES[scene], TIMES[time])


@lru_cache(maxsize=8)
def _table(seed: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """Each split's rows: two countries, scene, time of day (-1: open). Disjoint by construction."""
    couples = list(itertools.combinations(range(len(COUNTRIES)), 2))
    facts = [(a, b, s, -1) for a, b in couples for s in range(len(SCENES))]
    facts = [facts[row] for row in _rng("facts", seed, 0, 0).permutation(len(facts))]
    held = {i for i, c in enumerate(COUNTRIES) if c.capital in wording.HELD_OUT_CAPITALS}
    table = {}
    # the long tail can only use facts whose capitals are both held out
    eligible = [row for row in facts if row[0] in held and row[1] in held]
    table["test_longtail"] = eligible[: round(_ENTITY["test_longtail"] * len(facts))]
    taken = set(table["test_longtail"])
    rest = [row for row in facts if row not in taken]
    for split in ("val", "test"):
        count = round(_ENTITY[split] * len(facts))
        table[split], rest = rest[:count], rest[count:]
    table["train"] = rest
    seen = [(a, b, s, t) for a, b, s, _ in facts for t in range(len(TIMES))]
    for stream, shares in (("generic", _GENERIC), ("relations", RELATION_SPLITS)):
        left = [seen[row] for row in _rng(stream, seed, 0, 0).permutation(len(seen))]
        for split, share in shares.items():
            count = round(share * len(seen))
            table[split], left = left[:count], left[count:]
    return table


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
    return _rng("noise", 0, 0, 0).standard_normal((side, side, 3), np.float32)


def _rng(stream: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    # numbers by name, never hash(): it differs from one process to the next
    number = _STREAMS.index(stream)
    sequence = np.random.SeedSequence([NEWSROOM_VERSION, number, seed, index, purpose])
    return np.random.Generator(np.random.PCG64(sequence))


def _known(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"the newsroom has no split {split!r}; there are {', '.join(SPLITS)}")
