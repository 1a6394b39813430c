"""Checkpoints: one safetensors file each, written whole or not at all, never unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from entityclip.files import replacing

_META = "entityclip"


class CheckpointError(RuntimeError):
    """A checkpoint can't be read or written; the message names it and what to do."""


def write_checkpoint(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and JSON-ready `meta` to `path` atomically.

    Raises CheckpointError if the disk is full or not writable; what stood at `path` still does.
    """
    try:
        with replacing(path) as staged:
            whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
            save_file(whole, staged, metadata={_META: json.dumps(meta)})
    except (OSError, SafetensorError) as error:
        kept = (
            f"the last good {path.name} is untouched"
            if path.exists()
            else "nothing was left behind"
        )
        raise CheckpointError(
            f"could not write {path}: {error}; {kept}. Free some space and resume"
        ) from error


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a .safetensors file. Raises CheckpointError naming `path`."""
    return _read(path, lambda: load_file(path, device=str(device)))


def read_meta(path: Path) -> dict[str, Any]:
    """What was written beside the tensors; empty for files that are not ours."""

    def meta() -> dict[str, Any]:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(_META, "{}"))

    return _read(path, meta)


def refuse_other_run(path: Path, meta: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise CheckpointError if the `meta` read from `path` tells of another run than `identity`."""
    differing = differences(meta.get("identity", {}), identity)
    if differing:
        raise CheckpointError(
            f"{path} belongs to another run ({'; '.join(differing)}); "
            "use another folder or delete it"
        )


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """The fields in which two JSON-ready values differ, each as ``a.b: 1 there, 2 here``."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]
    dot = f"{name}." if name else ""
    return [
        line
        for key in sorted({*there, *here})
        for line in differences(there.get(key), here.get(key), f"{dot}{key}")
    ]


def _read(path: Path, read: Any) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        return read()
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); delete it to start over"
            ", or restore a copy"
        ) from error


def pack_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as named tensors and JSON-ready parameter groups."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{key}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Restore what :func:`pack_optimizer` packed."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    groups = [{**group, "betas": tuple(group["betas"])} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
