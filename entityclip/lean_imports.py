"""Imports without an optional package that costs more time than it is of use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_out(package: str) -> Iterator[None]:
    """What is imported within finds `package` missing, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the documented way to have none
    try:
        yield
    finally:
        del sys.modules[package]
