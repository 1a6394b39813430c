"""What would stop a run later, found in its first second: data, packages, memory, disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from entityclip.config import Profile, Settings
from entityclip.datasets import LOADERS
from entityclip.datasets.manifest import missing_files
from entityclip.datasets.prepare import MANIFEST

PACKAGES = ("matplotlib", "seaborn", "ipywidgets", "IPython")  # of the extra `notebooks`


_SLOW = 30e6  # parameters that a CPU trains in days


_GIB = 2**30


class Memory(NamedTuple):
    """Bytes that training takes on its device, and the model's number of parameters."""

    parameters: int
    weights: int  # with gradients and Adam's two moments
    activations: int  # of one batch, kept for the backward pass

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations


def find_problems(
    profile: Profile, packages: Sequence[str] = PACKAGES, *, training: bool = True
) -> list[str]:
    """What this machine lacks for a profile, each with what to do; empty if nothing is known.

    Without `training`, memory and disk are not asked about.
    """
    problems = [*missing_packages(packages), *data_problems(profile.settings)]
    if training:
        problems += [*memory_problems(profile.settings), *disk_problems(profile)]
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


def memory_problems(settings: Settings) -> list[str]:
    """Whether fine-tuning fits the GPU's free memory, and whether there should be one at all."""
    memory = training_memory(settings)
    if not torch.cuda.is_available():
        if memory.parameters < _SLOW:
            return []
        return [
            f"no GPU, and {settings.backbone} has about {memory.parameters / 1e6:.0f} million "
            "parameters: training takes days; use the demo profile, or a machine with a GPU"
        ]
    free, _ = torch.cuda.mem_get_info()
    if memory.total <= free:
        return []
    return [
        f"training may need about {memory.total / _GIB:.0f} GiB on the GPU, where "
        f"{free / _GIB:.0f} GiB are free; lower settings.finetuning.batch_size (it is also the "
        "number of negatives), or stop what else runs there"
    ]


def disk_problems(profile: Profile) -> list[str]:
    """Whether the runs' disk has room for two checkpoints with their optimizer's state."""
    there = next(path for path in (profile.runs, *profile.runs.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, 2 * training_memory(profile.settings).weights
    if free >= needed:
        return []
    return [
        f"{free / _GIB:.1f} GiB free for runs, and two checkpoints take {needed / _GIB:.1f}; free "
        "some, or set ENTITYCLIP_RUNS to another disk"
    ]


def training_memory(settings: Settings) -> Memory:
    """An estimate from the model's shape, before anything is built; experts are left out.

    A transformer layer of width h keeps s·b·h·(34 + 5·a·s/h) bytes of 16-bit activations for s
    tokens, b rows and a heads (Korthikanti et al. 2022, arXiv 2205.05198, equation 2); in fp32
    twice that. Weights, gradients and Adam's moments take 16 bytes a parameter.
    """
    from entityclip.models.clip import library

    config = library().get_model_config(settings.backbone)
    if config is None:
        return Memory(0, 0, 0)  # `create_backbone` says more about an unknown name
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers = vision.get("layers", 12)
    if not isinstance(layers, int):  # a ResNet, which `create_backbone` refuses
        return Memory(0, 0, 0)
    patch = vision.get("patch_size", 16)
    patches = (settings.image_size // patch) ** 2
    length = text.get("context_length", 77)
    towers = (
        (layers, vision.get("width", 768), vision.get("head_width", 64), patches + 1),
        # captions and explanations both pass the text tower
        *((text["layers"], text["width"], text["width"] // text["heads"], length),) * 2,
    )
    blocks = sum(12 * depth * width**2 for depth, width, _, _ in towers[:2])
    tables = text.get("vocab_size", 49408) * text["width"] + 3 * patch**2 * towers[0][1]
    rows = settings.finetuning.batch_size
    wide = 1 if torch.cuda.is_available() and settings.finetuning.precision != "fp32" else 2
    kept = sum(
        depth * tokens * rows * width * (34 + 5 * tokens / head)
        for depth, width, head, tokens in towers
    )
    parameters = blocks + tables
    return Memory(parameters, 16 * parameters, int(wide * kept))
