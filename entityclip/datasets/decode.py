"""One picture file to 8-bit RGB, whatever a news archive holds under a ``.jpg`` name.

An upright 8-bit RGB or grey picture comes out with exactly the pixels of
``PIL.Image.open(path).convert("RGB")``, so open_clip's preprocessing of it is open_clip's own. What
open_clip would distort is made right first: EXIF orientation is applied, palettes become RGB before
they are resized, 16-bit grey is scaled (not clipped) to 8, transparency is laid on white, CMYK
becomes RGB, and of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

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
