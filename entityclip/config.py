"""The profile: every knob of a run, from one file, with what is laid over it.

A profile is a papermill parameter file (``entityclip/profiles/<name>.yaml``): ``profile``, ``seed``
and one ``settings`` mapping. All values are checked when they are made, in code as from a profile.
This module imports neither torch nor open_clip, so that a misspelt name is refused at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from entityclip.console import Refused
from entityclip.files import Location, parse_yaml, printable, read_yaml, shortened, told
from entityclip.hyperparameters import (
    LEFT_OUT,
    STRICT,
    AsCLConfig,
    AtLeast0,
    ClassifierConfig,
    Count,
    EntityCLIPConfig,
    ITRConfig,
    Mix,
    Name,
    Several,
    Share,
    Task,
    TrainConfig,
    Weight,
)

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
PROFILES = PACKAGE / "profiles"
REPOSITORY = PACKAGE.parent
IN_CHECKOUT = (REPOSITORY / "data_manifest.yaml").is_file()
# what is installed has the manifest and the rows of figures/ from setup.py
SHIPPED_FILES = REPOSITORY if IN_CHECKOUT else PACKAGE / "shipped"
PROFILE_VARIABLE = "ENTITYCLIP_PROFILE"  # in the environment: this profile instead of any other
OWN_DATA = "folder"  # the data set that is yours
HUB = "hf:/"  # before the name of a data set on the hub; a Path has one slash less than is typed
SHIPPED_PROFILE = "demo"  # whose figures and rows the repository ships

CAPITALS = "capitals"  # the finder of names that needs no model


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AsCLSettings(_Settings):
    """AsCL's chapter: data of several captions a picture, and the runs compared on them."""

    dataset: Name = "newsroom"
    data_root: str | None = None
    train_split: str = "captions_train"
    val_split: str = "captions_val"
    test_split: str = "captions_test"
    train_pairs: Several | None = None  # None: the whole split
    val_pairs: Several | None = None
    test_pairs: Several | None = None
    seeds: Count = 3  # fine-tunings of each variant; all share one start
    rerank_text: Count = 15  # captions a picture that re-ranking reorders
    rerank_image: Count = 20  # pictures a caption that it reorders
    model: AsCLConfig = AsCLConfig()
    finetuning: TrainConfig = TrainConfig()


class PairSource(_Settings):
    """Where pairs come from. `limit` None takes the whole split."""

    dataset: Name
    split: Name
    data_root: str | None = None
    limit: Several | None = None


class ITRSettings(_Settings):
    """What a profile decides of ITR: its pairs, its pretraining, and how that is judged."""

    unlabelled: PairSource  # to pretrain on
    labelled: PairSource  # trains probe and classifier
    judged: PairSource  # labelled too, measured on
    held_out: Several = 256  # unlabelled pairs that choose the best checkpoint
    objective: ITRConfig = ITRConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    # the tasks whose pretraining is compared with none at all
    compared: list[tuple[Task, ...]] = Field(default=[("cluster_image", "contrast")], min_length=1)
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)  # of ITR; all share one start


class Pretraining(_Settings):
    """Generic pretraining of a small CLIP from scratch, standing in for CLIP's own."""

    pairs: Several
    eval_pairs: Several
    seed: AtLeast0 = 0  # not the run's: all seeds fine-tune one pretrained CLIP
    train: TrainConfig


class BackboneChoice(_Settings):
    """A backbone to be set beside the profile's own, with its weights."""

    backbone: Name
    pretrained: str | None = None


class Grid(_Settings):
    """The weights of λ × η: VTC of the experts, GI-ITM."""

    lambda_moe: list[Weight] = []
    eta_itm: list[Weight] = []


