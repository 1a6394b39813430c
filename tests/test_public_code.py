"""What the authors' code does, as literal twins written from its facts, and what ours does instead.

A section a part; what a setting restores must equal the twin, what ours does by default must not.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from benchmarks.public_code import MEASURED
from entityclip.config import REPOSITORY, EntityCLIPConfig, TrainConfig, as_dict, load_profile
from entityclip.datasets import load_pairs
from entityclip.datasets.sources.tweets import relation_pairs, twitter100k_pairs, without_link
from entityclip.evaluation.inspection import drawn_negatives, logits_at
from entityclip.evaluation.retrieval import articles_of
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import evaluate
from entityclip.models import clip
from entityclip.models.ascl import nt_xent
from entityclip.models.clip import BackboneError, create_backbone
from entityclip.models.encoder import load_encoder
from entityclip.models.negatives import draw_in_batch, draw_scores
from entityclip.models.weights import preprocessing_of
from entityclip.reporting.style import read_table
from entityclip.reporting.tables import articles_beside, retrieval_table
from entityclip.results import stored_rows
from entityclip.search.export import export
from entityclip.training.loop import hold_logit_scale
from entityclip.variants import VARIANT_LABELS
from tests import literal_ascl
from tests.fixtures import layouts

# ------------------------------------------------------------- EntityCLIP: the draw, the scale

BINS = [0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 192]  # of a negative's rank; 0 is the pair itself


def literal_draw(logits):
    """Row by row as their code does it: probabilities [B, B] of a row's negatives."""
    rows = []
    for i, row in enumerate(logits):
        p = row.softmax(0)
        p = p.clone()
        p[i] = p[i] - p[i]
        rows.append(p + 1e-5)
    return torch.stack([p / p.sum() for p in rows])


def by_rank(logits, probability):
    """Mean probability of each of BINS; ranks count from the hardest of the others."""
    own = torch.eye(len(logits), dtype=torch.bool)
    order = logits.masked_fill(own, torch.inf).argsort(dim=1, descending=True)
    mean = probability.gather(1, order).mean(dim=0)
    return torch.stack([mean[a:b].sum() for a, b in pairwise(BINS)])


@pytest.mark.parametrize("transposed", [False, True], ids=["texts", "pictures"])
def test_draws_with_compat_are_distributed_as_the_literal_ones(transposed):
    """B = 192, scale 100, VTC 0.06: total variation of more than 20,000 draws at most 0.02."""
    logits = logits_at(0.06)
    assert len(logits) == 192
    assert vtc_of(logits) == pytest.approx(0.06, rel=0.01)
    seen = logits.T if transposed else logits
    expected = by_rank(seen, literal_draw(seen))
    config = EntityCLIPConfig(reference_compat=True)
    features = torch.linalg.qr(torch.eye(192, dtype=torch.float64))[0]  # E Eᵀ = 1: logits as given
    given = features, logits.T @ features, torch.tensor(1.0)
    captions, keys = torch.zeros(192, 2, dtype=torch.long), torch.zeros(192)  # all are repeats
    torch.manual_seed(0)
    counts = torch.zeros(192, 192)
    for _ in range(105):  # of 192 draws each
        drawn = draw_in_batch(*given, captions, keys, config.negatives, None)
        assert drawn.valid.all()
        chosen = drawn.image if transposed else drawn.text
        counts[torch.arange(192), chosen] += 1
    off = (by_rank(seen, counts / 105) - expected).abs().sum() / 2
    assert off <= 0.02
    # what would be seen: another floor, none, and the pair itself left out
    for other in (0.0, 1e-4, 1e-6):
        wrong = draw_scores(seen, torch.zeros(192, 192, dtype=torch.bool), other)
        wrong = wrong.fill_diagonal_(-torch.inf) if other == 0 else wrong
        assert (by_rank(seen, wrong.double().softmax(1)) - expected).abs().sum() / 2 > 0.04


def vtc_of(logits):
    both = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
    return (-both / 2).mean().item()


