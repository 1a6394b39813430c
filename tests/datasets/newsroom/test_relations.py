"""Image-text relations in the newsroom: what is drawn, what is told, what the labels mean."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from entityclip.datasets import load_pairs
from entityclip.datasets.captions import with_generated
from entityclip.datasets.newsroom import countries
from entityclip.datasets.newsroom.outlet_a import (
    RELATION_SPLITS,
    NewsroomPicture,
    generated_caption,
    newsroom_facts,
    newsroom_pairs,
    newsroom_relation,
    newsroom_size,
)
from entityclip.datasets.newsroom.wording import _SEEN, Relation, draw_relation
from entityclip.datasets.sources.tweets import relation_labels

GOLDEN = "4f47714165352f624f39ab217beb695c5f6a4a122364083f3226437efbc22936"
FLAGS = re.compile("flag", re.IGNORECASE)


@pytest.fixture(scope="module")
def labelled():
    return newsroom_pairs("relation_train", 1200)


def scenes_told(text):
    return {scene for scene, forms in _SEEN.items() for form in forms if form in text.lower()}


def test_labels_are_what_text_and_picture_say(labelled):
    """Labels re-derived from the words and the drawing alone."""
    for pair in labelled:
        told, flags_told = scenes_told(pair.caption), bool(FLAGS.search(pair.caption))
        represented, adds = relation_labels(pair.section)
        assert represented == (told == {newsroom_facts(pair).scene}), pair.caption
        assert adds == (newsroom_relation(pair).flags_shown and not flags_told), pair.caption
        if flags_told:
            looks = [country.flag.words() for country in newsroom_facts(pair).countries]
            assert all(look in pair.caption.lower() for look in map(str.lower, looks))


def test_flags_are_drawn_exactly_where_the_relation_says(labelled):
    """Other flags change a picture that shows flags, and leave one without as it is."""
    original = NewsroomPicture.facts

    def swapped(which, rng=None):
        facts = original(which, rng)
        other = [c for c in countries.COUNTRIES if c not in facts.countries][:2]
        return replace(facts, countries=tuple(other))

    for pair in labelled[:40]:
        with patch.object(NewsroomPicture, "facts", swapped):
            others = pair.image.load().tobytes()
        assert (pair.image.load().tobytes() != others) == newsroom_relation(pair).flags_shown


def test_classes_are_even_and_neither_side_decides_alone(labelled):
    counts = Counter(pair.section for pair in labelled)
    assert set(counts) == {"0", "1", "2", "3"}
    assert min(counts.values()) > 0.2 * len(labelled)
    relations = [newsroom_relation(pair) for pair in labelled]
    by_text = [(relation.tells == "talk", relation.flags_told) for relation in relations]
    by_picture = [relation.flags_shown for relation in relations]
    for seen in (by_text, by_picture):
        for label in zip(*(relation_labels(pair.section) for pair in labelled), strict=True):
            table = Counter(zip(seen, label, strict=True))
            best = sum(max(table[one, 0], table[one, 1]) for one in set(seen))
            assert best < 0.85 * len(labelled)


def test_unlabelled_pairs_tell_no_label_and_splits_share_no_combination():
    assert all(pair.section is None for pair in newsroom_pairs("relation_unlabelled", 50))
    seen = []
    for split in RELATION_SPLITS:
        size = newsroom_size(split)
        pictures = (NewsroomPicture(split, 0, index, 64) for index in range(size))
        facts = [newsroom_facts(picture) for picture in pictures]
        seen += [(frozenset(c.name for c in f.countries), f.scene, f.time) for f in facts]
    assert len(set(seen)) == len(seen) == 29_400


def test_draw_relation_never_tells_flags_that_are_not_shown():
    rng = np.random.default_rng(3)
    drawn = [draw_relation(rng) for _ in range(500)]
    assert not [r for r in drawn if r.flags_told and not r.flags_shown]
    assert not [r for r in drawn if r.flags_told and r.tells == "talk"]
    assert Relation("scene", True, False).label == "3"
    assert Relation("other", True, True).label == "0"


def test_generated_captions_are_those_of_this_version():
    pairs = [pair for split in RELATION_SPLITS for pair in newsroom_pairs(split, 8, seed=2)]
    texts = "\n".join(map(generated_caption, pairs))
    assert hashlib.sha256(texts.encode()).hexdigest() == GOLDEN


def test_a_generated_caption_tells_what_the_picture_shows_and_names_nothing(labelled):
    for pair in with_generated(labelled[:200]):
        facts = newsroom_facts(pair)
        assert scenes_told(pair.explanation) == {facts.scene}
        assert bool(FLAGS.search(pair.explanation)) == newsroom_relation(pair).flags_shown
        assert not any(country.name in pair.explanation for country in facts.countries)
    entity = newsroom_pairs("train", 3)
    assert all("flag" in p.explanation.lower() for p in with_generated(entity))


def test_pairs_of_other_splits_have_no_relation():
    with pytest.raises(ValueError, match="newsroom-v2/train/0/0/64 is of split train; only rel"):
        newsroom_relation(newsroom_pairs("train", 1)[0])


@pytest.fixture
def tweets(tmp_path):
    rows = ["tweet_id,tweet,text_is_represented,image_adds", "1,a,0,1", "2,b,1,1"]
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    for name in "12":
        Image.new("RGB", (8, 8)).save(tmp_path / f"T{name}.jpg")
    return tmp_path


def test_generated_captions_of_tweets_come_from_a_file(tweets):
    pairs = load_pairs("tweets", "train", root=tweets)
    (tweets / "generated.json").write_text(json.dumps({"1": "a square", "2": "black", "3": "x"}))
    assert [p.explanation for p in with_generated(pairs, tweets)] == ["a square", "black"]
    with pytest.raises(ValueError, match="set the pairs' `data_root`"):
        with_generated(pairs)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "no .*generated.json: write an object of pair id → caption"),
        ("{", ValueError, r"generated\.json is not JSON"),
        ("[]", ValueError, "must hold an object of pair id → caption"),
        ('{"1": 2, "2": "b"}', ValueError, "must hold an object of pair id → caption"),
        ('{"1": "a"}', ValueError, "1 of 2 pairs have no caption, the first is '2'"),
        ('{"1": "a", "2": ""}', ValueError, "1 of 2 pairs have no caption, the first is '2'"),
    ],
)
def test_bad_generated_captions_are_refused(tweets, content, error, message):
    pairs = load_pairs("tweets", "train", root=tweets)
    if content is not None:
        (tweets / "generated.json").write_text(content)
    with pytest.raises(error, match=message):
        with_generated(pairs, tweets)
