"""Both outlets' pictures and facts, and that they stay what they are; words: test_wording.py."""

import hashlib
import itertools
import pickle
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
import pytest
from PIL import Image

from entityclip.datasets import load_pairs
from entityclip.datasets.newsroom import outlet_a, outlet_b, scenes
from entityclip.datasets.newsroom.countries import COUNTRIES
from entityclip.datasets.newsroom.outlet_a import (
    NewsroomPicture,
    newsroom_facts,
    newsroom_pairs,
    newsroom_size,
)
from entityclip.datasets.newsroom.outlet_b import (
    NewsroomBPicture,
    newsroom_b_facts,
    newsroom_b_pairs,
    newsroom_b_size,
)
from entityclip.datasets.pair import Pair, Picture


class Outlet(NamedTuple):
    name: str
    picture: type
    pairs: Callable
    facts: Callable
    size: Callable
    shares: dict[str, float]  # of the splits that share no fact
    places: tuple[float, float]  # where its flags hang
    height: int  # of their centre in a picture of 64 pixels
    reach: tuple[int, int]  # how far they hang from there, pixels


A = Outlet(
    "newsroom", NewsroomPicture, newsroom_pairs, newsroom_facts, newsroom_size,
    {"train": 0.75, "val": 0.04, "test": 0.21}, (0.28, 0.745), 16, (2, 4),
)  # fmt: skip
B = Outlet(
    "newsroom-b", NewsroomBPicture, newsroom_b_pairs, newsroom_b_facts, newsroom_b_size,
    {"train": 0.7, "val": 0.1, "test": 0.2}, (0.26, 0.735), 14, (3, 5),
)  # fmt: skip
both = pytest.mark.parametrize("outlet", [A, B], ids=["a", "b"])


# ------------------------------------------------------------------------------------- pictures


@both
@pytest.mark.parametrize("size", [32, 64, 101, 224])
def test_pictures_are_rgb_squares_of_the_size_asked_for(outlet, size):
    image = outlet.picture("train", 0, 5, size).load()
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert np.asarray(image).std() > 20


@both
def test_a_picture_follows_from_its_fields_alone(outlet):
    few, many = outlet.pairs("val", 4, seed=3), outlet.pairs("val", 40, seed=3)
    assert few == many[:4]
    forward = [pair.load_image().tobytes() for pair in many][:4]
    for function in (scenes.backdrop, scenes.flagpole, outlet_b._cloth):
        function.cache_clear()
    backward = [pair.load_image().tobytes() for pair in reversed(few)]
    assert backward[::-1] == forward
    assert pickle.loads(pickle.dumps(few[0].image)).load().tobytes() == forward[0]
    # and a change to what was drawn stays with who made it
    few[0].load_image().paste("red", (0, 0, 64, 64))
    assert few[0].load_image().tobytes() == forward[0]


@both
def test_pictures_and_their_keys_are_their_own(outlet):
    assert isinstance(outlet.pairs("val", 1)[0].image, Picture)
    variants = itertools.product(("train", "test"), (0, 1), (0, 1), (64, 224))
    pictures = [outlet.picture(*fields) for fields in variants]
    assert len({picture.key for picture in pictures}) == len(pictures)
    assert len({picture.load().tobytes() for picture in pictures}) == len(pictures)
    assert all(picture.key.startswith(f"{outlet.name}-v2/") for picture in pictures)


@both
def test_a_thousand_pictures_take_about_a_second(outlet):
    pictures = [pair.image for pair in outlet.pairs("train", 700)]
    for picture in pictures[:300]:
        picture.load()  # fills the caches of backdrops and flags
    start = time.process_time()
    for picture in pictures[300:]:
        picture.load()
    # 1,100 to 1,200 a second measured; what a loaded machine takes is not what we test
    assert len(pictures[300:]) / (time.process_time() - start) > 400


