"""Style B of the drawn newsroom: its pictures, its words, and that style A stayed as it was."""

import hashlib
import itertools
import pickle
import platform
import re
import time

import numpy as np
import PIL
import pytest
from PIL import Image

from entityclip.datasets import load_pairs
from entityclip.datasets.newsroom import wording
from entityclip.datasets.newsroom.countries import COUNTRIES
from entityclip.datasets.newsroom.outlet_a import newsroom_facts, newsroom_pairs
from entityclip.datasets.newsroom.outlet_b import (
    EVENTS_B,
    NEWSROOM_B_VERSION,
    SCENES_B,
    SPLITS,
    NewsroomBPicture,
    backdrop_b,
    newsroom_b_facts,
    newsroom_b_pairs,
    newsroom_b_size,
)
from entityclip.datasets.newsroom.scenes import SCENES, TIMES, TIMES_B
from entityclip.datasets.pair import Pair
from tests.datasets.newsroom.test_wording import HELD_OUT, LOOKS, names_of, says, tokens
from tests.processes import run_alone

PILLOW = pytest.mark.skipif(
    (PIL.__version__, platform.machine()) != ("13.0.0", "x86_64"),
    reason="another Pillow or processor may round a pixel otherwise; pinned for Pillow 13.0.0",
)

# of 60 pairs each with seeds 0 and 7, taken before style B came: (texts, pictures)
STYLE_A = {
    "train": ("9c9956fd7a04fdd0ff5925290816fa71", "6dec011240bcd2997871e0795ca73d76"),
    "val": ("a9fd3b6772e6cf83309103d34d8a0dec", "67661e12844e2efe2636f62c52abf395"),
    "test": ("090b79dbc8a4c7ef0111cb38ab0027c6", "f3be286fbd47d4b870166c4c2ca3fef7"),
    "test_longtail": ("034f7876530bab42ac0fd0cc818fb126", "3a5092a625f4161ba14b24a466eb2338"),
    "generic": ("37c5b300e02aa77325cf6a06540c37ac", "50624c3f149ea31df6baf2071753be94"),
    "generic_val": ("e64900437b532459133f255f047fde0b", "f5a2a58f4cbba61f8a38b53e946118c8"),
}


def style_a(split):
    return [pair for seed in (0, 7) for pair in newsroom_pairs(split, 60, seed=seed)]


@pytest.fixture(scope="module")
def train():
    return newsroom_b_pairs("train", 1500)


# ---------------------------------------------------------------------- style A is what it was


@pytest.mark.parametrize("split", STYLE_A)
def test_style_a_says_what_it_said_before_style_b(split):
    digest = hashlib.sha256()
    for p in style_a(split):
        fields = (p.id, p.image_key, p.caption, p.explanation, p.group, p.section)
        digest.update(("|".join(map(str, fields)) + "\n").encode())
    assert digest.hexdigest()[:32] == STYLE_A[split][0]


@PILLOW
@pytest.mark.parametrize("split", STYLE_A)
def test_style_a_draws_what_it_drew_before_style_b(split):
    digest = hashlib.sha256()
    for pair in style_a(split):
        digest.update(pair.load_image().tobytes())
    assert digest.hexdigest()[:32] == STYLE_A[split][1]


# ----------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [32, 64, 101, 224])
def test_pictures_are_rgb_squares_of_the_size_asked_for(size):
    image = NewsroomBPicture("train", 0, 5, size).load()
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert np.asarray(image).std() > 20


def test_a_picture_follows_from_its_fields_alone():
    few, many = newsroom_b_pairs("val", 4, seed=3), newsroom_b_pairs("val", 40, seed=3)
    assert few == many[:4]
    forward = [pair.load_image().tobytes() for pair in many][:4]
    backdrop_b.cache_clear()
    backward = [pair.load_image().tobytes() for pair in reversed(few)]
    assert backward[::-1] == forward
    assert pickle.loads(pickle.dumps(few[0].image)).load().tobytes() == forward[0]
    assert len({newsroom_b_pairs("val", 1, seed=s)[0].load_image().tobytes() for s in range(4)}) > 3


def print_digest():
    """Of nine pairs, drawn in reverse order."""
    pairs = newsroom_b_pairs("test", 9, seed=5)[::-1]
    drawn = [pair.load_image().tobytes() + pair.caption.encode() for pair in pairs]
    print(hashlib.sha256(b"".join(drawn[::-1])).hexdigest())


