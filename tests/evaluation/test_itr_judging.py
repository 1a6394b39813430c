"""What towers know of relations: scores, probe, clusters, classifier, Grad-CAM, and their rows."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from entityclip import variants
from entityclip.config import ClassifierConfig, load_profile
from entityclip.evaluation.inspection import grad_cams
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
from entityclip.experiments import chapters
from entityclip.experiments.chapters import measure_relations
from entityclip.experiments.experiment import Experiment
from entityclip.models.clip import create_backbone
from entityclip.reporting import charts
from entityclip.reporting.inspection import plot_cams
from entityclip.reporting.scores import relation_table
from entityclip.results import (
    CLASSIFICATION,
    ResultsError,
    append_rows,
    chapter_rows,
    read_rows,
)
from entityclip.variants import BEFORE, PROTOCOLS


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


def test_embeddings_are_the_towers_own_side_by_side(backbone, data):
    batch = data.collate([data[i] for i in range(5)])
    with torch.no_grad():
        literal = torch.cat(
            [backbone.clip.encode_text(batch.captions), backbone.clip.encode_image(batch.images)], 1
        )
    found = pair_embeddings(backbone, data, batch_size=7)
    assert found.shape == (24, 2 * backbone.width)
    np.testing.assert_allclose(found[:5], literal.numpy(), atol=1e-5)


def test_a_probe_reads_what_lies_in_one_direction():
    rng = np.random.default_rng(0)
    labels = {"text": rng.integers(0, 2, 60), "combined": np.arange(60) % 4}
    features = rng.normal(size=(60, 8)).astype(np.float32)
    features[:, 0] += 6 * labels["text"]
    for c in range(4):
        features[labels["combined"] == c, 4 + c] += 6
    found = linear_probe(features[:40], {k: v[:40] for k, v in labels.items()}, features[40:])
    for name, classes in labels.items():
        assert (found[name] == classes[40:]).mean() > 0.9
    with pytest.raises(ValueError, match="all 40 labels of 'text' are 1: nothing to fit"):
        linear_probe(features[:40], {"text": np.ones(40, int)}, features)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_permutation_is_that_of_all_tries(seed):
    rng = np.random.default_rng(seed)
    clusters, classes = rng.integers(0, 4 - seed % 2, 50), rng.integers(0, 4, 50)
    right = max(
        (np.array(order)[clusters] == classes).sum() for order in itertools.permutations(range(4))
    )
    order = best_permutation(clusters, classes, 4)
    assert sorted(order) == [0, 1, 2, 3]
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


# ----------------------------------------------------------------------------------------- Grad-CAM


def literal_cams(backbone, images, texts):
    """Grad-CAM by hand: the last block's normalised input, its gradient, their weighted sum."""
    kept = []
    layer = backbone.clip.visual.transformer.resblocks[-1].ln_1
    handle = layer.register_forward_hook(lambda module, given, output: kept.append(output))
    maps = []
    for image, text in zip(images, texts, strict=True):
        kept.clear()
        cosine = F.cosine_similarity(
            backbone.clip.encode_image(image[None]), backbone.clip.encode_text(text[None])
        )
        (gradient,) = torch.autograd.grad(cosine.sum(), kept)
        weights = gradient[0, 1:].mean(0)
        maps.append((kept[0][0, 1:] @ weights).relu().reshape(4, 4).detach())
    handle.remove()
    return torch.stack(maps).numpy()


def test_maps_are_grad_cams_and_leave_no_trace(backbone, data):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("pytorch_grad_cam")
    batch = data.collate([data[i] for i in range(8)])
    maps = grad_cams(backbone, batch.images, batch.captions)
    assert maps.shape == (8, 64, 64)
    literal = literal_cams(backbone, batch.images, batch.captions)
    assert sum(small.any() for small in literal) >= 2
    for found, small in zip(maps, literal, strict=True):
        if not small.any():  # no patch helps
            assert not found.any()
            continue
        large = cv2.resize((small - small.min()) / (small.max() - small.min()), (64, 64))
        large = (large - large.min()) / (large.max() - large.min())
        np.testing.assert_allclose(found, large, atol=1e-3)
    assert all(p.grad is None for p in backbone.parameters())
    assert not backbone.clip.visual.transformer.resblocks[-1].ln_1._forward_hooks


