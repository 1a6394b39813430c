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

NAMINGS = ("common", "rare", "alias", "unseen")
QUERIES = {"test": "common", "test_rare": "rare", "test_alias": "alias", "test_unseen": "unseen"}
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
    return {country.name.removeprefix("the "), country.demonym, country.capital, country.city}


def told_by(texts, naming):
    return np.array(wording.name_counts(texts)[naming])


def test_names_are_counted_as_they_stand_in_texts():
    counts = wording.name_counts(["Officials from the Netherlands", "Dutch mayors from Paris"])
    place = [country.name for country in COUNTRIES].index("the Netherlands")
    held = {naming: counts[naming][place] for naming in NAMINGS}
    assert sorted(held.values()) == [0, 0, 1, 1]
    assert sum(counts["alias"]) == 1
    assert sum(map(sum, counts.values())) == 3


def phrasings(events):
    return {scene: {*itertools.chain(*told)} for scene, told in events.items()}


def test_an_entity_caption_names_two_countries_an_event_and_at_times_a_third(outlet):
    train, facts_of, events, _ = outlet
    thirds = 0
    for pair in train[:600]:
        facts = facts_of(pair)
        named = {c for c in COUNTRIES if any(says(pair.caption, name) for name in names_of(c))}
        assert named >= set(facts.countries), pair.caption
        assert len(named) <= 3
        thirds += len(named) == 3
        told = events[facts.scene][facts.event]
        assert wording.event_of(pair.caption) in told, pair.caption
        assert pair.section == facts.scene
    assert 0.35 < thirds / 600 < 0.45


def test_there_are_twenty_events_and_more_whose_words_some_scenes_share():
    for events in (wording.EVENTS, wording.EVENTS_B):
        told = phrasings(events)
        assert sum(map(len, events.values())) >= 18
        assert all(len(set(words)) == len(words) for words in told.values())
        for a, b in itertools.combinations(told.values(), 2):
            assert not a & b  # the whole phrase tells the scene
    words = {scene: {*" ".join(told).split()} for scene, told in phrasings(wording.EVENTS).items()}
    for word in ("deal", "talks", "strike", "opening", "contract", "conference"):
        assert sum(word in of for of in words.values()) >= 2
    assert sum(map(len, wording.EVENTS.values())) >= 20


@pytest.mark.parametrize("split", ["train", "val", *QUERIES])
def test_entity_captions_never_say_what_is_seen(split):
    pairs = newsroom_pairs(split, 700)
    if split in ("train", "val", "test"):
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
    one, other = (set().union(*phrasings(e).values()) for e in (wording.EVENTS, wording.EVENTS_B))
    assert not one & other


# ------------------------------------------------------------- what training could know: alarms


@pytest.mark.parametrize("seed", [0, 1])
def test_each_kind_of_name_is_as_often_in_training_as_it_says(seed):
    """For as many pairs as the demo trains on, and for fewer never more than it says."""
    train = newsroom_pairs("train", 3000, seed=seed)
    captions, explanations = [p.caption for p in train], [p.explanation for p in train]
    held = {naming: told_by(captions, naming) for naming in NAMINGS}
    assert held["common"].min() >= 20
    assert held["rare"].min() >= 1
    assert held["rare"].max() <= 3
    assert not held["alias"].any()
    assert not held["unseen"].any()
    for naming in ("common", "rare", "alias"):
        assert told_by(explanations, naming).min() >= 20
    assert not told_by(explanations, "unseen").any()


def test_names_come_as_zipf_says(train):
    """The frequency of the r-th name falls about as 1 / r where a flat draw would have none."""
    held = np.sort(told_by([pair.caption for pair in train], "common"))[::-1]
    assert held[0] > 5 * held[-1]
    assert held[:10].sum() > 0.35 * held.sum()


def test_unseen_names_are_nowhere_but_in_their_own_query_set(generic):
    texts = [p.caption for p in generic]
    for split in ("train", "val", "val_longtail", "test", "test_rare", "test_alias"):
        for pair in newsroom_pairs(split, 600):
            texts += [pair.caption, pair.explanation]
    for split in ("captions_train", "relation_train", "relation_unlabelled"):
        texts += [pair.caption for pair in newsroom_pairs(split, 600)]
    texts += [text for p in newsroom_b_pairs("train", 600) for text in (p.caption, p.explanation)]
    assert not told_by(texts, "unseen").any()


