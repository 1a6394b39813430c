"""What would stop a run later, found in its first second: data, packages, a GPU, disk."""

from __future__ import annotations

import difflib
import itertools
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from entityclip.config import HUB, OWN_DATA, PACKAGE, Profile, Settings
from entityclip.console import Refused, refusing
from entityclip.datasets import DATASETS, LOADERS
from entityclip.datasets.manifest import missing_files
from entityclip.datasets.pair import ImageError, Pair
from entityclip.datasets.prepared import MANIFEST, find_copy, prepare_command
from entityclip.datasets.table import PairTable
from entityclip.devices import best_device
from entityclip.experiments.splits import Splits
from entityclip.files import cores, unwritable
from entityclip.identities import model_config
from entityclip.variants import find_variant

PACKAGES = ("matplotlib", "seaborn", "ipywidgets", "IPython")  # of the extra `notebooks`

_GIB = 2**30
_LOOKED_AT = 2000  # pictures of a split to measure on, decoded before a training starts


def refuse_impossible(splits: Splits, measured: Sequence[str]) -> None:
    """Say now what would end the work later: raise Refused, in one line.

    Looks for data, weights and leave to write, and loads the texts of `measured`, to test on.
    """
    problems = data_problems(splits.settings, measured) + writing_problems(splits.profile)
    if problems:
        raise Refused("; ".join(problems))
    with refusing():
        for split in measured:
            pairs = splits.pairs(split)
            if len({pair.image_key for pair in itertools.islice(pairs, _LOOKED_AT)}) < 2:
                raise Refused(
                    f"{splits.settings.dataset} {split} has {len(pairs)} pair(s) of fewer than 2 "
                    "pictures, too few to measure on; give more, or say which by a column `split`"
                )


def refuse_training(splits: Splits, measured: Sequence[str]) -> None:
    """What `refuse_impossible` does not look at: raise Refused before the first step.

    Asks for room on the disk, loads the texts to train on, and decodes pictures of what is
    `measured` afterwards, evenly spread, of a large split.
    """
    with refusing():
        if problems := disk_problems(splits):
            raise Refused("; ".join(problems))
        for split in ("train", "val"):
            if not len(splits.pairs(split)):
                policy = splits.settings.explanation_policy
                raise Refused(f"{split}: explanation_policy {policy!r} leaves no pair of it")
        for split in measured:
            _refuse_broken(splits.pairs(split), split)


def refuse_unexplained(splits: Splits, variant: str) -> None:
    """Raise Refused, with the command that writes them, for a variant without its explanations."""
    config, asked = model_config(splits.settings, variant), find_variant(variant).explanations
    reads = getattr(config, "reads_explanations", False)
    if not reads or asked == "caption":
        return
    for split in ("train", "val"):
        lacking = [pair.id for pair in splits.pairs(split)[:1] if not pair.explanation]
        if lacking:  # then all do: pairs are left out where only some are explained
            root = splits.settings.data_root
            own = splits.settings.dataset == OWN_DATA
            where = f"--data {root}" if own else f"--dataset {splits.settings.dataset}"
            raise Refused(
                f"{variant} reads explanations, and {split} has none; have them written by "
                f"`entityclip explain {where} --server URL`, or train --variant clip"
            )


def _refuse_broken(pairs: Sequence[Pair], split: str) -> None:
    if not isinstance(pairs, PairTable):
        return  # drawn
    step = -(-len(pairs) // _LOOKED_AT)
    with ThreadPoolExecutor(cores()) as pool:
        for problem in pool.map(_why_broken, pairs[::step]):
            if problem:
                raise Refused(
                    f"{split}: {problem}; all of its pictures are needed after the training: mend "
                    "it, or leave its pair out of the data"
                )


def _why_broken(pair: Pair) -> str | None:
    try:
        pair.load_image()
    except ImageError as error:
        return str(error)
    return None


def find_problems(profile: Profile, *, training: bool = True) -> list[str]:
    """What this machine lacks for a profile, each with what to do; empty if nothing is known.

    Without `training`, GPU and folders are not asked about.
    """
    problems = [*missing_packages(PACKAGES), *data_problems(profile.settings)]
    if training:
        problems += [*gpu_problems(profile.settings), *writing_problems(profile)]
    return problems


def missing_packages(packages: Sequence[str]) -> list[str]:
    """One line for all packages that cannot be imported."""
    missing = [name for name in packages if find_spec(name) is None]
    if not missing:
        return []
    return [f"{', '.join(missing)} not installed; pip install 'entityclip[notebooks]'"]


def data_problems(settings: Settings, measured: Sequence[str] = ()) -> list[str]:
    """What is wrong with where the data and the weights should lie, and with splits' names."""
    problems = []
    there = DATASETS.get(settings.dataset)
    if there is None:
        close = difflib.get_close_matches(settings.dataset, DATASETS, n=1) or DATASETS
        said = f"settings.dataset: there is no {settings.dataset!r}; there is {', '.join(close)}"
        return [said]
    for split in [*settings.test_splits, *measured]:
        if split not in there:
            problems.append(f"{settings.dataset} has no split {split!r}; it has {', '.join(there)}")
    weights = settings.pretrained
    if weights and Path(weights).suffix and not Path(weights).expanduser().is_file():
        problems.append(f"settings.pretrained: there is no file {weights}")
    if settings.dataset not in LOADERS:
        return problems
    if not settings.data_root:
        return [*problems, f"settings.data_root is not set, and {settings.dataset} lies in files"]
    if settings.data_root.startswith(HUB):
        return problems
    root = Path(settings.data_root).expanduser()
    try:
        copy = find_copy(settings.dataset, root, settings.prepared)
        if copy and not (copy / MANIFEST).is_file():
            command = prepare_command(settings.dataset, root)
            problems.append(f"settings.prepared: {copy} has no {MANIFEST}; {command}")
    except ValueError as error:
        problems.append(f"settings.prepared: {error}")
    if not root.is_dir():
        problems.append(f"settings.data_root: {root} is no folder; set it to where the data lie")
    elif missing_files(settings.dataset, root):
        command = f"entityclip data verify {settings.dataset} --root {root}"
        problems.append(f"no {settings.dataset} in {root}; `{command}` says what it lacks")
    return problems


def gpu_problems(settings: Settings) -> list[str]:
    """Whether there should be a GPU: for all but a small CLIP of ours."""
    ours = (PACKAGE / "backbones" / f"{settings.backbone}.json").is_file()
    if best_device().type != "cpu" or ours:
        return []
    return [
        f"no GPU, and {settings.backbone} is of CLIP's own size: training takes days; use the demo "
        "profile, or a machine with a GPU"
    ]


def writing_problems(profile: Profile) -> list[str]:
    """Whether runs can be written at all."""
    reason = unwritable(profile.runs)
    return [f"{reason}: set ENTITYCLIP_RUNS to a folder that is"] if reason else []


def disk_problems(splits: Splits) -> list[str]:
    """Whether the runs' disk has room for a run's checkpoints.

    Of weights and optimizer's state, the best, the last, those kept and one that is being written:
    four bytes a number, three numbers a weight.
    """
    runs, keep = splits.profile.runs.absolute(), splits.settings.finetuning.keep
    weights = sum(parameter.numel() for parameter in splits.backbone.parameters())
    needed = weights * 4 * (1 + 3 * (keep + 1))
    there = next(path for path in (runs, *runs.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return []
    return [
        f"{free / _GIB:.1f} GiB free for runs, and a run's checkpoints take {needed / _GIB:.1f}; "
        "free some, or set ENTITYCLIP_RUNS to another disk"
    ]
