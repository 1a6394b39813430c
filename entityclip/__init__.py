"""EntityCLIP: entity-centric image-text matching, reproduced notebook first.

The public names load on first use, so that reading a profile does not wait for torch.
"""

from entityclip.lean_imports import loaded_on_use

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
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
