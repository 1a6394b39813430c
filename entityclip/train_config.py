"""Every knob of the training loop. Read with a profile, so without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from entityclip.identity import LEFT_OUT, LEFT_OUT_AT_DEFAULT


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's for N24News (section 4.1)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    epochs: int = 20
    batch_size: int = 192  # pairs a forward pass, of all processes; losses see exactly these
    lr: float = 1e-5  # peak; 5e-6 for GoodNews
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0  # linear, then cosine to 0 over the remaining steps
    accumulate: int = 1  # forward passes an optimizer step; each contrasts its own batch
    clip_grad_norm: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device supports it
    checkpoint_every: int = 1000  # steps between checkpoints within an epoch; one ends each epoch
    workers: int = 0  # processes that decode pictures; 0 decodes in this one
    seed: int = 42
    # rows encoded at a time, to the same gradient (grad_cache.py); None: the whole batch
    chunk: int | None = field(default=None, metadata=LEFT_OUT_AT_DEFAULT)
    # with several processes: whose rows GI-ITM's negatives are (distributed.py)
    negatives_from: Literal["global", "local"] = field(
        default="global", metadata=LEFT_OUT_AT_DEFAULT
    )
    # checkpoints to go on from: the last, and those before it as step-*.safetensors
    keep: int = field(default=1, metadata=LEFT_OUT)

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size is {self.batch_size}; contrastive losses need at least 2 pairs a batch"
            )
        for name in ("epochs", "accumulate", "checkpoint_every", "keep", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("weight_decay", "warmup_steps", "workers", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and >= 0")
        for name in ("lr", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite and positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; each must be from 0 to below 1")