class Settings(_Settings):
    """Everything a profile decides; the same notebook cells run under each."""

    dataset: Name
    data_root: str | None = None
    # a copy of data_root's pictures that ``entityclip data prepare`` made, "auto" for the one that
    # it made where it does if not told; texts are read from data_root. None: so are pictures
    prepared: str | None = None
    backbone: Name
    pretrained: str | None = None
    from_scratch: bool = False  # random weights, neither `pretrained` nor a `pretraining`
    image_size: Count = 224
    data_seed: AtLeast0 = 0  # not the run's: all seeds share one test set
    # but for these training seeds, which have data and a pretraining drawn anew, under the seeds
    # one above: what holds for both draws is not the luck of one
    second_draw: list[int] = []
    train_pairs: Several | None = None  # None: the whole split
    val_pairs: Several | None = None
    test_pairs: Several | None = None
    test_splits: list[str] = Field(default=["test"], min_length=1)
    pretraining: Pretraining | None = None
    # what training reads: the data set's "own", those of the "knowledge-base", or a file of yours
    # (a cache that `explain` wrote, or *.json in the authors' layout; {split} in it is replaced)
    explanation_source: Name = "own"
    # training pairs whose explanation fails a check: "use" it, as the paper does with all but pairs
    # without any; "drop" the pair; or let the "caption" stand in (explanations/joining.py)
    explanation_policy: Literal["use", "drop", "caption"] = "use"
    max_broken: Share = 0.01  # largest share of files to train without
    # how files of the train split are decoded; "draft" is faster on large JPEGs and changes pixels
    # by a few levels (entityclip.datasets.dataset). All other splits are exact
    train_decoding: Literal["exact", "draft"] = "exact"
    model: EntityCLIPConfig = EntityCLIPConfig()
    finetuning: TrainConfig = TrainConfig()
    ascl: AsCLSettings | None = None  # None: the profile leaves AsCL out
    bootstrap: int = Field(default=1000, gt=9)  # resamples behind each 95 % interval
    # what finds names in captions: "capitals", or a token classification model of transformers, by
    # folder or hub name (datasets/names.py)
    names: Name = CAPITALS
    # training seeds behind the tables; a notebook's own `seed` is what it trains by itself
    main_seeds: list[int] = Field(default=[0], min_length=1)
    ablation_seeds: list[int] = Field(default=[0], min_length=1)
    # whether a notebook trains what its table lacks; else it says by which command to do so
    train_tables: bool = True
    itr: ITRSettings | None = None  # the neighbour ITR; None leaves it out
    # archives beside the profile's own that its models are tested on, too: data set -> folder
    domains: dict[str, str] = {}
    # what notebook 13 compares; empty leaves the table out
    backbones: list[BackboneChoice] = []  # beside the profile's own
    mixes: list[Mix] = []  # experts a group as the paper writes them, v-s-e: "4-4-4"
    grid: Grid = Grid()
    # explanations by the name that tables give them, as `explanation_source` takes them
    explanation_sources: dict[str, Name] = {}

    def of_seed(self, seed: int) -> Settings:
        """These settings for one training seed; other data for one of `second_draw`."""
        if seed not in self.second_draw:
            return self
        again = {"data_seed": self.data_seed + 1, "second_draw": []}
        if self.pretraining:
            drawn = self.pretraining.model_copy(update={"seed": self.pretraining.seed + 1})
            again["pretraining"] = drawn
        return self.model_copy(update=again)

    @model_validator(mode="after")
    def _needs_a_start(self) -> Settings:
        if self.from_scratch and (self.pretrained or self.pretraining):
            raise ValueError("from_scratch needs pretrained and pretraining null")
        if not (self.pretrained or self.pretraining or self.from_scratch):
            raise ValueError("give `pretrained` weights, a `pretraining` block or `from_scratch`")
        return self


_PLAIN, _WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*"), re.compile(r"[A-Za-z0-9_]+")


def runs_folder() -> Path:
    """Where all that is trained and measured is kept.

    ``$ENTITYCLIP_RUNS``, else ``runs/`` of the checkout or, outside one, below the current folder.
    """
    home = REPOSITORY if IN_CHECKOUT else Path.cwd()
    return Path(os.environ.get("ENTITYCLIP_RUNS") or home / "runs")