@both
def test_both_flags_can_be_told_at_64_pixels(outlet):
    """A nearest-flag reader, which knows only where flags hang, names nearly all of them."""

    def standardised(tiles):  # what light and grading do to a flag, a lift and a gain, undone
        tiles = tiles - tiles.mean((1, 2, 3), keepdims=True) * (outlet is B)
        return tiles / np.sqrt((tiles**2).mean((1, 2, 3), keepdims=True))

    width, height = 24, 16
    tiles = standardised(np.stack([np.asarray(c.flag.draw(width), float) for c in COUNTRIES]))
    right, (far, high) = [], outlet.reach
    for pair in outlet.pairs("test", 100):
        image = np.asarray(pair.load_image(), float)
        facts = outlet.facts(pair)
        for country, shown, x in zip(facts.countries, facts.shown, outlet.places, strict=True):
            if not shown:
                continue
            errors = []
            for dx, dy in itertools.product(range(-far, far + 1), range(-high, high + 1)):
                left, top = round(64 * x) - width // 2 + dx, outlet.height - height // 2 + dy
                cut = standardised(image[None, top : top + height, left : left + width])
                errors.append(((cut - tiles) ** 2).mean((1, 2, 3)))
            right.append(COUNTRIES[int(np.min(errors, 0).argmin())] is country)
    assert np.mean(right) > (0.95 if outlet is A else 0.9)


