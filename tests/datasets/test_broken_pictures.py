"""Picture files that cannot be read: training goes on without them and says so, evaluation stops.

From a profile on N24News files to run.json, on archives of a few small pictures.
"""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from entityclip.config import load_profile
from entityclip.datasets.dataset import (
    Broken,
    BrokenPairs,
    ImageTextDataset,
    PairDataset,
    TooManyBroken,
)
from entityclip.datasets.pair import ImageError, Pair
from entityclip.evaluation.retrieval import encode_pairs
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure, measure_leak, measure_matching
from entityclip.models.clip import create_backbone
from entityclip.results import log_table, read_log
from entityclip.training import loop
from entityclip.training.batches import SplitServer
from entityclip.training.run_folder import TrainingError
from tests.fixtures.layouts import write_json
from tests.fixtures.pictures import save

SIDE = 16  # pixels
FILES = {"train": "train", "val": "dev", "test": "test"}
FINETUNING = {"epochs": 2, "batch_size": 6, "checkpoint_every": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny CLIP's weights: N24News has no generic captions to pretrain one on."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(create_backbone("newsroom-tiny", image_size=SIDE).clip.state_dict(), path)
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Write N24News with so many pairs a split: `archive(train=24)`; its root."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    root = tmp_path / "n24news"

    def write(train=24, val=6, test=4):
        for (split, file), count in zip(FILES.items(), (train, val, test), strict=True):
            names = [f"{split}{number}" for number in range(count)]
            for number, name in enumerate(names):
                save(root / "imgs" / f"{name}.jpg", number, (24, 20))
            rows = [{"image_id": name, "caption": f"Caption {name}"} for name in names]
            write_json(root / "news" / f"nytimes_{file}.json", rows)
            explanations = {f"{name}.jpg": f"Explains {name}" for name in names}
            write_json(root / "news" / f"CapDsc_mistral_{file}.json", explanations)
        return root

    return write


def spoil(root, *names):
    for name in names:
        (root / "imgs" / f"{name}.jpg").write_bytes(b"<html>404</html>")


def experiment(root, weights, *, max_broken=0.01, train_decoding="exact", **finetuning):
    settings = {
        "dataset": "n24news",
        "data_root": str(root),
        "image_size": SIDE,
        "explanation_source": "own",
        "max_broken": max_broken,
        "train_decoding": train_decoding,
        "pretrained": str(weights),
        "pretraining": None,
        "train_pairs": None,
        "val_pairs": None,
        "test_pairs": None,
        "model": {"image_experts": 1, "text_experts": 1, "explanation_experts": 1},
        "finetuning": {**FINETUNING, **finetuning},
        "bootstrap": 20,
    }
    return Experiment(load_profile("smoke", settings=settings), progress=False)


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_leaves_broken_pictures_out_and_lists_them(archive, weights, workers, caplog):
    root = archive(train=104, val=100)
    spoil(root, "train7", "val3")
    caplog.set_level(logging.WARNING, "entityclip.training.loop")
    options = {"workers": workers, "batch_size": 50, "lr": 1e-3}
    folder = experiment(root, weights, **options).finetune("clip")
    done = record(folder)
    assert done["steps"] == 4
    assert {split: list(found) for split, found in done["broken"].items()} == {
        "train": ["train7"],
        "val": ["val3"],
    }
    assert str(root / "imgs" / "train7.jpg") in done["broken"]["train"]["train7"]
    # once each, however often the epochs met them; nobody who reads the log stumbles over them
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [list(row["broken"]) for row in rows if "broken" in row] == [["train7"], ["val3"]]
    said = [r.getMessage() for r in caplog.records if r.name == "entityclip.training.loop"]
    assert [line.split(",")[0] for line in said] == ["train", "val"]
    steps, validations = read_log(folder / "log.jsonl")
    assert (len(steps), len(validations)) == (4, 2)
    assert "broken" not in log_table({"clip": folder / "log.jsonl"})


def test_a_resumed_run_equals_the_uninterrupted_broken_pictures_included(
    archive, weights, monkeypatch, tmp_path
):
    """Same batches, same negatives, same list, wherever the run was stopped."""
    root = archive()
    spoil(root, "train7", "val3")
    settings = {"max_broken": 0.2}
    whole = experiment(root, weights, **settings).finetune("entityclip")
    whole = whole.rename(tmp_path / "whole")
    step = loop._Trainer._step
    for stop in (2, 7):

        def interrupted(self, batch, stop=stop):
            if self.step == stop:
                raise KeyboardInterrupt
            return step(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Trainer, "_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                experiment(root, weights, **settings).finetune("entityclip")
        torch.manual_seed(99)
    resumed = experiment(root, weights, **settings).finetune("entityclip")
    assert record(resumed)["resumed_from"] == 7
    assert record(resumed)["broken"] == record(whole)["broken"]
    ends = [load_file(folder / "last.safetensors") for folder in (whole, resumed)]
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []
    logs = [
        [{**json.loads(line), "pairs_per_s": 0} for line in (f / "log.jsonl").open()]
        for f in (whole, resumed)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_five_percent_broken_stop_the_run(archive, weights, split):
    root = archive(**{split: 100})
    spoil(root, *(f"{split}{number}" for number in range(5)))
    with pytest.raises(TooManyBroken, match=r"of 100 pairs have .* more than the share 0\.01"):
        experiment(root, weights).finetune("clip")
    runs = root.parent / "runs" / "smoke" / "checkpoints"
    assert len(list(runs.glob("*/log.jsonl"))) == 1
    assert list(runs.glob("*/run.json")) == []


def test_evaluation_raises_at_a_broken_picture_and_stores_no_row(archive, weights):
    root = archive(val=100)
    base = experiment(root, weights)
    whole = measure(base, ["zero-shot"], ["test"])["zero-shot", "test"]
    assert whole.sizes("text_to_image") == {"n_queries": 4, "n_candidates": 4}
    stored = (base.results / "retrieval.jsonl").read_bytes()
    model = base.build("entityclip")
    assert len(measure_matching(base, model, "entityclip", "test")) == 3
    assert len(measure_leak(base, model, "entityclip", "test")) == 10
    spoil(root, "test2")
    for probe in (measure_matching, measure_leak):
        with pytest.raises(ImageError, match="pair 'test2'"):
            probe(base, model, "entityclip", "test")
    for workers in (0, 2):
        with pytest.raises(ImageError, match=r"pair 'test2': .*imgs/test2\.jpg.*every picture"):
            measure(experiment(root, weights, workers=workers), ["zero-shot"], ["test"])
    assert (base.results / "retrieval.jsonl").read_bytes() == stored
    # the share is training's: as candidates, validation's 100 pictures are needed to the last
    spoil(root, "val50")
    with pytest.raises(ImageError, match="pair 'val50'"):
        measure(experiment(root, weights), ["zero-shot"], ["val"])


def test_encoding_files_equals_encoding_them_at_once(archive, weights):
    """The lazy dataset against `PairDataset`: keys, order and pixels, captions sharing pictures."""
    base = experiment(archive(), weights)
    model, pairs = base.build("zero-shot"), list(base.pairs("train"))[:9]
    pairs += [Pair(f"again{p.id}", p.image, p.caption + " again") for p in pairs[2:7]]
    made_of = pairs, base.backbone.preprocess, base.backbone.tokenize
    lazy = encode_pairs(model, ImageTextDataset(*made_of), batch_size=4, progress=False)
    literal = PairDataset(*made_of, with_explanations=False, cache=False)
    held = encode_pairs(model, literal, batch_size=4, progress=False)
    assert lazy.images.shape[0] == 9
    for name in ("texts", "images", "image_of", "first"):
        assert torch.equal(getattr(lazy, name), getattr(held, name)), name


def test_a_batch_without_a_whole_picture_is_named(archive, weights):
    root = archive()
    base = experiment(root, weights)
    spoil(root, "test1", "test2")
    pairs = base.pairs("test")
    dataset = ImageTextDataset(
        pairs, base.backbone.preprocess, base.backbone.tokenize, max_broken=1.0
    )
    server = SplitServer(dataset, workers=0, device=torch.device("cpu"))
    found = []
    served = server.batches([[0, 1], [3, 2], [1, 2]], seed=0, found=found.append)
    assert [next(served).ids, next(served).ids] == [["test0"], ["test3"]]
    with pytest.raises(TrainingError, match=r"no whole picture: .*test1.*test2.*raise batch_size"):
        next(served)
    assert [list(new) for new in found] == [["test1"], ["test2"]]


def test_the_drawn_newsroom_is_held_in_memory_and_files_are_not(archive, weights):
    assert isinstance(experiment(archive(), weights).dataset("train"), ImageTextDataset)
    drawn = Experiment(load_profile("smoke"), progress=False)
    assert isinstance(drawn.dataset("val"), PairDataset)


def test_only_training_may_draft_and_such_a_run_is_another(archive, weights):
    root = archive()
    for split in ("train", "val"):
        save(root / "imgs" / f"{split}0.jpg", 1, (300, 200))
    exact, draft = experiment(root, weights), experiment(root, weights, train_decoding="draft")
    pixels = {
        (name, split): base.dataset(split)[0].image
        for name, base in (("exact", exact), ("draft", draft))
        for split in ("train", "val")
    }
    assert not torch.equal(pixels["exact", "train"], pixels["draft", "train"])
    assert torch.equal(pixels["exact", "val"], pixels["draft", "val"])
    mine, theirs = exact.identity("clip"), draft.identity("clip")
    assert {k for k in mine | theirs if mine.get(k) != theirs.get(k)} == {"train_decoding"}


def test_a_pair_counts_once_and_the_share_is_exact():
    broken = BrokenPairs(100, 0.02)
    assert broken.add([Broken("a", "gone"), Broken("b", "torn")]) == {"a": "gone", "b": "torn"}
    assert broken.add([Broken("a", "gone")]) == {}
    with pytest.raises(TooManyBroken, match=r"3 of 100 pairs .* share 0\.02 (?s:.*)gone\n  torn"):
        broken.add([Broken("c", "zero bytes")])
