"""Which pairs a step sees, how far it goes, what it moves: functions of the configuration."""

from __future__ import annotations

import math

import torch

from entityclip.train_config import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up over `warmup_steps`, then cosine from `lr` to 0 at `total` optimizer steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    rest = max(1, total - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / rest))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch, last incomplete one dropped: a function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    return [order[i : i + batch_size] for i in range(0, n - batch_size + 1, batch_size)]


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW in its fused form; gains, biases and the logit scale are never decayed."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        vector = parameter.ndim < 2 or name.endswith("bias") or ".ln" in name
        (kept if vector else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)
