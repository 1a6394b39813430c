"""A run's folder: the claim on it, its log, its checkpoints, and which run may go on from them.

``last.safetensors`` (weights, optimizer, generators, position) is what a run goes on from; with
`keep` = k, the k - 1 before it stay beside it as ``step-*.safetensors``. ``best.safetensors`` holds
the weights that were best. Each is written whole or not at all, and at no moment is there none.
``log.jsonl`` has a row a step, a row a validation and a row for pictures that cannot be read;
``run.json`` is written when the run has come to its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from typing_extensions import TypedDict

from entityclip.checkpoints import (
    BEST,
    CheckpointError,
    pack_optimizer,
    read_meta,
    read_tensors,
    refuse_misfit,
    refuse_other_run,
    unpack_optimizer,
    write_checkpoint,
)
from entityclip.config import AtLeast0, Weight, as_dict
from entityclip.devices import random_state, set_random_state
from entityclip.files import atomic_write_text, checked, claimed, json_lines, read_json
from entityclip.training.processes import TrainingError, World

log = logging.getLogger(__name__)

LAST, RECORD = "last.safetensors", "run.json"


@with_config(ConfigDict(extra="allow"))
class _Meta(TypedDict):
    """What stands beside the tensors of a checkpoint that a run goes on from."""

    identity: dict[str, Any]
    facts: NotRequired[dict[str, Any]]
    step: AtLeast0
    iteration: NotRequired[AtLeast0]  # of ITR
    best: dict[str, int | str | float | None]  # int first: an epoch stays one
    elapsed: Weight
    groups: list[dict[str, Any]]
    optimized: NotRequired[list[AtLeast0]]


@with_config(ConfigDict(extra="allow"))
class _LogRow(TypedDict):
    step: AtLeast0
    split: NotRequired[str]
    broken: NotRequired[dict[str, str]]


@with_config(ConfigDict(extra="allow"))
class Record(TypedDict):
    """What ``run.json`` says of a finished run."""

    identity: dict[str, Any]
    steps: AtLeast0
    wall_time_s: Weight
    epoch: NotRequired[AtLeast0]  # the best
    val_loss: NotRequired[float]


def read_record(folder: Path) -> Record:
    """A finished run's ``run.json``. Raises CheckpointError naming file and field."""
    return read_json(folder / RECORD, CheckpointError, Record)


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run left its files, and what it cost."""

    folder: Path
    steps: int
    best_epoch: int  # of ITR, its iteration
    best_val_loss: float | None  # of ITR, its contrast of held-out pairs
    wall_time_s: float
    resumed_from: int | None  # the step (of ITR, the iteration) an interrupted run went on from

    @property
    def best(self) -> Path:
        """The weights to go on with: those of `best_epoch`."""
        return self.folder / BEST


def claim(folder: Path, *, wait: bool = True) -> AbstractContextManager[bool]:
    """Two processes never train one run: the second waits, and finds it finished."""
    return claimed(folder.with_name(f"{folder.name}.lock"), wait=wait)


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, and its best weights are still there."""
    return all((folder / name).exists() for name in (RECORD, BEST))


