"""What a run keeps on disk to go on from, and which run it is that may go on from it.

``last.safetensors`` holds everything; with `keep` = k, the k - 1 before it stay beside it as
``step-*.safetensors``. Each is written whole or not at all, and at no moment is there none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from entityclip.checkpoints import (
    CheckpointError,
    read_meta,
    read_tensors,
    refuse_other_run,
    write_checkpoint,
)
from entityclip.config import as_dict
from entityclip.files import atomic_write_text, claimed

log = logging.getLogger(__name__)


LAST, BEST, RECORD = "last.safetensors", "best.safetensors", "run.json"


def save_last(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int) -> None:
    """Write `tensors` as the last checkpoint; of those before it, `keep` - 1 stay."""
    last = folder / LAST
    if keep > 1 and last.exists():
        with contextlib.suppress(CheckpointError):  # a damaged one is not worth keeping
            _set_aside(last, folder / f"step-{read_meta(last)['step']:09d}.safetensors")
    write_checkpoint(last, tensors, meta)
    earlier = [path for path in earlier_checkpoints(folder) if _step(path) < meta["step"]]
    for path in {*earlier_checkpoints(folder)} - {*earlier[: keep - 1]}:
        path.unlink()


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, and its best weights are still there."""
    return all((folder / name).exists() for name in (RECORD, BEST))


def claim(folder: Path, *, wait: bool = True) -> AbstractContextManager[bool]:
    """Two processes never train one run: the second waits, and finds it finished."""
    return claimed(folder.with_name(f"{folder.name}.lock"), wait=wait)


def earlier_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints before the last that are still there, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def read_last(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]] | None:
    """Path, meta and tensors of the newest checkpoint that can be read; None where there is none.

    A damaged one is passed over, with a warning, for the one before it. Raises CheckpointError,
    naming the newest, where all are damaged.
    """
    there = [path for path in (folder / LAST, *earlier_checkpoints(folder)) if path.exists()]
    damage = None
    for path in there:
        try:
            return path, read_meta(path), read_tensors(path)
        except CheckpointError as error:
            damage = damage or error
            log.warning("%s", error)
    if damage is not None:
        raise damage
    return None


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing; nothing refers to it."""
    ours = (".last.", ".best.", ".log.", ".run.", ".step-", ".tmp")  # .tmp: safetensors' own
    for path in folder.glob(".*"):
        if path.is_file() and path.name.startswith(ours):
            path.unlink(missing_ok=True)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights as a checkpoint names them."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the weights of a checkpoint."""
    found = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(found)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The generators that training draws from."""
    state = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng.cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Go on drawing where :func:`random_state` was taken."""
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def run_facts(model: nn.Module, sets: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """What tells runs apart beyond the `identity` their caller gave: the model and the pairs.

    The pairs count by ids and captions; pictures are not looked at.
    """
    facts: dict[str, Any] = {}
    if "model" not in identity and hasattr(model, "config"):
        facts["model"] = as_dict(model.config)
    for split, dataset in sets.items():
        if f"{split}_data" not in identity and hasattr(dataset, "pairs"):
            digest = hashlib.blake2b(digest_size=8)
            for pair in dataset.pairs:
                digest.update(json.dumps([pair.id, pair.caption]).encode())
            facts[f"{split}_data"] = f"{len(dataset.pairs)} pairs, {digest.hexdigest()}"
    return facts


def refuse_another(
    path: Path, meta: dict[str, Any], identity: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Raise CheckpointError, listing the fields, for a checkpoint of another run, model or data."""
    theirs = meta.get("facts", {})  # checkpoints of older versions have none
    known = theirs.keys() & facts.keys()
    told = meta.get("identity", {}) | {name: theirs[name] for name in known}
    ours = identity | {name: facts[name] for name in known}
    refuse_other_run(path, {"identity": told}, ours)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


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


class TrainingError(RuntimeError):
    """Training can't start or go on; the message says where it stood and what to do."""


class StepLog:
    """``log.jsonl`` of a run: a row a step, a row a validation, a row for broken pictures.

    On a GPU rows wait in memory, `every` at a time, so that no step waits for its loss to arrive.
    Of several processes only the `main` one writes; all of them look at the loss.
    """

    def __init__(self, path: Path, every: int, *, main: bool = True):
        self.path, self.every, self.main = path, every, main
        self.waiting: list[tuple[dict[str, Any], list[str]]] = []

    def add(
        self, row: dict[str, Any], ids: list[str], last_good: Callable[[], str]
    ) -> list[dict[str, Any]]:
        """Take one step's row (numbers or scalar tensors); the rows written by now, if any."""
        self.waiting.append((row, ids))
        return self.flush(last_good) if len(self.waiting) >= self.every else []

    def flush(self, last_good: Callable[[], str]) -> list[dict[str, Any]]:
        """Write what waits. Raises TrainingError at the first loss that is not finite."""
        rows = []
        for row, ids in self.waiting:
            row = {k: v.item() if isinstance(v, Tensor) else v for k, v in row.items()}
            if not math.isfinite(row["loss"]):
                raise TrainingError(
                    f"loss is {row['loss']} at step {row['step']}; {last_good()}. "
                    f"The batch: {', '.join(ids)}"
                )
            rows.append(row)
        self.waiting = []
        self.write(*rows)
        return rows

    def write(self, *rows: dict[str, Any]) -> None:
        """Append rows at once, a validation's for instance."""
        if not self.main:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def sync(self) -> None:
        """Wait until the disk holds what is written: a checkpoint must not outlive its log."""
        if self.main and self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def truncate(self, step: int) -> list[dict[str, Any]]:
        """Forget rows after `step`, which a stopped run does again; the rows that stay."""
        if not self.path.exists():
            return []
        kept, rows = [], []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # the line a killed run was writing
            if row["step"] <= step:
                kept.append(line + "\n")
                rows.append(row)
        atomic_write_text(self.path, "".join(kept))
        return rows
