import numpy as np
import pytest
import torch
from open_clip import SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import Batch, PairDataset
from entityclip.datasets.pair import ImageError, Pair, data_fingerprint


class Drawn:
    """A picture of noise that counts how often it is drawn."""

    def __init__(self, number, size=(50, 80)):
        self.key = f"noise-{number}"
        self.number = number
        self.size = size
        self.loads = 0

    def load(self):
        self.loads += 1
        pixels = np.random.default_rng(self.number).integers(0, 256, (*self.size, 3), np.uint8)
        return Image.fromarray(pixels)


def count_words(texts):
    """A tokenizer of five columns: the lengths of the first words."""
    rows = [([len(word) for word in text.split()] + [0] * 5)[:5] for text in texts]
    return torch.tensor(rows)


def make_pairs(count):
    return [
        Pair(f"p{i}", Drawn(i), f"caption {'x' * i}", f"because {'y' * i}", group=f"g{i // 2}")
        for i in range(count)
    ]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Drawn(7).load().save(path)
    return path


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("size", [64, 48])
def test_batches_are_bit_for_bit_what_preprocess_gives(cache, size, photo):
    preprocess = image_transform(size, is_train=False)
    pairs = [*make_pairs(6), Pair("file", photo, "a file", "read from disk")]
    dataset = PairDataset(pairs, preprocess, count_words, with_explanations=True, cache=cache)
    expected = torch.stack([preprocess(pair.load_image()) for pair in pairs])
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 2, 0]):
        batch = dataset.collate(dataset.__getitems__(order))
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.images, expected[order])


def test_a_transform_with_another_tail_is_still_served_exactly():
    preprocess = Compose([Resize(32), CenterCrop(32), ToTensor()])
    pairs = make_pairs(3)
    dataset = PairDataset(pairs, preprocess, count_words, with_explanations=False, cache=True)
    for _ in range(2):
        batch = dataset.collate([dataset[0], dataset[2]])
        expected = torch.stack([preprocess(pairs[i].image.load()) for i in (0, 2)])
        assert torch.equal(batch.images, expected)


@pytest.mark.parametrize(("cache", "loads"), [(True, 1), (False, 3)])
def test_the_cache_draws_each_picture_once(cache, loads):
    shared = Drawn(1)
    pairs = [Pair("a", shared, "one"), Pair("b", shared, "two"), Pair("c", shared, "three")]
    preprocess = image_transform(32, is_train=False)
    dataset = PairDataset(pairs, preprocess, count_words, with_explanations=False, cache=cache)
    dataset.collate([dataset[0], dataset[1], dataset[2]])
    assert shared.loads == loads


def test_a_data_loader_serves_texts_ids_groups_and_keys():
    pairs = make_pairs(5)
    preprocess = image_transform(32, is_train=False)
    dataset = PairDataset(pairs, preprocess, count_words, with_explanations=True, cache=True)
    loader = DataLoader(dataset, batch_sampler=[[3, 1], [0, 2, 4]], collate_fn=dataset.collate)
    first, second = loader
    assert (len(first), len(second)) == (2, 3)
    assert first.ids == ["p3", "p1"]
    assert first.groups == ["g1", "g0"]
    assert first.captions.tolist() == [[7, 3, 0, 0, 0], [7, 1, 0, 0, 0]]
    assert first.explanations.tolist() == [[7, 3, 0, 0, 0], [7, 1, 0, 0, 0]]
    assert first.captions.dtype == first.image_keys.dtype == torch.int64


def test_without_explanations_a_batch_has_none_and_none_is_needed():
    pairs = [Pair("a", Drawn(1), "one"), Pair("b", Drawn(2), "two")]
    preprocess = image_transform(32, is_train=False)
    dataset = PairDataset(pairs, preprocess, count_words, with_explanations=False, cache=False)
    assert dataset.collate([dataset[0], dataset[1]]).explanations is None


def test_texts_longer_than_a_chunk_keep_their_rows(monkeypatch):
    monkeypatch.setattr("entityclip.datasets.dataset._TOKENIZE_CHUNK", 4)
    pairs = make_pairs(10)
    preprocess = image_transform(32, is_train=False)
    dataset = PairDataset(pairs, preprocess, SimpleTokenizer(), with_explanations=True, cache=True)
    assert torch.equal(dataset.captions, SimpleTokenizer()([pair.caption for pair in pairs]))
    assert dataset.captions.shape == (10, 77)


