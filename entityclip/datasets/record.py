"""The one record type: a picture, the caption that names what it shows, and its explanation.

Apart from torch, so that explaining a million captions needs none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from entityclip.datasets.decode import ImageError, decode


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
