"""The drawn newsroom's words: what captions and explanations tell, and what they must not."""

import itertools
import re

import numpy as np
import pytest
from open_clip import SimpleTokenizer

from entityclip.datasets.newsroom import wording
from entityclip.datasets.newsroom.countries import COUNTRIES
from entityclip.datasets.newsroom.outlet_a import newsroom_facts, newsroom_pairs
from entityclip.datasets.newsroom.outlet_b import newsroom_b_facts, newsroom_b_pairs

HELD_OUT = [country for country in COUNTRIES if country.capital in wording.HELD_OUT_CAPITALS]
LOOKS = re.compile(
    r"\b(black|white|red|yellow|green|blue|orange|maroon|turquoise|light|flags?|bands?|stars?|"
    r"cross|disc|stripes|crescent|canton|saltire|field|day|daylight|sunset|night|dark|sky|dawn|"
    r"rain|dusk|cord)\b",
    re.IGNORECASE,
)
TOKENIZER = SimpleTokenizer()


@pytest.fixture(scope="module")
def train():
    return newsroom_pairs("train", 3000)


@pytest.fixture(scope="module")
def train_b():
    return newsroom_b_pairs("train", 1500)


@pytest.fixture(scope="module")
def generic():
    return newsroom_pairs("generic", 600)


@pytest.fixture(params=["a", "b"])
def outlet(request, train, train_b):
    """Training pairs, what they show, the events of each scene, more pairs of a split."""
    if request.param == "a":
        return train, newsroom_facts, wording.EVENTS, newsroom_pairs
    return train_b, newsroom_b_facts, wording.EVENTS_B, newsroom_b_pairs


def says(text, name):
    return re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) is not None


def tokens(text):
    return len(TOKENIZER.encode(text)) + 2  # with start and end


def names_of(country):
    return {country.name.removeprefix("the "), country.demonym, country.capital}


def test_an_entity_caption_names_two_countries_and_an_event_of_its_scene_and_no_other(outlet):
    train, facts_of, events, _ = outlet
    for pair in train[:600]:
        facts, caption = facts_of(pair), pair.caption.lower()
        named = {c for c in COUNTRIES if any(says(pair.caption, name) for name in names_of(c))}
        assert named == set(facts.countries), pair.caption
        told = {s for s, texts in events.items() if any(text.lower() in caption for text in texts)}
        assert told == {facts.scene} == {pair.section}, pair.caption


@pytest.mark.parametrize("split", ["train", "val", "test", "test_longtail"])
def test_entity_captions_never_say_what_is_seen(split):
    pairs = newsroom_pairs(split, 700)
    if split != "test_longtail":
        pairs += newsroom_b_pairs(split, 700)
    for pair in pairs:
        assert not LOOKS.search(pair.caption), pair.caption


def test_captions_hardly_repeat(outlet):
    train = outlet[0]
    assert len({pair.caption for pair in train}) >= 0.97 * len(train)


def skeletons(pairs):
    return {re.sub(r"\b[A-Z]\w+", "", pair.caption) for pair in pairs}


def test_no_event_and_no_captions_skeleton_is_of_both_outlets(train, train_b):
    assert len(skeletons(train)) > 0.5 * len(train)
    assert not skeletons(train) & skeletons(train_b)
    events = [set(itertools.chain(*texts.values())) for texts in (wording.EVENTS, wording.EVENTS_B)]
    assert not events[0] & events[1]


def test_held_out_capitals_are_in_explanations_but_in_no_caption_outside_the_long_tail(outlet):
    train, _, _, more = outlet
    captions = train + more("val", 400) + more("test", 1000)
    for country in HELD_OUT:
        assert not any(says(pair.caption, country.capital) for pair in captions)
        assert sum(says(pair.explanation, country.capital) for pair in train) > 20
    for country in set(COUNTRIES) - set(HELD_OUT):
        assert any(says(pair.caption, country.capital) for pair in train)


def test_long_tail_captions_name_both_countries_by_held_out_capitals_only():
    for pair in newsroom_pairs("test_longtail", 400):
        for country in newsroom_facts(pair).countries:
            assert country in HELD_OUT
            told = {name for name in names_of(country) if says(pair.caption, name)}
            assert told == {country.capital}


def test_an_explanation_follows_from_the_names_in_the_caption_alone(outlet):
    train, facts_of, _, _ = outlet

    def sentences(country):
        facts = {"name": country.name, "demonym": country.demonym, "capital": country.capital}
        for template in wording._EXPLANATION:
            text = template.format(look=country.flag.words(), **facts)
            yield text[0].upper() + text[1:]

    for pair in train[:400]:
        orders = itertools.permutations(map(list, map(sentences, facts_of(pair).countries)))
        texts = {" ".join(told) for order in orders for told in itertools.product(*order)}
        assert pair.explanation in texts


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


def test_texts_fit_the_context(train, train_b, generic):
    assert max(tokens(pair.caption) for pair in train[:600]) <= 30
    assert max(tokens(pair.caption) for pair in train_b[:600]) <= 34
    assert max(tokens(pair.explanation) for pair in train_b[:600]) <= 64
    assert max(tokens(p.caption) for p in newsroom_pairs("test_longtail", 600)) <= 30
    assert max(tokens(pair.caption) for pair in generic) <= 56
    assert max(tokens(pair.explanation) for pair in train[:600]) <= 64
