"""What training refuses before it starts, and in which precision it runs."""

from __future__ import annotations

from typing import Any

import torch

from entityclip.distributed import World
from entityclip.grad_cache import refuse_random_towers
from entityclip.model import EntityCLIP
from entityclip.step_log import TrainingError
from entityclip.train_config import TrainConfig


def refuse_small(sets: dict[str, Any], config: TrainConfig, world: World) -> None:
    """Every batch must be full, and hold a pair for every process."""
    train_size, val_size = (len(pairs) for pairs in sets.values())
    if train_size < config.batch_size:
        raise TrainingError(
            f"{train_size} training pairs don't fill one batch of {config.batch_size}; "
            "lower batch_size or give more pairs"
        )
    if val_size < 2:
        raise TrainingError(f"{val_size} validation pairs; contrastive losses need at least 2")
    if min(config.batch_size, val_size) < world.size:
        raise TrainingError(
            f"{world.size} processes share batches of {config.batch_size} training and at most "
            f"{val_size} validation pairs; each needs at least 1"
        )


def refuse_other_models(model: torch.nn.Module, config: TrainConfig, world: World) -> None:
    """Chunks and processes split a batch between towers and objective: EntityCLIP can, and CLIP."""
    asked = [f"{world.size} processes"] if world.size > 1 else []
    asked += [f"chunk={config.chunk}"] if config.chunk is not None else []
    if asked and not isinstance(model, EntityCLIP):
        raise TrainingError(
            f"{type(model).__name__} compares all rows in its forward pass and can't be trained "
            f"with {' and '.join(asked)}; use one process without chunk"
        )
    if config.chunk is not None:
        refuse_random_towers(model.backbone)
        if model.config.explanation_dropout:
            raise TrainingError(
                "chunk encodes each row twice, and explanation_dropout would drop others the "
                "second time; train without one of them"
            )


def precision(config: TrainConfig) -> str:
    """Accelerate's name of the precision; "auto" is bf16 where the device supports it."""
    if config.precision == "fp32":
        return "no"
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if config.precision == "bf16":
        return "bf16"
    return "bf16" if able else "no"