@dataclass(frozen=True, config=STRICT)
class Profile:
    """A named set of settings and the seed they run with."""

    name: str
    seed: AtLeast0
    settings: Settings
    # below the profile's folder, that of its data: nothing of one root is taken for another's
    data_folder: str = field(default="", metadata=LEFT_OUT)
    file: str | None = field(default=None, metadata=LEFT_OUT)  # a profile of yours; None: shipped

    @property
    def runs(self) -> Path:
        """Where this profile keeps checkpoints and result rows."""
        return runs_folder() / self.name / self.data_folder

    @property
    def asked(self) -> str:
        """What `load_profile` finds it again by."""
        return self.file or self.name

    @property
    def extracted(self) -> Path:
        """Where ``entityclip explain --data`` keeps the explanations that training then reads."""
        return self.runs / "explanations" / "extracted.jsonl"

    @property
    def results(self) -> Path:
        """The folder of this profile's result rows."""
        return self.runs / "results"

    def figures(self, output_dir: str = "") -> Path:
        """Where a notebook writes figures and tables: below `output_dir`, else below `runs`."""
        return Path(output_dir or self.runs) / "figures"


@dataclass(frozen=True, config=STRICT)
class Joined:
    """Several data sets' profiles, whose rows are shown together."""

    name: str
    parts: tuple[Profile, ...]

    @property
    def runs(self) -> Path:
        """Where the joined figures are kept; the parts keep their runs and rows."""
        return runs_folder() / self.name

    def figures(self, output_dir: str = "") -> Path:
        """Where figures and tables are written: below `output_dir`, else below `runs`."""
        return Path(output_dir or self.runs) / "figures"


class ProfileError(Refused):
    """A profile or an override names an unknown setting or gives it a value of the wrong type."""


def load_profile(
    name: str, *, seed: int | None = None, settings: dict[str, Any] | None = None
) -> Profile:
    """Read ``entityclip/profiles/<name>.yaml``, or your own .yaml file, and lay `settings` over it.

    Nested mappings merge (``{"model": {"heads": 2}}`` changes one knob). Raises ProfileError naming
    the file, the field and what is allowed, for unknown names, wrong types and unreadable files.

    ``ENTITYCLIP_PROFILE`` in the environment takes the place of `name`, and a warning says so:
    nbval cannot pass parameters, and CI runs in seconds what notebooks store of hours.
    """
    if (instead := os.environ.get(PROFILE_VARIABLE)) and instead != name:
        log.warning("profile %s instead of %s: %s says so", instead, name, PROFILE_VARIABLE)
        name = instead
    path, raw = _read_profile(name)
    if parts := parts_of(name):
        several = ", ".join(parts)
        raise ProfileError(f"{name} is {several} together, for `reproduce` and `figures`; name one")
    for name in {"name", "data_folder", "file"} & raw.keys():  # which are not the file's to say
        raise ProfileError(f"{path.name}: {name}: there is no such setting")
    over = {"seed": seed, "settings": settings}
    over = {key: value for key, value in over.items() if value is not None}
    whole = merged({"name": path.stem, "seed": 0, "settings": {}, **raw}, over)
    if path.parent != PROFILES:
        whole["file"] = str(path)
    try:
        # JSON mode keeps strictness but reads the YAML lists that stand for tuples; dates as text
        profile = TypeAdapter(Profile).validate_json(json.dumps(whole, default=str))
    except ValidationError as error:
        unknown = told(error, unknown=lambda place: f"there is no such setting{_hint(place)}")
        raise ProfileError(f"{path.name}: {unknown}") from error
    chosen = profile.settings
    if chosen.dataset != OWN_DATA or not chosen.data_root:
        return profile
    return dataclasses.replace(profile, data_folder=_folder_of(Path(chosen.data_root)))


def parts_of(name: str) -> list[str]:
    """The profiles that a profile of several, such as `paper`, puts together; else none."""
    path, raw = _read_profile(name)
    kind = TypeAdapter(list[Name], config=ConfigDict(strict=True))
    try:
        return kind.validate_python(raw.get("parts", []))
    except ValidationError as error:
        raise ProfileError(f"{path.name}: parts: {told(error)}") from error


