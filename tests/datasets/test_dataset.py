"""Batches bit for bit as open_clip's preprocessing gives them; broken pictures skipped or raised.

Up to a run's end on archives of a few small pictures: training goes on without what cannot be read
and says so, evaluation stops.
"""

from __future__ import annotations

import json
import logging
import pickle

import pytest
import torch
from open_clip import SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

import entityclip
from entityclip.config import load_profile
from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import Batch, Broken, BrokenPairs, PairDataset, TooManyBroken
from entityclip.datasets.pair import ImageError, Pair
from entityclip.evaluation.retrieval import encode_pairs
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure
from entityclip.experiments.probes import measure_leak, measure_matching
from entityclip.models.clip import create_backbone
from entityclip.results import log_table, read_log
from entityclip.training.processes import SplitServer
from entityclip.training.run_folder import TrainingError
from tests.fixtures import layouts
from tests.fixtures.pictures import BROKEN, Noise, draw, save
from tests.training_setup import stopped_at

PREPROCESS = image_transform(32, is_train=False)


def tokenize(texts):
    """A tokenizer of five columns: the lengths of the first words."""
    return torch.tensor([([len(word) for word in text.split()] + [0] * 5)[:5] for text in texts])


def drawn(count=6):
    return [
        Pair(f"p{i}", Noise(i), f"caption {'x' * i}", f"because {'y' * i}", group=f"g{i // 2}")
        for i in range(count)
    ]


def files(root, count, broken=()):
    """Pairs of pictures in files, some of them of zero bytes."""
    pairs = [Pair(f"p{n}", save(root / f"{n}.jpg", n), f"caption {n}") for n in range(count)]
    for number in broken:
        pairs[number].image.write_bytes(b"")
    return pairs


def serve(pairs, preprocess=PREPROCESS, **options):
    return PairDataset(pairs, preprocess, tokenize, **options)


def load(dataset, batch_size, workers=0):
    """Its batches, and what was left out, counted as training counts it."""
    broken, batches = BrokenPairs(len(dataset), dataset.max_broken), []
    for batch in DataLoader(dataset, batch_size, collate_fn=dataset.collate, num_workers=workers):
        broken.add(batch.broken if isinstance(batch, Batch) else batch)
        if isinstance(batch, Batch):
            batches.append(batch)
    return batches, broken.problems


# -------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "preprocess",
    [image_transform(48, is_train=False), Compose([Resize(32), CenterCrop(32), ToTensor()])],
    ids=["open_clip", "another tail"],
)
def test_batches_are_bit_for_bit_what_preprocess_gives(cache, preprocess, tmp_path):
    pairs = [*drawn(6), Pair("file", save(tmp_path / "a.jpg", 7, (80, 50)), "a file", "read")]
    dataset = serve(pairs, preprocess, with_explanations=True, cache=cache)
    expected = torch.stack([preprocess(pair.load_image()) for pair in pairs])
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 2, 0]):
        batch = dataset.collate([dataset[row] for row in order])
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.images, expected[order])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(48, 36), (36, 48), (301, 200), (32, 32), (20, 15)])
def test_pixels_of_files_are_open_clips_own(mode, size, tmp_path):
    path = tmp_path / "a.jpg"
    draw(1, size).convert(mode).save(path, quality=85)
    dataset = serve([Pair("a", path, "text")])
    assert torch.equal(dataset.collate([dataset[0]]).images[0], PREPROCESS(Image.open(path)))


def test_drafted_pixels_are_close_and_exact_ones_the_default(tmp_path):
    pair = [Pair("a", save(tmp_path / "a.jpg", 5, (400, 300)), "text")]
    exact, drafted = serve(pair)[0].image, serve(pair, decoding="draft")[0].image
    assert 0 < (drafted.float() - exact.float()).abs().mean() < 4


