"""What towers know of relations: scores, probe, clusters and classifier."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from entityclip.config import ClassifierConfig
from entityclip.evaluation.relations import (
    RelationClassifier,
    best_permutation,
    classify,
    finetune_classifier,
    linear_probe,
    pair_embeddings,
    relation_classes,
    score,
    weighted_f1,
    zero_shot_clusters,
)
from entityclip.models.clip import create_backbone


@pytest.fixture(scope="module")
def data(make_dataset):
    return make_dataset("relation_train", 24)


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("classes", [2, 4])
def test_weighted_f1_is_scikit_learns_on_every_resample(classes):
    rng = np.random.default_rng(classes)
    predicted, true = rng.integers(0, classes, (2, 30))
    drawn = [rng.integers(0, 30, 30) for _ in range(20)]
    weights = np.stack([np.bincount(rows, minlength=30) for rows in drawn])
    literal = [
        f1_score(true[rows], predicted[rows], average="weighted", zero_division=0) for rows in drawn
    ]
    np.testing.assert_allclose(weighted_f1(predicted, true, weights), literal, atol=1e-12)


def test_scores_hold_their_interval_and_follow_the_seed():
    rng = np.random.default_rng(0)
    true = {"text": rng.integers(0, 2, 100)}
    predicted = {"text": np.where(rng.random(100) < 0.8, true["text"], 1 - true["text"])}
    found = score(predicted, true, n_resamples=200, seed=1)["text"]
    assert found.low < found.value < found.high
    assert found == score(predicted, true, n_resamples=200, seed=1)["text"]
    assert score(true, true, n_resamples=20, seed=0)["text"] == (100.0, 100.0, 100.0)
    with pytest.raises(ValueError, match="3 predictions of 'text' for 100 pairs"):
        score({"text": true["text"][:3]}, true, n_resamples=20, seed=0)


def test_classes_are_read_off_the_sections(data):
    classes = relation_classes(data.pairs)
    sections = [int(pair.section) for pair in data.pairs]
    assert classes["combined"].tolist() == sections
    assert classes["text"].tolist() == [s // 2 for s in sections]
    assert classes["image"].tolist() == [s % 2 for s in sections]
    unlabelled = [*data.pairs, replace(data.pairs[3], id="bare", section=None)]
    with pytest.raises(ValueError, match="1 of 25 pairs have no relation label, the first is 'ba"):
        relation_classes(unlabelled)


# ------------------------------------------------------------------------------- frozen embeddings


def test_embeddings_are_the_towers_own_before_projection(backbone, data):
    """Projected they are open_clip's own."""
    batch, clip = data.collate([data[i] for i in range(5)]), backbone.clip
    found = pair_embeddings(backbone, data, batch_size=7)
    picture, text = backbone.unprojected_widths
    assert found.shape == (24, text + picture)
    of_text, of_image = torch.from_numpy(found[:5]).split([text, picture], dim=1)
    with torch.no_grad():
        expected = clip.encode_text(batch.captions), clip.encode_image(batch.images)
        projected = of_text @ clip.text_projection, of_image @ clip.visual.proj
    for ours, literal in zip(projected, expected, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-4, atol=1e-5)


def labels_of(combined):
    return {"combined": combined, "text": combined // 2, "image": combined % 2}


def test_a_probe_reads_what_lies_in_one_direction():
    rng = np.random.default_rng(0)
    labels = {"text": rng.integers(0, 2, 60), "combined": np.arange(60) % 4}
    features = rng.normal(size=(60, 8)).astype(np.float32)
    features[:, 0] += 6 * labels["text"]
    features[:, 4:] += 6 * np.eye(4)[labels["combined"]]
    found = linear_probe(features[:40], {k: v[:40] for k, v in labels.items()}, features[40:])
    for name, classes in labels.items():
        assert (found[name] == classes[40:]).mean() > 0.9
    assert found["text of combined"].tolist() == (found["combined"] // 2).tolist()
    assert found["image of combined"].tolist() == (found["combined"] % 2).tolist()
    judged = score(found, labels_of(labels["combined"][40:]) | {"text": labels["text"][40:]},
                   n_resamples=20, seed=0)  # fmt: skip
    assert set(judged) == set(found)
    with pytest.raises(ValueError, match="all 40 labels of 'text' are 1: nothing to fit"):
        linear_probe(features[:40], {"text": np.ones(40, int)}, features)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_permutation_is_that_of_all_tries(seed):
    rng = np.random.default_rng(seed)
    clusters, classes = rng.integers(0, 4 - seed % 2, 50), rng.integers(0, 4, 50)
    orders = map(np.array, itertools.permutations(range(4)))
    order = best_permutation(clusters, classes, 4)
    assert sorted(order) == [0, 1, 2, 3]
    right = max((each[clusters] == classes).sum() for each in orders)
    assert (order[clusters] == classes).sum() == right


def test_clusters_take_the_names_that_suit_them():
    classes = np.arange(40) % 4
    features = 9 * np.eye(4, dtype=np.float32)[classes]
    found = zero_shot_clusters(features, {"combined": classes}, seed=0)
    assert found["combined"].tolist() == classes.tolist()
    with pytest.raises(ValueError, match="k is 4 for features of shape"):
        zero_shot_clusters(features[:3], {"combined": classes[:3]}, seed=0)


# --------------------------------------------------------------------------------------- classifier


def fresh():
    torch.manual_seed(5)
    return create_backbone("newsroom-tiny")


def test_a_classifier_learns_and_follows_its_seed(data):
    labels = relation_classes(data.pairs)
    config = ClassifierConfig(epochs=12, batch_size=8, lr=3e-4, head_lr_scale=10.0)
    model = finetune_classifier(fresh(), data, labels, config, seed=1, progress=False)
    found = classify(model, data)
    assert (found["combined"] == labels["combined"]).mean() > 0.7
    short = replace(config, epochs=1)
    first, again, other = (
        finetune_classifier(fresh(), data, labels, short, seed=s, progress=False).state_dict()
        for s in (1, 1, 2)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_head_sees_whether_text_and_image_agree(data):
    model = RelationClassifier(fresh()).eval()
    d = model.backbone.width
    with torch.no_grad():
        head = model.heads["text"]
        head.weight.zero_()
        head.bias.zero_()
        head.weight[1, 2 * d :] = 1 / d
        batch = data.collate([data[i] for i in range(6)])
        cosine = F.cosine_similarity(
            model.backbone.encode_text(batch.captions), model.backbone.encode_image(batch.images)
        )
        torch.testing.assert_close(model(batch)["text"][:, 1], cosine, rtol=1e-4, atol=1e-5)
