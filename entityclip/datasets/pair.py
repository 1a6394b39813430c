"""The one record type: a picture, the caption that names what it shows, and its explanation.

Apart from torch, so that explaining a million captions needs none of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 89_478_485  # Pillow's own line for a decompression bomb (Image.MAX_IMAGE_PIXELS)

# no EPS or PSD: Pillow hands EPS to Ghostscript, and data must never run code
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_ORIENTATION = 0x0112  # EXIF tag
_DRAFT_MARGIN = 1.5  # a drafted JPEG keeps this many times the pixels a side that are asked for
_STRIP = 1 << 22  # pixels converted at a time
PIXEL_BYTES = 1 << 30  # of decoded pixels held at once by all threads; less where more is asked for
_ORDINARY = PIXEL_BYTES // 4  # a worker process decodes pictures of this size whatever others do


class ImageError(OSError):
    """A picture cannot be read; the message names the pair or file and what is wrong."""


# ----------------------------------------------------------------------------------------- memory


class _Budget:
    """Bytes of pixels that are held at once; a picture beyond the whole `share` goes alone.

    First come, first served, so that a large picture does not wait for ever. Processes that a
    loader forks have a share each, and take turns with what is larger.
    """

    # no file behind it, shared by fork, and unlocked by the death of whoever holds it; Linux only
    _turns = os.memfd_create("pixels") if hasattr(os, "memfd_create") else None

    def __init__(self) -> None:
        self.share, self._used = PIXEL_BYTES, 0
        self._queue, self._room = threading.Lock(), threading.Condition()

    def take(self, size: int) -> None:
        with self._queue, self._room:
            self._room.wait_for(lambda: not self._used or self._used + size <= self.share)
            self._used += size
        try:
            self._turn(size, "LOCK_EX")
        except BaseException:  # Ctrl-C
            self.give(size)
            raise
        if size > _ORDINARY:
            with contextlib.suppress(AttributeError, TypeError):  # another C library than glibc
                # which keeps what threads have freed, a large picture each
                ctypes.CDLL(None).malloc_trim(0)

    def give(self, size: int) -> None:
        self._turn(size, "LOCK_UN")
        with self._room:
            self._used -= size
            self._room.notify()  # of the queue, one waits

    def _turn(self, size: int, operation: str) -> None:
        """Take or end this process's turn with a picture of that size."""
        if size > self.share and self._turns is not None:
            import fcntl  # no Windows has it

            fcntl.lockf(self._turns, getattr(fcntl, operation))


class _Held(threading.local):
    depth = 0  # of `decoding` blocks
    size = 0  # bytes of the budget


_budget, _held = _Budget(), _Held()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_budget.__init__)  # what other threads hold is not ours


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """A block that decodes one picture and makes it small, whose pixels count until its end.

    Threads that decode in such blocks hold about a GiB of pixels together. Outside one, pixels
    count while `decode` runs. A second picture in one block takes the first one's place.
    """
    _held.depth += 1
    try:
        yield
    finally:
        _held.depth -= 1
        if not _held.depth:
            _hold(0)


def _hold(size: int) -> None:
    if _held.size:  # nobody waits for room with room in his hands
        _budget.give(_held.size)
    _held.size = 0
    if size:
        _budget.take(size)
        _held.size = size


