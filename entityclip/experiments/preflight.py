"""What would stop a run later, found in its first second: data, packages, a GPU, disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from entityclip.config import Profile, Settings
from entityclip.datasets import LOADERS
from entityclip.datasets.manifest import missing_files
from entityclip.datasets.prepare import MANIFEST

PACKAGES = ("matplotlib", "seaborn", "ipywidgets", "IPython")  # of the extra `notebooks`

_GIB = 2**30
_ROOM = {True: 1, False: 5}  # GiB that a run's checkpoints take, pretrained here or CLIP's own size


def find_problems(profile: Profile, *, training: bool = True) -> list[str]:
    """What this machine lacks for a profile, each with what to do; empty if nothing is known.

    Without `training`, GPU and disk are not asked about.
    """
    problems = [*missing_packages(PACKAGES), *data_problems(profile.settings)]
    if training:
        problems += [*gpu_problems(profile.settings), *disk_problems(profile)]
    return problems


def missing_packages(packages: Sequence[str]) -> list[str]:
    """One line for all packages that cannot be imported."""
    missing = [name for name in packages if find_spec(name) is None]
    if not missing:
        return []
    return [f"{', '.join(missing)} not installed; pip install 'entityclip[notebooks]'"]


def data_problems(settings: Settings) -> list[str]:
    """What is wrong with where the data and the weights should lie."""
    problems = []
    weights = settings.pretrained
    if weights and Path(weights).suffix and not Path(weights).expanduser().is_file():
        problems.append(f"settings.pretrained: there is no file {weights}")
    if settings.dataset not in LOADERS:
        return problems
    if not settings.data_root:
        return [*problems, f"settings.data_root is not set, and {settings.dataset} lies in files"]
    if settings.prepared and not (Path(settings.prepared).expanduser() / MANIFEST).is_file():
        problems.append(
            f"settings.prepared: {settings.prepared} has no {MANIFEST}; "
            f"`entityclip data prepare {settings.dataset} --root {settings.data_root}` makes one"
        )
    root = Path(settings.data_root).expanduser()
    if not root.is_dir():
        problems.append(f"settings.data_root: {root} is no folder; set it to where the data lie")
    elif missing_files(settings.dataset, root):
        command = f"entityclip data verify {settings.dataset} --root {root}"
        problems.append(f"no {settings.dataset} in {root}; `{command}` says what it lacks")
    return problems


def gpu_problems(settings: Settings) -> list[str]:
    """Whether there should be a GPU: for all but the small CLIP that a profile pretrains itself."""
    if torch.cuda.is_available() or settings.pretraining:
        return []
    return [
        f"no GPU, and {settings.backbone} is of CLIP's own size: training takes days; use the demo "
        "profile, or a machine with a GPU"
    ]


def disk_problems(profile: Profile) -> list[str]:
    """Whether the runs' disk has room for the checkpoints of a run with their optimizer's state."""
    there = next(path for path in (profile.runs, *profile.runs.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, _ROOM[bool(profile.settings.pretraining)] * _GIB
    if free >= needed:
        return []
    return [
        f"{free / _GIB:.1f} GiB free for runs, and a run's checkpoints take up to "
        f"{needed / _GIB:.0f}; free some, or set ENTITYCLIP_RUNS to another disk"
    ]
