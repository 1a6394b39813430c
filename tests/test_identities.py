"""What makes a run or a measurement: settings alone, and every one that changes its numbers."""

from __future__ import annotations

import re

import pytest

from entityclip import identities
from entityclip.config import ProfileError, config_hash, load_profile
from entityclip.datasets import DRAWN
from entityclip.experiments.experiment import Experiment
from entityclip.variants import DOMAINS, LISTED, VARIANTS, find_variant


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
        "clip": "fa8e66a118dbb43b",
        "itr": "eb3575f826e6100e",
        "ascl": "5582d946ba208ed3",
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


def test_a_listed_table_trains_no_model_twice():
    settings = load_profile("n24news").settings
    for table in ("mixes", "grid"):
        entries = identities.table_entries(settings, table)
        models = [identities.model_config(settings, entry.variant) for entry in entries]
        assert len({config_hash(model) for model in models}) == len(models) > 5
        for entry, model in zip(entries, models, strict=True):
            wanted = [float(n) for n in re.split("-| × ", entry.label)]
            has = model.groups if table == "mixes" else (model.lambda_moe, model.eta_itm)
            assert list(has) == wanted
            same = [n for n in VARIANTS if n == entry.variant]
            spelt = entry.variant.startswith(("mix-", "weights-"))
            assert bool(same) != spelt
            assert find_variant(entry.variant).name == entry.variant
    known = {entry.label: entry.variant for entry in identities.table_entries(settings, "mixes")}
    assert next(iter(known)) == "4-4-4"
    assert (known["4-4-4"], known["4-4-0"]) == ("entityclip", "no-explanation-experts")


def test_listed_settings_are_other_runs_of_the_same_data():
    changes = {"backbones": [{"backbone": "ViT-B-16"}], "explanation_sources": {"mine": "x.jsonl"}}
    settings = load_profile("n24news", settings=changes).settings
    backbones = identities.table_entries(settings, "backbones")
    assert [entry.settings.backbone for entry in backbones[::3]] == [
        "ViT-B-32-quickgelu", "ViT-B-16",
    ]  # fmt: skip
    assert backbones[3].settings.pretrained is None  # a choice says its own weights, or none
    sources = identities.table_entries(settings, "explanation_sources")
    read = {entry.label: entry.settings.explanation_source for entry in sources}
    assert read == {
        "authors: EntityCLIP": "own", "authors: Name views + context": "own",
        "mine: EntityCLIP": "x.jsonl", "mine: Name views + context": "x.jsonl",
        "Caption as explanation": "own", "CLIP, fine-tuned": "own",
    }  # fmt: skip
    empty = load_profile("own").settings
    assert [identities.table_entries(empty, table) for table in LISTED] == [[]] * len(LISTED)
    with pytest.raises(ValueError, match=r"no table 'nope'; there are main, .*explanation_sources"):
        identities.table_entries(empty, "nope")


@pytest.mark.parametrize("mix", ["4-4", "17-4-4", "4-4-4-4", "a-b-c", "-1-4-4"])
def test_a_mix_is_three_counts(mix):
    with pytest.raises(ProfileError, match="mixes"):
        load_profile("demo", settings={"mixes": [mix]})
