"""Views of explanations: which rows, which words, the same wherever and whenever they are drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from entityclip.config import load_profile
from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.newsroom.wording import named_countries
from entityclip.datasets.pair import Pair
from entityclip.datasets.views import AliasSwaps, NameViews, Siblings, alias_swaps
from entityclip.experiments.experiment import Experiment
from tests.fixtures.pictures import Noise

NAMES = ("Kenya", "Nairobi", "South Sudan")
TOLD = "The flag of Kenya, capital Nairobi, is not that of South Sudan."


def tokenize(texts):
    codes = [[ord(letter) for letter in text[:80].ljust(80)] for text in texts]
    return torch.tensor(codes)


def read(tokens):
    return ["".join(map(chr, row)).strip() for row in tokens.tolist()]


def views(share=0.5, of="names", rows=400, names=NAMES, seed=0):
    pairs = [Pair(str(n), Noise(n), f"caption {n}", TOLD) for n in range(rows)]
    served = PairDataset(pairs, lambda picture: torch.zeros(3, 4, 4), tokenize,
                         with_explanations=True)  # fmt: skip
    found = NameViews(served, tokenize, [names] * rows, share, of)
    found.begin(seed)
    return found


def test_half_of_the_explanations_keep_half_of_their_names_in_their_order():
    drawn = [views_ for row in range(400) if (views_ := views().view(row))]
    assert 160 < len(drawn) < 240
    counts = Counter(drawn)
    every = {"Kenya", "Nairobi", "South Sudan", "Kenya Nairobi", "Kenya South Sudan",
             "Nairobi South Sudan", "Kenya Nairobi South Sudan"}  # fmt: skip
    assert set(counts) == every
    # where the coins keep none, one is: alone in half of the views, not in three of seven
    alone = sum(counts[name] for name in NAMES) / len(drawn)
    assert alone == pytest.approx(0.5, abs=0.08)
    assert views(share=0.0).view(0) is None
    assert None not in {views(share=1.0).view(row) for row in range(50)}
    assert views(share=1.0, names=()).view(0) is None  # without names it is read whole


def test_any_words_are_as_many_as_names_would_be():
    names, words = (views(1.0, of) for of in ("names", "words"))
    told = TOLD.split()
    for row in range(100):
        some = words.view(row).split()
        assert len(some) == len(names.view(row).split())
        places = [told.index(word) for word in some if told.count(word) == 1]
        assert places == sorted(places)
    seen = {word for row in range(400) for word in words.view(row).split()}
    assert seen == set(told)


def test_a_view_follows_from_epoch_and_row_alone():
    one, other, later = views(), views(), views(seed=1)
    rows = [7, 3, 399]
    batch = one.collate([one[row] for row in rows])
    again = [other.collate([other[row]]) for row in reversed(rows)]  # other batches, other order
    assert read(batch.explanations) == [read(b.explanations)[0] for b in reversed(again)]
    first, second = ([of.view(row) for row in range(400)] for of in (one, later))
    assert first != second
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one.collate([one[0]])
    assert torch.equal(before, torch.get_rng_state())  # nobody else's draws


def test_captions_and_pictures_stay_and_so_do_explanations_without_a_view():
    served = views()
    batch, plain = (of.collate([of[n] for n in range(40)]) for of in (served, served.dataset))
    assert torch.equal(batch.captions, plain.captions)
    assert torch.equal(batch.images, plain.images)
    for row, text in enumerate(read(batch.explanations)):
        assert text == (served.view(row) or TOLD)
    with pytest.raises(ValueError, match="names of 1 rows for 400 pairs"):
        NameViews(served.dataset, tokenize, [NAMES], 0.5)


@pytest.mark.parametrize("of", ["names", "others", "caption"])
def test_a_profile_finds_the_names_of_what_it_was_asked_for(of):
    experiment = Experiment(load_profile("smoke"), progress=False)
    config = replace(experiment.config("name-views"), name_views=1.0, views_of=of)
    model = SimpleNamespace(config=config, needs_explanations=True, needs_others=False)
    served = experiment.read_by(model, "train", "own")
    assert isinstance(served, NameViews)
    assert experiment.read_by(model, "val", "own") is experiment.dataset("val", explanations=True)
    for row in range(20):
        pair, view = served.pairs[row], served.view(row)
        words = [word for word in view.split() if word[0].isupper()]
        assert words
        if of == "names":
            assert all(word in pair.explanation for word in words)
            assert len(view) < len(pair.explanation) / 2
        if of == "caption":
            assert all(word in pair.caption for word in words)
    if of == "others":
        strange = [served.view(row) not in served.pairs[row].explanation for row in range(20)]
        assert sum(strange) > 15


def test_a_name_may_be_told_by_the_others_of_its_sentence():
    told = [("Peru", "Lima", "Peruvian"), ("Lima", "Quito"), ("Oslo",)]
    assert alias_swaps(("Peru", "Cairo", "Lima", "Oslo"), told) == [
        ("Peru", ("Lima", "Peruvian")),
        ("Lima", ("Peru", "Peruvian", "Quito")),
    ]


def swapped(share=0.5, rows=400, seed=0):
    pairs = [Pair(str(n), Noise(n), "Envoys from Peru in Perugia", TOLD) for n in range(rows)]
    served = PairDataset(pairs, lambda picture: torch.zeros(3, 4, 4), tokenize,
                         with_explanations=True)  # fmt: skip
    swaps = [[("Peru", ("Lima", "a\\1b"))] if n else [] for n in range(rows)]
    found = AliasSwaps(served, tokenize, swaps, share)
    found.begin(seed)
    return found


def test_half_of_the_captions_tell_a_name_by_another_and_the_rest_stays():
    drawn = [swapped().swapped(row) for row in range(400)]
    assert 160 < sum(text is not None for text in drawn) < 240
    assert {*drawn} == {None, "Envoys from Lima in Perugia", "Envoys from a\\1b in Perugia"}
    assert drawn != [swapped(seed=1).swapped(row) for row in range(400)]
    assert drawn[0] is None  # there is nothing to swap
    one, rows = swapped(), [5, 0, 9]
    batch, plain = (of.collate([of[row] for row in rows]) for of in (one, one.dataset))
    expected = [one.swapped(row) or "Envoys from Peru in Perugia" for row in rows]
    assert read(batch.captions) == expected
    assert torch.equal(batch.explanations, plain.explanations)
    with pytest.raises(ValueError, match="swaps of 1 rows for 400 pairs"):
        AliasSwaps(one.dataset, tokenize, [[]], 0.5)


def test_views_upon_swaps_are_both_drawn_by_the_epochs_seed():
    inner = swapped(share=1.0)
    both = NameViews(inner, tokenize, [NAMES] * 400, 1.0)
    both.begin(3)
    batch = both.collate([both[row] for row in range(6)])
    alone = swapped(share=1.0, seed=3)
    assert read(batch.captions)[1:] == [alone.swapped(row) for row in range(1, 6)]
    assert read(batch.explanations) == [both.view(row) for row in range(6)]


def test_siblings_share_an_article_a_caption_or_a_picture():
    pairs = [
        Pair("a", Noise(0), "one", TOLD, group="x"), Pair("b", Noise(1), "two", TOLD, group="x"),
        Pair("c", Noise(2), "one", TOLD), Pair("d", Noise(1), "four", TOLD),
        Pair("e", Noise(4), "five", TOLD),
    ]  # fmt: skip
    served = PairDataset(pairs, lambda picture: torch.zeros(3, 4, 4), tokenize,
                         with_explanations=True)  # fmt: skip
    found = Siblings(served, tokenize)
    batch = found.collate([found[row] for row in range(5)])
    shared = {
        (i, j)
        for i in range(5) for j in range(i)
        if set(batch.siblings[i].tolist()) & set(batch.siblings[j].tolist())
    }  # fmt: skip
    assert shared == {(1, 0), (2, 0), (3, 1)}
    assert "siblings" in batch.inputs()
    assert "siblings" not in served.collate([served[0], served[1]]).inputs()


def test_a_profile_swaps_by_what_explanations_say_of_the_same_country():
    experiment = Experiment(load_profile("smoke"), progress=False)
    for of in ("names", "others"):
        config = replace(experiment.config("alias-swaps"), alias_swaps=1.0, swaps_of=of)
        model = SimpleNamespace(config=config, needs_explanations=True, needs_others=False)
        served = experiment.read_by(model, "train", "own")
        right = wrong = 0
        for row, pair in enumerate(served.pairs):
            if text := served.swapped(row):
                before, after = named_countries(pair.caption), named_countries(text)
                same = {c.name for c in before} >= {c.name for c in after}
                right, wrong = right + same, wrong + (not same)
        assert right + wrong > 100
        assert (wrong == 0) == (of == "names")
        assert wrong > right or of == "names"