def load_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Restore the weights of the checkpoint at `path`; CheckpointError where they do not fit."""
    found = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    refuse_misfit(found, model.state_dict(), path)
    model.load_state_dict(found)


def run_facts(model: nn.Module, sets: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """What tells runs apart beyond the `identity` their caller gave: the model, its pictures'
    preprocessing and the pairs.

    The pairs count by ids and captions; pictures are not looked at.
    """
    facts: dict[str, Any] = {}
    if hasattr(model, "backbone"):
        facts["preprocessing"] = model.backbone.preprocessing
    if "model" not in identity and hasattr(model, "config"):
        facts["model"] = as_dict(model.config)
    for split, dataset in sets.items():
        if f"{split}_data" not in identity and hasattr(dataset, "pairs"):
            digest = hashlib.blake2b(digest_size=8)
            for pair in dataset.pairs:
                digest.update(json.dumps([pair.id, pair.caption]).encode())
            facts[f"{split}_data"] = f"{len(dataset.pairs)} pairs, {digest.hexdigest()}"
    return facts


class RunFolder:
    """The folder of the run that `identity` and `facts` (JSON-ready) tell from any other.

    On a GPU the log's rows of steps wait in memory, some at a time, so that no step waits for its
    loss to arrive. Of several processes only the main one writes; all of them look at the loss.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        device: torch.device,
        *,
        facts: dict[str, Any] | None = None,
        keep: int = 1,
        world: World = World(),  # noqa: B008
    ):
        self.path, self.device, self.keep, self.world = path, device, keep, world
        # through JSON, so that they compare equal to what a checkpoint hands back
        self.identity, self.facts = (json.loads(json.dumps(x)) for x in (identity, facts))
        self.log = path / "log.jsonl"
        self._every = 1 if device.type == "cpu" else 20
        self._waiting: list[tuple[dict[str, Any], list[str]]] = []
        self._elapsed, self._start = 0.0, time.perf_counter()

    def resume(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, total: int
    ) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Load the newest checkpoint into model, optimizer and generators: its meta and log.

        The log loses what came after it. None and no rows where there is no checkpoint. Raises
        CheckpointError, listing the fields, for one of another run, and for one that lacks what the
        run needs to go on to the bit or is beyond its `total` steps.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.world.main:
            _remove_leftovers(self.path)
        found = read_last(self.path)
        steps = self.world.exchange([-1 if found is None else found[1]["step"]])
        if len({step for (step,) in steps}) > 1:
            raise TrainingError(
                f"the processes find different checkpoints in {self.path} (steps {steps}); "
                "it must lie on a disk that all of them share"
            )
        meta = None
        if found is not None:
            path, meta, tensors = found
            theirs, ours = meta.get("facts", {}), self.facts or {}  # older versions have none
            theirs, ours = ({k: side[k] for k in theirs.keys() & ours} for side in (theirs, ours))
            told = {"identity": meta.get("identity", {}) | theirs}
            refuse_other_run(path, told, self.identity | ours)
            if meta["step"] > total:
                raise CheckpointError(f"{path}: step {meta['step']} of a run of {total}")
            load_model(model, tensors, path)
            unpack_optimizer(optimizer, tensors, meta, path)
            _restore_generators(tensors, self.device, path)
            self._elapsed = meta["elapsed"]
            if self.world.main and path.name == LAST:  # else those before it are still needed
                _forget_earlier(self.path, meta["step"], self.keep)
        self._start = time.perf_counter()
        # the first process cuts the file, all know what it holds
        rows = self._truncated_log(meta["step"] if meta else 0) if self.world.main else None
        return meta, self.world.agree(rows)

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        position: dict[str, Any],
        *,
        improved: bool,
        generators: bool = True,
    ) -> None:
        """Write the last checkpoint and, where it `improved`, the best. `position` has `step`.

        Without `generators`, their state is left out: for runs that seed them at each position.
        """
        if not self.world.main:
            return
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        facts = {} if self.facts is None else {"facts": self.facts}
        meta = position | {"identity": self.identity} | facts
        if self.log.exists():  # a checkpoint must not outlive its log
            with open(self.log, "rb+") as file:
                os.fsync(file.fileno())
        if improved:
            write_checkpoint(self.path / BEST, weights, meta)
        state, about = pack_optimizer(optimizer)
        if generators:
            state |= {f"rng.{kind}": drawn for kind, drawn in random_state(self.device).items()}
        meta |= about | {"elapsed": self.spent()}
        save_last(self.path, weights | state, meta, self.keep)

    def finish(
        self, step: int, best: dict[str, Any], resumed_from: int | None, **more: Any
    ) -> TrainResult:
        """Write ``run.json``: the run has come to its end. `best`: where it was best, by what."""
        spent = self.spent()
        record = {"identity": self.identity, "steps": step, **best, "wall_time_s": spent,
                  "resumed_from": resumed_from, **more}  # fmt: skip
        if self.world.main:
            atomic_write_text(self.path / RECORD, json.dumps(record, indent=1) + "\n")
        self.world.exchange([step])  # nobody reads what the first has not written yet
        where, value, *_ = best.values()
        return TrainResult(self.path, step, where, value, spent, resumed_from)

    def spent(self) -> float:
        """Seconds of training so far, those of earlier, interrupted calls included."""
        return self._elapsed + time.perf_counter() - self._start

    def add(self, row: dict[str, Any], ids: list[str]) -> list[dict[str, Any]]:
        """Take one step's row (numbers or scalar tensors); the rows written by now, if any."""
        self._waiting.append((row, ids))
        return self.flush() if len(self._waiting) >= self._every else []

    def flush(self) -> list[dict[str, Any]]:
        """Write what waits. Raises TrainingError at the first loss that is not finite."""
        rows = []
        for row, ids in self._waiting:
            row = {k: v.item() if isinstance(v, Tensor) else v for k, v in row.items()}
            row = {k: v for k, v in row.items() if v is not False}  # what did not happen
            self.refuse_infinite("loss", row["loss"], f"at step {row['step']}", ids)
            rows.append(row)
        self._waiting = []
        self.write(*rows)
        return rows

    def write(self, *rows: dict[str, Any]) -> None:
        """Append rows to the log at once, a validation's for instance."""
        if self.world.main:
            with open(self.log, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def refuse_infinite(self, name: str, value: float, where: str, ids: Sequence[str] = ()) -> None:
        """Raise TrainingError for a value that is not finite, naming the last good checkpoint."""
        if math.isfinite(value):
            return
        last, good = self.path / LAST, "there is no checkpoint yet"
        if last.exists():
            good = f"the last good checkpoint is {last} of step {read_meta(last)['step']}"
        batch = f". The batch: {', '.join(ids)}" if ids else ""
        raise TrainingError(f"{name} is {value} {where}; {good}{batch}")

    def _truncated_log(self, step: int) -> list[dict[str, Any]]:
        """Forget rows after `step`, which a stopped run does again; the rows that stay."""
        if not self.log.exists():
            return []
        rows = [
            checked(_LogRow, row, CheckpointError, f"{self.log}, line {number}")
            for number, row in json_lines(self.log, CheckpointError)
        ]
        rows = [row for row in rows if row["step"] <= step]
        atomic_write_text(self.log, "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def save_last(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int) -> None:
    """Write `tensors` as the last checkpoint; of those before it, `keep` - 1 stay."""
    last = folder / LAST
    if keep > 1 and last.exists():
        with contextlib.suppress(CheckpointError):  # a damaged one is not worth keeping
            _set_aside(last, folder / f"step-{read_meta(last)['step']:09d}.safetensors")
    write_checkpoint(last, tensors, meta)
    _forget_earlier(folder, meta["step"], keep)


def _forget_earlier(folder: Path, step: int, keep: int) -> None:
    """Of the checkpoints before the last, which is at `step`, leave the `keep` - 1 newest."""
    there = _earlier(folder)
    earlier = [path for path in there if int(path.stem.removeprefix("step-")) < step]
    for path in {*there} - {*earlier[: keep - 1]}:
        path.unlink()


def read_last(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]] | None:
    """Path, meta and tensors of the newest checkpoint that can be read; None where there is none.

    A damaged one is passed over, with a warning, for the one before it. Raises CheckpointError,
    naming the newest, where all are damaged.
    """
    damage = None
    for path in (path for path in (folder / LAST, *_earlier(folder)) if path.exists()):
        try:
            return path, read_meta(path, _Meta), read_tensors(path)
        except CheckpointError as error:
            damage = damage or error
            log.warning("%s", error)
    if damage is not None:
        raise damage
    return None


def _restore_generators(tensors: dict[str, Tensor], device: torch.device, path: Path) -> None:
    """Set the random generators as they were, where a checkpoint keeps them."""
    ours = {f"rng.{kind}": state for kind, state in random_state(device).items()}
    kept = {name: tensors[name] for name in ours if name in tensors}
    refuse_misfit(kept, {name: ours[name] for name in kept}, path)
    set_random_state({name.removeprefix("rng."): state for name, state in kept.items()})


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing; nothing refers to it."""
    ours = (".last.", ".best.", ".log.", ".run.", ".step-", ".tmp")  # .tmp: safetensors' own
    for path in folder.glob(".*"):
        if path.is_file() and path.name.startswith(ours):
            path.unlink(missing_ok=True)


def _earlier(folder: Path) -> list[Path]:
    """The checkpoints before the last that are still there, newest first."""
    found = folder.glob("step-*.safetensors")
    return sorted((p for p in found if p.stem.removeprefix("step-").isdecimal()), reverse=True)


def _set_aside(last: Path, kept: Path) -> None:
    """Give the last checkpoint a second name, which it keeps when it is replaced."""
    staged = kept.with_name(f".{kept.name}.partial")
    staged.unlink(missing_ok=True)
    try:
        os.link(last, staged)
    except OSError:  # a file system without hard links
        shutil.copyfile(last, staged)
    os.replace(staged, kept)
    # two names of one file, as after a kill that came between this and the next checkpoint, are
    # both left by a rename (POSIX)
    staged.unlink(missing_ok=True)
