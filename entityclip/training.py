"""The training loop: one process or many through accelerate, resumable at any checkpoint.

A run is a folder: ``last.safetensors`` (weights, optimizer, RNG, position), ``best.safetensors``
(weights at the lowest validation loss), ``log.jsonl`` (a row a step, a row a validation, a row for
pictures that cannot be read) and, when finished, ``run.json``.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from entityclip.checkpoint import pack_optimizer, read_meta, unpack_optimizer, write_checkpoint
from entityclip.datasets.broken import Broken
from entityclip.datasets.images import ImageTextDataset
from entityclip.datasets.pair import Batch, PairDataset
from entityclip.distributed import this_world
from entityclip.files import atomic_write_text
from entityclip.identity import as_dict
from entityclip.model import EntityCLIP
from entityclip.optimization import epoch_batches
from entityclip.progress import progress_bar
from entityclip.repeatable import repeatable
from entityclip.run_state import (
    BEST,
    LAST,
    RECORD,
    load_model,
    model_tensors,
    random_state,
    read_last,
    refuse_another,
    remove_leftovers,
    restore_random_state,
    run_facts,
    save_last,
)
from entityclip.serving import SplitServer
from entityclip.step_log import StepLog, TrainingError
from entityclip.train_config import TrainConfig
from entityclip.training_checks import refuse_other_models, refuse_small
from entityclip.training_step import Stepper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run left its files, and what it cost."""

    folder: Path
    steps: int
    best_epoch: int
    best_val_loss: float
    wall_time_s: float
    resumed_from: int | None  # the step an interrupted run went on from

    @property
    def best(self) -> Path:
        """Weights at the lowest validation loss."""
        return self.folder / BEST


