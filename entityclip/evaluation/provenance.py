"""Where a measurement came from: commit, versions, device, time and memory of this process."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from entityclip.config import as_dict, config_hash
from entityclip.devices import best_device
from entityclip.files import git_commit
from entityclip.results import Provenance

_PACKAGES = (
    *("entityclip", "torch", "open_clip_torch", "accelerate", "safetensors"),
    *("numpy", "pandas", "pillow", "matplotlib", "seaborn", "scikit-learn"),
)


def provenance(
    *,
    config: Any,
    seed: int,
    data_fingerprint: str,
    device: torch.device | str,
    wall_time_s: float,
    trained_fingerprint: str | None = None,
) -> Provenance:
    """What every row of one measured run shares.

    config is a dataclass, a pydantic model or plain JSON values. Peak memory is the GPU's on a GPU,
    else this process's resident peak, in MiB.
    """
    return Provenance(
        seed=seed,
        config=as_dict(config),
        config_hash=config_hash(config),
        data_fingerprint=data_fingerprint,
        trained_fingerprint=trained_fingerprint,
        git_commit=git_commit(),
        versions=_versions(),
        device=_device_name(device),
        wall_time_s=round(float(wall_time_s), 3),
        peak_memory_mb=round(peak_memory_mb(device), 1),
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def environment() -> dict[str, str]:
    """Versions of what a run depends on, the device, the cores and the commit."""
    device = best_device()
    machine = {"device": _device_name(device), "cores": str(os.cpu_count())}
    return {**_versions(), **machine, "commit": git_commit()}


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """The most memory used so far, MiB: the GPU's allocations, else this process's resident set."""
    if str(device).startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    # On Linux getrusage's peak is inherited from the parent process, a notebook's from its runner
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _device_name(device: torch.device | str) -> str:
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"CPU {name}, {torch.get_num_threads()} threads"