def test_compat_draws_as_they_do_and_ours_never_the_pair_itself():
    assert EntityCLIPConfig().negatives == "hard"
    compat = EntityCLIPConfig(reference_compat=True)
    assert as_dict(compat)["negatives"] == "floored"  # so runs from before are other runs
    assert replace(compat, negatives="uniform").negatives == "uniform"
    table = drawn_negatives([0.06])
    own = table[table["rank"] == 0].set_index("draw")["probability"]
    assert own["hard"] == 0
    assert own["floored"] > 1e-3
    total = table.groupby("draw")["probability"].sum()
    assert total.tolist() == pytest.approx([1, 1])


def test_the_logit_scale_is_free_where_theirs_is():
    scale = torch.tensor(math.log(120.0))
    assert hold_logit_scale(scale, None) == {}
    assert scale.exp().item() == pytest.approx(120)
    assert hold_logit_scale(scale, TrainConfig().max_logit_scale)["logit_scale_held"]
    assert scale.exp().item() == pytest.approx(100)
    assert not hold_logit_scale(scale, 100.0)["logit_scale_held"]


# ------------------------------------------------------------- training: best checkpoint, pictures

OPENAIS = {
    "mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip
OTHER = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear",
         "resize_mode": "squash"}  # fmt: skip


def tags_with_their_own_preprocessing():
    for name, tag in open_clip.list_pretrained():
        if "ViT" in name:
            told = open_clip.get_pretrained_cfg(name, tag)
            own = {key: told.get(key) or usual for key, usual in OPENAIS.items()}
            if any(tuple(own[key]) != tuple(usual) for key, usual in OPENAIS.items()):
                yield name, tag, own


