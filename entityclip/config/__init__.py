"""Every knob: the profile that holds those of a run, and those of models and training.

A profile is a papermill parameter file (``notebooks/profiles/<name>.yaml``): ``profile``, ``seed``
and one ``settings`` mapping. This module imports neither torch nor open_clip, so that a misspelt
name is refused before anything slow starts.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from entityclip.config.models import (
    AsCLConfig,
    ClassifierConfig,
    EntityCLIPConfig,
    ITRConfig,
    Task,
    TrainConfig,
    as_dict,
    as_json,
    config_hash,
)

__all__ = [
    "PROFILES", "REPOSITORY", "SHIPPED_PROFILE", "AsCLConfig", "AsCLSettings",
    "ClassifierConfig", "EntityCLIPConfig", "ITRConfig", "ITRSettings", "PairSource",
    "Pretraining", "Profile", "ProfileError", "Settings", "Task", "TrainConfig", "as_dict",
    "as_json", "config_hash", "load_profile", "named_folder", "parse_settings", "runs_folder",
]  # fmt: skip

_FROZEN = ConfigDict(extra="forbid", strict=True, frozen=True)


class AsCLSettings(BaseModel):
    """AsCL's chapter: data of several captions a picture, and the runs compared on them."""

    model_config = _FROZEN

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


class PairSource(BaseModel):
    """Where pairs come from. `limit` None takes the whole split."""

    model_config = _FROZEN

    dataset: str = Field(min_length=1)
    split: str = Field(min_length=1)
    data_root: str | None = None
    limit: int | None = Field(default=None, gt=1)


class ITRSettings(BaseModel):
    """What a profile decides of ITR: its pairs, its pretraining, and how that is judged."""

    model_config = _FROZEN

    unlabelled: PairSource  # to pretrain on
    labelled: PairSource  # trains probe and classifier
    judged: PairSource  # labelled too, measured on
    held_out: int = Field(default=256, gt=1)  # unlabelled pairs that choose the best checkpoint
    objective: ITRConfig = ITRConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    # the tasks whose pretraining is compared with none at all
    compared: list[tuple[Task, ...]] = Field(default=[("cluster_image", "contrast")], min_length=1)
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)  # of ITR; all share one start


REPOSITORY = Path(__file__).resolve().parents[2]

SHIPPED_PROFILE = "demo"  # whose figures and rows the repository ships

PROFILES = REPOSITORY / "notebooks" / "profiles"


class ProfileError(ValueError):
    """A profile or an override names an unknown setting or gives it a value of the wrong type."""


class Pretraining(BaseModel):
    """Generic pretraining of a small CLIP from scratch, standing in for CLIP's own."""

    model_config = _FROZEN

    pairs: int = Field(gt=1)
    eval_pairs: int = Field(gt=1)
    seed: int = Field(default=0, ge=0)  # not the run's: all seeds fine-tune one pretrained CLIP
    train: TrainConfig


class Settings(BaseModel):
    """Everything a profile decides; the same notebook cells run under each."""

    model_config = _FROZEN

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
