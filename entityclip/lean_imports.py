"""Imports without optional packages that cost more time than they are of use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_out(*packages: str) -> Iterator[None]:
    """What is imported within finds `packages` missing, those apart that are imported already."""
    absent = [package for package in packages if package not in sys.modules]
    sys.modules |= dict.fromkeys(absent)  # None is the documented way to have none
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]
