"""One step of training: forward, backward, update; in chunks, accumulated, over processes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from entityclip.datasets.pair import Batch
from entityclip.distributed import World
from entityclip.grad_cache import cached_backward, compare, encode_in_chunks
from entityclip.model import EntityCLIP, Outputs
from entityclip.optimization import learning_rate, make_optimizer
from entityclip.train_config import TrainConfig
from entityclip.training_checks import precision

MAX_LOGIT_SCALE = math.log(100)  # CLIP, section 2.5


class Stepper:
    """A model and its optimizer, prepared for the device and for the processes that share it.

    `model` is what is called, `bare` the same weights without what several processes wrap it in.
    """

    def __init__(self, model: EntityCLIP, config: TrainConfig, world: World, steps_per_epoch: int):
        self.config, self.world, self.steps_per_epoch = config, world, steps_per_epoch
        # accelerate keeps one precision a process, and a notebook trains several models in one
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=precision(config))
        torch.manual_seed(config.seed)
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, config))
        self.bare = self.accelerator.unwrap_model(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and batches must be."""
        return self.accelerator.device

    def step(self, batch: Batch, done: int) -> dict[str, Any]:
        """One forward and backward pass after `done` others: rate, logit scale, the named terms.

        The optimizer steps every `accumulate` passes, and at an epoch's end.
        """
        config = self.config
        epoch, within = divmod(done, self.steps_per_epoch)
        group = within // config.accumulate
        passes = min(config.accumulate, self.steps_per_epoch - group * config.accumulate)
        last = (within + 1) % config.accumulate == 0 or within + 1 == self.steps_per_epoch
        updates = math.ceil(self.steps_per_epoch / config.accumulate)
        rate = learning_rate(epoch * updates + group, config.epochs * updates, config)
        progress = done / (config.epochs * self.steps_per_epoch)
        terms = self.backward(batch, passes, last, progress)
        if last:
            self._update(rate)
        tensors = {name: value.detach() for name, value in terms.items()}
        return {"lr": rate, "logit_scale": self._log_scale.detach().exp(), **tensors}

    def losses(self, batch: Batch, progress: float = 1.0) -> dict[str, Tensor]:
        """The named terms of a batch as they count after a share of the training.

        Where `chunk` is set, without what a backward pass needs.
        """
        chunk, autocast = self.config.chunk, self.accelerator.autocast
        if chunk is None:
            return self._terms(batch, progress, self.model(**batch.inputs()))
        encoded = encode_in_chunks(self.bare, batch, chunk, autocast)
        return self._terms(batch, progress, compare(self.bare, encoded, batch, autocast))

    def backward(
        self, batch: Batch, passes: int, last: bool, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Add one of `passes` gradients; with the `last`, they are averaged over processes."""

        def backward(loss: Tensor) -> None:
            self.accelerator.backward(loss / passes)

        if self.config.chunk is None:
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                terms = self.losses(batch, progress)
                backward(terms["loss"])
            return terms
        autocast, objective = self.accelerator.autocast, partial(self._terms, batch, progress)
        terms = cached_backward(self.bare, batch, self.config.chunk, objective, backward, autocast)
        if last:
            self.world.average_gradients(self.bare.parameters())
        return terms

    def _terms(self, batch: Batch, progress: float, outputs: Outputs) -> dict[str, Tensor]:
        """The named terms of the whole batch's objective, the same on every process."""
        whole = outputs if batch.peers is None else outputs.joined(batch.peers)
        return self.bare.losses(whole, progress)

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.clip_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self._log_scale.clamp_(0, MAX_LOGIT_SCALE)

    @property
    def _log_scale(self) -> Tensor:
        return self.bare.backbone.clip.logit_scale