def _read_profile(name: str, above: tuple[Path, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """A profile's file and what it says, over what its `base` does."""
    path = _profile_file(name)
    raw = read_yaml(path, ProfileError)
    if not isinstance(raw, dict):
        raise ProfileError(f"{path.name}: write `profile`, `seed` and `settings` as a mapping")
    if (given := raw.pop("profile", None)) != path.stem:
        raise ProfileError(f"{path.name}: `profile` is {given!r}, not {path.stem!r}")
    base = raw.pop("base", None)
    if base is None:
        return path, raw
    if not isinstance(base, str) or _profile_file(base) in (path, *above):
        raise ProfileError(f"{path.name}: `base` is {base!r}; name another profile")
    return path, merged(_read_profile(base, (path, *above))[1], raw)


def _profile_file(name: str) -> Path:
    """A shipped profile's file, or one of yours, told by its ending."""
    known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if Path(name).suffix not in (".yaml", ".yml"):
        if name not in known:
            raise ProfileError(
                f"no profile {name!r}; there are {', '.join(known)}, or a .yaml file of yours"
            )
        return PROFILES / f"{name}.yaml"
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ProfileError(f"there is no file {path}")
    if path.stem in known or not _PLAIN.fullmatch(path.stem):
        raise ProfileError(
            f"{path}: its runs would lie in the folder {path.stem!r}; name the file otherwise, by "
            f"letters, digits, - and _, and not {', '.join(known)}"
        )
    return path


def _folder_of(root: Path) -> str:
    """A name that no other root has, by which people know it again."""
    root = root.expanduser().resolve()
    digest = hashlib.sha256(str(root).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{'-'.join(_WORD.findall(root.name)) or 'data'}-{digest}"


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, groups of settings within each other."""
    whole = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(whole.get(key), dict)
        whole[key] = merged(whole[key], value) if both else value
    return whole


def _hint(location: Location) -> str:
    """What the group of an unknown setting does know."""
    *parents, name = map(str, location)
    group: Any = Profile
    for part in parents:
        kind = group.__pydantic_fields__[part].annotation
        group = next(k for k in (kind, *get_args(kind)) if hasattr(k, "__pydantic_fields__"))
    known = list(group.__pydantic_fields__)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """YAML as people type it: 1e-4 is a number, not the string YAML 1.1 makes of it."""


_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=2"]`` as ``{"model": {"heads": 2}}``; values are read as YAML.

    Raises ProfileError for what is no assignment and for names that contradict each other.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        where = f"--set {shortened(printable(assignment))}"
        if not equals or not all(name.split(".")):
            raise ProfileError(f"{where}: write name=value, e.g. finetuning.epochs=3")
        value, _ = parse_yaml(text, ProfileError, where, _Loader)
        *groups, last = name.split(".")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ProfileError(f"{where}: {group!r} is already set to {place!r}")
        if last in place:
            raise ProfileError(f"{where}: {name!r} is already set to {place[last]!r}")
        place[last] = value
    return settings


def as_dict(config: Any) -> Any:
    """A config (dataclass, pydantic model, values) as the JSON-ready values that identify a run."""
    if config is None or isinstance(config, str | bool | int | float):
        return config
    if isinstance(config, list | tuple):
        return [as_dict(item) for item in config]
    if isinstance(config, dict):
        return {str(key): as_dict(item) for key, item in config.items()}
    if isinstance(config, BaseModel):
        return {name: as_dict(getattr(config, name)) for name in type(config).model_fields}
    if not dataclasses.is_dataclass(config):
        return str(config)
    found = {}
    for one in dataclasses.fields(config):
        value, rule = getattr(config, one.name), one.metadata.get("identity")
        if rule is None or (rule == "unless default" and value != one.default):
            found[one.name] = as_dict(value)
    return found


def config_hash(config: Any) -> str:
    """Sixteen hex digits that differ whenever any value of the config does."""
    canonical = json.dumps(as_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