def test_another_process_draws_the_same_bytes():
    here = b"".join(
        p.load_image().tobytes() + p.caption.encode() for p in newsroom_b_pairs("test", 9, seed=5)
    )
    assert run_alone(print_digest) == hashlib.sha256(here).hexdigest()


def test_a_thousand_pictures_take_about_a_second():
    pictures = [pair.image for pair in newsroom_b_pairs("train", 700)]
    for picture in pictures[:300]:
        picture.load()  # fills the caches of backdrops and flags
    start = time.process_time()
    for picture in pictures[300:]:
        picture.load()
    # 1,100 to 1,200 a second measured; what a loaded machine takes is not what we test
    assert len(pictures[300:]) / (time.process_time() - start) > 400


def test_both_flags_can_be_told_at_64_pixels():
    """A nearest-flag reader, which knows only where flags hang, names nearly all of them."""
    width, height = 24, 16
    tiles = np.stack([np.asarray(c.flag.draw(width), float) for c in COUNTRIES])
    tiles = standardised(tiles)
    right = []
    for pair in newsroom_b_pairs("test", 100):
        image = np.asarray(pair.load_image(), float)
        for country, x in zip(newsroom_b_facts(pair).countries, (0.26, 0.735), strict=True):
            errors = []
            for dx, dy in itertools.product(range(-3, 4), range(-5, 6)):
                left, top = round(64 * x) - width // 2 + dx, 14 - height // 2 + dy
                cut = standardised(image[None, top : top + height, left : left + width])
                errors.append(((cut - tiles) ** 2).mean((1, 2, 3)))
            right.append(COUNTRIES[int(np.min(errors, 0).argmin())] is country)
    assert np.mean(right) > 0.9


def standardised(tiles):
    """What grading does to a flag, a lift and a gain, undone."""
    tiles = tiles - tiles.mean((1, 2, 3), keepdims=True)
    return tiles / np.sqrt((tiles**2).mean((1, 2, 3), keepdims=True))


def test_scenes_and_times_of_day_can_be_told_apart():
    """Below the flags, a picture is nearer to its own scene's mean than to any other's."""
    facts, lower = [], []
    for pair in newsroom_b_pairs("train", 800, image_size=32):
        facts.append(newsroom_b_facts(pair))
        lower.append(np.asarray(pair.load_image(), float)[16:])
    data, n = np.array(lower), len(TIMES_B)
    kinds = np.array([SCENES_B.index(f.scene) * n + TIMES_B.index(f.time) for f in facts])
    means = np.stack([data[:400][kinds[:400] == k].mean(0) for k in range(n * len(SCENES_B))])
    nearest = np.array([((means - row) ** 2).mean((1, 2, 3)).argmin() for row in data[400:]])
    assert (nearest // n == kinds[400:] // n).mean() > 0.9
    # the concert's hall looks the same at any hour
    outdoors = kinds[400:] // n != SCENES_B.index("concert")
    assert (nearest % n == kinds[400:] % n)[outdoors].mean() > 0.85


def test_the_two_styles_differ_clearly():
    a = np.array([p.load_image() for p in newsroom_pairs("train", 200)], float)
    b = np.array([p.load_image() for p in newsroom_b_pairs("train", 200)], float)

    def colourfulness(x):
        return (x.max(-1) - x.min(-1)).mean()

    assert colourfulness(b) < 0.75 * colourfulness(a)
    assert not set(SCENES) & set(SCENES_B)
    assert not set(TIMES) & set(TIMES_B)
    assert len(SCENES_B) >= 4


# -------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("seed", [0, 9])
def test_no_fact_is_in_two_splits_or_twice_in_one(seed):
    seen = []
    for split in SPLITS:
        for index in range(newsroom_b_size(split)):
            facts = newsroom_b_facts(NewsroomBPicture(split, seed, index, 64))
            seen.append((frozenset(c.name for c in facts.countries), facts.scene))
    assert len(set(seen)) == len(seen) == 1225 * len(SCENES_B)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="newsroom-b has no split 'dev'; there are train, val"):
        load_pairs("newsroom-b", "dev")
    for arguments, message in (
        ({"n": 0}, "n is 0"),
        ({"n": 1, "seed": -1}, "seed is -1"),
        ({"n": 1, "image_size": 31}, "image_size is 31"),
    ):
        with pytest.raises(ValueError, match=message):
            newsroom_b_pairs("train", **arguments)
    with pytest.raises(TypeError, match="not a picture of the drawn newsroom's style B"):
        newsroom_b_facts(Pair("a", Image.new("RGB", (4, 4)), "x"))
    with pytest.raises(TypeError, match="not a picture of the drawn newsroom"):
        newsroom_facts(newsroom_b_pairs("val", 1)[0])