@pytest.mark.parametrize(("cache", "loads"), [(True, 1), (False, 3)])
def test_the_cache_draws_each_picture_once(cache, loads):
    shared = Noise(1)
    pairs = [Pair("a", shared, "one"), Pair("b", shared, "two"), Pair("c", shared, "three")]
    dataset = serve(pairs, cache=cache)
    dataset.collate([dataset[0], dataset[1], dataset[2]])
    assert shared.loads == loads


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_serves_texts_ids_groups_and_keys(cache, workers):
    dataset = serve(drawn(5), with_explanations=True, cache=cache)
    loader = DataLoader(
        dataset, batch_sampler=[[3, 1], [0, 2, 4]], collate_fn=dataset.collate, num_workers=workers
    )
    first, second = loader
    assert (len(first), len(second)) == (2, 3)
    assert first.ids == ["p3", "p1"]
    assert first.groups == ["g1", "g0"]
    assert first.captions.tolist() == [[7, 3, 0, 0, 0], [7, 1, 0, 0, 0]]
    assert first.explanations.tolist() == [[7, 3, 0, 0, 0], [7, 1, 0, 0, 0]]
    assert first.captions.dtype == first.image_keys.dtype == torch.int64
    assert torch.equal(first.image_keys, dataset.image_keys[[3, 1]])
    assert serve(drawn(2)).collate([serve(drawn(2))[0]]).explanations is None


def test_a_table_is_served_and_shared_with_workers(tmp_path):
    layouts.n24news(tmp_path)
    pairs = load_pairs("n24news", "train", root=tmp_path)
    batches, _ = load(serve(pairs), 5, workers=2)
    assert [name for batch in batches for name in batch.ids] == [pair.id for pair in pairs]
    assert pickle.loads(pickle.dumps(pairs)) == pairs  # workers that are spawned need that


def test_texts_longer_than_a_chunk_keep_their_rows(monkeypatch):
    monkeypatch.setattr("entityclip.datasets.dataset._TOKENIZE_CHUNK", 4)
    pairs = drawn(10)
    captions = PairDataset(pairs, PREPROCESS, SimpleTokenizer(), cache=True).captions
    assert torch.equal(captions, SimpleTokenizer()([pair.caption for pair in pairs]))
    assert captions.shape == (10, 77)


def test_image_keys_are_equal_only_for_the_same_picture(tmp_path):
    photo = save(tmp_path / "a.jpg", 7)
    pictures = {"a": Noise(1), "b": Noise(2), "c": Noise(1), "d": photo, "e": photo}
    keys = serve([Pair(name, image, "x") for name, image in pictures.items()]).image_keys.tolist()
    assert keys[0] == keys[2]
    assert keys[3] == keys[4]
    assert len(set(keys)) == 3
    assert min(keys) >= 0


def test_to_moves_every_tensor():
    keys = torch.arange(2)
    batch = Batch(["a", "b"], torch.ones(2, 3, 4, 4), keys, keys, keys, keys, [None, None])
    moved = batch.to("meta")
    tensors = (moved.images, moved.captions, moved.explanations, moved.image_keys)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.ids == ["a", "b"]


def test_both_public_names_are_the_one_dataset():
    assert entityclip.PairDataset is entityclip.ImageTextDataset is PairDataset


def test_wrong_use_is_said():
    pairs = drawn(3)
    lacking = [*pairs, Pair("q1", Noise(1), "x"), Pair("q2", Noise(2), "x", "")]
    for given, options, message in (
        ([], {}, "empty split"),
        ([*pairs, pairs[1]], {}, "1 repeated pair ids: p1"),
        (lacking, {"with_explanations": True}, "2 of 5 pairs lack an explanation, .* is 'q1'"),
        (pairs, {"decoding": "fast"}, "decoding is 'fast'"),
        (pairs, {"max_broken": 1.5}, r"max_broken is 1\.5"),
        (pairs, {"preprocess": ToTensor(), "decoding": "draft"}, "preprocess made of steps"),
    ):
        with pytest.raises(ValueError, match=message):
            serve(given, **options)
    with pytest.raises(IndexError, match="row 3 of a dataset of 3 pairs"):
        serve(pairs)[3]


# ------------------------------------------------------------------------------ broken pictures


