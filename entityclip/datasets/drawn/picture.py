"""What names a drawn picture: from these fields alone it is drawn, and drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class DrawnPicture:
    """One drawn picture, `size` pixels square; the same fields always draw the same bytes."""

    style: ClassVar[str]  # and its version

    split: str
    seed: int
    index: int
    size: int

    @property
    def key(self) -> str:
        """Names what is drawn, e.g. ``newsroom-v1/train/0/17/64``."""
        return f"{self.style}/{self.split}/{self.seed}/{self.index}/{self.size}"
