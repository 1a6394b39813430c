"""Image-text data sets. Each source makes `Pair`s; nothing later knows which source it was.

The names load on first use: explaining captions needs the drawn newsroom's facts, not torch.
"""

from importlib import import_module
from typing import Any

_HOME = dict.fromkeys(("DATASETS", "DRAWN", "LOADERS", "load_pairs"), "registry")
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
