"""What models are and how they are trained, and the hash that tells one configuration from another.

All are dataclasses whose values are checked when they are made, in code as from a profile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True)

# metadata of a dataclass's field; the second is for one that came later: runs that do not use it
# stay the runs they were
LEFT_OUT = {"identity": "never"}
LEFT_OUT_AT_DEFAULT = {"identity": "unless default"}


def as_dict(config: Any) -> dict[str, Any]:
    """A config (dataclass or pydantic model) as plain JSON-ready values, which identify a run.

    Fields whose metadata say so are left out: always, or at their default.
    """
    if isinstance(config, BaseModel):
        return {name: _plain(getattr(config, name)) for name in type(config).model_fields}
    if dataclasses.is_dataclass(config):
        kept = [f for f in dataclasses.fields(config) if _identifies(config, f)]
        return {field.name: _plain(getattr(config, field.name)) for field in kept}
    return json.loads(as_json(config))


def config_hash(config: Any) -> str:
    """Sixteen hex digits that differ whenever any value of the config does."""
    canonical = json.dumps(as_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _identifies(config: Any, field: dataclasses.Field) -> bool:
    rule = field.metadata.get("identity", "always")
    at_default = getattr(config, field.name) == field.default
    return rule == "always" or (rule == "unless default" and not at_default)


def _plain(value: Any) -> Any:
    """A config's value, configs within lists and mappings too, as `as_dict` has it."""
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return json.loads(as_json(value))


def as_json(value: Any) -> str:
    """Values as JSON; dates, paths and whatever else JSON lacks as their text."""

    def plain(odd: Any) -> Any:
        # str: YAML reads 2024-01-01 as a date, paths come from callers
        return odd.model_dump(mode="json") if isinstance(odd, BaseModel) else str(odd)

    return json.dumps(value, default=plain)


_ALLOWED: dict[str, Callable[[float], bool]] = {
    "at least 1": lambda value: value >= 1,
    "finite and >= 0": lambda value: 0 <= value < float("inf"),
    "finite and positive": lambda value: 0 < value < float("inf"),
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
    "from 0 to 16": lambda value: 0 <= value <= 16,
}


def _check(config: Any, allowed: str, *names: str) -> None:
    """Raise ValueError, naming the first of a config's values that is not; None always is."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not _ALLOWED[allowed](value):
            raise ValueError(f"{name} is {value}; it must be {allowed}")


@dataclass(frozen=True)
class EntityCLIPConfig:
    """What the model is (EntityCLIP, section 3). All expert counts 0 is plain CLIP fine-tuning."""

    __pydantic_config__ = STRICT

    image_experts: int = 4  # n_v: attend from the picture's CLS to its own tokens
    text_experts: int = 4  # n_t: attend from the caption's EOT to its own tokens
    explanation_experts: int = 4  # n_e: attend from CLS and from EOT to the explanation
    heads: int = 1  # attention heads of each expert; must divide the embedding width
    lambda_moe: float = 0.1  # weight of VTC(V*, T*_moe)
    eta_itm: float = 0.1  # weight of the GI-ITM loss
    reference_compat: bool = False  # attend to padding and pool negatives as the authors' code does

    # ablations: the paper's choice is the default
    matching: Literal["gated", "mean", "none"] = "gated"  # how GI-ITM fuses a pair's vectors
    negatives: Literal["hard", "uniform"] = "hard"  # how GI-ITM's negatives are drawn
    negative_explanation: Literal["own", "positive"] = "own"  # which one a negative text brings
    shared_explanation_experts: bool = True  # False: the two sides have a set of weights each
    mask_padding: bool = True  # False: experts also attend to what follows EOT

    # beyond the paper
    bridge: float = 0.0  # weight of ½·VTC(I*, E*) + ½·VTC(T*, E*), the explanation as a third view
    crossed: bool = False  # V* with E against T* without, and the reverse: neither can copy E
    detach_explanation: bool = False  # experts read E but don't train its encoding
    # chance that, in a training step, a pair's caption stands in for its explanation
    explanation_dropout: float = field(default=0.0, metadata=LEFT_OUT_AT_DEFAULT)
    # λ as training ends, reached linearly from `lambda_moe`; None: it stays
    lambda_end: float | None = field(default=None, metadata=LEFT_OUT_AT_DEFAULT)

    def __post_init__(self) -> None:
        _check(self, "from 0 to 16", "image_experts", "text_experts", "explanation_experts")
        _check(self, "at least 1", "heads")
        _check(self, "finite and >= 0", "lambda_moe", "lambda_end", "eta_itm", "bridge")
        _check(self, "from 0 to below 1", "explanation_dropout")
        if self.lambda_end is not None and not self.experts:
            raise ValueError("lambda_end needs experts: without them λ weighs nothing")
        if self.explanation_dropout and not (self.explanation_experts or self.bridge):
            raise ValueError("explanation_dropout needs explanation_experts or a bridge")
        if self.crossed and not self.explanation_experts:
            raise ValueError("crossed needs explanation_experts: there is no explanation to cross")

    @property
    def experts(self) -> int:
        """How many experts there are; 0 means no MMAE and no GI-ITM."""
        return self.image_experts + self.text_experts + self.explanation_experts

    def lambda_at(self, progress: float) -> float:
        """λ after a share of the training, from 0 to 1."""
        end = self.lambda_moe if self.lambda_end is None else self.lambda_end
        return self.lambda_moe + progress * (end - self.lambda_moe)

    @property
    def sees_padding(self) -> bool:
        """Whether experts attend to what follows EOT, as in the authors' code."""
        return self.reference_compat or not self.mask_padding


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's for N24News (section 4.1)."""

    __pydantic_config__ = STRICT

    epochs: int = 20
    batch_size: int = 192  # pairs a forward pass, of all processes; losses see exactly these
    lr: float = 1e-5  # peak; 5e-6 for GoodNews
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0  # linear, then cosine to 0 over the remaining steps
    accumulate: int = 1  # forward passes an optimizer step; each contrasts its own batch
    clip_grad_norm: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device supports it
    checkpoint_every: int = 1000  # steps between checkpoints within an epoch; one ends each epoch
    workers: int = 0  # processes that decode pictures; 0 decodes in this one
    seed: int = 42
    # rows encoded at a time, to the same gradient (models/entityclip.py); None: the whole batch
    chunk: int | None = field(default=None, metadata=LEFT_OUT_AT_DEFAULT)
    # with several processes: whose rows GI-ITM's negatives are (models/gather.py)
    negatives_from: Literal["global", "local"] = field(
        default="global", metadata=LEFT_OUT_AT_DEFAULT
    )
    # checkpoints to go on from: the last, and those before it as step-*.safetensors
    keep: int = field(default=1, metadata=LEFT_OUT)

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size is {self.batch_size}; contrastive losses need at least 2 pairs a batch"
            )
        _check(self, "at least 1", "epochs", "accumulate", "checkpoint_every", "keep", "chunk")
        _check(self, "finite and >= 0", "weight_decay", "warmup_steps", "workers", "seed")
        _check(self, "finite and positive", "lr", "clip_grad_norm")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; each must be from 0 to below 1")


