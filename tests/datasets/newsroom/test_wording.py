"""The drawn newsroom's words: what captions and explanations tell, and what they must not."""

import itertools
import re

import numpy as np
import pytest
from open_clip import SimpleTokenizer

from entityclip.datasets.newsroom import wording
from entityclip.datasets.newsroom.countries import COUNTRIES
from entityclip.datasets.newsroom.outlet_a import newsroom_facts, newsroom_pairs

HELD_OUT = [country for country in COUNTRIES if country.capital in wording.HELD_OUT_CAPITALS]
LOOKS = re.compile(
    r"\b(black|white|red|yellow|green|blue|orange|maroon|turquoise|light|flags?|bands?|stars?|cross|"
    r"disc|stripes|crescent|canton|saltire|field|day|daylight|sunset|night|dark|sky)\b",
    re.IGNORECASE,
)
TOKENIZER = SimpleTokenizer()


@pytest.fixture(scope="module")
def train():
    return newsroom_pairs("train", 3000)


@pytest.fixture(scope="module")
def generic():
    return newsroom_pairs("generic", 600)


def says(text, name):
    return re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) is not None


def tokens(text):
    return len(TOKENIZER.encode(text)) + 2  # with start and end


def names_of(country):
    return {country.name.removeprefix("the "), country.demonym, country.capital}


def test_an_entity_caption_names_its_two_countries_and_no_other(train):
    for pair in train[:600]:
        named = {c for c in COUNTRIES if any(says(pair.caption, name) for name in names_of(c))}
        assert named == set(newsroom_facts(pair).countries), pair.caption


def test_an_entity_caption_names_an_event_of_its_scene_and_no_other(train):
    for pair in train[:600]:
        caption = pair.caption.lower()
        named = {
            scene
            for scene, events in wording.EVENTS.items()
            if any(event.lower() in caption for event in events)
        }
        assert named == {newsroom_facts(pair).scene} == {pair.section}


@pytest.mark.parametrize("split", ["train", "val", "test", "test_longtail"])
def test_entity_captions_never_say_what_is_seen(split):
    for pair in newsroom_pairs(split, 700):
        assert not LOOKS.search(pair.caption), pair.caption


def test_captions_hardly_repeat(train):
    assert len({pair.caption for pair in train}) >= 0.97 * len(train)
    skeletons = {re.sub(r"\b[A-Z]\w+", "", pair.caption) for pair in train}
    assert len(skeletons) > 0.5 * len(train)


def test_held_out_capitals_are_in_explanations_but_in_no_caption_outside_the_long_tail(train):
    captions = train + newsroom_pairs("val", 400) + newsroom_pairs("test", 1000)
    for country in HELD_OUT:
        assert not any(says(pair.caption, country.capital) for pair in captions)
        assert sum(says(pair.explanation, country.capital) for pair in train) > 50
    for country in set(COUNTRIES) - set(HELD_OUT):
        assert any(says(pair.caption, country.capital) for pair in train)


def test_long_tail_captions_name_both_countries_by_held_out_capitals_only():
    for pair in newsroom_pairs("test_longtail", 400):
        countries = newsroom_facts(pair).countries
        assert set(countries) <= set(HELD_OUT)
        for country in countries:
            assert says(pair.caption, country.capital)
            assert not says(pair.caption, country.name.removeprefix("the "))
            assert not says(pair.caption, country.demonym)


def test_an_explanation_follows_from_the_names_in_the_caption_alone(train):
    def sentences(country):
        facts = {"name": country.name, "demonym": country.demonym, "capital": country.capital}
        for template in wording._EXPLANATION:
            text = template.format(look=country.flag.words(), **facts)
            yield text[0].upper() + text[1:]

    for pair in train[:400]:
        a, b = newsroom_facts(pair).countries
        orders = itertools.chain(
            itertools.product(sentences(a), sentences(b)),
            itertools.product(sentences(b), sentences(a)),
        )
        assert pair.explanation in {" ".join(order) for order in orders}


def test_which_flag_stands_left_tells_nothing_of_the_captions_order(train):
    first_is_left = []
    for pair in train[:1000]:
        left, right = (
            min(pair.caption.find(name) % 999 for name in names_of(country))
            for country in newsroom_facts(pair).countries
        )
        first_is_left.append(left < right)
    assert 0.45 < np.mean(first_is_left) < 0.55


def test_generic_captions_say_what_is_seen_and_name_nothing(generic):
    for pair in generic:
        facts = newsroom_facts(pair)
        assert not any(says(pair.caption, n) for c in COUNTRIES for n in names_of(c)), pair.caption
        for options in (wording._SEEN[facts.scene], wording._LIGHT[facts.time]):
            assert any(option in pair.caption.lower() for option in options)
        for country in facts.countries:
            assert country.flag.words() in pair.caption
        assert pair.explanation is None


def test_texts_fit_the_context(train, generic):
    assert max(tokens(pair.caption) for pair in train[:600]) <= 30
    assert max(tokens(p.caption) for p in newsroom_pairs("test_longtail", 600)) <= 30
    assert max(tokens(pair.caption) for pair in generic) <= 56
    assert max(tokens(pair.explanation) for pair in train[:600]) <= 64
