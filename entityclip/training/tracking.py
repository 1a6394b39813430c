"""A run watched from outside: losses, rates, logit scale, validations, in TensorBoard or W&B.

Accelerate's trackers write it; the run's own log is what counts, and is the same with or without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from entityclip.console import Refused

TRACKERS = ("tensorboard", "wandb")
_PROJECT = "entityclip"


@dataclass(frozen=True)
class Tracking:
    """What watches a run: some of TRACKERS, below `folder`.

    `probe` gives, of a model, numbers by name after each validation, such as its retrieval.
    """

    trackers: tuple[str, ...]
    folder: Path
    probe: Callable[[Any], Mapping[str, float]]

    @property
    def options(self) -> dict[str, Any]:
        """What an Accelerator is made with."""
        return {"log_with": list(self.trackers), "project_dir": str(self.folder)}

    def begin(self, accelerator: Accelerator, settings: Mapping[str, Any], step: int) -> None:
        """Open the trackers where a run begins or, after `step` steps, goes on.

        What a killed process had written of later steps no longer counts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"dir": str(self.folder), "id": self.folder.name, "resume": "allow"},
        }
        flat = {name: value if isinstance(value, Real | str) else str(value)
                for name, value in settings.items()}  # fmt: skip
        accelerator.init_trackers(_PROJECT, config=flat, init_kwargs=options)

    @staticmethod
    def add(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
        """A row of the log, at its step: the numbers in it."""
        kept = ("step", "epoch")
        numbers = {
            f"{'validation' if name.startswith('val_') else 'training'}/{name}": float(value)
            for name, value in row.items()
            if name not in kept and isinstance(value, Real)
        }
        accelerator.log(numbers, step=row["step"])


def refuse_missing(trackers: tuple[str, ...]) -> None:
    """Raise Refused for a tracker whose package is not installed, or that there is none of."""
    for name in trackers:
        if name not in TRACKERS:
            raise Refused(f"--track {name}: there are {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            extra = "'entityclip[track]'" if name == "tensorboard" else name
            raise Refused(f"--track {name}: it is not installed; pip install {extra}")
