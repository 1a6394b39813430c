"""Second captions of a picture, and AsCL reading files past broken ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from entityclip.config import load_profile
from entityclip.datasets import load_pairs
from entityclip.datasets.captions import SeveralCaptions, has_second_captions, second_captions
from entityclip.datasets.dataset import Broken, PairDataset
from entityclip.datasets.newsroom.countries import COUNTRIES
from entityclip.datasets.newsroom.outlet_a import newsroom_facts, second_caption
from entityclip.datasets.pair import ImageError
from entityclip.evaluation.retrieval import similarities
from entityclip.experiments.chapters import ascl_run, load_ascl, measure_ascl
from entityclip.experiments.experiment import Experiment
from entityclip.models.clip import create_backbone
from tests.fixtures.layouts import karpathy

SIDE = 16  # pixels


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_backbone("newsroom-tiny", image_size=SIDE)


@pytest.fixture
def flickr(tmp_path):
    karpathy(tmp_path)
    return tmp_path


def served(pairs, backbone, **options):
    return PairDataset(pairs, backbone.preprocess, backbone.tokenize, **options)


def spoil(root, name):
    (root / "flickr30k-images" / name).write_bytes(b"<html>404</html>")


def test_a_second_caption_is_of_the_same_picture_and_kind():
    pairs = load_pairs("newsroom", "train", limit=40, image_size=64)
    of_pictures = load_pairs("newsroom", "captions_train", limit=200, image_size=64)
    naming = {}
    for number, pair in enumerate(of_pictures):
        if number % 5 < 2:
            naming.setdefault(pair.image_key, []).append(pair.caption)
    for pair, second in zip(pairs, second_captions("newsroom", pairs), strict=True):
        assert second in naming[pair.image_key]
        assert second != pair.caption
        facts = newsroom_facts(pair)
        for country in facts.countries:
            assert any(n.lower() in second.lower() for n in (country.name, country.demonym)), second
        assert not any(country.capital in second for country in COUNTRIES)
    generic = load_pairs("newsroom", "generic", limit=1, image_size=64)[0]
    with pytest.raises(ValueError, match="of split generic, which has no second captions"):
        second_caption(generic)


def test_one_caption_a_picture_is_refused_by_name():
    with pytest.raises(ValueError, match="n24news has one caption a picture"):
        second_captions("n24news", [])
    assert second_captions("flickr30k", []) is None
    several = [d for d in ("newsroom", "newsroom-b", "mscoco") if has_second_captions(d)]
    assert several == ["newsroom", "mscoco"]


def test_given_seconds_are_taken_row_by_row(tiny):
    plain = served(load_pairs("newsroom", "train", limit=6, image_size=64), tiny, cache=True)
    texts = [f"second {i}" for i in range(6)]
    several = SeveralCaptions(plain, tiny.tokenize, texts)
    batch = several.collate([several[i] for i in (4, 1)])
    assert torch.equal(batch.others, tiny.tokenize(["second 4", "second 1"]))
    assert torch.equal(batch.images, plain.collate([plain[4], plain[1]]).images)
    with pytest.raises(ValueError, match="5 second captions for 6 pairs"):
        SeveralCaptions(plain, tiny.tokenize, texts[:5])


def test_a_drawn_second_is_another_caption_of_the_same_picture(flickr, tiny):
    dataset = served(load_pairs("flickr30k", "train", root=flickr), tiny)
    several = SeveralCaptions(dataset, tiny.tokenize)
    rows = [7, 0, 31, 12]
    batch = several.collate([several[row] for row in rows])
    for row, other in zip(rows, batch.others, strict=True):
        (partner,) = (dataset.captions == other).all(1).nonzero()[:1, 0].tolist()
        assert partner != row
        assert dataset.image_keys[partner] == dataset.image_keys[row]


def test_others_stay_with_their_rows_past_a_broken_picture(flickr, tiny):
    spoil(flickr, "1001.jpg")
    files = served(load_pairs("flickr30k", "train", root=flickr), tiny, max_broken=0.5)
    several = SeveralCaptions(files, tiny.tokenize, [f"second {i}" for i in range(len(files))])
    items = [several[row] for row in (0, 6, 12)]
    assert [isinstance(item, Broken) for item in items] == [False, True, False]
    batch = several.collate(items)
    assert [broken.id for broken in batch.broken] == ["1001#1"]
    assert torch.equal(batch.others, tiny.tokenize(["second 0", "second 12"]))
    assert several.collate(items[1:2]) == items[1:2]


def on_flickr(root, weights, max_broken):
    ascl = {
        "dataset": "flickr30k", "data_root": str(root), "seeds": 1,
        "train_split": "train", "val_split": "val", "test_split": "test",
        "train_pairs": None, "val_pairs": None, "test_pairs": None,
        "finetuning": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
    }  # fmt: skip
    settings = {"pretrained": str(weights), "pretraining": None, "image_size": SIDE,
                "max_broken": max_broken, "bootstrap": 20, "ascl": ascl}  # fmt: skip
    return Experiment(load_profile("smoke", settings=settings), progress=False)


def test_ascl_trains_past_a_broken_file_and_is_not_evaluated_without_one(
    flickr, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    weights = tmp_path / "tiny.safetensors"
    save_file(tiny.clip.state_dict(), weights)
    spoil(flickr, "1001.jpg")
    with pytest.raises(ImageError, match=r"more than the share 0\.01"):
        load_ascl(on_flickr(flickr, weights, 0.01), "ascl", 0)
    experiment = on_flickr(flickr, weights, 0.2)
    folder = experiment.run(ascl_run(experiment, "ascl", 0))
    done = json.loads((folder / "run.json").read_text())
    assert {name.split("#")[0] for name in done["broken"]["train"]} == {"1001"}
    assert not measure_ascl(experiment, ["ascl"], [0]).empty
    test = next(p for p in experiment.pairs("ascl:test")).image.name
    spoil(flickr, test)
    model, data = load_ascl(experiment, "ascl", 0), experiment.dataset("ascl:test")
    with pytest.raises(ImageError, match="evaluation needs every picture"):
        similarities(model, data, progress=False)
