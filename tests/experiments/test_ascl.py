"""AsCL as a model, in the training loop, in evaluation, and its stored runs."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from entityclip import identities, variants
from entityclip.config import AsCLConfig, ProfileError, TrainConfig, load_profile
from entityclip.datasets import load_pairs
from entityclip.datasets.captions import SeveralCaptions
from entityclip.datasets.dataset import PairDataset
from entityclip.evaluation.retrieval import (
    positions,
    retrieve_reranked,
    similarities,
)
from entityclip.evaluation.retrieval import (
    retrieve_ascl as retrieve,
)
from entityclip.experiments import chapters
from entityclip.experiments.chapters import feature_spaces, load_ascl, measure_ascl
from entityclip.experiments.experiment import Experiment
from entityclip.models.ascl import AsCL
from entityclip.models.clip import create_backbone
from entityclip.models.losses import vtc_loss
from entityclip.reporting.scores import (
    ascl_differences,
    describe_rsum,
    rsum_differences,
    rsum_table,
)
from entityclip.reporting.scores import ascl_over_seeds as over_seeds
from entityclip.reporting.scores import ascl_recall_table as recall_table
from entityclip.statistics import METRICS, rsum
from entityclip.training.loop import train
from entityclip.variants import Measured

OFF = {"fusion": False, "richer": False, "poorer": False, "wrong": "none"}


def plain_set(backbone, n=20, split="captions_train"):
    pairs = load_pairs("newsroom", split, limit=n, image_size=64)
    return PairDataset(
        pairs, backbone.preprocess, backbone.tokenize, with_explanations=False, cache=True
    )


def make_set(backbone, n=20):
    return SeveralCaptions(plain_set(backbone, n), backbone.tokenize)


@pytest.fixture(scope="module")
def captions(backbone):
    return make_set(backbone)


@pytest.fixture
def batch(captions):
    torch.manual_seed(0)
    return captions.collate([captions[i] for i in (0, 6, 1, 12, 19)])


def model_of(backbone, **options):
    torch.manual_seed(0)
    return AsCL(copy.deepcopy(backbone), AsCLConfig(**options))


# ------------------------------------------------------------------------------------------ data


def test_batches_carry_another_caption_of_the_same_picture(captions):
    seen = set()
    for _ in range(30):
        batch = captions.collate([captions[i] for i in range(20)])
        for row, other in enumerate(batch.others):
            partner = (captions.dataset.captions == other).all(1).nonzero().flatten().tolist()
            assert all(p != row and p // 5 == row // 5 for p in partner)
            seen |= {(row, p) for p in partner}
    assert len(seen) == 20 * 4  # each of the others is drawn at times
    torch.manual_seed(4)
    first = captions.collate([captions[0]]).others
    torch.manual_seed(4)
    assert torch.equal(captions.collate([captions[0]]).others, first)


def test_one_caption_a_picture_is_refused(backbone):
    message = r"1 of 5 pictures have one caption.*'captions_train-0-000004#0'.*multiple of 5"
    with pytest.raises(ValueError, match=message):
        make_set(backbone, 21)
    plain = plain_set(backbone, 21)
    batch = plain.collate([plain[0], plain[5]])
    assert batch.others is None
    with pytest.raises(ValueError, match="the batch has no second one"):
        model_of(backbone)(**batch.inputs())


# ----------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("variant", variants.ASCL_VARIANTS)
def test_terms_and_gradients_of_every_variant(backbone, batch, variant):
    options = variants.ASCL_VARIANTS[variant]
    model = model_of(backbone, **options)
    terms = model.losses(model(**batch.inputs()))
    config = model.config
    expected = {"loss", "ascl_pairs"}
    expected |= {"ascl_generated"} if config.richer or config.poorer else set()
    expected |= {"wrong_dropped"} if config.wrong == "all" else set()
    assert set(terms) == expected
    terms["loss"].backward()
    lacking = {name for name, p in model.named_parameters() if p.grad is None}
    assert lacking == (set() if config.temperature is None else {"backbone.clip.logit_scale"})
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_with_all_parts_off_it_is_clips_loss(backbone, captions):
    batch = captions.collate([captions[i] for i in (0, 5, 10)])  # no picture twice
    model = model_of(backbone, temperature=None, **OFF)
    clip = backbone.clip
    expected = vtc_loss(
        clip.encode_image(batch.images, normalize=True),
        clip.encode_text(batch.captions, normalize=True),
        clip.logit_scale.exp(),
    )
    torch.testing.assert_close(model.losses(model(**batch.inputs()))["loss"], expected)


def test_loss_is_half_pairs_and_half_generated(backbone, batch):
    model = model_of(backbone)
    terms = model.losses(model(**batch.inputs()))
    torch.testing.assert_close(terms["loss"], (terms["ascl_pairs"] + terms["ascl_generated"]) / 2)


def test_wrong_texts_differ_from_true_ones(backbone, batch):
    model = model_of(backbone)
    with torch.no_grad():
        true, wrong = model.text_side(batch.captions), model.text_side(batch.captions, wrong=True)
    assert (true.pooled - wrong.pooled).norm(dim=1).min() > 1e-3


def test_small_batches_are_refused(backbone, batch):
    with pytest.raises(ValueError, match="a batch of 1"):
        model_of(backbone)(batch.images[:1], batch.captions[:1], others=batch.others[:1])


def test_the_training_loop_trains_and_resumes_it(captions, tmp_path):
    config = TrainConfig(epochs=2, batch_size=8, lr=1e-3, precision="fp32", checkpoint_every=1)
    val = captions

    def run(folder):
        return train(
            model_of(create_backbone("newsroom-tiny")), captions, val, config, tmp_path / folder,
            progress=False,
        )  # fmt: skip

    torch.manual_seed(1)
    whole = run("whole")
    log = [json.loads(line) for line in (whole.folder / "log.jsonl").read_text().splitlines()]
    assert whole.steps == 4
    assert {"ascl_pairs", "ascl_generated", "wrong_dropped"} <= set(log[0])
    again = run("whole")
    assert again.resumed_from == 4
    assert torch.isfinite(torch.tensor(whole.best_val_loss))


# ------------------------------------------------------------------------------------ evaluation


def test_similarities_are_the_models_own_whatever_the_stretch(backbone, captions):
    model = model_of(backbone).eval()
    few, image_of = similarities(model, captions.dataset, batch_size=3, progress=False)
    many, _ = similarities(model, captions.dataset, batch_size=64, progress=False)
    assert few.shape == (4, 20)
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)
    row, text = 7, captions.dataset.captions[7:8]
    with torch.no_grad():
        image = captions.collate([captions[row]]).images
        own = model.similarity(model.image_side(image), model.text_side(text))
    assert own.item() == pytest.approx(many[image_of[row], row].item(), abs=1e-5)


def test_short_queries_are_compared_by_their_first_half(backbone, captions):
    model = model_of(backbone).eval()
    whole, _ = similarities(model, captions.dataset, progress=False)
    short, _ = similarities(model, captions.dataset, short_queries=True, progress=False)
    assert (whole - short).abs().max() > 1e-3


def literal_reranked_rank(similarity, image_of, picture, k):
    """Rank of a picture's best caption after re-ranking, with sorted lists; no ties."""
    row = similarity[picture]
    order = sorted(range(len(row)), key=lambda j: -row[j])
    top = sorted(order[:k], key=lambda j: int((similarity[:, j] > similarity[picture, j]).sum()))
    order = top + order[k:]
    # candidates of the query's own group do not stand in each other's way
    best = min(place for place, j in enumerate(order) if image_of[j] == picture)
    return 1 + best


