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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm.auto import tqdm

from entityclip.checkpoints import pack_optimizer, read_meta, unpack_optimizer, write_checkpoint
from entityclip.config import TrainConfig, as_dict
from entityclip.datasets.dataset import Batch, Broken, ImageTextDataset, PairDataset
from entityclip.files import atomic_write_text, progress_bar
from entityclip.models.clip import Tokens
from entityclip.models.entityclip import Encoded, EntityCLIP, Outputs
from entityclip.training.batches import SplitServer
from entityclip.training.processes import World, this_world
from entityclip.training.run_folder import (
    BEST,
    LAST,
    RECORD,
    StepLog,
    TrainingError,
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


Autocast = Callable[[], AbstractContextManager[Any]]


def refuse_random_towers(backbone: nn.Module) -> None:
    """Raise TrainingError for towers whose second encoding of a chunk would be another one."""
    for name, module in backbone.named_modules():
        shares = [getattr(module, key, 0) for key in ("p", "prob", "dropout")]
        random = any(isinstance(share, float) and share > 0 for share in shares)
        if random or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TrainingError(
                f"chunk encodes each row twice, and {name} ({type(module).__name__}) would give "
                "another result the second time; train without chunk, or with its dropout at 0"
            )


def encode_in_chunks(model: EntityCLIP, batch: Batch, chunk: int, autocast: Autocast) -> Encoded:
    """The batch's tokens without a graph, encoded `chunk` rows at a time."""
    parts = []
    with torch.no_grad():
        for inputs in _chunks(model, batch, chunk):
            with autocast():
                parts.append(_kept(model, model.encode(**inputs)))
    return Encoded(*(_joined(sides) for sides in zip(*parts, strict=True)))


def compare(model: EntityCLIP, encoded: Encoded, batch: Batch, autocast: Autocast) -> Outputs:
    """What the model's forward pass yields, from tokens that are encoded already."""
    with autocast():
        return model.compare(encoded, batch.captions, batch.image_keys, peers=batch.peers)


def cached_backward(
    model: EntityCLIP,
    batch: Batch,
    chunk: int,
    objective: Callable[[Outputs], dict[str, Tensor]],
    backward: Callable[[Tensor], None],
    autocast: Autocast,
) -> dict[str, Tensor]:
    """Add the gradient of `objective(outputs)["loss"]` to the parameters'; the named terms.

    `backward` goes back from the loss (scaled as the caller likes) to the tokens, parameters of
    experts and matching on the way. Equal to one backward pass through the whole batch.
    """
    encoded = encode_in_chunks(model, batch, chunk, autocast)
    leaves = Encoded(*(side and _leaf(side) for side in encoded))
    terms = objective(compare(model, leaves, batch, autocast))
    backward(terms["loss"])
    start = 0
    for inputs in _chunks(model, batch, chunk):
        rows = slice(start, start := start + len(inputs["images"]))
        with autocast():
            again = _kept(model, model.encode(**inputs))
        sides = [(a, b) for a, b in zip(again, leaves, strict=True) if a is not None]
        _send_back(sides, rows)
    return terms


def _send_back(sides: list[tuple[Tokens, Tokens]], rows: slice) -> None:
    """Go back from a chunk's tokens with the gradients that its rows of the leaves received."""
    ends, gradients = [], []
    for again, leaf in sides:
        for end, cached in ((again.pooled, leaf.pooled), (again.tokens, leaf.tokens)):
            if cached.grad is not None:
                ends.append(end)
                gradients.append(cached.grad[rows])
    torch.autograd.backward(ends, gradients)


def _chunks(model: EntityCLIP, batch: Batch, chunk: int) -> Iterator[dict[str, Any]]:
    """`encode`'s arguments, `chunk` rows at a time; texts as long as the whole batch's."""
    texts = batch.captions, batch.explanations
    lengths = model.text_lengths(*texts) if batch.lengths is None else batch.lengths
    for start in range(0, len(batch), chunk):
        rows = slice(start, start + chunk)
        captions, explanations = (None if side is None else side[rows] for side in texts)
        yield {
            "images": batch.images[rows],
            "captions": captions,
            "explanations": explanations,
            "lengths": lengths,
        }


def _kept(model: EntityCLIP, encoded: Encoded) -> Encoded:
    """Without experts nothing but the pooled features is read."""
    if model.mmae is not None:
        return encoded
    return Encoded(*(side and side._replace(tokens=side.tokens[:, :0]) for side in encoded))


def _joined(parts: tuple[Tokens | None, ...]) -> Tokens | None:
    if parts[0] is None:
        return None
    return Tokens(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _leaf(side: Tokens) -> Tokens:
    return side._replace(
        pooled=side.pooled.detach().requires_grad_(), tokens=side.tokens.detach().requires_grad_()
    )


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