@pytest.mark.parametrize("seed", [0, 1])
def test_no_fact_caption_or_explanation_of_a_query_set_is_in_training(seed):
    train = newsroom_pairs("train", 3000, seed=seed)
    scenes = {words: s for s, told in phrasings(wording.EVENTS).items() for words in told}

    def facts_told(text):  # every two countries that a text names, and its scene
        named = {country.name for country in wording.named_countries(text)}
        scene = scenes[wording.event_of(text)]
        return {(frozenset(two), scene) for two in itertools.combinations(named, 2)}

    known = {text for pair in train for text in (pair.caption, pair.explanation)}
    told = set().union(*(facts_told(text) for text in known))
    for split in (*QUERIES, "val", "val_longtail"):
        for pair in newsroom_pairs(split, 250 if split.startswith("val") else 2000, seed=seed):
            facts = newsroom_facts(pair)
            assert (frozenset(c.name for c in facts.countries), facts.scene) not in told
            assert pair.caption not in known


def test_query_sets_say_the_same_of_the_same_pictures_but_for_the_names():
    sets = [newsroom_pairs(split, 300) for split in QUERIES]
    for pairs in zip(*sets, strict=True):
        assert len({pair.image_key for pair in pairs}) == 1
        frames = set()
        for pair, naming in zip(pairs, QUERIES.values(), strict=True):
            text = pair.caption
            for country in newsroom_facts(pair).countries:
                assert says(text, wording.spoken(country, naming).removeprefix("the ")), text
            for country in COUNTRIES:
                for name in names_of(country) | {country.name}:
                    text = re.sub(rf"\b(?:from )?(?:the )?{name}\b ?", "", text)
            frames.add(" ".join(sorted(re.findall(r"\w+", text.lower()))))
        assert len(frames) == 1, frames


def test_the_long_tail_to_choose_by_has_rare_names_and_aliases_in_turn():
    pairs, plain = newsroom_pairs("val_longtail", 200), newsroom_pairs("val", 200)
    for number, (pair, same) in enumerate(zip(pairs, plain, strict=True)):
        assert pair.image_key == same.image_key
        naming = ("rare", "alias")[number % 2]
        for country in newsroom_facts(pair).countries:
            assert says(pair.caption, wording.spoken(country, naming).removeprefix("the "))


# ---------------------------------------------------------------------------------- explanations


def test_an_explanation_restates_the_event_and_tells_of_the_first_two_countries(outlet):
    train, facts_of, _, _ = outlet
    true = false = none = 0
    for pair in train[:600]:
        first = wording.named_countries(pair.caption)[:2]
        assert says(pair.explanation, wording.event_of(pair.caption))
        assert wording.named_countries(pair.explanation) == first
        assert not says(pair.explanation, facts_of(pair).time)
        looks = [country.flag.words() in pair.explanation for country in first]
        told = sum(country.flag.words() in pair.explanation for country in COUNTRIES)
        true, false, none = (
            true + all(looks),
            false + (told > 0 and not all(looks)),
            none + (not told),
        )
    assert 0.7 < true / 600 < 0.82
    assert 0.08 < none / 600 < 0.17
    assert false + none + true == 600


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_share_of_false_explanations_is_a_knob(share, train):
    rng = np.random.default_rng(0)
    poor = 0
    for pair in train[:500]:
        text = wording.explanation(rng, pair.caption, false=share)
        first = wording.named_countries(pair.caption)[:2]
        poor += not all(country.flag.words() in text for country in first)
    assert abs(poor / 500 - share) <= 0.08
    assert share or not poor


def test_an_explanation_follows_from_the_caption_alone():
    caption = "Irish unions and officials from Chad discuss the cup final, without Peruvian mayors"
    text = wording.explanation(np.random.default_rng(1), caption, false=0)
    assert [c.name for c in wording.named_countries(text)] == ["Ireland", "Peru"]
    assert "the cup final" in text.lower()
    assert wording.explanation(np.random.default_rng(1), "nobody says anything") == ""


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
        assert facts.shown == (True, True)
        assert pair.explanation is None


def test_texts_fit_the_context(train, train_b, generic):
    assert max(tokens(pair.caption) for pair in train) <= 34
    assert max(tokens(pair.caption) for pair in train_b) <= 36
    assert max(tokens(p.caption) for p in newsroom_pairs("test_unseen", 600)) <= 38
    assert max(tokens(pair.caption) for pair in generic) <= 56
    assert max(tokens(pair.explanation) for pair in [*train, *train_b]) <= 72
