"""Checkpoints: one safetensors file each, written whole or not at all, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from entityclip.files import checked, parse_json, read_json, replacing

BEST = "best.safetensors"  # of a run
INDEX = "model.safetensors.index.json"  # of weights that Hugging Face wrote in several files
_META, _STATE = "entityclip", "optimizer."

ONLY_SAFETENSORS = (
    "only .safetensors weights are read, never pickles; convert once, by "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW), NEW named .safetensors "
    "and the weights alone in FILE (else take its state_dict entry)"
)


class CheckpointError(RuntimeError):
    """A checkpoint can't be read or written; the message names it and what to do."""


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], *, transformers: bool = False
) -> None:
    """Write `tensors` and JSON-ready `meta` to `path` atomically, so that `transformers` reads it.

    Raises CheckpointError if the disk is full or not writable; what stood at `path` still does.
    """
    try:
        with replacing(path) as staged:
            whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
            # one note alone: the order of several is drawn anew each time
            notes = {_META: json.dumps(meta)} | ({"format": "pt"} if transformers else {})
            save_file(whole, staged, metadata=notes)
    except (OSError, SafetensorError) as error:
        kept = (
            f"the last good {path.name} is untouched"
            if path.exists()
            else "nothing was left behind"
        )
        raise CheckpointError(
            f"could not write {path}: {error}; {kept}; mend that, then resume"
        ) from error


def read_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of all those that an INDEX names.

    Raises CheckpointError, naming `path`, for a file that is missing, may not be read or is damaged
    or of another kind, and, naming the tensor, for numbers that are NaN or infinite.
    """
    if Path(path).name == INDEX:
        return _read_shards(Path(path), device)
    tensors = _read(path, lambda: load_file(path, device=str(device)))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite numbers; take other weights"
            )
    return tensors


class _Index(TypedDict):
    """What of an INDEX is looked at: each tensor's file."""

    weight_map: dict[str, str]


def _read_shards(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    told = read_json(path, CheckpointError, _Index)["weight_map"]
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(told.values()):
        if Path(name).name != name:
            raise CheckpointError(f"{path}: {name!r} leads out of the folder")
        tensors |= read_tensors(path.with_name(name), device)
    lacking = [name for name in told if name not in tensors]
    if lacking:
        raise CheckpointError(f"{path}: its files lack {_some(lacking)}; fetch them again")
    return tensors


def read_meta(path: str | Path, kind: Any = dict[str, Any]) -> Any:
    """What was written beside the tensors, as a `kind`; empty for files that are not ours.

    An INDEX says nothing beside.

    Raises CheckpointError as `read_tensors`, and naming the field that is not of the kind.
    """

    if Path(path).name == INDEX:
        return {}

    def text() -> str:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(_META, "{}")

    where = f"{path}: its metadata"
    # before the first validation, the best loss is infinite
    value = parse_json(_read(path, text), CheckpointError, where, infinite=True)
    return checked(kind, value, CheckpointError, where)


def refuse_misfit(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path, model: str = ""
) -> None:
    """Raise CheckpointError unless names, shapes and types are those `wanted` (by `model`)."""
    lacking = [name for name in wanted if name not in tensors]
    more = [name for name in tensors if name not in wanted]
    other = [
        f"{name} is {told}, not {needed}"
        for name, value in wanted.items()
        if name in tensors and (told := _shape(tensors[name])) != (needed := _shape(value))
    ]
    found = [f"lacks {_some(lacking)}"] if lacking else []
    found += [f"has {_some(more)} besides"] if more else []
    found += [_some(other, "; ")] if other else []
    if found:
        raise CheckpointError(f"{path} does not fit{model and ' '}{model}: it {'; '.join(found)}")


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {[*tensor.shape]}"


def _some(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return between.join(names[:3]) + more


def refuse_other_run(path: Path, meta: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise CheckpointError if the `meta` read from `path` tells of another run than `identity`."""
    differing = differences(meta.get("identity", {}), identity)
    if differing:
        raise CheckpointError(
            f"{path} belongs to another run ({'; '.join(differing)}); "
            "use another folder, or move it away"
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


def _read(path: str | Path, read: Callable[[], Any]) -> Any:
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} may not be read: {error.strerror or error}") from error
    # a safetensors file starts with its header's length, 8 bytes, and "{"
    pickled = head[8:] != b"{" and head.startswith((b"PK", b"\x80"))
    if path.suffix != ".safetensors" or pickled:
        raise CheckpointError(f"{path}: {ONLY_SAFETENSORS}")
    try:
        return read()
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); restore a copy of it, or move it "
            "away to start over"
        ) from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and what `unpack_optimizer` asks of a meta."""
    state = optimizer.state_dict()
    tensors = {
        f"{_STATE}{index}.{key}": torch.as_tensor(value)
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, {"groups": state["param_groups"], "optimized": sorted(state["state"])}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    path: Path,
) -> None:
    """Restore what :func:`pack_optimizer` packed of an Adam.

    Raises CheckpointError, naming `path`, unless all the state is there that was written, each
    moment of its parameter's shape, in groups like those of `optimizer`.
    """
    groups, here = meta["groups"], optimizer.state_dict()["param_groups"]
    if [group.keys() for group in groups] != [group.keys() for group in here] or any(
        group["params"] != ours["params"] for group, ours in zip(groups, here, strict=True)
    ):
        raise CheckpointError(f"{path}: groups: its optimizer is not that of this model")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(_STATE)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # older versions kept no list of those with a state
    known = {int(i) for name in kept if (i := name.split(".")[1]).isdecimal()}
    wanted: dict[str, Tensor] = {}
    for index in meta.get("optimized", known):
        parameter = parameters[index] if index < len(parameters) else torch.empty(0)
        wanted |= {f"{_STATE}{index}.{key}": parameter for key in ("exp_avg", "exp_avg_sq")}
        wanted[f"{_STATE}{index}.step"] = torch.zeros(())
    if meta["step"] and not wanted:
        raise CheckpointError(f"{path} has no optimizer's state: no run can go on from it")
    refuse_misfit(kept, wanted, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        _, index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = [{**group, "betas": tuple(group["betas"])} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