@pytest.mark.parametrize("workers", [0, 2])
def test_no_broken_picture_crashes_a_worker(workers, tmp_path):
    pairs, wrong = files(tmp_path, 100), {}
    for number, (content, _) in enumerate(BROKEN.values()):
        pair = pairs[number * 7 + 3]
        pair.image.write_bytes(content)
        wrong[pair.id] = str(pair.image)
    batches, problems = load(serve(pairs, max_broken=0.2), 10, workers)
    assert set(problems) == set(wrong)
    assert all(path in problems[name] for name, path in wrong.items())
    assert {item.id for batch in batches for item in batch.broken} == set(wrong)
    served = [name for batch in batches for name in batch.ids]
    assert served == [pair.id for pair in pairs if pair.id not in wrong]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_share_stops_and_without_one_the_first_does(workers, tmp_path):
    pairs = files(tmp_path, 100, broken=(7, 42))
    with pytest.raises(TooManyBroken, match=r"2 of 100 pairs .* share 0\.01 .*(?s:.*)42\.jpg"):
        load(serve(pairs, max_broken=0.01), 10, workers)
    assert len(load(serve(pairs, max_broken=0.02), 10)[0]) == 10
    with pytest.raises(ImageError, match="pair 'p7'"):
        load(serve(pairs), 10, workers)


def test_a_batch_of_broken_pictures_only_is_a_list(tmp_path):
    batches, problems = load(serve(files(tmp_path, 6, broken=(2, 3)), max_broken=0.5), 2)
    assert [batch.ids for batch in batches] == [["p0", "p1"], ["p4", "p5"]]
    assert set(problems) == {"p2", "p3"}


def test_a_pair_counts_once_and_the_share_is_exact():
    broken = BrokenPairs(100, 0.02)
    assert broken.add([Broken("a", "gone"), Broken("b", "torn")]) == {"a": "gone", "b": "torn"}
    assert broken.add([Broken("a", "gone")]) == {}
    with pytest.raises(TooManyBroken, match=r"3 of 100 pairs .* share 0\.02 .*gone; torn"):
        broken.add([Broken("c", "zero bytes")])


# ----------------------------------------------------------------------------------------- runs

SIDE = 16  # pixels


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

    def write(train=24, val=6, test=4):
        return layouts.whole_n24news(tmp_path / "n24news", train=train, val=val, test=test)

    return write


def spoil(root, *names):
    for name in names:
        (root / "imgs" / f"{name}.jpg").write_bytes(b"<html>404</html>")


@pytest.fixture
def experiment(weights):
    """An experiment on an archive: `experiment(root, max_broken=0.2, finetuning={...})`."""

    def make(root, *, finetuning=None, **changed):
        finetuning = {"epochs": 2, "batch_size": 6, "checkpoint_every": 1} | (finetuning or {})
        settings = {
            "dataset": "n24news", "data_root": str(root), "image_size": SIDE, "max_broken": 0.01,
            "explanation_source": "own", "pretrained": str(weights), "pretraining": None,
            "train_pairs": None, "val_pairs": None, "test_pairs": None, "bootstrap": 20,
            "model": {"image_experts": 1, "text_experts": 1, "explanation_experts": 1},
            "finetuning": {"precision": "fp32", **finetuning}, **changed,
        }  # fmt: skip
        return Experiment(load_profile("smoke", settings=settings), progress=False)

    return make


def record(folder):
    return json.loads((folder / "run.json").read_text())


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_leaves_broken_pictures_out_and_lists_them(archive, experiment, workers, caplog):
    root = archive(train=104, val=100)
    spoil(root, "train7", "val3")
    caplog.set_level(logging.WARNING, "entityclip.training.loop")
    finetuning = {"workers": workers, "batch_size": 50, "lr": 1e-3}
    folder = experiment(root, finetuning=finetuning).finetune("clip")
    done = record(folder)
    assert done["steps"] == 4
    listed = {split: list(found) for split, found in done["broken"].items()}
    assert listed == {"train": ["train7"], "val": ["val3"]}
    assert str(root / "imgs" / "train7.jpg") in done["broken"]["train"]["train7"]
    # once each, however often the epochs met them; nobody who reads the log stumbles over them
    assert [list(row["broken"]) for row in log(folder) if "broken" in row] == [["train7"], ["val3"]]
    said = [r.getMessage() for r in caplog.records if r.name == "entityclip.training.loop"]
    assert [line.split(",")[0] for line in said] == ["train", "val"]
    steps, validations = read_log(folder / "log.jsonl")
    assert (len(steps), len(validations)) == (4, 2)
    assert "broken" not in log_table({"clip": folder / "log.jsonl"})


