"""The model's knobs, and the profile that holds these and all others of a run.

A profile is a papermill parameter file (``notebooks/profiles/<name>.yaml``): ``profile``, ``seed``
and one ``settings`` mapping. This module imports neither torch nor open_clip, so that a misspelt
name is refused before anything slow starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's for N24News (section 4.1)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

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
        for name in ("epochs", "accumulate", "checkpoint_every", "keep", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("weight_decay", "warmup_steps", "workers", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and >= 0")
        for name in ("lr", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite and positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; each must be from 0 to below 1")


@dataclass(frozen=True)
class AsCLConfig:
    """What the AsCL model is (arXiv 2405.10029, section 3), and which of its parts are on."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

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
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}; it must be at least 1")
        for name in ("local_weight", "cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be from 0 to below 1")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be finite and positive")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise is {self.noise}; it must be finite and >= 0")


class AsCLSettings(BaseModel):
    """AsCL's chapter: data of several captions a picture, and the runs compared on them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dataset: str = Field(default="newsroom", min_length=1)
    data_root: str | None = None
    train_split: str = "captions_train"
    val_split: str = "captions_val"
    test_split: str = "captions_test"
    train_pairs: int | None = Field(default=None, gt=1)  # None: the whole split
    val_pairs: int | None = Field(default=None, gt=1)
    test_pairs: int | None = Field(default=None, gt=1)
    seeds: int = Field(default=3, gt=0)  # fine-tunings of each variant; all share one start
    rerank_text: int = Field(default=15, gt=0)  # captions a picture that re-ranking reorders
    rerank_image: int = Field(default=20, gt=0)  # pictures a caption that it reorders
    model: AsCLConfig = AsCLConfig()
    finetuning: TrainConfig = TrainConfig()


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


REPOSITORY = Path(__file__).resolve().parent.parent


SHIPPED_PROFILE = "demo"  # whose figures and rows the repository ships


PROFILES = REPOSITORY / "notebooks" / "profiles"


class ProfileError(ValueError):
    """A profile or an override names an unknown setting or gives it a value of the wrong type."""


@dataclass(frozen=True)
class EntityCLIPConfig:
    """What the model is (EntityCLIP, section 3). All expert counts 0 is plain CLIP fine-tuning."""

    __pydantic_config__ = _STRICT

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
        for name in ("image_experts", "text_experts", "explanation_experts"):
            if not 0 <= getattr(self, name) <= 16:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 16")
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}; it must be at least 1")
        for name in ("lambda_moe", "lambda_end", "eta_itm", "bridge"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be finite and >= 0")
        if self.lambda_end is not None and not self.experts:
            raise ValueError("lambda_end needs experts: without them λ weighs nothing")
        if not 0 <= self.explanation_dropout < 1:
            raise ValueError(
                f"explanation_dropout is {self.explanation_dropout}; it must be from 0 to below 1"
            )
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


class Pretraining(BaseModel):
    """Generic pretraining of a small CLIP from scratch, standing in for CLIP's own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    pairs: int = Field(gt=1)
    eval_pairs: int = Field(gt=1)
    seed: int = Field(default=0, ge=0)  # not the run's: all seeds fine-tune one pretrained CLIP
    train: TrainConfig


class Settings(BaseModel):
    """Everything a profile decides; the same notebook cells run under each."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dataset: str = Field(min_length=1)
    data_root: str | None = None
    # a copy of data_root's pictures that ``entityclip.datasets prepare`` made; texts stay there
    prepared: str | None = None
    backbone: str = Field(min_length=1)
    pretrained: str | None = None
    image_size: int = Field(default=224, gt=0)
    data_seed: int = Field(default=0, ge=0)  # not the run's: all seeds share one test set
    train_pairs: int | None = Field(default=None, gt=1)  # None: the whole split
    val_pairs: int | None = Field(default=None, gt=1)
    test_pairs: int | None = Field(default=None, gt=1)
    test_splits: list[str] = Field(default=["test"], min_length=1)
    pretraining: Pretraining | None = None
    # what training reads: the data set's "own", those of the "knowledge-base", or a file of yours
    # (a cache that `explain` wrote, or *.json in the authors' layout; {split} in it is replaced)
    explanation_source: str = Field(default="own", min_length=1)
    # training pairs whose explanation fails a check: "use" it like the paper, "drop" the pair, or
    # let the "caption" stand in (entityclip.explanations.joining says what follows from each)
    explanation_policy: Literal["use", "drop", "caption"] = "use"
    max_broken: float = Field(default=0.01, ge=0, le=1)  # largest share of files to train without
    # how files of the train split are decoded; "draft" is faster on large JPEGs and changes pixels
    # by a few levels (entityclip.datasets.dataset). All other splits are exact
    train_decoding: Literal["exact", "draft"] = "exact"
    model: EntityCLIPConfig = EntityCLIPConfig()
    finetuning: TrainConfig = TrainConfig()
    ascl: AsCLSettings | None = None  # None: the profile leaves AsCL out
    bootstrap: int = Field(default=1000, gt=9)  # resamples behind each 95 % interval
    # training seeds behind the tables; a notebook's own `seed` is what it trains by itself
    main_seeds: list[int] = Field(default=[0], min_length=1)
    ablation_seeds: list[int] = Field(default=[0], min_length=1)
    # whether a notebook trains what its table lacks; else it says by which command to do so
    train_tables: bool = True
    itr: ITRSettings | None = None  # the neighbour ITR; None leaves it out

    @model_validator(mode="after")
    def _needs_a_start(self) -> Settings:
        if self.pretrained is None and self.pretraining is None:
            raise ValueError("give `pretrained` weights or a `pretraining` block")
        return self


def named_folder(path: str | None) -> Path | None:
    """The folder that a setting names, "~" being one's home; None where it names none."""
    return Path(path).expanduser() if path else None


