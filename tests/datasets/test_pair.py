"""The record: odd pictures put right, unreadable ones named, fingerprints that follow all."""

import io
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from entityclip.datasets import load_pairs
from entityclip.datasets import pair as pair_module
from entityclip.datasets.pair import (
    ImageError,
    Pair,
    data_fingerprint,
    decode,
    decoding,
    with_pictures,
)
from tests.fixtures.pictures import Noise, draw, jpeg, save


@pytest.fixture
def photo(tmp_path):
    return save(tmp_path / "photo.jpg", 7, (80, 50))


def content(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(decode(data)).astype(int)


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


def test_other_modes_become_rgb():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.allclose(pixels(content(red, "JPEG", quality=95))[4, 4], (255, 0, 0), atol=6)
    palette = draw(2, (90, 70)).quantize(16)
    assert np.array_equal(pixels(content(palette, "PNG")), np.asarray(palette.convert("RGB")))


WIDE = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (WIDE, "PNG", WIDE >> 8),  # 16-bit grey is scaled, not clipped
        (WIDE.astype(">u2"), "TIFF", WIDE >> 8),
        (WIDE >> 10, "PNG", WIDE * 0),  # and as dark as it says
        (WIDE.astype(np.int32), "TIFF", WIDE >> 8),
        ((WIDE >> 8).astype(np.int32), "TIFF", WIDE >> 8),  # 32 bits that hold 8
        (WIDE.astype(np.int32) + 5000, "TIFF", "beyond 16 bits"),
        (WIDE.astype(np.int32) - 1, "TIFF", "beyond 16 bits"),
        (WIDE.astype(np.float32), "TIFF", "floating-point"),
        (WIDE > 9000, "TIFF", (WIDE > 9000) * 255),
    ],
)
def test_grey_values_of_any_depth_become_8_bit_or_are_refused_by_name(values, kind, expected):
    data = content(Image.fromarray(values), kind)
    if isinstance(expected, str):
        with pytest.raises(ImageError, match=expected):
            decode(data)
    else:
        assert np.array_equal(pixels(data), np.stack([expected] * 3, -1))


def test_a_large_picture_is_converted_in_strips_to_the_same_pixels(monkeypatch):
    picture = draw(3, (50, 41)).convert("RGBA")
    picture.putalpha(draw(4, (50, 41)).convert("L"))
    grey = Image.fromarray((np.arange(2050) * 31 % 65536).reshape(41, 50).astype(np.int32))
    contents = [content(picture, "PNG"), content(grey, "TIFF"),
                content(picture.convert("RGB").quantize(9), "PNG", transparency=2)]  # fmt: skip
    whole = [pixels(data) for data in contents]
    monkeypatch.setattr(pair_module, "_STRIP", 500)
    assert all(
        np.array_equal(pixels(data), want) for data, want in zip(contents, whole, strict=True)
    )


class Watched(pair_module._Budget):
    """A budget for four small PNGs that remembers the most that was held, and by how many."""

    def __init__(self, share):
        super().__init__()
        self.share, self.most, self.now, self.crowd = share, 0, 0, 0

    def take(self, size):
        super().take(size)
        with self._room:
            self.now += 1
            self.most, self.crowd = max(self.most, self._used), max(self.crowd, self.now)

    def give(self, size):
        with self._room:
            self.now -= 1
        super().give(size)


@pytest.mark.parametrize(("pictures", "most"), [(4.5, 4), (0.5, 1)])
def test_threads_hold_no_more_pixels_than_the_budget(pictures, most, monkeypatch):
    data, size = content(draw(1), "PNG"), 48 * 36 * 8
    budget = Watched(int(pictures * size))
    monkeypatch.setattr(pair_module, "_budget", budget)

    def small(_):
        with decoding():
            decode(data)
            decode(data)  # in the first one's place, so that nobody waits for himself
            time.sleep(0.002)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(small, range(60)))
    assert budget.crowd == most
    assert (budget.most, budget._used) == (most * size, 0)
    with pytest.raises(ImageError), decoding():
        decode(content(draw(1), "PNG")[:200])
    assert budget._used == 0


def test_a_forked_worker_does_not_wait_for_what_a_thread_of_its_parent_holds(monkeypatch):
    data = content(draw(1), "PNG")
    monkeypatch.setattr(pair_module._budget, "share", 1)
    holding, done = threading.Event(), threading.Event()

    def hold():
        with decoding():
            decode(data)
            holding.set()
            done.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        holding.wait()
        child = multiprocessing.get_context("fork").Process(target=decode, args=(data,))
        child.start()
        child.join(20)
        done.set()
    assert child.exitcode == 0


def test_what_may_not_be_read_is_not_called_damaged(photo, monkeypatch):
    def refuse(*_, **__):  # chmod does not keep root out
        raise PermissionError(13, "Permission denied", "photo.jpg")

    monkeypatch.setattr(pair_module.Image, "open", refuse)
    with pytest.raises(ImageError, match=r"photo\.jpg: may not be read: Permission denied"):
        Pair("a", photo, "x").load_image()


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


def test_an_unreadable_picture_names_the_pair_and_the_file(photo):
    whole = photo.read_bytes()
    for content in (b"no picture", whole[: len(whole) // 2]):
        photo.write_bytes(content)
        with pytest.raises(ImageError, match=r"'broken'.*photo\.jpg"):
            Pair("broken", photo, "x").load_image()
    with pytest.raises(ImageError, match=r"'gone'.*nothing\.jpg"):
        Pair("gone", photo.with_name("nothing.jpg"), "x").load_image()


def test_the_fingerprint_follows_every_field_the_order_and_the_file(photo, tmp_path):
    def build(**change):
        fields = {"id": "a", "image": photo, "caption": "c", "explanation": "e", "group": "g"}
        return data_fingerprint([Pair(**fields | change), Pair("b", Noise(1), "d")])

    base = build()
    assert len(base) == 16
    assert base == build()
    changes = [
        {"id": "z"},
        {"image": Noise(2)},
        {"caption": "z"},
        {"explanation": None},
        {"group": None},
        {"section": "z"},
        {"caption": "ce", "explanation": ""},
    ]
    assert len({base, *(build(**change) for change in changes)}) == len(changes) + 1
    first, second = Pair("a", photo, "c"), Pair("b", Noise(1), "d")
    assert data_fingerprint([first, second]) != data_fingerprint([second, first])
    moved = save(tmp_path / "elsewhere" / photo.name, 7, (80, 50))
    assert build(image=moved) == base
    moved.write_bytes(photo.read_bytes() + b"\0")
    assert build(image=moved) != base
    with pytest.raises(ImageError, match="'a'"):
        build(image=tmp_path / "gone.jpg")


def test_load_pairs_says_what_exists():
    for dataset, split, options, message in (
        ("nope", "train", {}, "unknown dataset 'nope'; there are newsroom, newsroom-b"),
        ("newsroom", "dev", {}, "newsroom has no split 'dev'; there are train, val"),
        ("newsroom", "train", {"limit": 0}, "limit is 0"),
        ("n24news", "train", {}, "data_root"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pairs(dataset, split, **options)


def test_pictures_to_be_shown_are_those_that_can_be_read(tmp_path):
    pairs = [Pair(str(n), save(tmp_path / f"{n}.jpg", n), "a caption") for n in range(4)]
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "2.jpg").unlink()
    shown = with_pictures(iter(pairs), 2)
    assert [pair.id for pair, _ in shown] == ["0", "3"]
    assert shown[1][1].size == (48, 36)
    assert with_pictures(pairs, 9) == with_pictures(pairs, 2)
    assert with_pictures(pairs, 0) == []