def test_reranking_equals_sorting_lists():
    torch.manual_seed(2)
    similarity, image_of = torch.randn(9, 27), torch.arange(27) % 9
    found = retrieve_reranked(similarity, image_of, k_text=6, k_image=4)
    expected = [literal_reranked_rank(similarity, image_of, i, 6) for i in range(9)]
    assert found.image_to_text.tolist() == expected
    assert found.image_to_text.tolist() != retrieve(similarity, image_of).image_to_text.tolist()
    back = [
        literal_reranked_rank(similarity.T, torch.arange(9), j, 4) for j in range(27)
        if image_of[j] == j
    ]  # fmt: skip
    assert found.text_to_image[:9].tolist() == back


def test_reranking_nothing_changes_nothing_and_ties_count_against():
    torch.manual_seed(2)
    similarity, image_of = torch.randn(9, 27), torch.arange(27) % 9
    same = retrieve_reranked(similarity, image_of, k_text=1, k_image=1)
    assert np.array_equal(same.image_to_text, retrieve(similarity, image_of).image_to_text)
    flat = retrieve_reranked(torch.zeros(9, 27), image_of)
    assert flat.text_to_image.tolist() == [9] * 27
    assert positions(torch.tensor([[1.0, 3.0, 3.0, 0.0]])).tolist() == [[3, 2, 2, 4]]


def test_rsum_adds_six_recalls():
    metrics = {d: {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0, "MedR": 5.0} for d in ("a", "b")}
    assert rsum(metrics) == 120


# ------------------------------------------------------------------------------------------ runs

TINY = {
    "pretraining": {"pairs": 16, "eval_pairs": 8, "train": {"epochs": 1, "batch_size": 8}},
    "ascl": {
        "train_pairs": 20, "val_pairs": 10, "test_pairs": 20, "seeds": 2,
        "finetuning": {"epochs": 1, "batch_size": 8},
    },
    "bootstrap": 20,
}  # fmt: skip


def experiment(**changes):
    settings = {**TINY, "ascl": {**TINY["ascl"], **changes}}
    return Experiment(load_profile("smoke", settings=settings), progress=False)