def runs_folder() -> Path:
    """Where all that is trained and measured is kept: ``$ENTITYCLIP_RUNS``, else ``runs/`` here."""
    return Path(os.environ.get("ENTITYCLIP_RUNS") or REPOSITORY / "runs")


@dataclass(frozen=True)
class Profile:
    """A named set of settings and the seed they run with."""

    name: str
    seed: int
    settings: Settings

    @property
    def runs(self) -> Path:
        """Where this profile keeps checkpoints and result rows.

        Below `runs_folder`.
        """
        return runs_folder() / self.name

    @property
    def results(self) -> Path:
        """The folder of this profile's result rows."""
        return self.runs / "results"

    def figures(self, output_dir: str = "") -> Path:
        """Where a notebook writes figures and tables: below `output_dir`, else below `runs`."""
        return Path(output_dir or self.runs) / "figures"


def load_profile(
    name: str, *, seed: int | None = None, settings: dict[str, Any] | None = None
) -> Profile:
    """Read ``notebooks/profiles/<name>.yaml`` and lay `settings` over it.

    Nested mappings merge (``{"model": {"heads": 2}}`` changes one knob). Raises ProfileError naming
    the file, the field and what is allowed, for unknown names, wrong types and unreadable files.
    """
    path = PROFILES / f"{name}.yaml"
    known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if name not in known:
        raise ProfileError(f"no profile {name!r}; there are {', '.join(known)} in {PROFILES.name}/")
    raw = _read(path)
    if raw.get("profile") != name:
        raise ProfileError(f"{path.name}: `profile` is {raw.get('profile')!r}, not {name!r}")
    seed = raw.get("seed", 0) if seed is None else seed
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ProfileError(f"{path.name}: seed is {seed!r}; it must be an integer >= 0")
    base = raw.get("settings") or {}
    for layer in (base, settings or {}):
        if not isinstance(layer, dict):
            raise ProfileError(f"{path.name}: settings is {layer!r}; it must be a mapping")
    merged = _merge(base, settings or {})
    try:
        # JSON mode keeps strictness but reads the YAML lists that stand for tuples
        return Profile(name, seed, Settings.model_validate_json(as_json(merged)))
    except ValidationError as error:
        raise ProfileError(f"{path.name}: {_explain(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(f"{path.name} is not readable YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ProfileError(f"{path.name}: write `profile`, `seed` and `settings` as a mapping")
    extra = {str(key) for key in raw} - {"profile", "seed", "settings"}
    if extra:
        raise ProfileError(
            f"{path.name}: unknown {', '.join(sorted(extra))}; only profile, seed and settings "
            "stand at the top"
        )
    return raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in ("settings", *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")  # these already quote the value
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = f"there is no such setting{_hint(item['loc'])}"
        elif item["type"] != "value_error":
            message = f"{message} (got {item['input']!r})"
        lines.append(f"{where}: {message}")
    return "; ".join(lines)


def _hint(location: tuple[int | str, ...]) -> str:
    """What the group of an unknown setting does know."""
    groups = {"model": EntityCLIPConfig, "finetuning": TrainConfig, "train": TrainConfig}
    groups |= {"pretraining": Pretraining, "ascl": AsCLSettings}
    groups |= {"itr": ITRSettings, "objective": ITRConfig, "classifier": ClassifierConfig}
    groups |= dict.fromkeys(("unlabelled", "labelled", "judged"), PairSource)
    *parents, name = (str(part) for part in location)
    if parents[:2] == ["ascl", "model"]:
        groups["model"] = AsCLConfig
    group = groups.get(parents[-1], Settings) if parents else Settings
    known = list(group.__annotations__)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """YAML as people type it: 1e-4 is a number, not the string YAML 1.1 makes of it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=2"]`` as ``{"model": {"heads": 2}}``; values are read as YAML.

    Raises ProfileError for what is no assignment and for names that contradict each other.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise ProfileError(f"--set {assignment}: write name=value, e.g. finetuning.epochs=3")
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ProfileError(f"--set {assignment}: the value is not YAML: {error}") from error
        *groups, last = name.split(".")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ProfileError(f"--set {assignment}: {group} is already set to {place!r}")
        if last in place:
            raise ProfileError(f"--set {assignment}: {name} is already set to {place[last]!r}")
        place[last] = value
    return settings
