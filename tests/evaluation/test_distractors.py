"""What queries are mistaken for: literal twins of what `beaten` and the floor of scenes count."""

import numpy as np
import pytest
import torch

from entityclip.datasets.newsroom.outlet_a import newsroom_facts, newsroom_pairs
from entityclip.datasets.newsroom.outlet_b import newsroom_b_pairs
from entityclip.datasets.pair import Pair
from entityclip.evaluation import distractors
from entityclip.evaluation.distractors import Shown, beaten, scene_floor, shown_by
from entityclip.evaluation.ranks import similarity_ranks
from entityclip.statistics import retrieval_metrics
from entityclip.variants import IN_SCENE, ONE_FLAG, SAME_FLAGS


def literal(similarity, image_of, facts):
    """Query by query, rival by rival."""
    rows = []
    for query, own in enumerate(image_of):
        counts = {IN_SCENE: [], ONE_FLAG: [], SAME_FLAGS: []}
        for rival in range(len(facts)):
            if rival == own:
                continue
            lost = bool(similarity[query, rival] >= similarity[query, own])
            same_scene = facts[rival].scene == facts[own].scene
            flags = len({*facts[rival].countries} & {*facts[own].countries})
            if same_scene:
                counts[IN_SCENE].append(100 * lost)
            if same_scene and flags == 1:
                counts[ONE_FLAG].append(100 * (not lost))
            if not same_scene and flags == 2:
                counts[SAME_FLAGS].append(100 * (not lost))
        rows.append({name: np.mean(each) if each else np.nan for name, each in counts.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("block", [7, 512])
def test_distractors_are_those_that_a_loop_over_rivals_finds(block, monkeypatch):
    monkeypatch.setattr(distractors, "_QUERIES", block)
    pairs = newsroom_pairs("test", 150)
    torch.manual_seed(0)
    image_of = torch.randperm(150).repeat(2)[:200]
    similarity = torch.randn(200, 150).mul(4).round()  # with ties
    found = beaten(lambda at: similarity[at], image_of, shown_by(pairs))
    expected = literal(similarity, image_of.tolist(), [newsroom_facts(pair) for pair in pairs])
    assert found.keys() == expected.keys()
    for name, each in found.items():
        np.testing.assert_allclose(each, expected[name], rtol=1e-6)
        assert np.isfinite(each).any()


def test_who_knows_all_beats_all_and_who_knows_nothing_none():
    pairs = newsroom_pairs("test", 300)
    shown, image_of = shown_by(pairs), torch.arange(300)
    best = beaten(lambda at: torch.eye(300)[at], image_of, shown)
    worst = beaten(lambda at: torch.zeros(300, 300)[at], image_of, shown)
    assert [np.nanmean(best[name]) for name in (IN_SCENE, ONE_FLAG, SAME_FLAGS)] == [0, 100, 100]
    assert [np.nanmean(worst[name]) for name in (IN_SCENE, ONE_FLAG, SAME_FLAGS)] == [100, 0, 0]


def test_only_drawn_pictures_tell_what_they_show(tmp_path):
    assert shown_by([Pair("a", tmp_path / "a.jpg", "x")]) is None
    assert shown_by(newsroom_b_pairs("test", 4)).countries.sum() == 8


def test_the_floor_of_scenes_is_what_many_random_orders_give():
    generator = torch.Generator().manual_seed(0)
    scene = torch.tensor([0] * 7 + [1] * 12 + [2] * 4)
    shown = Shown(scene, torch.zeros(23, 2, dtype=torch.bool))
    ranks = []
    for _ in range(4000):
        score = torch.rand(23, 23, generator=generator) + 2.0 * (scene[:, None] == scene)
        ranks.append(similarity_ranks(score)[0].numpy())
    expected = retrieval_metrics(np.concatenate(ranks))
    floor = scene_floor(shown, (1, 5, 10))
    assert floor == pytest.approx({name: expected[name] for name in floor}, rel=0.03)
