"""The one record type: a picture, the caption that names what it shows, and its explanation.

Apart from torch, so that explaining a million captions needs none of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
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


class ImageError(OSError):
    """A picture cannot be read; the message names the pair or file and what is wrong."""


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
        with warnings.catch_warnings():
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
                return _upright(picture, _to_rgb(picture))
    except ImageError:
        raise
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
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _scale_integers(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit: the high byte, where Pillow's convert() would clip at 255."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("grey values beyond 16 bits; convert the picture to 8 bit")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _upright(picture: Image.Image, pixels: Image.Image) -> Image.Image:
    if "exif" not in picture.info and picture.format not in ("TIFF", "PNG", "WEBP"):
        return pixels
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a torn EXIF block says nothing about orientation, and the pixels are whole
        return pixels
    if orientation not in range(2, 9):
        return pixels
    pixels.getexif().clear()
    pixels.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(pixels)


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
