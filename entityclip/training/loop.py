"""The training loop: one process or many through accelerate, resumable at any checkpoint.

`_Trainer.run` is the story, `_Trainer._step` one step of it, both in the order of events; what a
run leaves behind is told by `run_folder`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from tqdm.auto import tqdm

from entityclip.config import TrainConfig, as_dict
from entityclip.console import progress_bar
from entityclip.datasets.dataset import Batch, Broken, PairDataset
from entityclip.devices import best_device, own_draws, supports_bf16
from entityclip.models.clip import Backbone, DualEncoder
from entityclip.training.processes import (
    CannotTrain,
    SplitServer,
    World,
    covering_batches,
    full_batches,
    this_world,
)
from entityclip.training.run_folder import RunFolder, TrainResult, run_facts
from entityclip.training.tracking import Tracking

log = logging.getLogger(__name__)

_LOOKED_AT = 20_000  # texts of a split whose lengths are counted


def train(
    model: DualEncoder,
    train_set: PairDataset,
    val_set: PairDataset,
    config: TrainConfig,
    folder: Path,
    *,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
    tracking: Tracking | None = None,
) -> TrainResult:
    """Train `model` in place and leave a run in `folder`; goes on where an earlier call stopped.

    Several processes, started as `accelerate launch` does, call it alike and train as one
    (`processes`); the first of them writes. `config.chunk` trains batches larger than memory.
    `tracking` shows the run elsewhere while it goes on.

    `identity` (anything JSON-ready, say data fingerprint and variant) is kept with the checkpoint;
    a checkpoint of another identity or configuration is refused. A pair whose picture cannot be
    read is left out of its batch, up to a set's `max_broken`, and listed, with what is wrong, in
    the log and under ``broken`` in ``run.json``; validation leaves out the same pairs every epoch.

    The best checkpoint is that of the lowest total validation loss or, by `config.best_by` or a
    model's `reference_compat`, of the lowest VTC of the pooled features, as the authors choose.

    Raises TrainingError for a split smaller than a batch, for what several processes or `chunk`
    cannot train and for a loss that is not finite, CheckpointError for damaged files and those of
    another run, TooManyBroken above a dataset's share of broken pictures.
    """
    sets = {"train": train_set, "val": val_set}
    return _Trainer(model, sets, config, folder, identity or {}, progress, tracking).run()


def cut_texts(backbone: Backbone, sets: dict[str, PairDataset], *, tell: bool) -> list[str]:
    """A line, also logged, for each split's texts of which the context length cuts any.

    Of splits of more than 20,000 pairs, so many are looked at, evenly spread.
    """
    limit, lines = backbone.tokenize.context_length, []
    for split, served in sets.items():
        pairs = getattr(served, "pairs", ())
        pairs = pairs[:: -(-len(pairs) // _LOOKED_AT) or 1]
        texts = {"captions": [pair.caption for pair in pairs]}
        if getattr(served, "with_explanations", False):
            texts["explanations"] = [str(pair.explanation) for pair in pairs]
        for name, of_pairs in texts.items():
            if count := len(backbone.too_long(of_pairs)):
                of = f"{count} of {len(pairs)} {name} of {split}"
                lines.append(f"{of} are longer than {limit} tokens and were cut")
    for line in lines:
        log.log(logging.WARNING if tell else logging.DEBUG, line)
    return lines


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up over `warmup_steps`, then cosine from `lr` to 0 at `total` optimizer steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    rest = max(1, total - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / rest))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch, last incomplete one dropped: a function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return full_batches(torch.randperm(n, generator=generator).tolist(), batch_size)


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW in its fused form; gains, biases and the logit scale are never decayed."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.ndim < 2 or name.endswith("bias") or ".ln" in name
        (kept if vector else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


@torch.no_grad()
def hold_logit_scale(log_scale: Tensor, limit: float | None) -> dict[str, Tensor]:
    """Keep exp(log_scale) from 1 to `limit`, in place; whether that bound, as a log row's entry.

    CLIP's limit is 100 (section 2.5), where its published weights stand; the authors' code has none
    (None).
    """
    if limit is None:
        return {}
    held = log_scale > math.log(limit)
    log_scale.clamp_(0, math.log(limit))
    return {"logit_scale_held": held}


def precision(config: TrainConfig) -> str:
    """Accelerate's name of the precision; "auto" is bf16 where the device supports it."""
    able = supports_bf16(best_device())
    return "bf16" if config.precision == "bf16" or (config.precision == "auto" and able) else "no"


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On the CPU, the same seed gives the same bits at any number of threads.

    Gradients of gathered rows are otherwise summed in the order in which threads arrive.
    """
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, helps debugging
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


class _Trainer:
    """A run: `model` is what is called, `bare` the same weights without what DDP wraps it in."""

    def __init__(
        self, model: DualEncoder, sets, config: TrainConfig, folder, identity, progress, tracking
    ):
        self.config, self.world, self.tracking = config, this_world(), tracking
        _refuse_impossible(model, sets, config, self.world)
        self.progress = progress and self.world.main
        # accelerate keeps one precision a process, and a notebook trains several models in one
        AcceleratorState._reset_state()
        watched = {} if tracking is None else tracking.options
        self.accelerator = Accelerator(mixed_precision=precision(config), **watched)
        torch.manual_seed(config.seed)
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, config))
        self.bare, self.device = model, self.accelerator.device
        self.sets = {
            split: SplitServer(
                pairs, config.workers, self.device, self.world,
                text_lengths=model.text_lengths, negatives=config.negatives_from,
            )
            for split, pairs in sets.items()
        }  # fmt: skip
        if config.negatives_from == "local" and self.world.size > 1:
            identity = {**identity, "processes": self.world.size}  # it decides what is local
        options = {"facts": run_facts(model, sets, identity), "keep": config.keep}
        identity = {**identity, "train": as_dict(config)}
        self.folder = RunFolder(folder, identity, self.device, world=self.world, **options)
        self.per_epoch = len(sets["train"]) // config.batch_size  # forward passes
        self.total = config.epochs * self.per_epoch
        self.step = 0  # forward passes done
        compat = getattr(model.config, "reference_compat", False)
        self.by = f"val_{'vtc' if compat else config.best_by}"  # what is best, lowest
        self.best = {"epoch": 0, "val_loss": math.inf, self.by: math.inf}
        self.told_of_limit = False

    def run(self) -> TrainResult:
        resumed = self._resume()
        if self.tracking:
            self.tracking.begin(self.accelerator, as_dict(self.config), self.step)
        datasets = {split: served.dataset for split, served in self.sets.items()}
        cut = cut_texts(self.bare.backbone, datasets, tell=self.world.main)
        bar = progress_bar(total=self.total, initial=self.step, show=self.progress, unit="step")
        with bar, repeatable(self.device):
            for epoch in range(self.step // self.per_epoch, self.config.epochs):
                self.model.train()
                clock = time.perf_counter()
                for batch in self._batches(epoch):
                    row = self._step(batch)
                    now = time.perf_counter()
                    pairs = len(batch) if batch.peers is None else batch.peers.total
                    row |= {"step": self.step, "epoch": epoch + 1,
                            "pairs_per_s": pairs / (now - clock)}  # fmt: skip
                    clock = now
                    for shown in self.folder.add(row, batch.ids):
                        self._tell_of_limit(shown)
                        if self.tracking:
                            self.tracking.add(self.accelerator, shown)
                        terms = {k: shown[k] for k in ("loss", "vtc", "itm") if k in shown}
                        told = {k: f"{value:.3f}" for k, value in terms.items()}
                        bar.set_postfix(told, refresh=False)  # the bar's own pace decides
                    bar.update()
                    if self._checkpoint_is_due():
                        self.folder.flush()
                        self._save(improved=False)
                self.folder.flush()
                self._save(self._validated(epoch))
        broken = {split: served.broken.problems for split, served in self.sets.items()}
        for tracker in self.accelerator.trackers if self.tracking else ():
            tracker.finish()
        return self.folder.finish(self.step, self.best, resumed, broken=broken, cut=cut)

    def _step(self, batch: Batch) -> dict[str, Any]:
        """One forward and backward pass: its rate, the logit scale, the named terms.

        The optimizer steps every `accumulate` passes, and at an epoch's end.
        """
        config, (epoch, within) = self.config, divmod(self.step, self.per_epoch)
        # the rate
        group = within // config.accumulate
        updates = math.ceil(self.per_epoch / config.accumulate)  # an epoch
        rate = learning_rate(epoch * updates + group, config.epochs * updates, config)
        # forward and backward; the last pass of a step averages gradients over processes
        passes = min(config.accumulate, self.per_epoch - group * config.accumulate)
        last = (within + 1) % config.accumulate == 0 or within + 1 == self.per_epoch
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            terms = self._losses(batch)
            self.accelerator.backward(terms["loss"] / passes)
        # the step
        log_scale, bound = self.bare.backbone.clip.logit_scale, {}
        if last:
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            if config.clip_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            bound = hold_logit_scale(log_scale, config.max_logit_scale)
        self.step += 1
        found = {name: value.detach() for name, value in terms.items()}
        return {"lr": rate, "logit_scale": log_scale.detach().exp(), **found, **bound}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The named terms of a batch as they count after a share of the training."""
        chunk = {} if self.config.chunk is None else {"chunk": self.config.chunk}
        return self.bare.losses(self.model(**batch.inputs(), **chunk))

    def _validated(self, epoch: int) -> bool:
        """Validate, log and tell; whether it is the best so far."""
        val = self._validate()
        chosen_by = {} if self.by == "val_loss" else {"best_by": self.by}
        self.folder.write({"epoch": epoch + 1, "step": self.step, **val, **chosen_by})
        self._tell(epoch, val["val_loss"])
        if self.tracking and self.world.main:
            self._track(val)
        improved = val[self.by] < self.best[self.by]
        if improved:
            shown = {"val_loss": val["val_loss"], self.by: val[self.by]}
            self.best = {"epoch": epoch + 1, **shown}
        return improved

    def _track(self, val: dict[str, float]) -> None:
        """Show a validation, and what the tracking asks of the model beside."""
        with own_draws(self.device):  # the run draws as if nobody had looked
            found = self.tracking.probe(self.bare)
        probed = {f"val_{name}": value for name, value in found.items()}
        self.tracking.add(self.accelerator, {"step": self.step, **val, **probed})

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean losses over all validation pairs, batch by batch; the same draws every epoch."""
        self.model.eval()
        served, seed, pairs = self.sets["val"], self.config.seed, 0
        rows = covering_batches(len(served), self.config.batch_size, max(2, self.world.size))
        batches = served.batches(rows, seed, lambda new: self._found("val", self.step, new))
        sums: dict[str, Tensor] = {}
        with own_draws(self.device), self.accelerator.autocast():
            torch.manual_seed(seed)
            for batch in batches:
                here = len(batch) if batch.peers is None else batch.peers.total
                pairs += here
                for name, value in self._losses(batch).items():
                    sums[name] = sums.get(name, 0) + here * value
        means = {f"val_{name}": (value / pairs).item() for name, value in sums.items()}
        where = f"after step {self.step}"
        self.folder.refuse_infinite("validation loss", means["val_loss"], where)
        return means

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """What is left of an epoch's batches."""
        served, seed = self.sets["train"], self.config.seed
        rows = epoch_batches(len(served), self.config.batch_size, seed, epoch)
        rows = rows[self.step - epoch * self.per_epoch :]
        # the row names the step at hand, so that a resumed run, which repeats it, logs it anew
        return served.batches(
            rows, seed + epoch, lambda new: self._found("train", self.step + 1, new)
        )

    def _found(self, split: str, step: int, problems: dict[str, str]) -> None:
        """Broken pictures that were met for the first time."""
        self.folder.write({"step": step, "split": split, "broken": problems})
        level = logging.WARNING if self.world.main else logging.DEBUG
        log.log(
            level, "%s, step %d: pairs left out for a broken picture: %d, so far %d; %s lists them",
            split, step, len(problems), len(self.sets[split].broken), self.folder.log,
        )  # fmt: skip

    def _tell(self, epoch: int, val_loss: float) -> None:
        """A line an epoch: all that a batch run's log shows of the bar."""
        if self.progress:
            spent = self.folder.spent()
            left = spent / self.step * (self.total - self.step)
            tqdm.write(
                f"epoch {epoch + 1}/{self.config.epochs}: validation loss {val_loss:.3f}, "
                f"{spent:.0f} s so far, about {left:.0f} s left"
            )

    def _tell_of_limit(self, row: dict[str, Any]) -> None:
        """Once a call: what is held at a limit looks like convergence."""
        if row.get("logit_scale_held") and self.world.main and not self.told_of_limit:
            self.told_of_limit = True
            log.warning(
                "step %d: the logit scale reached max_logit_scale=%g and is held there; null lets "
                "it grow, and %s marks the steps", row["step"], self.config.max_logit_scale,
                self.folder.log,
            )  # fmt: skip

    def _checkpoint_is_due(self) -> bool:
        within = self.step % self.per_epoch  # one that ends an epoch comes after its validation
        due = self.step % self.config.checkpoint_every == 0
        return bool(within) and due and within % self.config.accumulate == 0

    def _save(self, improved: bool) -> None:
        position = {"step": self.step, "best": self.best}
        self.folder.save(self.bare, self.optimizer, position, improved=improved)

    def _resume(self) -> int | None:
        meta, rows = self.folder.resume(self.bare, self.optimizer, self.total)
        if meta is None:
            return None
        self.step, self.best = meta["step"], meta["best"]
        for row in rows:
            if "broken" in row:
                broken = [Broken(*item) for item in row["broken"].items()]
                self.sets[row["split"]].broken.add(broken)
        return self.step


