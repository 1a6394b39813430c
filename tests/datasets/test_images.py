"""Pixels equal to open_clip's, odd pictures put right, broken ones skipped, counted, listed."""

import io
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.data import DataLoader

from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import (
    ImageTextDataset,
    ImageTextLoader,
    PairDataset,
    TooManyBroken,
)
from entityclip.datasets.pair import ImageError, Pair, decode
from tests.fixtures import layouts
from tests.fixtures.pictures import draw, jpeg, save

PREPROCESS = image_transform(32, is_train=False)


def tokenize(texts):
    return torch.tensor([[len(text), text.count(" ")] for text in texts])


def make(root, count=20, **options):
    pairs = [
        Pair(f"p{n}", save(root / f"{n}.jpg", n, (60 + n, 50)), f"caption {n}", f"why {n}")
        for n in range(count)
    ]
    return ImageTextDataset(pairs, PREPROCESS, tokenize, **options)


def content(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(decode(data)).astype(int)


# ------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(48, 36), (36, 48), (301, 200), (32, 32), (20, 15)])
def test_eval_pixels_are_open_clips_own(mode, size, tmp_path):
    path = tmp_path / "a.jpg"
    draw(1, size).convert(mode).save(path, quality=85)
    dataset = ImageTextDataset([Pair("a", path, "text")], PREPROCESS, tokenize)
    batch = dataset.collate([dataset[0]])
    assert torch.equal(batch.images[0], PREPROCESS(Image.open(path)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1),
              8: (-1, 0)}[orientation]  # fmt: skip
    picture = Image.new("RGB", (64, 40), "black")
    picture.paste((255, 0, 0), (0, 0, 16, 16))  # the stored first row's first corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = pixels(content(picture, "JPEG", exif=exif, quality=95))
    assert upright.shape[:2] == ((40, 64) if orientation < 5 else (64, 40))
    assert upright[corner][0] > 200
    assert sum(upright[y, x, 0] > 200 for y in (0, -1) for x in (0, -1)) == 1


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0", b"\xff" * 40])
def test_torn_exif_leaves_the_picture_as_it_is(exif):
    plain = pixels(jpeg(3))
    assert np.array_equal(pixels(jpeg(3, exif=exif)), plain)


def test_cmyk_becomes_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.allclose(pixels(content(red, "JPEG", quality=95))[4, 4], (255, 0, 0), atol=6)


def test_a_palette_becomes_rgb_before_it_is_resized():
    picture = draw(2, (90, 70))
    palette = picture.quantize(16)
    assert np.array_equal(pixels(content(palette, "PNG")), np.asarray(palette.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    data = content(Image.fromarray(values), "PNG")
    assert np.array_equal(pixels(data)[..., 0], values >> 8)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_transparency_is_laid_on_white(kind):
    if kind == "palette":
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([200, 0, 0, 0, 0, 255])
        picture.paste(1, (4, 0, 8, 8))
        data = content(picture, "GIF", transparency=0)
    else:
        picture = Image.new(kind, (8, 8), (200, 0, 0, 0) if kind == "RGBA" else (10, 0))
        opaque = (0, 0, 255, 255) if kind == "RGBA" else (60, 255)
        picture.paste(opaque, (4, 0, 8, 8))
        data = content(picture, "PNG")
    assert pixels(data)[2, 1].tolist() == [255, 255, 255]
    assert pixels(data)[2, 6].tolist() == ([60, 60, 60] if kind == "LA" else [0, 0, 255])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = content(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixels(data)[10, 10].tolist() == [255, 0, 0]


def test_draft_shrinks_large_jpegs_only_as_far_as_the_margin_allows():
    data = jpeg(1, (1000, 700), quality=90)
    assert decode(data).size == (1000, 700)
    assert decode(data, draft_to=224).size == (500, 350)  # 1.5 x 224 = 336
    assert decode(data, draft_to=240).size == (1000, 700)
    assert decode(data, draft_to=32).size == (125, 88)
    png = content(draw(1, (400, 400)), "PNG")
    assert np.array_equal(decode(png, draft_to=32), decode(png))


def test_drafted_pixels_are_close_and_exact_ones_the_default(tmp_path):
    path = save(tmp_path / "a.jpg", 5, (400, 300))
    pair = [Pair("a", path, "text")]
    exact = ImageTextDataset(pair, PREPROCESS, tokenize)
    drafted = ImageTextDataset(pair, PREPROCESS, tokenize, decoding="draft")
    difference = (drafted[0].image.float() - exact[0].image.float()).abs()
    assert 0 < difference.mean() < 4
    assert torch.equal(exact.collate([exact[0]]).images[0], PREPROCESS(Image.open(path)))


# ---------------------------------------------------------------------------- dataset and loader


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_pair_datasets(workers, tmp_path):
    dataset = make(tmp_path, with_explanations=True)
    reference = PairDataset(
        dataset.pairs, PREPROCESS, tokenize, with_explanations=True, cache=False
    )
    batches = list(ImageTextLoader(dataset, 8, workers=workers))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    for number, batch in enumerate(batches):
        rows = range(number * 8, min(number * 8 + 8, 20))
        expected = reference.collate([reference[row] for row in rows])
        assert batch.ids == expected.ids
        for name in ("images", "captions", "explanations", "image_keys"):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_a_table_is_served_and_shared_with_workers(tmp_path):
    layouts.n24news(tmp_path)
    pairs = load_pairs("n24news", "train", root=tmp_path)
    loader = ImageTextLoader(ImageTextDataset(pairs, PREPROCESS, tokenize), 5, workers=2)
    assert [name for batch in loader for name in batch.ids] == [pair.id for pair in pairs]
    assert pickle.loads(pickle.dumps(pairs)) == pairs  # workers that are spawned need that


def test_the_order_depends_on_seed_and_epoch(tmp_path):
    dataset = make(tmp_path)

    def epochs(seed):
        loader = ImageTextLoader(dataset, 20, shuffle=True, seed=seed)
        return [next(iter(loader)).ids for _ in range(2)]

    first, again, other = epochs(1), epochs(1), epochs(2)
    assert first == again
    assert first != other
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(pair.id for pair in dataset.pairs)


class Noise:
    """A picture whose transform draws from all three generators."""

    def __call__(self, picture):
        draws = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
        return torch.tensor(draws).view(3, 1, 1)


def test_workers_draw_differently_and_the_same_again(tmp_path):
    dataset = make(tmp_path, 8)
    dataset = ImageTextDataset(dataset.pairs, Noise(), tokenize)

    def draws(seed):
        loader = ImageTextLoader(dataset, 2, workers=2, seed=seed)
        return torch.cat([batch.images.view(-1, 3) for batch in loader])

    first = draws(1)
    assert torch.equal(first, draws(1))
    assert not torch.equal(first, draws(2))
    for column in first.T:
        assert len(column.unique()) == 8


def test_broken_pictures_are_skipped_counted_and_listed(tmp_path):
    dataset = make(tmp_path, 100)
    (tmp_path / "7.jpg").write_bytes(b"")
    loader = ImageTextLoader(dataset, 10)
    for _ in range(2):  # a second epoch counts no picture twice
        batches = list(loader)
        assert [len(batch) for batch in batches] == [9] + [10] * 9
        assert "p7" not in batches[0].ids
        assert [item.id for item in batches[0].broken] == ["p7"]
    assert list(loader.broken) == ["p7"]
    assert "7.jpg" in loader.broken["p7"]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_share_stops_the_run(workers, tmp_path):
    dataset = make(tmp_path, 100)
    for number in (7, 42):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(TooManyBroken, match=r"2 of 100 pairs .* share 0\.01 .*(?s:.*)42\.jpg"):
        list(ImageTextLoader(dataset, 10, workers=workers))
    made_of = dataset.pairs, PREPROCESS, tokenize
    allowed = ImageTextDataset(*made_of, max_broken=0.02)
    assert len(list(ImageTextLoader(allowed, 10))) == 10
    with pytest.raises(ImageError, match="pair 'p7'"):
        list(ImageTextLoader(ImageTextDataset(*made_of, on_broken="raise"), 10))


def test_a_batch_of_broken_pictures_only_is_passed_over(tmp_path):
    dataset = make(tmp_path, 6, max_broken=0.5)
    for number in (2, 3):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    loader = ImageTextLoader(dataset, 2)
    assert [batch.ids for batch in loader] == [["p0", "p1"], ["p4", "p5"]]
    assert set(loader.broken) == {"p2", "p3"}


def test_wrong_use_is_said(tmp_path):
    pair = Pair("a", save(tmp_path / "a.jpg", 0), "text")
    for pairs, options, message in (
        ([], {}, "empty split"),
        ([pair, pair], {}, "1 repeated pair ids: a"),
        ([pair], {"with_explanations": True}, "1 of 1 pairs lack an explanation"),
        ([pair], {"decoding": "fast"}, "decoding is 'fast'"),
        ([pair], {"max_broken": 1.5}, r"max_broken is 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageTextDataset(pairs, PREPROCESS, tokenize, **options)
    with pytest.raises(ValueError, match="needs a preprocess made of steps"):
        ImageTextDataset([pair], Noise(), tokenize, decoding="draft")
    dataset = ImageTextDataset([pair], PREPROCESS, tokenize)
    with pytest.raises(IndexError, match="row 1 of a dataset of 1 pairs"):
        dataset[1]


def test_it_serves_a_plain_data_loader_too(tmp_path):
    dataset = make(tmp_path, 6)
    loader = DataLoader(dataset, 3, collate_fn=dataset.collate)
    assert [batch.ids for batch in loader] == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]
    assert multiprocessing.active_children() == []