@dataclass(frozen=True)
class AsCLConfig:
    """What the AsCL model is (arXiv 2405.10029, section 3), and which of its parts are on."""

    __pydantic_config__ = STRICT

    heads: int = 8  # of each way of looking; must divide the embedding width
    local_weight: float = 0.8  # u in S = u S_local + (1 - u) S_global
    temperature: float | None = 0.1  # of NT-Xent; None: CLIP's learned one
    fusion: bool = True  # off: S is the cosine of CLIP's global features
    richer: bool = True  # true texts of two captions of the picture
    poorer: bool = True  # true texts of a caption's first half
    wrong: bool = True  # texts made wrong among their embeddings, as negatives
    noise: float = 1.0  # deviation of wrong texts' noise, of the words' root mean square
    dropout: float = 0.5  # share of entries that dropout zeroes in wrong texts
    cutoff: float = 0.2  # share of words or channels that are zeroed in wrong texts

    def __post_init__(self) -> None:
        _check(self, "at least 1", "heads")
        _check(self, "from 0 to 1", "local_weight", "cutoff")
        _check(self, "from 0 to below 1", "dropout")
        _check(self, "finite and positive", "temperature")
        _check(self, "finite and >= 0", "noise")


Task = Literal["cluster_image", "cluster_generated", "contrast"]

TASKS: tuple[Task, ...] = ("cluster_image", "cluster_generated", "contrast")


@dataclass(frozen=True)
class ITRConfig:
    """How towers are pretrained on unlabelled pairs. The defaults are the authors'."""

    __pydantic_config__ = STRICT

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
        weights = ("cluster_image_weight", "cluster_generated_weight", "contrast_weight")
        _check(self, "at least 1", "iterations", "projection")
        _check(self, "finite and positive", "lr", "head_lr_scale", "temperature")
        _check(self, "finite and >= 0", *weights)
        _check(self, "finite and >= 0", "weight_decay", "mini_batch_above", "workers", "seed")

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

    __pydantic_config__ = STRICT

    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-5
    head_lr_scale: float = 100.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check(self, "at least 1", "epochs", "batch_size")
        _check(self, "finite and positive", "lr", "head_lr_scale")
        _check(self, "finite and >= 0", "weight_decay")