@pytest.mark.parametrize(("outlet", "split", "top"), [(A, "generic", 18), (B, "train", 16)])
def test_scenes_and_times_of_day_can_be_told_apart(outlet, split, top):
    """Below the flags, a picture is nearer to its own scene's mean than to any other's."""
    names, times = [*outlet.picture.scenes], outlet.picture.times
    facts, lower, n = [], [], len(times)
    for pair in outlet.pairs(split, 800, image_size=32):
        facts.append(outlet.facts(pair))
        lower.append(np.asarray(pair.load_image(), float)[top:])
    data, count = np.array(lower), n * len(names)
    kinds = np.array([names.index(f.scene) * n + times.index(f.time) for f in facts])
    means = np.stack([data[:400][kinds[:400] == kind].mean(0) for kind in range(count)])
    nearest = np.array([((means - row) ** 2).mean((1, 2, 3)).argmin() for row in data[400:]])
    assert (nearest // n == kinds[400:] // n).mean() > 0.9
    # the concert's hall looks the same at any hour
    seen = np.array([fact.scene != "concert" for fact in facts[400:]])
    assert (nearest % n == kinds[400:] % n)[seen].mean() > (0.9 if outlet is A else 0.85)


def test_the_two_outlets_differ_clearly():
    def colourfulness(pairs):
        pixels = np.array([pair.load_image() for pair in pairs], float)
        return (pixels.max(-1) - pixels.min(-1)).mean()

    assert colourfulness(B.pairs("train", 200)) < 0.75 * colourfulness(A.pairs("train", 200))
    assert not set(NewsroomPicture.scenes) & set(NewsroomBPicture.scenes)
    assert not set(NewsroomPicture.times) & set(NewsroomBPicture.times)
    assert len(NewsroomBPicture.scenes) >= 4


# ---------------------------------------------------------------------------------------- facts


def fact_keys(outlet, split, n, seed=0):
    for index in range(n):
        facts = outlet.facts(outlet.picture(split, seed, index, 64))
        yield frozenset(country.name for country in facts.countries), facts.scene, facts.time


def test_an_article_has_one_to_four_pictures_of_one_event_by_other_eyes_and_words():
    pairs = newsroom_pairs("train", 600)
    articles = [list(of) for _, of in itertools.groupby(pairs, key=lambda pair: pair.group)]
    assert len({pair.group for pair in pairs}) == len(articles)
    sizes = [len(article) for article in articles[:-1]]
    assert {*sizes} == {1, 2, 3, 4}
    assert 1.8 < np.mean(sizes) < 2.2
    for article in articles:
        facts = [newsroom_facts(pair) for pair in article]
        assert len({(frozenset(c.name for c in f.countries), f.scene, f.event) for f in facts}) == 1
        assert len({pair.caption for pair in article}) == len(article)
        assert len({pair.load_image().tobytes() for pair in article}) == len(article)
    assert all(pair.group is None for pair in newsroom_pairs("test", 5))


@both
def test_one_picture_in_five_shows_one_flag_only(outlet):
    facts = [outlet.facts(pair) for pair in outlet.pairs("train", 1500)]
    shown = np.array([fact.shown for fact in facts])
    assert shown.any(axis=1).all()
    assert 0.17 < (~shown).any(axis=1).mean() < 0.23
    assert 0.08 < (~shown[:, 0]).mean() < 0.12


@both
@pytest.mark.parametrize("seed", [0, 9])
def test_no_fact_is_in_two_entity_splits_or_twice_in_one(outlet, seed):
    seen = {}
    for split in outlet.shares:
        size = len(outlet.picture.table(seed)[split])
        pictures = outlet.picture.first(split, size, seed, 64)
        articles = {picture.row[4]: picture.row[:3] for picture in pictures}
        assert len({*articles.values()}) == len(articles)
        keys = [key[:2] for key in fact_keys(outlet, split, size, seed)]
        assert len(set(keys)) == len(articles)
        seen[split] = set(keys)
    for a, b in itertools.combinations(seen.values(), 2):
        assert not a & b
    total = len(COUNTRIES) * (len(COUNTRIES) - 1) // 2 * len(outlet.picture.scenes)
    assert sum(map(len, seen.values())) == total
    assert {split: round(len(keys) / total, 2) for split, keys in seen.items()} == outlet.shares


def test_generic_splits_are_disjoint_with_the_time_of_day():
    generic = list(fact_keys(A, "generic", newsroom_size("generic")))
    unseen = list(fact_keys(A, "generic_val", newsroom_size("generic_val")))
    assert len({*generic, *unseen}) == len(generic) + len(unseen)
    countries = set().union(*(names for names, _, _ in generic[:8000]))
    assert countries == {country.name for country in COUNTRIES}


def test_an_exhausted_split_repeats_facts_with_other_pictures_and_words():
    size = newsroom_size("val")
    pairs = newsroom_pairs("val", size + 50)
    for first, again in zip(pairs[:50], pairs[size:], strict=True):
        assert set(newsroom_facts(first).countries) == set(newsroom_facts(again).countries)
        assert newsroom_facts(first).scene == newsroom_facts(again).scene
        assert first.id != again.id
        assert first.caption != again.caption
        assert first.load_image().tobytes() != again.load_image().tobytes()


def test_times_of_day_are_spread_evenly():
    times = [time for _, _, time in fact_keys(A, "train", 3000)]
    assert all(900 < times.count(name) < 1110 for name in NewsroomPicture.times)


@both
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; there are train, val, test"),
        ({"n": 0}, "n is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"image_size": 31}, "image_size is 31"),
    ],
)
def test_bad_requests_are_refused(outlet, wrong, message):
    with pytest.raises(ValueError, match=message):
        outlet.pairs(**{"split": "train", "n": 1} | wrong)


@pytest.mark.parametrize(("outlet", "other"), [(A, B), (B, A)])
def test_pictures_from_elsewhere_have_no_facts_here(outlet, other):
    for pair in (Pair("a", Image.new("RGB", (4, 4)), "x"), other.pairs("val", 1)[0]):
        with pytest.raises(TypeError, match="not a picture of the drawn newsroom"):
            outlet.facts(pair)


