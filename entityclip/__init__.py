"""EntityCLIP: entity-centric image-text matching, reproduced notebook first.

The public names load on first use, so that reading a profile does not wait for torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Backbone": "backbone",
    "EntityCLIP": "model",
    "EntityCLIPConfig": "config",
    "Experiment": "experiments",
    "Pair": "datasets.pair",
    "ImageTextDataset": "datasets.images",
    "ImageTextLoader": "datasets.images",
    "PairDataset": "datasets.pair",
    "TrainConfig": "train_config",
    "create_backbone": "backbone",
    "embed": "embedding",
    "evaluate_retrieval": "evaluation",
    "load_encoder": "encoder",
    "load_pairs": "datasets",
    "load_profile": "config",
    "train": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