def test_pictures_are_prepared_as_the_weights_want_it_for_every_vit(monkeypatch):
    """What training reads by, against open_clip's own list; on meta tensors, nothing fetched."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(clip, "_tokenizer", lambda name: None)  # some lie on a hub
    served = listed = 0
    for name, tag, own in tags_with_their_own_preprocessing():
        assert OPENAIS | preprocessing_of(name, tag) == own
        listed += 1
        try:
            with torch.device("meta"):
                backbone = create_backbone(name, tag, weights=False)
        except BackboneError:
            continue  # towers that pool otherwise, and second names of the same weights
        side = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
        theirs = image_transform_v2(PreprocessCfg(size=side, **own), is_train=False)
        assert repr(backbone.preprocess) == repr(theirs), (name, tag)
        served += 1
    assert listed >= 30
    assert served >= 5


@pytest.fixture
def other_weights(tmp_path):
    """An exported folder whose weights want pictures in another way."""
    backbone = create_backbone("newsroom-tiny")
    path = tmp_path / "theirs" / "open_clip_model.safetensors"
    path.parent.mkdir()
    save_file(backbone.clip.state_dict(), path)
    path.with_name("open_clip_config.json").write_text(json.dumps({"preprocess_cfg": OTHER}))
    return path


def test_training_itr_search_and_export_prepare_pictures_alike(
    other_weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    start = {"pretraining": None, "pretrained": str(other_weights), "train_pairs": 32,
             "val_pairs": 16, "finetuning": {"epochs": 1, "batch_size": 16}}  # fmt: skip
    profile = load_profile("smoke", settings=start)
    experiment = Experiment(profile, progress=False)
    towers = experiment.towers(0, lambda: None)
    wanted = repr(towers.preprocess)
    assert towers.preprocessing == OTHER
    assert repr(experiment.backbone.preprocess) == wanted
    for split in ("train", "val", "test", "itr:unlabelled", "itr:held_out"):
        served = experiment.dataset(split)
        pair = experiment.pairs(split)[0]
        batch = served.collate([served[0]])
        torch.testing.assert_close(batch.images[0], towers.preprocess(pair.load_image()))

    for folder in (experiment.finetune("clip"), experiment.pretrain_itr()):
        other_weights.unlink(missing_ok=True)  # the checkpoint knows it by itself
        assert load_encoder(folder).preprocessing == OTHER
        exported, *_ = export(folder, tmp_path / f"out-{folder.name}")
        config = json.loads(exported.with_name("open_clip_config.json").read_text())
        assert config["preprocess_cfg"] == OTHER
        save_file(create_backbone("newsroom-tiny").clip.state_dict(), other_weights)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 2,
          "size": {"shortest_edge": 64}},
         {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear",
          "resize_mode": "shortest"}),
        ({"image_mean": [0.1] * 3, "size": {"height": 64, "width": 64}},
         {"mean": [0.1] * 3, "resize_mode": "squash"}),
    ],
)  # fmt: skip
def test_a_transformers_folder_tells_how_its_pictures_are_prepared(tmp_path, config, expected):
    path = tmp_path / "model.safetensors"
    save_file(create_backbone("newsroom-tiny").clip.state_dict(), path)
    path.with_name("preprocessor_config.json").write_text(json.dumps(config))
    assert create_backbone("newsroom-tiny", str(path)).preprocessing == OPENAIS | expected
    path.with_name("preprocessor_config.json").write_text("[")
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json is not JSON"):
        create_backbone("newsroom-tiny", str(path))


# ------------------------------------------------------------- AsCL


def test_ours_differs_from_theirs_by_the_mask_of_dropped_wrong_texts():
    torch.manual_seed(0)
    similarity, wrong = torch.randn(2, 6, 6)
    same = torch.zeros(6, 6, dtype=torch.bool)
    assert (wrong > similarity.diagonal()[:, None]).any()
    ours = nt_xent(similarity, same, 3.0, wrong)
    theirs = literal_ascl.nt_xent(similarity, same, 3.0, wrong, dropped=0.0)
    assert theirs > ours + 0.01  # what is dropped still weighs exp(0)
    torch.testing.assert_close(ours, literal_ascl.nt_xent(similarity, same, 3.0, wrong))
    kept = torch.minimum(wrong, similarity.diagonal()[:, None])  # nothing dropped: no difference
    both = (f(similarity, same, 3.0, kept) for f in (nt_xent, literal_ascl.nt_xent))
    torch.testing.assert_close(*both)


def test_tables_say_that_ascl_is_fused_at_test():
    assert VARIANT_LABELS["ascl"] == "AsCL (fused at test)"
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "| AsCL (fused at test) |" in readme


# ------------------------------------------------------------- ITR


@pytest.mark.parametrize(
    ("tweet", "text"),
    [
        ("Nice day https://t.co/aB3xY", "Nice day"), ("Nice day http://t.co/aB3xY ", "Nice day"),
        ("Nice day t.co/aB3xY", "Nice day"), ("Nice day https://t…", "Nice day"),
        ("Nice day http…", "Nice day"), ("Nice https://example.org/a…", "Nice https://example.org/a…"),
        ("Nice day htt…", "Nice day htt…"), ("https://t.co/aB3xY", ""),
        ("see https://t.co/a1 there", "see https://t.co/a1 there"),
        ("two https://t.co/a1 https://t.co/b2", "two https://t.co/a1"),
        ("https://example.org/t.co/x", "https://example.org/t.co/x"), ("at.co/x", "at.co/x"),
    ],
)  # fmt: skip
def test_a_tweet_loses_the_short_link_at_its_end(tweet, text):
    assert without_link(tweet) == text


def test_the_loaders_read_tweets_as_the_authors_do(tmp_path):
    (tmp_path / "images").mkdir()
    picture = Image.new("RGB", (8, 8))
    for name in ("T1", "T2", "0", "1"):
        picture.save(tmp_path / "images" / f"{name}.jpg")
    head = "tweet_id,tweet,text_is_represented,image_adds"
    rows = ["1,Nice day https://t.co/aB3xY,1,0", "2,https://t.co/cD4,0,1"]
    (tmp_path / "data.csv").write_text("\n".join([head, *rows]) + "\n")
    pairs, report = relation_pairs(tmp_path, "train")
    assert [(pair.id, pair.caption) for pair in pairs] == [("1", "Nice day")]
    assert report.empty_captions == 1  # nothing but a link
    (tmp_path / "text.txt").write_text("x" * 200 + "\n" + "y " * 60 + "https://t.co/aB3xY\n")
    pairs, _ = twitter100k_pairs(tmp_path, "all", first=0)
    assert [pair.caption for pair in pairs] == ["x" * 140, ("y " * 60).strip()]


# ------------------------------------------------------------- data and evaluation


@pytest.fixture
def goodnews(tmp_path, monkeypatch):
    """The tiny model on drawn files in GoodNews' layout: 8 articles of three pictures each."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    layouts.goodnews(tmp_path / "data")
    settings = {"dataset": "goodnews", "data_root": str(tmp_path / "data"),
                "explanation_source": "own", "pretraining": None,
                "pretrained": str(tmp_path / "start.safetensors"),
                "train_pairs": None, "val_pairs": None, "test_pairs": None,
                "test_splits": ["test"],
                "finetuning": {"epochs": 1, "batch_size": 4}}  # fmt: skip
    torch.manual_seed(2)
    save_file(create_backbone("newsroom-tiny").clip.state_dict(), tmp_path / "start.safetensors")
    return lambda **more: Experiment(
        load_profile("smoke", settings=settings | more), progress=False
    )