def _refuse_impossible(
    model: DualEncoder, sets: dict[str, Any], config: TrainConfig, world: World
) -> None:
    """Every batch must be full, hold a pair for every process, and the model be able to split it.

    What splits a batch, between processes or into chunks, is the forward pass: EntityCLIP's can.
    """
    train_size, val_size = (len(pairs) for pairs in sets.values())
    if train_size < config.batch_size:
        raise CannotTrain(
            f"{train_size} training pairs don't fill one batch of {config.batch_size}; "
            "lower batch_size or give more pairs"
        )
    if val_size < 2:
        raise CannotTrain(f"{val_size} validation pairs; contrastive losses need at least 2")
    if min(config.batch_size, val_size) < world.size:
        raise CannotTrain(
            f"{world.size} processes share batches of {config.batch_size} training and at most "
            f"{val_size} validation pairs; each needs at least 1"
        )
    if config.best_by == "vtc" and not model.has_vtc:
        raise CannotTrain(
            f"best_by=vtc: {type(model).__name__}'s loss has no VTC to choose by; set best_by=loss"
        )
    asked = [f"{world.size} processes"] if world.size > 1 else []
    asked += [f"chunk={config.chunk}"] if config.chunk is not None else []
    if asked and not model.splits_batches:
        raise CannotTrain(
            f"{type(model).__name__} compares all rows in its forward pass and can't be trained "
            f"with {' and '.join(asked)}; use one process without chunk"
        )
