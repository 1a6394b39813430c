"""From a profile to stored rows: encoding, identity of runs, what is redone and what is not."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from entityclip import results
from entityclip.checkpoints import read_tensors
from entityclip.config import EntityCLIPConfig, load_profile
from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.pair import Pair
from entityclip.evaluation.retrieval import best_pictures, encode_pairs, retrieve
from entityclip.experiments import sweep
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure, measure_pretraining, stored_ranks
from entityclip.models.entityclip import EntityCLIP
from entityclip.reporting.differences import difference_table
from entityclip.results import ResultsError, find_rows, read_rows, stored_rows
from entityclip.statistics import METRICS
from entityclip.variants import FLOORS, IN_SCENE, ONE_FLAG, SAME_FLAGS

TINY = {
    "train_pairs": 16, "val_pairs": 8, "test_pairs": 8, "test_splits": ["test"], "bootstrap": 20,
    "pretraining": {"pairs": 16, "eval_pairs": 8, "train": {"epochs": 1, "batch_size": 8}},
    "finetuning": {"epochs": 1, "batch_size": 8},
    "model": {"image_experts": 1, "text_experts": 1, "explanation_experts": 1},
    "itr": {
        "unlabelled": {"dataset": "newsroom", "split": "relation_unlabelled", "limit": 32},
        "held_out": 8,
        "objective": {"iterations": 2, "subset": 16, "batch_size": 8},
    },
}  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    return tmp_path


def experiment(seed=0, **settings):
    profile = load_profile("smoke", seed=seed, settings={**TINY, **settings})
    return Experiment(profile, progress=False)


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


def test_all_variants_are_trained_measured_and_compared(runs):
    first = experiment()
    variants = ["zero-shot", "clip", "entityclip"]
    ranks = measure(first, variants, ["test"])
    rows = stored_rows(first.profile)
    assert (rows["metric"].isin(METRICS)).sum() == 3 * 2 * len(METRICS)
    assert set(rows["metric"]) - set(METRICS) <= {IN_SCENE, ONE_FLAG, SAME_FLAGS}
    assert set(rows["variant"]) == {"zero-shot", "clip", "entityclip"}
    assert rows["data_fingerprint"].nunique() == 1
    assert rows["config_hash"].nunique() == 3
    assert set(rows["n_candidates"]) == {8}
    shown = rows.set_index(["variant", "direction", "metric"])["value"]
    for variant in variants:
        recall = (ranks[variant, "test"].image_to_text == 1).mean() * 100
        assert shown[variant, "image_to_text", "R@1"] == pytest.approx(recall)

    differences = difference_table(stored_rows(first.profile, "ranks"), [("entityclip", "clip")])
    for direction, row in differences.set_index("direction").iterrows():
        expected = shown["entityclip", direction, "R@1"] - shown["clip", direction, "R@1"]
        assert row["value"] == pytest.approx(expected)

    # a second process finds everything finished, and measures the same
    before = files(runs / "smoke" / "checkpoints")
    again = measure(experiment(), ["entityclip"], ["test"])
    assert files(runs / "smoke" / "checkpoints") == before
    assert np.array_equal(
        again["entityclip", "test"].text_to_image, ranks["entityclip", "test"].text_to_image
    )
    assert len(stored_rows(experiment().profile)) == len(rows)


def test_what_is_stored_is_not_measured_again(runs, monkeypatch):
    first = measure(experiment(), ["clip"], ["test"])
    monkeypatch.setattr(Experiment, "load", lambda *_: pytest.fail("measured again"))
    again = measure(experiment(), ["clip"], ["test"])
    for direction in ("text_to_image", "image_to_text"):
        assert np.array_equal(
            again["clip", "test"].ranks(direction), first["clip", "test"].ranks(direction)
        )
    assert np.array_equal(again["clip", "test"].image_of, first["clip", "test"].image_of)
    # of another seed, other data or after deletion there is nothing
    assert len(find_rows(experiment(seed=1).profile, "ranks")) == 2  # rows of all seeds are found …
    with pytest.raises(pytest.fail.Exception):
        measure(experiment(seed=1), ["clip"], ["test"])  # … but only its own count as done
    assert find_rows(experiment(data_seed=1).profile, "ranks").empty
    assert stored_ranks(experiment(test_pairs=6), "clip", "test") is None


def test_other_settings_seeds_and_data_are_other_runs(runs):
    base = experiment()
    others = [
        experiment(finetuning={"epochs": 2, "batch_size": 8}),
        experiment(train_pairs=24),
        experiment(seed=1),
        experiment(pretraining={**TINY["pretraining"], "pairs": 24}),
    ]
    folders = [base.pretrain(), *(one.finetune("clip") for one in (base, *others))]
    assert len({*folders}) == len(folders)
    assert base.finetune("clip") == folders[1]
    measure(base, ["clip"], ["test"])
    with pytest.raises(ResultsError, match="run notebook 04_retrieval"):
        stored_rows(others[0].profile)


def test_force_retrains_and_keeps_the_old_run_until_the_new_is_finished(runs, monkeypatch):
    base = experiment()
    folder = base.finetune("clip")
    weights = (folder / "best.safetensors").read_bytes()

    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("entityclip.experiments.experiment.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            base.finetune("clip", force=True)
    kept = folder.with_name(folder.name + ".previous")
    assert (kept / "best.safetensors").read_bytes() == weights
    assert base.finetune("clip") == folder
    assert not kept.exists()
    assert (folder / "best.safetensors").read_bytes() == weights  # the same seed, the same weights


def test_two_runs_of_one_variant_and_seed_are_the_same_to_the_bit(tmp_path, monkeypatch):
    found = []
    for place in ("one", "other"):
        monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / place))
        base = experiment()
        measure(base, ["entityclip"], ["test"])
        hashes = {
            f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (tmp_path / place).rglob("best.safetensors")
        }
        for file in (tmp_path / place).rglob("last.safetensors"):  # its header holds the time spent
            bits = b"".join(t.numpy().tobytes() for _, t in sorted(read_tensors(file).items()))
            hashes[f"{file.parent.name}/{file.name}"] = hashlib.sha256(bits).hexdigest()
        key = ["variant", "direction", "metric"]
        metrics = stored_rows(base.profile).set_index(key)[["value", "low", "high"]]
        found.append(
            (hashes, metrics.to_dict(), stored_rows(base.profile, "ranks")["ranks"].tolist())
        )
    assert found[0] == found[1]
    assert len(found[0][0]) == 4  # best and last, of pretraining and of fine-tuning


def test_pretraining_is_measured_apart_from_the_table(runs):
    base = experiment()
    measure_pretraining(base)
    assert set(stored_rows(base.profile, "pretraining")["split"]) == {"generic_val"}
    with pytest.raises(ResultsError):
        stored_rows(base.profile)


def test_variants_differ_only_where_they_say(runs):
    base = experiment()
    clip, entity = base.identity("clip"), base.identity("entityclip")
    assert {k for k in clip if clip[k] != entity[k]} == {"variant", "model"}
    assert base.config("clip") == replace(
        base.settings.model, image_experts=0, text_experts=0, explanation_experts=0
    )
    with pytest.raises(ValueError, match="no variant 'klip'; there are zero-shot"):
        base.identity("klip")


class Flat:
    """A picture of one colour."""

    def __init__(self, colour):
        self.colour = self.key = colour

    def load(self):
        return Image.new("RGB", (64, 64), self.colour)


def test_several_captions_of_a_picture_share_one_candidate(backbone):
    colours = ["red", "blue", "red", "lime", "blue", "red"]
    pairs = [Pair(str(i), Flat(c), f"{c} caption {i}") for i, c in enumerate(colours)]
    data = PairDataset(
        pairs, backbone.preprocess, backbone.tokenize, with_explanations=False, cache=True
    )
    model = EntityCLIP(backbone, EntityCLIPConfig(0, 0, 0))
    embeddings = encode_pairs(model, data, batch_size=2, progress=False)
    assert embeddings.texts.shape[0] == 6
    assert embeddings.images.shape[0] == 3
    for caption, picture in enumerate(embeddings.image_of.tolist()):
        assert colours[embeddings.first[picture]] == colours[caption]
        with torch.no_grad():
            alone = model.encode_image(data.collate([data[caption]]).images)
        torch.testing.assert_close(embeddings.images[[picture]], alone, atol=1e-5, rtol=1e-5)
    ranks = retrieve(embeddings)
    assert ranks.sizes("text_to_image") == {"n_queries": 6, "n_candidates": 3}
    assert ranks.sizes("image_to_text") == {"n_queries": 3, "n_candidates": 6}
    # the literal loop over captions
    similarity = embeddings.texts @ embeddings.images.T
    for caption, picture in enumerate(embeddings.image_of.tolist()):
        order = similarity[caption].argsort(descending=True).tolist()
        assert ranks.text_to_image[caption] == order.index(picture) + 1
    shown = best_pictures(data, embeddings, ranks.text_to_image, [0, 3], k=3)
    for query, found in zip([0, 3], shown, strict=True):
        assert found.true == ranks.text_to_image[query] - 1
        assert found.answer.getpixel((0, 0)) == found.pictures[found.true].getpixel((0, 0))


def test_encoding_leaves_the_model_as_it_was(backbone, make_dataset):
    for training in (True, False):
        model = EntityCLIP(backbone, EntityCLIPConfig(0, 0, 0)).train(training)
        encode_pairs(model, make_dataset("test", 4), progress=False)
        assert model.training is training


def test_a_pretraining_by_itr_is_found_again(runs, monkeypatch):
    source = {"dataset": "newsroom", "limit": 20}
    itr = {
        "unlabelled": {**source, "split": "relation_unlabelled"},
        "labelled": {**source, "split": "relation_train"},
        "judged": {**source, "split": "relation_test"},
        "objective": {"iterations": 1, "subset": 8, "batch_size": 8, "clusters": 2},
        "held_out": 8,
    }
    base = experiment(itr=itr)
    ids = [{pair.id for pair in base.pairs(f"itr:{s}")} for s in ("unlabelled", "held_out")]
    assert not ids[0] & ids[1]
    assert [len(found) for found in ids] == [20, 8]
    folder = base.pretrain_itr()
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "build", pytest.fail)  # nothing is built anew
        assert experiment(itr=itr).pretrain_itr() == folder
    assert base.itr_run(2).identity["itr"]["seed"] == 2
    assert base.folder(base.itr_run(2)) != folder
    assert base.pretrain_itr(("cluster_generated",)) != folder
    with pytest.raises(ValueError, match="no `itr` block"):
        experiment(itr=None).pretrain_itr()


def test_some_seeds_have_data_and_a_pretraining_of_their_own(runs):
    base = experiment(second_draw=[3])
    settings = base.settings
    assert settings.of_seed(0) is settings
    drawn = settings.of_seed(3)
    assert (drawn.data_seed, drawn.pretraining.seed) == (1, 1)
    assert drawn.of_seed(3) == drawn  # once, whoever asks
    same, other = base.of_seed(1), base.of_seed(3)
    assert same.fingerprint("test") == base.fingerprint("test")
    assert other.fingerprint("test") != base.fingerprint("test")
    assert other.fingerprint("generic") != base.fingerprint("generic")
    assert other.identity("clip")["data_seed"] == 1
    assert other.identity("clip")["start"]["seed"] == 1
    assert other.seed == other.profile.seed == 3
    # a table's runs are those of its seeds' own draws
    found = dict(sweep.table_runs(base, "main", [0, 3]))
    draws = {there.seed: there.settings.data_seed for there in found}
    assert draws == {0: 0, 3: 1}


def test_rows_of_both_draws_and_of_floors_are_shipped(runs, monkeypatch):
    base = experiment(second_draw=[3], main_seeds=[0, 3])
    for there in (base, base.of_seed(3)):
        sweep.measure_variant(there, "clip", shipped=False)
    monkeypatch.setattr(results, "SHIPPED", runs / "shipped")
    counts = sweep.ship_rows(base)
    splits = len(sweep.splits_of(base, "clip"))
    assert counts["floor"] == 2 * splits * len(FLOORS) * 6  # draws, splits, floors, metrics
    shipped = read_rows(runs / "shipped" / "smoke" / "ranks.jsonl")
    assert set(shipped["seed"]) == {0, 3}
    assert shipped["data_fingerprint"].nunique() == 2 * shipped["split"].nunique()
