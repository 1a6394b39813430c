"""Imports put off until they are needed, and optional packages left out that never are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def loaded_on_use(
    package: str, home: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names load on first use (PEP 562).

    `home` says which of its modules a name stands in.
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, names


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