def test_image_keys_are_equal_only_for_the_same_picture(photo):
    pairs = [
        Pair("a", Drawn(1), "x"),
        Pair("b", Drawn(2), "x"),
        Pair("c", Drawn(1), "x"),
        Pair("d", photo, "x"),
        Pair("e", photo, "y"),
    ]
    preprocess = image_transform(32, is_train=False)
    dataset = PairDataset(pairs, preprocess, count_words, with_explanations=False, cache=False)
    keys = dataset.image_keys.tolist()
    assert keys[0] == keys[2]
    assert keys[3] == keys[4]
    assert len(set(keys)) == 3
    assert min(keys) >= 0


def test_to_moves_every_tensor():
    keys = torch.arange(2)
    batch = Batch(["a", "b"], torch.ones(2, 3, 4, 4), keys, keys, keys, [None, None])
    moved = batch.to("meta")
    tensors = (moved.images, moved.captions, moved.explanations, moved.image_keys)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.ids == ["a", "b"]
    assert batch.images.device.type == "cpu"


def test_bad_pairs_are_refused():
    def build(pairs, with_explanations=False):
        return PairDataset(
            pairs, ToTensor(), count_words, with_explanations=with_explanations, cache=False
        )

    with pytest.raises(ValueError, match="empty split"):
        build([])
    pairs = make_pairs(3)
    with pytest.raises(ValueError, match=r"1 repeated pair ids: p1"):
        build([*pairs, pairs[1]])
    lacking = [*pairs, Pair("q1", Drawn(1), "x"), Pair("q2", Drawn(2), "x", "")]
    with pytest.raises(ValueError, match=r"2 of 5 pairs lack an explanation, the first is 'q1'"):
        build(lacking, with_explanations=True)


def test_an_unreadable_picture_names_the_pair_and_the_file(photo):
    whole = photo.read_bytes()
    for content in (b"no picture", whole[: len(whole) // 2]):
        photo.write_bytes(content)
        with pytest.raises(ImageError, match=r"'broken'.*photo\.jpg"):
            Pair("broken", photo, "x").load_image()
    with pytest.raises(ImageError, match=r"'gone'.*nothing\.jpg"):
        Pair("gone", photo.with_name("nothing.jpg"), "x").load_image()


def test_grey_and_transparent_files_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (4, 4)).save(path)
        assert Pair("a", path, "x").load_image().mode == "RGB"


def test_the_fingerprint_follows_every_field_the_order_and_the_file(photo, tmp_path):
    def build(**change):
        fields = {"id": "a", "image": photo, "caption": "c", "explanation": "e", "group": "g"}
        other = Pair("b", Drawn(1), "d")
        return data_fingerprint([Pair(**{**fields, **change}), other])

    base = build()
    assert len(base) == 16
    assert base == build()
    changes = [
        {"id": "z"},
        {"image": Drawn(2)},
        {"caption": "z"},
        {"explanation": None},
        {"group": None},
        {"section": "z"},
        {"caption": "ce", "explanation": ""},
    ]
    assert len({base, *(build(**change) for change in changes)}) == len(changes) + 1
    first, second = Pair("a", photo, "c"), Pair("b", Drawn(1), "d")
    assert data_fingerprint([first, second]) != data_fingerprint([second, first])
    moved = tmp_path / "elsewhere" / photo.name
    moved.parent.mkdir()
    moved.write_bytes(photo.read_bytes())
    assert build(image=moved) == base
    moved.write_bytes(photo.read_bytes() + b"\0")
    assert build(image=moved) != base
    with pytest.raises(ImageError, match="'a'"):
        build(image=tmp_path / "gone.jpg")


def test_load_pairs_says_what_exists():
    with pytest.raises(ValueError, match="unknown dataset 'nope'; there are newsroom, newsroom-b"):
        load_pairs("nope", "train")
    with pytest.raises(ValueError, match=r"newsroom has no split 'dev'; there are train, val"):
        load_pairs("newsroom", "dev")
    with pytest.raises(ValueError, match="limit is 0"):
        load_pairs("newsroom", "train", limit=0)
    with pytest.raises(ValueError, match="data_root"):
        load_pairs("n24news", "train")
    pairs = load_pairs("newsroom", "val", limit=3, seed=5, image_size=40)
    assert [pair.load_image().size for pair in pairs] == [(40, 40)] * 3