def test_runs_are_trained_measured_once_and_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    first, seeds = experiment(), identities.ascl_seeds(experiment().profile)
    ways = (Measured(), Measured(short_queries=True), Measured(rerank=True))
    rows = measure_ascl(first, ["contrastive", "ascl"], ways=ways)
    assert len(rows) == 2 * len(seeds) * len(ways) * 2 * len(METRICS)
    assert set(rows["n_queries"]) == {4, 20}
    table = recall_table(rows)
    stored_otherwise = rows.sort_values("direction", kind="stable")
    assert recall_table(stored_otherwise).columns.tolist() == table.columns.tolist()
    assert set(table["variant"]) == {
        "contrastive", "ascl", "contrastive, re-ranked", "ascl, re-ranked",
    }  # fmt: skip
    one = rows[(rows.variant == "ascl") & (rows.split == "captions_test") & (rows.seed == 0)]
    expected = one[one.metric.isin(["R@1", "R@5", "R@10"])]["value"].sum()
    row = table[(table.variant == "ascl") & (table.split == "captions_test") & (table.seed == 0)]
    assert row["RSUM"].item() == pytest.approx(expected)

    mean = over_seeds(table).set_index(["variant", "split", "metric"])
    assert mean.loc[("ascl", "captions_test", "RSUM"), "count"] == 2
    found = ascl_differences(rows[~rows.variant.str.contains("re-ranked")])
    assert len(found) == 4  # 2 seeds, whole and short queries
    ranks = rows[rows["metric"] == "MeanR"]
    sums = rsum_table(ranks).set_index(["variant", "split"])
    assert len(sums) == 6
    for key, found_sum in sums.iterrows():
        assert found_sum["RSUM"] == pytest.approx(mean.loc[(*key, "RSUM"), "mean"])
        assert found_sum["low"] <= found_sum["RSUM"] <= found_sum["high"]
    ranks = ranks[(ranks["split"] == "captions_test") & ~ranks["variant"].str.contains("ranked")]
    apart = rsum_differences(ranks, "contrastive")
    gap = found.loc[found.split == "captions_test", "RSUM"].mean()
    assert apart["variant"].tolist() == ["contrastive", "ascl"]
    assert apart["seeds"].tolist() == [2, 2]
    assert apart["difference"].tolist() == pytest.approx([np.nan, gap], nan_ok=True)
    assert apart.loc[1, "RSUM"] == pytest.approx(sums.loc[("ascl", "captions_test"), "RSUM"])
    (said,) = describe_rsum(apart, "contrastive")
    assert f"difference {gap:+.1f}" in said
    assert said.endswith("2 seeds)")
    lacking = ranks[(ranks["variant"] != "ascl") | (ranks["seed"] != 0)]
    apart = rsum_differences(lacking, "contrastive")
    by_seed = found[found.split == "captions_test"].set_index("seed")["RSUM"]
    assert apart["seeds"].tolist() == [2, 1]
    assert apart.loc[1, "difference"] == pytest.approx(by_seed[1])
    with pytest.raises(ValueError, match="not measured on the same"):
        ascl_differences(rows[rows.variant == "ascl"])

    def refuse(*_args, **_options):
        raise AssertionError("a finished run was redone")

    monkeypatch.setattr("entityclip.experiments.experiment.train", refuse)
    monkeypatch.setattr(chapters, "ascl_retrieval", refuse)
    again = measure_ascl(experiment(), ["contrastive", "ascl"], ways=ways)
    assert again["value"].tolist() == rows["value"].tolist()
    with pytest.raises(AssertionError, match="redone"):  # other pairs to measure on
        measure_ascl(experiment(test_pairs=25), ["ascl"], [0])
    with pytest.raises(AssertionError, match="redone"):  # and to train on
        measure_ascl(experiment(train_pairs=25), ["ascl"], [0])
    for changes in ({"test_pairs": 25}, {"train_pairs": 25}):
        assert measure_ascl(experiment(**changes), ["ascl"], [0], train=False).empty
    with pytest.raises(ValueError, match="no AsCL variant 'acsl'"):
        measure_ascl(first, ["acsl"], [0])

    spaces = feature_spaces(first, {"ascl": load_ascl(first, "ascl", 0)})
    assert 0 < spaces["alignment"].item() < 4
    assert spaces["uniformity, pictures"].item() < 0


def test_settings_are_checked():
    with pytest.raises(ProfileError, match=r"ascl\.model\.head: .*did you mean heads"):
        load_profile("smoke", settings={"ascl": {"model": {"head": 4}}})
    with pytest.raises(ProfileError, match=r"temperature: .* than 0 \(got 0"):
        load_profile("smoke", settings={"ascl": {"model": {"temperature": 0.0}}})
    without = load_profile("smoke", settings={"ascl": None})
    with pytest.raises(ValueError, match="no `ascl` block"):
        chapters.ascl_run(Experiment(without), "ascl", 0)