def train(
    model: EntityCLIP,
    train_set: PairDataset | ImageTextDataset,
    val_set: PairDataset | ImageTextDataset,
    config: TrainConfig,
    folder: Path,
    *,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train `model` in place and leave a run in `folder`; goes on where an earlier call stopped.

    Several processes, started as `accelerate launch` does, call it alike and train as one
    (`distributed`); the first of them writes. `config.chunk` trains batches larger than memory.

    `identity` (anything JSON-ready, say data fingerprint and variant) is kept with the checkpoint;
    a checkpoint of another identity or configuration is refused. A pair of an `ImageTextDataset`
    whose picture cannot be read is left out of its batch and listed, with what is wrong, in the log
    and under ``broken`` in ``run.json``; validation leaves out the same pairs every epoch.

    Raises TrainingError for a split smaller than a batch, for what several processes or `chunk`
    cannot train and for a loss that is not finite, CheckpointError for damaged files and those of
    another run, TooManyBroken above a dataset's share of broken pictures.
    """
    return _Trainer(model, train_set, val_set, config, folder, identity or {}, progress).run()


class _Trainer:
    def __init__(self, model, train_set, val_set, config, folder, identity, progress):
        self.world = this_world()
        sets = {"train": train_set, "val": val_set}
        refuse_small(sets, config, self.world)
        refuse_other_models(model, config, self.world)
        self.config, self.folder = config, folder
        self.progress = progress and self.world.main
        if config.negatives_from == "local" and self.world.size > 1:
            identity = {**identity, "processes": self.world.size}  # it decides what is local
        # through JSON, so that it compares equal to what a checkpoint hands back
        self.identity = json.loads(json.dumps({**identity, "train": as_dict(config)}))
        self.facts = json.loads(json.dumps(run_facts(model, sets, identity)))
        self.steps_per_epoch = len(train_set) // config.batch_size
        self.stepper = Stepper(model, config, self.world, self.steps_per_epoch)
        self.device, self.bare = self.stepper.device, self.stepper.bare
        self.sets = {
            split: SplitServer(
                pairs,
                workers=config.workers,
                device=self.device,
                world=self.world,
                text_lengths=getattr(model, "text_lengths", None),
                negatives=config.negatives_from,
            )
            for split, pairs in sets.items()
        }
        self.total = config.epochs * self.steps_per_epoch
        self.step = 0  # forward passes done
        self.elapsed = 0.0  # seconds that earlier, interrupted calls spent
        self.best = {"epoch": 0, "val_loss": math.inf}
        every = 1 if self.device.type == "cpu" else 20
        self.log = StepLog(folder / "log.jsonl", every, main=self.world.main)

    def run(self) -> TrainResult:
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = self._resume()
        self.start = time.perf_counter()
        bar = progress_bar(total=self.total, initial=self.step, show=self.progress, unit="step")
        with bar, repeatable(self.device):
            for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
                self._epoch(epoch, bar)
        result = TrainResult(
            self.folder, self.step, self.best["epoch"], self.best["val_loss"],
            self._spent(), resumed,
        )  # fmt: skip
        broken = {split: served.broken.problems for split, served in self.sets.items()}
        record = {"identity": self.identity, "steps": self.step, **self.best,
                  "wall_time_s": result.wall_time_s, "resumed_from": resumed,
                  "broken": broken}  # fmt: skip
        if self.world.main:
            atomic_write_text(self.folder / RECORD, json.dumps(record, indent=1) + "\n")
        self.world.exchange([self.step])  # nobody reads what the first has not written yet
        return result

    def _epoch(self, epoch: int, bar: tqdm) -> None:
        config = self.config
        self.stepper.model.train()
        done = self.step - epoch * self.steps_per_epoch
        clock = time.perf_counter()
        for batch in self._batches(epoch, skip=done):
            row = self._step(batch)
            elapsed = time.perf_counter() - clock
            clock += elapsed
            pairs = len(batch) if batch.peers is None else batch.peers.total
            row |= {"step": self.step, "epoch": epoch + 1, "pairs_per_s": pairs / elapsed}
            for shown in self.log.add(row, batch.ids, self._last_good):
                bar.set_postfix(
                    {k: f"{shown[k]:.3f}" for k in ("loss", "vtc", "itm") if k in shown}
                )
            bar.update()
            within = self.step % self.steps_per_epoch
            if (
                within
                and self.step % config.checkpoint_every == 0
                and within % config.accumulate == 0
            ):
                self.log.flush(self._last_good)
                self._save(improved=False)
        self.log.flush(self._last_good)
        val = self._validate()
        self.log.write({"epoch": epoch + 1, "step": self.step, **val})
        if self.progress:  # a line an epoch: all that a batch run's log shows of the bar
            left = self._spent() / self.step * (self.total - self.step)
            tqdm.write(
                f"epoch {epoch + 1}/{config.epochs}: validation loss {val['val_loss']:.3f}, "
                f"{self._spent():.0f} s so far, about {left:.0f} s left"
            )
        improved = val["val_loss"] < self.best["val_loss"]
        if improved:
            self.best = {"epoch": epoch + 1, "val_loss": val["val_loss"]}
        self._save(improved)

    def _batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        served, seed = self.sets["train"], self.config.seed
        rows = epoch_batches(len(served), self.config.batch_size, seed, epoch)[skip:]
        # the row names the step at hand, so that a resumed run, which repeats it, logs it anew
        return served.batches(
            rows, seed=seed + epoch, found=lambda new: self._found("train", self.step + 1, new)
        )

    def _found(self, split: str, step: int, problems: dict[str, str]) -> None:
        self.log.write({"step": step, "split": split, "broken": problems})
        log.log(
            logging.WARNING if self.world.main else logging.DEBUG,
            "%s, step %d: pairs left out for a broken picture: %d, so far %d; %s lists them",
            split, step, len(problems), len(self.sets[split].broken), self.log.path,
        )  # fmt: skip

    def _step(self, batch: Batch) -> dict[str, Any]:
        row = self.stepper.step(batch, self.step)
        self.step += 1
        return row

    def _spent(self) -> float:
        return self.elapsed + time.perf_counter() - self.start

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean losses over the validation split's full batches; the same draws every epoch."""
        self.stepper.model.eval()
        served, seed = self.sets["val"], self.config.seed
        size = min(self.config.batch_size, len(served))
        rows = [list(range(i, i + size)) for i in range(0, len(served) - size + 1, size)]
        batches = served.batches(
            rows, seed=seed, found=lambda new: self._found("val", self.step, new)
        )
        sums: dict[str, Tensor] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.stepper.accelerator.autocast():
            torch.manual_seed(seed)
            for batch in batches:
                for name, value in self.stepper.losses(batch).items():
                    sums[name] = sums.get(name, 0) + value
        means = {f"val_{name}": (value / len(rows)).item() for name, value in sums.items()}
        if not math.isfinite(means["val_loss"]):
            raise TrainingError(
                f"validation loss is {means['val_loss']} after step {self.step}; "
                + self._last_good()
            )
        return means

    def _save(self, improved: bool) -> None:
        if not self.world.main:
            return
        weights = model_tensors(self.bare)
        meta = {"step": self.step, "best": self.best, "identity": self.identity}
        meta["facts"] = self.facts
        self.log.sync()
        if improved:
            write_checkpoint(self.folder / BEST, weights, meta)
        optimizer, groups = pack_optimizer(self.stepper.optimizer)
        state = weights | optimizer | random_state(self.device)
        meta |= {"groups": groups, "elapsed": self._spent()}
        save_last(self.folder, state, meta, self.config.keep)

    def _resume(self) -> int | None:
        if self.world.main:
            remove_leftovers(self.folder)
        found = read_last(self.folder)
        steps = self.world.exchange([-1 if found is None else found[1]["step"]])
        if len({step for (step,) in steps}) > 1:
            raise TrainingError(
                f"the processes find different checkpoints in {self.folder} (steps {steps}); "
                "it must lie on a disk that all of them share"
            )
        if found is None:
            self._truncated_log(0)
            return None
        path, meta, tensors = found
        refuse_another(path, meta, self.identity, self.facts)
        load_model(self.bare, tensors)
        unpack_optimizer(self.stepper.optimizer, tensors, meta["groups"])
        restore_random_state(tensors, self.device)
        self.step, self.best, self.elapsed = meta["step"], meta["best"], meta["elapsed"]
        for row in self._truncated_log(self.step):
            problems = row.get("broken", {}).items()
            if problems:
                self.sets[row["split"]].broken.add([Broken(*item) for item in problems])
        return self.step

    def _truncated_log(self, step: int) -> list[dict[str, Any]]:
        """The rows that stay; the first process cuts the file, all know what it holds."""
        return self.world.agree(self.log.truncate(step) if self.world.main else None)

    def _last_good(self) -> str:
        path = self.folder / LAST
        if not path.exists():
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {path} of step {read_meta(path)['step']}"