def test_it_is_a_data_set_by_name():
    pairs = load_pairs("newsroom-b", "val", limit=3, seed=5, image_size=40)
    assert pairs == newsroom_b_pairs("val", 3, seed=5, image_size=40)
    assert pairs[0].load_image().size == (40, 40)
    assert len(load_pairs("newsroom-b", "val")) == newsroom_b_size("val")


# -------------------------------------------------------------------------------------- words


def test_a_caption_names_its_two_countries_an_event_of_its_scene_and_nothing_else(train):
    for pair in train[:600]:
        facts, caption = newsroom_b_facts(pair), pair.caption.lower()
        named = {c for c in COUNTRIES if any(says(pair.caption, name) for name in names_of(c))}
        assert named == set(facts.countries), pair.caption
        scenes = {
            scene
            for scene, events in EVENTS_B.items()
            if any(event.lower() in caption for event in events)
        }
        assert scenes == {facts.scene} == {pair.section}, pair.caption


@pytest.mark.parametrize("split", SPLITS)
def test_captions_never_say_what_is_seen(split):
    for pair in newsroom_b_pairs(split, 700):
        assert not LOOKS.search(pair.caption), pair.caption
        assert not re.search(r"\b(dawn|rain|dusk|cord)\b", pair.caption), pair.caption


def test_held_out_capitals_are_in_explanations_but_in_no_caption(train):
    captions = train + newsroom_b_pairs("val", 300) + newsroom_b_pairs("test", 700)
    for country in HELD_OUT:
        assert not any(says(pair.caption, country.capital) for pair in captions)
        assert any(says(pair.explanation, country.capital) for pair in train)
    for country in set(COUNTRIES) - set(HELD_OUT):
        assert any(says(pair.caption, country.capital) for pair in train)


def test_captions_are_another_outlets(train):
    """No event, and hardly a caption's skeleton, is style A's; hardly a caption recurs."""
    events = {event for events in wording.EVENTS.values() for event in events}
    assert not events & {event for events in EVENTS_B.values() for event in events}
    assert len({pair.caption for pair in train}) >= 0.97 * len(train)

    def skeletons(pairs):
        return {re.sub(r"\b[A-Z]\w+", "", pair.caption) for pair in pairs}

    assert not skeletons(train) & skeletons(newsroom_pairs("train", 3000))


def test_explanations_are_of_the_two_countries_and_texts_fit_the_context(train):
    for pair in train[:400]:
        for country in newsroom_b_facts(pair).countries:
            assert country.flag.words() in pair.explanation
            assert says(pair.explanation, country.capital)
    assert max(tokens(pair.caption) for pair in train[:600]) <= 34
    assert max(tokens(pair.explanation) for pair in train[:600]) <= 64


# -------------------------------------------------------------------------------------- golden

GOLDEN_VERSION = 1
GOLDEN_TEXTS = "4010c3ccca4d589a2478f89da18bb3ba"
GOLDEN_PICTURES = "cde3e412b8fdc4d44c651242f12d2e2e"


def golden_pairs():
    return [pair for split in SPLITS for pair in newsroom_b_pairs(split, 8, seed=2)]


def test_texts_are_those_of_this_version():
    """Who changes the words raises NEWSROOM_B_VERSION and renews these."""
    assert NEWSROOM_B_VERSION == GOLDEN_VERSION
    lines = [f"{pair.image_key}|{pair.caption}|{pair.explanation}" for pair in golden_pairs()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == GOLDEN_TEXTS


@PILLOW
def test_pictures_are_those_of_this_version():
    """Who changes the drawing raises NEWSROOM_B_VERSION and renews these."""
    digest = hashlib.sha256()
    for pair in golden_pairs():
        digest.update(pair.load_image().tobytes())
    digest.update(NewsroomBPicture("test", 2, 0, 224).load().tobytes())
    assert digest.hexdigest()[:32] == GOLDEN_PICTURES