def test_a_resumed_run_equals_the_uninterrupted_broken_pictures_included(
    archive, experiment, tmp_path
):
    """Same batches, same negatives, same list, wherever the run was stopped."""
    root = archive()
    spoil(root, "train7", "val3")

    def finetune():
        return experiment(root, max_broken=0.2).finetune("entityclip")

    whole = finetune().rename(tmp_path / "whole")
    for step in (2, 7):
        with stopped_at(step):
            finetune()
        torch.manual_seed(99)
    resumed = finetune()
    assert record(resumed)["resumed_from"] == 7
    assert record(resumed)["broken"] == record(whole)["broken"]
    ends = [load_file(folder / "last.safetensors") for folder in (whole, resumed)]
    assert [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])] == []
    logs = [[row | {"pairs_per_s": 0} for row in log(folder)] for folder in (whole, resumed)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_five_percent_broken_stop_the_run(archive, experiment, split):
    root = archive(**{split: 100})
    spoil(root, *(f"{split}{number}" for number in range(5)))
    with pytest.raises(TooManyBroken, match=r"of 100 pairs have .* more than the share 0\.01"):
        experiment(root).finetune("clip")
    runs = root.parent / "runs" / "smoke" / "checkpoints"
    assert len(list(runs.glob("*/log.jsonl"))) == 1
    assert list(runs.glob("*/run.json")) == []


def test_evaluation_raises_at_a_broken_picture_and_stores_no_row(archive, experiment):
    root = archive(val=100)
    base = experiment(root)
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
            measure(experiment(root, finetuning={"workers": workers}), ["zero-shot"], ["test"])
    assert (base.results / "retrieval.jsonl").read_bytes() == stored
    # the share is training's: as candidates, validation's 100 pictures are needed to the last
    spoil(root, "val50")
    with pytest.raises(ImageError, match="pair 'val50'"):
        measure(experiment(root), ["zero-shot"], ["val"])


def test_encoding_files_equals_encoding_them_at_once(archive, experiment):
    """Read when asked for and kept in memory: keys, order, pixels, captions sharing pictures."""
    base = experiment(archive())
    model, pairs = base.build("zero-shot"), list(base.pairs("train"))[:9]
    pairs += [Pair(f"again{p.id}", p.image, p.caption + " again") for p in pairs[2:7]]
    made_of = pairs, base.backbone.preprocess, base.backbone.tokenize
    lazy = encode_pairs(model, PairDataset(*made_of), batch_size=4, progress=False)
    kept = PairDataset(*made_of, cache=True)
    held = encode_pairs(model, kept, batch_size=4, progress=False)
    assert lazy.images.shape[0] == 9
    for name in ("texts", "images", "image_of", "first"):
        assert torch.equal(getattr(lazy, name), getattr(held, name)), name


def test_a_batch_without_a_whole_picture_is_named(archive, experiment):
    root = archive()
    base = experiment(root)
    spoil(root, "test1", "test2")
    pairs = base.pairs("test")
    dataset = PairDataset(pairs, base.backbone.preprocess, base.backbone.tokenize, max_broken=1.0)
    server = SplitServer(dataset, workers=0, device=torch.device("cpu"))
    found = []
    served = server.batches([[0, 1], [3, 2], [1, 2]], seed=0, found=found.append)
    assert [next(served).ids, next(served).ids] == [["test0"], ["test3"]]
    with pytest.raises(TrainingError, match=r"no whole picture: .*test1.*test2.*raise batch_size"):
        next(served)
    assert [list(new) for new in found] == [["test1"], ["test2"]]


def test_the_drawn_newsroom_is_held_in_memory_and_files_are_not(archive, experiment):
    for base, kept in (
        (experiment(archive()), False),
        (Experiment(load_profile("smoke"), progress=False), True),
    ):
        dataset = base.dataset("val")
        assert (dataset[0].image is dataset[0].image) == kept


def test_only_training_may_draft_and_such_a_run_is_another(archive, experiment):
    root = archive()
    for split in ("train", "val"):
        save(root / "imgs" / f"{split}0.jpg", 1, (300, 200))
    exact, draft = experiment(root), experiment(root, train_decoding="draft")
    pixels = {
        (name, split): base.dataset(split)[0].image
        for name, base in (("exact", exact), ("draft", draft))
        for split in ("train", "val")
    }
    assert not torch.equal(pixels["exact", "train"], pixels["draft", "train"])
    assert torch.equal(pixels["exact", "val"], pixels["draft", "val"])
    mine, theirs = exact.identity("clip"), draft.identity("clip")
    assert {k for k in mine | theirs if mine.get(k) != theirs.get(k)} == {"train_decoding"}
