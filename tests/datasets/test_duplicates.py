"""Near-duplicates are found by what a picture shows, whatever its file."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from entityclip.datasets.duplicates import (
    NEAR,
    SAME_FILE,
    Alike,
    Leak,
    leaks,
    near_pairs,
    perceptual_hash,
)
from tests.fixtures.pictures import photo


def as_jpeg(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "the same": lambda picture: picture.copy(),
    "JPEG 90": lambda picture: as_jpeg(picture, 90),
    "JPEG 50": lambda picture: as_jpeg(picture, 50),
    "half as large": lambda picture: picture.resize((80, 60), Image.Resampling.BICUBIC),
    "twice as large": lambda picture: picture.resize((320, 240), Image.Resampling.LANCZOS),
    "another shape": lambda picture: picture.resize((150, 130), Image.Resampling.BILINEAR),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
    "more contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.2),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "smaller, darker, as JPEG": lambda picture: as_jpeg(
        ImageEnhance.Brightness(picture.resize((100, 75))).enhance(0.9), 70
    ),
}


def apart(one, other):
    return int(np.bitwise_count(perceptual_hash(one) ^ perceptual_hash(other)).sum())


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_nearly_the_same(change):
    for number in range(20):
        picture = photo(number)
        assert apart(picture, CHANGES[change](picture)) <= NEAR


def test_other_pictures_are_far_from_one_another():
    hashes = np.stack([perceptual_hash(photo(number)) for number in range(150)])
    distance = np.bitwise_count(hashes[:, None] ^ hashes).sum(-1)
    assert distance[np.triu_indices(150, 1)].min() > 4 * NEAR
    crop = photo(0).crop((20, 15, 140, 105))
    assert apart(photo(0), crop) > NEAR  # as the module says


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_plain_picture_is_compared_with_none(level):
    noise = np.random.default_rng(level).integers(-1, 2, (90, 120, 3))
    plain = Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8))
    assert not perceptual_hash(plain).any()


def near_hashes(count, seed=0):
    """Random hashes, a quarter of which are others with 1 to `NEAR` bits turned."""
    rng = np.random.default_rng(seed)
    bits = rng.random((count, 256)) < 0.5
    for row in range(count // 4):
        turned = rng.choice(256, int(rng.integers(1, NEAR + 1)), replace=False)
        bits[-1 - row] = bits[row]
        bits[-1 - row, turned] ^= True
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)


def test_near_pairs_are_those_that_comparing_all_finds():
    hashes = near_hashes(2000)
    distance = np.bitwise_count(hashes[:, None] ^ hashes).sum(-1, np.int64)
    expected = np.argwhere(np.triu(distance <= NEAR, 1))
    pairs, bits = near_pairs(hashes)
    assert len(expected) == 500
    assert {tuple(pair) for pair in pairs.tolist()} <= {tuple(pair) for pair in expected.tolist()}
    assert len(pairs) >= 0.97 * len(expected)
    assert bits.tolist() == [distance[one, other] for one, other in pairs]
    for few in (0, 1):
        assert len(near_pairs(hashes[:few])[0]) == 0


def test_comparisons_grow_with_the_pictures_not_with_their_pairs(monkeypatch):
    from entityclip.datasets import duplicates

    def compared(count):
        seen = []
        monkeypatch.setattr(
            duplicates, "_apart",
            lambda some, others: (seen.append(len(some)), np.full(len(some), 99))[1],
        )  # fmt: skip
        hashes = np.zeros((count, 4), np.uint64)  # as alike as distinct ones can be
        hashes[:, 3] = np.arange(count)
        duplicates.near_pairs(hashes)
        return sum(seen)

    assert compared(8000) < 2.1 * compared(4000)


def test_each_leak_is_named_with_what_it_is_most_like():
    sums, looks = np.zeros((8, 32), np.uint8), np.zeros((8, 4), np.uint64)
    sums[:, 0] = [1, 2, 3, 4, 5, 2, 7, 0]
    looks[:6] = near_hashes(6)  # of which the last is nearly the first
    looks[4], looks[5] = looks[5], looks[1]
    names = list("abcdefgh")  # g is plain, h cannot be read
    splits = {"train": set("abc"), "val": set("def"), "test": set("agh")}
    bits = int(np.bitwise_count(looks[0] ^ looks[4]).sum())
    assert leaks(names, Alike(sums, looks), splits) == [
        Leak("train", "val", "e", "a", "nearly the same", bits),
        Leak("train", "val", "f", "b", "the same bytes", 0),
        Leak("train", "test", "a", "a", SAME_FILE, 0),
        Leak("val", "test", "a", "e", "nearly the same", bits),
    ]