@both
def test_it_is_a_data_set_by_name(outlet):
    pairs = load_pairs(outlet.name, "val", limit=3, seed=5, image_size=40)
    assert pairs == outlet.pairs("val", 3, seed=5, image_size=40)
    assert pairs[0].load_image().size == (40, 40)
    assert len(load_pairs(outlet.name, "val")) == outlet.size("val")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_captions_splits_describe_the_entity_splits_pictures_five_times(split):
    pairs = newsroom_pairs(f"captions_{split}", 200, seed=1)
    pictures = [pair.image for pair in newsroom_pairs(split, 40, seed=1)]
    assert [pair.image for pair in pairs] == [p for p in pictures for _ in range(5)]
    assert len({pair.id for pair in pairs}) == 200
    assert len({(pair.group, pair.image_key) for pair in pairs}) == 40
    for start in range(0, 200, 5):
        texts = [pair.caption for pair in pairs[start : start + 5]]
        assert len(set(texts)) == 5
        facts = newsroom_facts(pairs[start])
        names = [(c.name, c.capital, c.demonym) for c in facts.countries]
        named = [any(w in text for w in forms) for text in texts for forms in names]
        # two name both countries, two none, the last only one of them
        assert named[:8] == [True] * 4 + [False] * 4
        assert any(named[8:])
        assert len(texts[4]) < max(map(len, texts[:2]))
    assert newsroom_size(f"captions_{split}") == 5 * newsroom_size(split)
    assert newsroom_pairs(f"captions_{split}", 7, seed=1) == pairs[:7]


# --------------------------------------------------------------------------------------- golden

# sha256 of the texts and of the pictures, by outlet, splits, pairs a split and seeds. Who changes
# words or drawing raises the outlet's version and renews these: keys carry the version, so caches
# and stored fingerprints of older drawings stop matching
GOLDEN = [
    (A, ("train",), 60, (0, 7), 64, "b9ec6e80c1c2f92a", "2c2d1fcb35243963"),
    (A, ("val",), 60, (0, 7), 64, "1bf5135503213ba6", "d9f90e82bbbc50c0"),
    (A, ("test",), 60, (0, 7), 64, "febbaa5883550926", "c6db7407eca9d6c7"),
    (A, outlet_a.SPLITS[3:7], 20, (0, 7), 64, "4fbd55c554a6482c", "e72a3e71aaf44fd0"),
    (A, ("generic",), 60, (0, 7), 64, "ac2f7121458d8443", "0887c4c98a141651"),
    (A, ("generic_val",), 60, (0, 7), 64, "8e79cfcae612cb21", "1690b41220d85d84"),
    (A, outlet_a.SPLITS[9:12], 10, (2,), 64, "ee87e9e9a7ec55cc", "83460848a69b14ff"),
    (A, outlet_a.SPLITS[12:], 10, (2,), 64, "9da879d4103cb06c", "237ae8b250c8968c"),
    (A, ("test",), 2, (2,), 224, "19fe7ae87e6d58d5", "7a5b4d0da6b8089d"),
    (B, outlet_b.SPLITS, 40, (2,), 64, "0b5bff5814bb6596", "10a8524a3988db14"),
    (B, ("test",), 2, (2,), 224, "a8a08937b931d84b", "cf105bf2caf29911"),
]


def golden(outlet, splits, count, seeds, size):
    return [
        pair
        for seed in seeds
        for split in splits
        for pair in outlet.pairs(split, count, seed=seed, image_size=size)
    ]


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.mark.parametrize("row", GOLDEN)
def test_texts_and_facts_are_those_of_this_version(row):
    """The same in any process."""
    assert outlet_a.NEWSROOM_VERSION == outlet_b.NEWSROOM_B_VERSION == 2
    texts = ""
    for p in golden(*row[:5]):
        values = (p.id, p.image_key, p.caption, p.explanation, p.group, p.section)
        texts += "|".join(map(str, values)) + "\n"
    assert digest(texts.encode()) == row[5]


@pytest.mark.skipif(
    (PIL.__version__, platform.machine()) != ("13.0.0", "x86_64"),
    reason="another Pillow or processor may round a pixel otherwise; pinned for Pillow 13.0.0",
)
@pytest.mark.parametrize("row", GOLDEN)
def test_pictures_are_those_of_this_version(row):
    drawn = [pair.load_image().tobytes() for pair in golden(*row[:5])]
    assert digest(b"".join(drawn)) == row[6]
