"""EntityCLIP: entity-centric image-text matching, reproduced notebook first.

The public names load on first use, so that reading a profile does not wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

if sys.platform == "darwin":  # read as torch is imported: what Apple's GPUs lack, the CPU does
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


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


_HOME = {
    "Backbone": "models.clip",
    "EntityCLIP": "models.entityclip",
    "EntityCLIPConfig": "config",
    "Experiment": "experiments.experiment",
    "Pair": "datasets.pair",
    "ImageTextDataset": "datasets.dataset",
    "PairDataset": "datasets.dataset",
    "TrainConfig": "config",
    "create_backbone": "models.clip",
    "embed": "search.embedding",
    "evaluate_retrieval": "evaluation.retrieval",
    "load_encoder": "models.encoder",
    "load_pairs": "datasets",
    "load_profile": "config",
    "train": "training.loop",
}
__all__ = sorted(_HOME)
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
