"""Train one variant with one process or many: what ``entityclip train`` and a notebook start."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import notebook_launcher
from accelerate.state import AcceleratorState

from entityclip.config import Profile, load_profile
from entityclip.console import refusing
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measured_ranks
from entityclip.experiments.preflight import refuse_impossible, refuse_training, refuse_unexplained
from entityclip.training.processes import this_world
from entityclip.training.run_folder import TrainingError
from entityclip.training.tracking import refuse_missing

log = logging.getLogger(__name__)


def train_variant(
    profile: Profile,
    variant: str,
    *,
    measure: bool = True,
    force: bool = False,
    progress: bool = True,
    trackers: Sequence[str] = (),
) -> Path:
    """Train `variant` under `profile`, and measure it on the profile's test splits; its folder.

    All processes that were started together call this alike; the first one measures and writes. A
    finished run is not trained again unless `force`, an interrupted one goes on. `trackers` (of
    `tracking.TRACKERS`) watch it. What would end it later raises Refused before the first step.
    """
    refuse_missing(tuple(trackers))
    world = this_world()  # before anything asks for "the" GPU: this process has its own
    experiment = Experiment(profile, progress=progress and world.main)
    experiment.trackers = tuple(trackers)
    splits = profile.settings.test_splits if measure else []
    refuse_impossible(experiment, splits)
    with refusing():
        finished = not force and experiment.trained(variant)
    if not finished:
        refuse_training(experiment, splits)
        refuse_unexplained(experiment, variant)
    folder = experiment.finetune(variant, force=force)
    if splits:
        model = experiment.load(variant)  # all processes ask together whether it is finished
        for split in splits if world.main else ():
            measured_ranks(experiment, lambda: model, variant, split, shipped=True, force=force)
    return folder


def train_on_all_gpus(
    profile: str,
    variant: str,
    *,
    processes: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    measure: bool = True,
    force: bool = False,
) -> Path:
    """`train_variant` from a notebook cell, a process a GPU; the run's folder.

    `processes` is the number of GPUs unless given; without a GPU it may be any, to try things. They
    are forked, each with one CPU thread beside its data-loading `workers`. Raises TrainingError if
    this notebook has used a GPU already, which a forked process then cannot.
    """
    resolved = load_profile(profile, seed=seed, settings=dict(settings or {}))
    processes = processes or max(1, torch.cuda.device_count())
    if processes == 1:
        return train_variant(resolved, variant, measure=measure, force=force)
    if torch.cuda.is_initialized():
        raise TrainingError(
            "this notebook has used a GPU, and the processes that would train on all of them are "
            "forked from it; restart the kernel and call this first, or use accelerate launch"
        )
    # forked processes must find out for themselves that they are not alone
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = resolved, variant, measure, force
    notebook_launcher(_forked, arguments, num_processes=processes, use_port=_free_port())
    experiment = Experiment(resolved, progress=False)
    return experiment.finetune(variant)  # finished: this only finds it


def _forked(profile: Profile, variant: str, measure: bool, force: bool) -> None:
    # the threads of the process this was forked from are not here, and would be waited for
    torch.set_num_threads(1)
    train_variant(profile, variant, measure=measure, force=force)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