def share_pixels(workers: int) -> None:
    """Tell a loader's worker process how many of them there are, to share the budget."""
    _budget.share = max(PIXEL_BYTES // workers, _ORDINARY)


# ----------------------------------------------------------------------------------------- decode


def decode(source: Path | bytes, *, draft_to: int | None = None) -> Image.Image:
    """The picture in `source`, a file's path or its content, as upright 8-bit RGB.

    With `draft_to` (pixels), libjpeg may shrink a JPEG by 2, 4 or 8 while it decodes, as long as
    the shorter side keeps 1.5 x `draft_to` pixels: faster, but pixels differ slightly from a full
    decode. Other formats, and JPEGs too small to shrink, come out the same.

    Raises ImageError for what is no regular file, no picture of `FORMATS`, cut short, or larger
    than `MAX_PIXELS` (said by the header, before any pixel is decoded).
    """
    try:
        if isinstance(source, Path) and not source.is_file():
            # also keeps named pipes and devices, which would block, from being opened
            raise ImageError("no such file" if not source.exists() else "not a regular file")
        with warnings.catch_warnings(), decoding():
            # MAX_PIXELS refuses what Pillow only warns of; torn EXIF blocks are ignored below
            warnings.simplefilter("ignore")
            opened = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
            )
            with opened as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ImageError(
                        f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}"
                    )
                if draft_to is not None:
                    side = round(draft_to * _DRAFT_MARGIN)
                    picture.draft(None, (side, side))
                # a JPEG in RGB is its own result; Pillow takes four bytes a pixel for either
                plain = picture.format == "JPEG" and picture.mode == "RGB"
                plain = plain and _orientation(picture) == 1
                _hold(picture.width * picture.height * (4 if plain else 8))
                return _upright(picture, _to_rgb(picture))
    except ImageError:
        raise
    except PermissionError as error:
        raise ImageError(f"may not be read: {error.strerror}") from error
    # damaged files make Pillow raise almost anything: struct.error, EOFError, zlib.error, KeyError
    except Exception as error:
        what = str(error).split(" <_io.")[0]  # Pillow names the buffer by its address
        raise ImageError(f"{type(error).__name__}: {what}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        picture.load()
        # a JPEG's file is done with; of what may have more frames, the copy outlives the file
        return picture if picture.format == "JPEG" else picture.copy()
    if picture.mode == "F":
        raise ImageError("floating-point pixels have no fixed range; convert the picture to 8 bit")
    if picture.mode.startswith("I"):
        return _scale_integers(picture)
    if picture.has_transparency_data:
        return _in_strips(picture, _on_white)
    return picture.convert("RGB")


def _in_strips(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, to RGB pixel by pixel; of a large picture, it copies a strip at a time."""
    width, height = picture.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return convert(picture)
    picture.load()
    result = Image.new("RGB", picture.size)
    for top in range(0, height, rows):
        result.paste(convert(picture.crop((0, top, width, min(top + rows, height)))), (0, top))
    return result


def _on_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _scale_integers(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit: the high byte, where Pillow's convert() would clip at 255.

    Of 32-bit integers without any beyond 8 bits, the low byte: nothing says that they have 16.
    """
    low, high = picture.getextrema() if picture.mode == "I" else (0, 0xFFFF)
    if low < 0 or high > 0xFFFF:
        raise ImageError("grey values beyond 16 bits; convert the picture to 8 bit")
    shift = 0 if picture.mode == "I" and high <= 0xFF else 8

    def convert(strip: Image.Image) -> Image.Image:
        return Image.fromarray((np.asarray(strip) >> shift).astype(np.uint8)).convert("RGB")

    return _in_strips(picture, convert)


def _orientation(picture: Image.Image) -> int:
    """What EXIF says, from 1 (upright) to 8."""
    if "exif" not in picture.info and picture.format not in ("TIFF", "PNG", "WEBP"):
        return 1
    try:
        said = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a torn EXIF block says nothing about orientation, and the pixels are whole
        return 1
    return said if said in range(1, 9) else 1


def _upright(picture: Image.Image, pixels: Image.Image) -> Image.Image:
    if (orientation := _orientation(picture)) == 1:
        return pixels
    pixels.getexif().clear()
    pixels.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(pixels)


# ------------------------------------------------------------------------------------------ pairs


@runtime_checkable
class Picture(Protocol):
    """A picture that is made, not read from a file. `key` is equal only for the same picture."""

    @property
    def key(self) -> str:
        """What identifies the picture."""

    def load(self) -> Image.Image:
        """The picture in RGB."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture and the text that names what it shows (a triple, with its explanation).

    `group` joins pairs that belong together (e.g. one article's pictures); `section` is a label
    for zero-shot classification (e.g. N24News' 24 sections).
    """

    id: str
    image: Path | Picture
    caption: str
    explanation: str | None = None
    group: str | None = None
    section: str | None = None

    @property
    def image_key(self) -> str:
        """Equal for two pairs exactly if they show the same picture."""
        return self.image.as_posix() if isinstance(self.image, Path) else self.image.key

    def load_image(self, *, draft_to: int | None = None) -> Image.Image:
        """The picture in upright 8-bit RGB (see `decode`, also for `draft_to`).

        Raises ImageError naming the pair and the file.
        """
        if not isinstance(self.image, Path):
            return self.image.load()
        try:
            return decode(self.image, draft_to=draft_to)
        except ImageError as error:
            raise ImageError(
                f"pair {self.id!r}: cannot read picture {self.image}: {error}"
            ) from error


def with_pictures(pairs: Iterable[Pair], count: int) -> list[tuple[Pair, Image.Image]]:
    """The first `count` pairs with their pictures, to be shown; past those that cannot be read."""
    found: list[tuple[Pair, Image.Image]] = []
    for pair in pairs:
        if len(found) == count:
            break
        with contextlib.suppress(ImageError):
            found.append((pair, pair.load_image()))
    return found


def data_fingerprint(pairs: Sequence[Pair]) -> str:
    """Sixteen hex digits that differ whenever any text, label, picture or the order does.

    A picture file counts by its name and size in bytes, so moving a data set keeps its fingerprint.
    Raises ImageError for a missing file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for pair in pairs:
        texts = (pair.id, pair.caption, pair.explanation, pair.group, pair.section)
        digest.update(json.dumps([*texts, _fingerprint_key(pair)]).encode())
    return digest.hexdigest()


def _fingerprint_key(pair: Pair) -> str | list[str | int]:
    if not isinstance(pair.image, Path):
        return pair.image.key
    try:
        return [pair.image.name, pair.image.stat().st_size]
    except OSError as error:
        raise ImageError(f"pair {pair.id!r}: cannot read picture {pair.image}: {error}") from error
