"""What makes a run or a measurement: settings alone, and every one that changes its numbers."""

from __future__ import annotations

import pytest

from entityclip import identities
from entityclip.config import config_hash, load_profile
from entityclip.datasets import DRAWN
from entityclip.experiments.experiment import Experiment
from entityclip.variants import DOMAINS, VARIANTS


def hashes(kind, seed=0, **settings):
    found = identities.CHAPTERS[kind](load_profile("smoke", seed=seed, settings=settings))
    return [config_hash(one) for one in found]


def test_an_experiment_has_the_identities_of_its_settings():
    profile = load_profile("demo", seed=3)
    for name in VARIANTS:
        found = identities.identity(profile.settings, name, 3)
        assert Experiment(profile).identity(name) == found
        assert found["seed"] == 3
        assert not [key for key in found if key.endswith("_data")]


def test_hashes_of_shipped_runs_stay_what_they_were():
    # changing them orphans the rows that the repository ships
    settings = load_profile("demo").settings
    found = {n: config_hash(identities.identity(settings, n, 0)) for n in ("clip", "itr", "ascl")}
    assert found == {
        "clip": "df7a062ce4957564",
        "itr": "9eadfde7ba1036cf",
        "ascl": "f2c7547c83e5ad99",
    }


def test_the_drawn_domains_are_those_that_are_drawn():
    assert set(DOMAINS) == set(DRAWN)


@pytest.mark.parametrize("kind", identities.CHAPTERS)
def test_no_two_measurements_of_a_chapter_are_one(kind):
    found = hashes(kind)
    assert len(set(found)) == len(found) > 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("cross_domain", {"train_pairs": 17}),
        ("cross_domain", {"explanation_policy": "drop"}),
        ("sections", {"image_size": 32}),
        ("sections", {"pretraining": {"pairs": 17}}),
        ("relations", {"itr": {"unlabelled": {"limit": 65}}}),
        ("relations", {"itr": {"judged": {"limit": 65}}}),
        ("relations", {"itr": {"labelled": {"limit": 65}}}),
        ("relations", {"bootstrap": 21}),
        ("ascl", {"ascl": {"train_pairs": 21}}),
        ("ascl", {"ascl": {"val_split": "captions_test"}}),
        ("ascl", {"ascl": {"test_split": "captions_val"}}),
        ("ascl", {"ascl": {"finetuning": {"lr": 0.5}}}),
    ],
)
def test_settings_that_change_what_is_measured_change_its_identity(kind, settings):
    changed = set(hashes(kind, **settings))
    if "unlabelled" not in str(settings) and kind != "cross_domain":
        assert not changed & set(hashes(kind))
    # the start weights read no unlabelled pairs, and are not fine-tuned
    assert changed != set(hashes(kind))


def test_a_domains_own_runs_are_those_of_the_main_table():
    settings = load_profile("smoke").settings
    own, other = identities.drawn_domains(settings)
    assert identities.domain_identity(settings, "clip", 0, own) == identities.identity(
        settings, "clip", 0
    )
    away = identities.domain_identity(settings, "clip", 0, other)
    assert (away["dataset"], away["start"]["dataset"]) == (other, own)
