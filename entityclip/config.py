"""The model's knobs, and the profile that holds these and all others of a run.

A profile is a papermill parameter file (``notebooks/profiles/<name>.yaml``): ``profile``, ``seed``
and one ``settings`` mapping. This module imports neither torch nor open_clip, so that a misspelt
name is refused before anything slow starts.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from entityclip.baselines.ascl.config import AsCLConfig, AsCLSettings
from entityclip.baselines.itr.config import ClassifierConfig, ITRConfig, ITRSettings, PairSource
from entityclip.identity import LEFT_OUT_AT_DEFAULT, as_json
from entityclip.train_config import TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED_PROFILE = "demo"  # whose figures and rows the repository ships
PROFILES = REPOSITORY / "notebooks" / "profiles"
_STRICT = ConfigDict(extra="forbid", strict=True)


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
    # a copy of data_root's pictures that ``entityclip.data prepare`` made; texts stay in data_root
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
    # let the "caption" stand in (entityclip.explanations.policy says what follows from each)
    explanation_policy: Literal["use", "drop", "caption"] = "use"
    max_broken: float = Field(default=0.01, ge=0, le=1)  # largest share of files to train without
    # how files of the train split are decoded; "draft" is faster on large JPEGs and changes pixels
    # by a few levels (entityclip.datasets.images). All other splits are exact
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