@pytest.mark.parametrize("policy", ["use", "drop", "caption"])
def test_pairs_without_explanation_are_left_out_of_training_and_counted(goodnews, caplog, policy):
    """Of 11 whole pairs every fourth has none; all variants train on the same pairs."""
    experiment = goodnews(explanation_policy=policy)
    with caplog.at_level("WARNING"):
        pairs = experiment.pairs("train")
    everything = load_pairs("goodnews", "train", root=experiment.settings.data_root)
    lacking = [pair.id for pair in everything if not pair.explanation]
    assert (len(everything), len(lacking)) == (11, 3)
    if policy == "caption":
        assert len(pairs) == 11
    else:
        assert not {pair.id for pair in pairs} & {*lacking}
    if policy == "use":
        assert len(pairs) == 8
        assert "on 11 pairs: 8 keep their explanation, 0 take" in caplog.text
        assert "3 dropped; failed checks: missing 3" in caplog.text
        experiment.finetune("entityclip")  # does not stumble over them
        assert len(experiment.pairs("test")) == 6  # whatever explanations they have


def test_without_any_explanation_only_what_reads_one_is_refused(goodnews, tmp_path, caplog):
    for file in (tmp_path / "data" / "train_cap_individual").iterdir():
        file.unlink()
    experiment = goodnews()
    with caplog.at_level("WARNING"):
        assert len(experiment.pairs("train")) == 11
    assert "0 dropped; failed checks: missing 11" in caplog.text
    experiment.finetune("clip")
    with pytest.raises(ValueError, match="11 of 11 pairs lack an explanation"):
        experiment.finetune("entityclip")


def test_recall_by_article_equals_the_loop(goodnews):
    experiment = goodnews()
    model, dataset = experiment.build("zero-shot"), experiment.dataset("test")
    evaluate(experiment, model, "zero-shot", "test")
    rows = stored_rows(experiment.profile)
    beside = articles_beside(rows)
    pairs = dataset.pairs
    images = torch.stack([dataset.collate([dataset[i]]).images[0] for i in range(len(pairs))])
    texts = model.backbone.tokenize([pair.caption for pair in pairs])
    with torch.no_grad():
        similarity = model.encode_text(texts) @ model.encode_image(images).T
    for direction, scores in (("text_to_image", similarity), ("image_to_text", similarity.T)):
        for split, alike in (("test", "id"), ("test, by article", "group")):
            ranks = []
            for i, own in enumerate(pairs):
                right = [getattr(own, alike) == getattr(other, alike) for other in pairs]
                best = max(scores[i, j] for j in range(len(pairs)) if right[j])
                ranks.append(1 + sum(
                    bool(scores[i, j] >= best) for j in range(len(pairs)) if not right[j]
                ))  # fmt: skip
            of = beside[(beside["split"] == split) & (beside["direction"] == direction)]
            value = of.set_index("metric")["value"]
            assert value["MeanR"] == pytest.approx(sum(ranks) / len(ranks)), (split, direction)
            assert value["R@1"] == pytest.approx(100 * ranks.count(1) / len(ranks))
    assert set(rows["split"]) == {"test"}
    assert set(retrieval_table(beside)["split"]) == {"test", "test, by article"}


def test_articles_of_one_picture_change_nothing():
    pairs = load_pairs("newsroom", "test", limit=12, seed=0, image_size=64)
    assert articles_of(pairs) is None


# ------------------------------------------------------------- the table


def test_the_table_has_a_row_a_difference_and_the_measured_numbers():
    table = read_table(REPOSITORY / "figures" / "public_code.csv").fillna("").set_index("name")
    assert list(table.index) == list(MEASURED)
    # these follow from drawn numbers alone, and take no time
    for name in ("logit_scale", "itr_judged", "ties", "articles", "ascl_gate", "decoding"):
        assert MEASURED[name]()._asdict() == table.loc[name].to_dict(), name