# -------------------------------------------------------------------------------- study and figures


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The smoke profile at its smallest, two seeds, without generic pretraining."""
    source = {"dataset": "newsroom", "limit": 12}
    itr = {
        "unlabelled": source, "labelled": source, "judged": source, "held_out": 8, "seeds": [0, 4],
        "objective": {"iterations": 1, "subset": 8, "batch_size": 8, "clusters": 2},
    }  # fmt: skip
    profile = load_profile("smoke", settings={"itr": itr})
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTITYCLIP_RUNS", str(folder))
        patch.setattr(Experiment, "build", lambda self, variant: _Untrained())
        study = Experiment(profile, progress=False)
        measure_relations(study)
        yield study


class _Untrained:
    def __init__(self):
        self.backbone = fresh()


def test_every_variant_seed_protocol_and_label_has_its_row(study):
    rows = chapter_rows(study.profile, "relations")
    keys = rows[["variant", "seed", "protocol", "label"]].drop_duplicates()
    assert len(rows) == len(keys) == 2 * 2 * 3 * 3
    assert set(rows["variant"]) == {BEFORE, "ITR: cluster_image + contrast"}
    assert rows["low"].le(rows["value"]).all()
    assert rows["value"].le(rows["high"]).all()
    assert set(rows.loc[rows["protocol"] == "clusters", "n_train"]) == {0}
    assert set(rows["n_test"]) == {12}
    assert {"git_commit", "versions", "data_fingerprint"} < set(rows.columns)


def stored(study):
    return study.results / "relations.jsonl"


def test_what_is_stored_is_not_measured_again(study, monkeypatch):
    before = stored(study).read_bytes()
    monkeypatch.setattr(chapters, "score", pytest.fail)
    assert len(measure_relations(study)) == 36
    assert stored(study).read_bytes() == before
    assert len(measure_relations(study, [4], ["clusters"])) == 6


def test_a_stopped_study_goes_on_with_what_is_missing(study, monkeypatch):
    whole = stored(study).read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = [line for line in lines if b'"fine-tuning"' not in line or b'"seed": 4,' not in line]
    stored(study).write_bytes(b"".join(kept))
    asked = []
    original = chapters._relation_rows
    monkeypatch.setattr(
        chapters,
        "_relation_rows",
        lambda x, judge, protocol, *rest: (
            asked.append((judge.seed, protocol)) or original(x, judge, protocol, *rest)
        ),
    )
    rows = measure_relations(study)
    assert asked == [(4, "fine-tuning")] * 2
    again = read_rows(stored(study), schema=CLASSIFICATION)
    assert len(rows) == len(again) == 36
    stored(study).write_bytes(whole)
    was = read_rows(stored(study), schema=CLASSIFICATION)
    key = ["variant", "seed", "protocol", "label"]
    pd.testing.assert_series_equal(
        again.set_index(key)["value"].sort_index(), was.set_index(key)["value"].sort_index()
    )


def test_rows_come_in_one_order_whatever_was_stored_first(study):
    whole, rows = stored(study).read_bytes(), chapter_rows(study.profile, "relations")
    stored(study).write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    pd.testing.assert_frame_equal(chapter_rows(study.profile, "relations"), rows)
    stored(study).write_bytes(whole)
    shown = relation_table(rows)
    assert shown["label"].head(3).tolist() == ["text", "image", "combined"]
    assert list(dict.fromkeys(shown["protocol"])) == list(PROTOCOLS)


def test_unknown_protocols_and_missing_rows_are_named(study):
    with pytest.raises(ValueError, match="no protocol 'probe'; there are linear probe, clusters"):
        measure_relations(study, protocols=["probe"])
    assert measure_relations(study, [99], train=False).empty
    with pytest.raises(ResultsError, match=r"row 1 lacks .*protocol"):
        append_rows(stored(study).with_name("x.jsonl"), [{"variant": "a"}], CLASSIFICATION)


def test_gains_are_paired_by_seed():
    values = {BEFORE: [50.0, 54.0, 52.0], "ITR: contrast": [53.0, 56.0, 53.0]}
    rows = pd.DataFrame(
        {"protocol": "linear probe", "label": "text", "variant": v, "seed": s, "value": x}
        for v, found in values.items()
        for s, x in enumerate(found)
    )
    before, after = relation_table(rows).to_dict("records")
    assert (before["gain"], before["gain_low"], before["gain_high"]) == (0, 0, 0)
    assert after["value"] == pytest.approx(54)
    assert after["gain"] == pytest.approx(2)
    # t(0.975, 2) = 4.303 times the standard error of 3, 2, 1
    assert after["gain_high"] - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    alone = relation_table(rows[rows["seed"] == 0])
    assert alone["gain_low"].isna().all()


def test_figures_show_every_seed_and_picture(study, data):
    rows = chapter_rows(study.profile, "relations")
    figure = charts.plot_relation_scores(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(PROTOCOLS)
    shown = [len(points.get_offsets()) for points in figure.axes[0].collections[::2]]
    assert shown == [2] * 6
    pictures = [pair.load_image() for pair in data.pairs[:3]]
    maps = np.zeros((3, 64, 64), np.float32)
    drawn = plot_cams(pictures, ["a", "b $x$", "c"], {"CLIP": maps, "ITR": maps})
    assert len(drawn.axes) == 9
    with pytest.raises(ValueError, match="2 maps of 'CLIP' for 3 pictures"):
        plot_cams(pictures, ["a", "b", "c"], {"CLIP": maps[:2]})
    with pytest.raises(ValueError, match="no rows"):
        charts.plot_relation_scores(rows[:0])


def test_names_of_variants():
    assert variants.variant_name(None) == "CLIP"
    assert variants.variant_name(("cluster_generated", "contrast")) == (
        "ITR: cluster_generated + contrast"
    )
