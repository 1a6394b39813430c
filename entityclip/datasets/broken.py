"""Pairs left out since their pictures cannot be read: counted, listed, and too many stop a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from entityclip.datasets.decode import ImageError

_SHOWN = 10  # pairs an error names


class Broken(NamedTuple):
    """A pair that was left out since its picture cannot be read."""

    id: str
    problem: str


class TooManyBroken(ImageError):
    """More pictures than the set share cannot be read; the message lists some of them."""


class BrokenPairs:
    """The broken pairs met so far among `total`; `problems` maps their ids to what is wrong.

    Args:
        total: how many pairs there are.
        max_broken: the largest share of them that may be broken, from 0 to 1.
    """

    def __init__(self, total: int, max_broken: float) -> None:
        self.total, self.max_broken = total, max_broken
        self.problems: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.problems)

    def add(self, broken: Sequence[Broken]) -> dict[str, str]:
        """Count what was left out; those of it that are new, a pair being counted once.

        Raises TooManyBroken once more than ``max_broken * total`` pairs are broken.
        """
        new = {item.id: item.problem for item in broken if item.id not in self.problems}
        self.problems |= new
        if len(self) > self.max_broken * self.total:
            shown = "\n  ".join(list(self.problems.values())[:_SHOWN])
            raise TooManyBroken(
                f"{len(self)} of {self.total} pairs have a broken picture, more than the share "
                f"{self.max_broken:g} that is allowed; fetch them again, or raise max_broken. "
                f"The first:\n  {shown}"
            )
        return new
