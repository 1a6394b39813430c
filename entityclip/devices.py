"""Which device a model runs on, and what not every kind of device can do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_DRAWING = ("cuda", "mps")  # have a random generator of their own


def best_device() -> torch.device:
    """The GPU if there is one, NVIDIA's (or AMD's) before Apple's, else the CPU.

    ``ACCELERATE_USE_CPU=1``, by which accelerate trains on the CPU, holds here too.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def supports_bf16(device: torch.device) -> bool:
    """Whether bf16 is what a model is best run in there: on recent NVIDIA GPUs."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def doubled(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The random generators' states: the CPU's and, by the kind of device, its own."""
    own = {}
    if device.type in _DRAWING:
        own[device.type] = torch.get_device_module(device).get_rng_state()
    return {"cpu": torch.get_rng_state(), **own}


def set_random_state(states: dict[str, Tensor]) -> None:
    """Set the generators named in `states`, as `random_state` gave them."""
    for kind, state in states.items():
        module = torch if kind == "cpu" else torch.get_device_module(kind)
        module.set_rng_state(state)


@contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """What is drawn within leaves the random generators as they were."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before)
