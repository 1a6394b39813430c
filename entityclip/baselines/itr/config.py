"""Every knob of ITR. Read with a profile, so without torch or scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", strict=True)

Task = Literal["cluster_image", "cluster_generated", "contrast"]
TASKS: tuple[Task, ...] = ("cluster_image", "cluster_generated", "contrast")


@dataclass(frozen=True)
class ITRConfig:
    """How towers are pretrained on unlabelled pairs. The defaults are the authors'."""

    __pydantic_config__ = _STRICT

    # clustering of text + image embeddings, of text + generated caption, contrast of text and image
    tasks: tuple[Task, ...] = ("cluster_image", "contrast")
    iterations: int = 20  # each clusters one subset anew, resets the heads and trains on it
    subset: int = 5000  # pairs an iteration; the subsets of an epoch share none
    clusters: int = 4  # k; the authors also try 2
    mini_batch_above: int = 20_000  # subsets larger than this are clustered by mini-batch k-means
    batch_size: int = 32
    lr: float = 1e-5  # of the towers
    head_lr_scale: float = 100.0  # learning rate of heads and projections, times that of the towers
    weight_decay: float = 0.01
    cluster_image_weight: float = 0.2
    cluster_generated_weight: float = 1.0
    contrast_weight: float = 1.0
    temperature: float = 1.0  # of the contrast
    projection: int = 512  # width of the projections that are contrasted
    workers: int = 0  # processes that decode pictures; 0 decodes in this one
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or len({*self.tasks}) < len(self.tasks) or {*self.tasks} - {*TASKS}:
            raise ValueError(f"tasks is {list(self.tasks)}; name some of {', '.join(TASKS)}, once")
        if self.clusters < 2:
            raise ValueError(f"clusters is {self.clusters}; it must be at least 2")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; contrast needs at least 2 pairs")
        if self.subset < self.batch_size:
            raise ValueError(f"subset is {self.subset}, less than a batch of {self.batch_size}")
        if self.clustering and self.clusters > self.subset:
            raise ValueError(f"{self.clusters} clusters of a subset of {self.subset} pairs")
        for name in ("iterations", "projection"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "head_lr_scale", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and positive")
        weights = ("cluster_image_weight", "cluster_generated_weight", "contrast_weight")
        for name in (*weights, "weight_decay", "mini_batch_above", "workers", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and >= 0")

    @property
    def clustering(self) -> tuple[Task, ...]:
        """The clustering tasks among `tasks`."""
        return tuple(task for task in self.tasks if task != "contrast")

    @property
    def needs_generated(self) -> bool:
        """Whether pretraining reads generated captions."""
        return "cluster_generated" in self.tasks

    def weight(self, task: Task) -> float:
        """The weight of a task's loss."""
        return getattr(self, f"{task}_weight")


@dataclass(frozen=True)
class ClassifierConfig:
    """How towers are fine-tuned to tell relations."""

    __pydantic_config__ = _STRICT

    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-5
    head_lr_scale: float = 100.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "head_lr_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and positive")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be finite and >= 0")


class PairSource(BaseModel):
    """Where pairs come from. `limit` None takes the whole split."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dataset: str = Field(min_length=1)
    split: str = Field(min_length=1)
    data_root: str | None = None
    limit: int | None = Field(default=None, gt=1)


class ITRSettings(BaseModel):
    """What a profile decides of ITR: its pairs, its pretraining, and how that is judged."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    unlabelled: PairSource  # to pretrain on
    labelled: PairSource  # trains probe and classifier
    judged: PairSource  # labelled too, measured on
    held_out: int = Field(default=256, gt=1)  # unlabelled pairs that choose the best checkpoint
    objective: ITRConfig = ITRConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    # the tasks whose pretraining is compared with none at all
    compared: list[tuple[Task, ...]] = Field(default=[("cluster_image", "contrast")], min_length=1)
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)  # of ITR; all share one start
