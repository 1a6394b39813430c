"""A profile's experiment: its data, its runs, and the models they leave.

A run is data: what it is, how it is trained, and how model and data are made once it must be. It
is found again by its settings and its data; a finished one is never redone unless forced, an
interrupted one goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from entityclip import identities, variants
from entityclip.checkpoints import read_tensors
from entityclip.config import (
    AsCLConfig,
    EntityCLIPConfig,
    ITRConfig,
    Settings,
    TrainConfig,
    as_dict,
    config_hash,
)
from entityclip.datasets.captions import ONE_CAPTION, has_second_captions
from entityclip.datasets.registry import LOADERS
from entityclip.datasets.views import Siblings
from entityclip.devices import best_device
from entityclip.evaluation.retrieval import evaluate_embeddings, evaluate_similarity
from entityclip.experiments.interpolation import interpolate
from entityclip.experiments.preflight import find_problems
from entityclip.experiments.splits import Served, Splits
from entityclip.models.ascl import AsCL
from entityclip.models.clip import Backbone, create_backbone, load_clip_weights
from entityclip.models.encoder import start_weights
from entityclip.models.entityclip import EntityCLIP
from entityclip.statistics import Retrieval
from entityclip.training.itr import pretrain_itr
from entityclip.training.loop import train
from entityclip.training.processes import World, this_world
from entityclip.training.run_folder import BEST, claim, is_finished, load_model, read_record
from entityclip.training.tracking import Tracking
from entityclip.variants import (
    EXPANDED,
    INTERPOLATED,
    NO_EXPERTS,
    VARIANTS,
    Explanations,
    Tasks,
    find_variant,
)

Model = EntityCLIP | AsCL


@dataclass(frozen=True)
class Run:
    """One training as data; `Experiment.run` makes it, once."""

    name: str  # its folder's, with the seed and a hash of all that the run depends on
    identity: dict[str, Any]  # what its checkpoints keep: settings, and fingerprints of its data
    train_config: TrainConfig | ITRConfig
    build: Callable[[], Model | Backbone]  # before training
    data: Callable[[Any], list[Served]]  # given the model, the pairs to train on and to validate on


class Method(NamedTuple):
    """What a method of VARIANTS is beside its configuration (`identities.model_config`)."""

    model: Callable[[Backbone, Any], Model]
    ranks: Callable[..., Retrieval]  # how pictures are compared with captions
    start: Callable[[Experiment], Path | None]  # the run its towers start from, if from one
    reads: Callable[[Experiment, str], dict[str, Any]]  # what its runs depend on beyond the others
    lacks: Callable[[Settings], str | None]  # what keeps a profile from it, in words


def _lacks_itr(settings: Settings) -> str | None:
    if settings.itr is None:
        return "the profile has no `itr` block, which names the unlabelled pairs"
    source = settings.itr.unlabelled
    if source.dataset in LOADERS and source.data_root is None:
        return f"{source.dataset}, its unlabelled pairs, needs itr.unlabelled.data_root"
    return None


def _lacks_ascl(settings: Settings) -> str | None:
    if settings.ascl is None:
        return "the profile has no `ascl` block"
    if settings.ascl.model.richer and not has_second_captions(settings.dataset):
        return f"{settings.dataset} has {ONE_CAPTION}"
    return None


def _shared_start(experiment: Experiment) -> Path | None:
    return experiment.pretrain() if experiment.settings.pretraining else None


def _seconds_read(experiment: Experiment, variant: str) -> dict[str, Any]:
    if not experiment.config(variant).richer:
        return {}
    return {"second_captions": config_hash(experiment.second_captions("train"))}


METHODS: dict[variants.Method, Method] = {
    "entityclip": Method(
        EntityCLIP, evaluate_embeddings, _shared_start, lambda *_: {}, lambda _: None
    ),
    "itr": Method(
        EntityCLIP, evaluate_embeddings, lambda experiment: experiment.pretrain_itr(),
        lambda experiment, _: {"itr": experiment.itr_run(experiment.seed).identity}, _lacks_itr,
    ),
    "ascl": Method(AsCL, evaluate_similarity, _shared_start, _seconds_read, _lacks_ascl),
}  # fmt: skip


class Experiment(Splits):
    """A profile's runs and their models, beside its data (`Splits`) and its results.

    `trackers`, some of `tracking.TRACKERS`, watch its trainings below ``runs/PROFILE/tracking``.
    """

    trackers: tuple[str, ...] = ()

    def on(self, dataset: str, data_root: str | None) -> Experiment:
        """This experiment on another data set, from the pretraining of this one."""
        if (dataset, data_root) == (self.settings.dataset, self.settings.data_root):
            return self
        changed = {"dataset": dataset, "data_root": data_root, "prepared": None}
        settings = self.settings.model_copy(update=changed)
        other = Experiment(replace(self.profile, settings=settings), progress=self.progress)
        other.home = self
        return other

    def under(self, settings: Settings) -> Experiment:
        """This experiment under other settings; itself under its own.

        The equal pairs are shared where it is another backbone on the same data.
        """
        if settings == self.settings:
            return self
        other = Experiment(replace(self.profile, settings=settings), progress=self.progress)
        backbone = {name: getattr(settings, name) for name in ("backbone", "pretrained")}
        if settings == self.settings.model_copy(update=backbone):
            other._pairs, other._fingerprints, other._names = (
                self._pairs, self._fingerprints, self._names
            )  # fmt: skip
        return other

    def check(self, *, training: bool = True) -> None:
        """Say now what would fail later: missing data, packages, and memory for `training`."""
        for problem in find_problems(self.profile, training=training):
            print(f"CHECK THIS FIRST: {problem}")

    # ---------------------------------------------------------------------------------- models

    def lacks(self, variant: str) -> str | None:
        """What keeps this profile from training `variant`, in words; None if nothing does."""
        spec = find_variant(variant)
        if spec.after in EXPANDED:
            split = self.settings.test_splits[0]
            if not all(pair.explanation for pair in self.pairs(split)):
                return f"not all pairs of {split} have an explanation to ask with"
        return METHODS[spec.method].lacks(self.settings)

    def config(self, variant: str) -> EntityCLIPConfig | AsCLConfig:
        """The variant's model: the profile's, with the variant's overrides."""
        return identities.model_config(self.settings, variant)

    def identity(self, variant: str) -> dict[str, Any]:
        """`identities.identity` of a variant under this experiment's seed."""
        settings, here = self.home.settings, self.settings.dataset
        return identities.domain_identity(settings, variant, self.seed, here)

    def build(self, variant: str) -> Model:
        """The variant before fine-tuning: pretrained towers, freshly drawn experts or fusion."""
        method = METHODS[find_variant(variant).method]
        towers = self.towers(self.seed, lambda: method.start(self))
        return method.model(towers, self.config(variant)).to(best_device())

    def towers(self, seed: int, start: Callable[[], Path | None]) -> Backbone:
        """A backbone with the profile's weights, or those of the run that `start` gives."""
        settings = self.settings
        torch.manual_seed(seed)
        weights = start_weights(settings.pretrained)
        backbone = create_backbone(settings.backbone, weights, settings.image_size)
        if folder := start():
            load_clip_weights(backbone, folder / BEST)
        return backbone

    def load(self, variant: str) -> Model:
        """The variant with its best weights, trained first if no finished run is found."""
        spec = find_variant(variant)
        if not spec.finetuned:
            return self.build(variant).eval()
        model = load_best(self.finetune(variant), lambda: self.build(variant))
        if spec.after in INTERPOLATED:
            validated = [self.dataset(split) for split in self.val_splits]
            start = self._interpolated_from(spec)
            model.backbone = interpolate(start, model.backbone, validated)[0]
        return model

    def _interpolated_from(self, spec: variants.Variant) -> Backbone:
        """The towers before fine-tuning, or ones that nothing was trained with."""
        if spec.after == "wise-ft":
            return self.build(spec.of).backbone
        torch.manual_seed(self.seed)
        towers = create_backbone(self.settings.backbone, image_size=self.settings.image_size)
        return towers.to(best_device())

    # ------------------------------------------------------------------------------------ runs

    def pretrain(self, *, force: bool = False) -> Path:
        """Train the small CLIP on generic captions; the run's folder. Shared by all variants."""
        return self.home.run(self.home._pretraining(), force=force)

    def pretrain_itr(self, tasks: Tasks = None) -> Path:
        """Train the shared start on by ITR, with this experiment's seed; the run's folder."""
        return self.run(self.itr_run(self.seed, tasks))

    def finetune(self, variant: str, *, force: bool = False) -> Path:
        """Fine-tune `variant` unless a finished run is there; the run's folder.

        Raises ValueError for a variant that has no training or that this profile `lacks`.
        """
        if not find_variant(variant).finetuned:
            raise ValueError(f"{variant} is not fine-tuned")
        if reason := self.lacks(variant):
            raise ValueError(f"{variant} cannot be trained: {reason}")
        return self.run(self._finetuning(variant), force=force)

    def run(self, run: Run, *, force: bool = False) -> Path:
        """Make a run unless it is finished, or `force`; its folder. Other makers are awaited."""
        folder, together = self.folder(run), isinstance(run.train_config, TrainConfig)
        # processes that train one run together claim it together; ITR trains in one
        world = this_world() if together else World()
        with claim(folder) if world.main else nullcontext():
            previous = folder.with_name(folder.name + ".previous")
            if force and world.main and folder.exists():
                shutil.rmtree(previous, ignore_errors=True)
                folder.rename(previous)  # kept until the new run is finished
            if world.agree(is_finished(folder)):
                return folder
            model = run.build()
            sets, config = run.data(model), run.train_config
            about = {"identity": run.identity, "progress": self.progress}
            if together:
                train(model, *sets, config, folder, tracking=self._tracking(run, sets[1]), **about)
            else:
                pretrain_itr(model, sets[0], config, folder, val_set=sets[1], **about)
            if world.main:
                shutil.rmtree(previous, ignore_errors=True)
        return folder

    def _tracking(self, run: Run, validated: Served) -> Tracking | None:
        """What watches a run: its validation pairs' retrieval beside its losses."""
        if not self.trackers:
            return None

        def retrieval(model: Model) -> dict[str, float]:
            ranks = evaluate_similarity if isinstance(model, AsCL) else evaluate_embeddings
            found = ranks(model, validated, progress=False).metrics()
            return {f"{metric}/{way}": v for way, of in found.items() for metric, v in of.items()}

        return Tracking(self.trackers, self.profile.runs / "tracking" / run.name, retrieval)

    def folder(self, run: Run) -> Path:
        """Where a run lies."""
        return self.profile.runs / "checkpoints" / run.name

    def _pretraining(self) -> Run:
        settings, pretraining = self.settings, self.settings.pretraining
        if pretraining is None:
            raise ValueError(f"profile {self.profile.name} starts from pretrained weights")
        shared = ("backbone", "image_size", "dataset", "data_seed")
        identity = {name: getattr(settings, name) for name in shared}
        identity |= {"seed": pretraining.seed, "pairs": pretraining.pairs}

        def build() -> EntityCLIP:
            torch.manual_seed(pretraining.seed)
            backbone = create_backbone(settings.backbone, image_size=settings.image_size)
            return EntityCLIP(backbone, EntityCLIPConfig(**NO_EXPERTS))

        config = replace(pretraining.train, seed=pretraining.seed)
        return self._trained_run("pretraining", identity, ("generic", "generic_val"), config, build)

    def _finetuning(self, variant: str) -> Run:
        variant = find_variant(variant).of or variant
        identity, config = self.identity(variant), replace(self.settings.finetuning, seed=self.seed)
        identity |= METHODS[find_variant(variant).method].reads(self, variant)
        return self._trained_run(
            variant, identity, ("train", "val"), config, lambda: self.build(variant)
        )

    def _trained_run(
        self,
        name: str,
        identity: dict[str, Any],
        splits: tuple[str, str],
        config: TrainConfig,
        build: Callable[[], Model],
    ) -> Run:
        identity = identity | {f"{split}_data": self.fingerprint(split) for split in splits}
        hashed = config_hash({**identity, "train": as_dict(config)})[:8]
        control = identity.get("explanations", "own")
        return Run(
            f"{name}-seed{config.seed}-{hashed}", identity, config, build,
            lambda model: [self.read_by(model, split, control) for split in splits],
        )  # fmt: skip

    def read_by(self, model: Model, split: str, control: Explanations = "own") -> Served:
        """A split as a training of this model reads it."""
        reads, others = model.needs_explanations, model.needs_others
        served = self.dataset(split, explanations=reads, control=control, others=others)
        config = model.config
        if split != "train" or not isinstance(config, EntityCLIPConfig):
            return served
        if config.false_negatives != "kept":
            served = Siblings(served, self.backbone.tokenize)
        if config.alias_swaps:
            served = self.swapped(served, config.alias_swaps, config.swaps_of)
        if config.name_views:
            served = self.viewed(served, config.name_views, config.views_of)
        return served

    def itr_run(self, seed: int, tasks: Tasks = None) -> Run:
        """ITR's pretraining of the shared start by the profile's tasks, or by `tasks`.

        The towers are ``load_clip_weights(backbone, folder / "best.safetensors")``. Raises
        ValueError for settings without an `itr` block.
        """
        if self.settings.itr is None:
            raise ValueError("these settings have no `itr` block; give one to pretrain by ITR")
        config = identities.itr_config(self.settings, tasks, seed)
        generated, start = config.needs_generated, self.identity("zero-shot")
        identity = identities.itr_identity(self.settings, start, seed, tasks)
        identity["unlabelled"] = self.fingerprint("itr:unlabelled", generated=generated)
        splits = ("itr:unlabelled", "itr:held_out")
        return Run(
            f"itr-seed{seed}-{config_hash(identity)[:8]}", identity, config,
            lambda: self.build("zero-shot").backbone,
            lambda _: [self.dataset(split, generated=generated) for split in splits],
        )  # fmt: skip

    def trained(self, variant: str) -> bool:
        """Whether a finished run of `variant` is there, with its weights."""
        return is_finished(self.folder(self._finetuning(variant)))

    def busy(self, variant: str) -> bool:
        """Whether another process is training `variant` at this moment."""
        with claim(self.folder(self._finetuning(variant)), wait=False) as free:
            return not free

    def discard(self, variant: str) -> None:
        """Delete a finished run's weights, not its record or log; it would be trained anew.

        Those of what is done after training stay: they are another variant's.
        """
        if find_variant(variant).of:
            return
        for path in self.folder(self._finetuning(variant)).glob("*.safetensors"):
            path.unlink()

    # ---------------------------------------------------------------------------------- records

    @property
    def results(self) -> Path:
        """The folder of this profile's result rows."""
        return self.profile.results

    def run_record(self, folder: Path) -> dict[str, Any]:
        """A finished run in one line: steps, best epoch, validation loss and minutes."""
        record = read_record(folder)
        return {
            "run": folder.name,
            "steps": record["steps"],
            "best_epoch": record["epoch"],
            "val_loss": record["val_loss"],
            "minutes": record["wall_time_s"] / 60,
        }

    def logs(self, names: Iterable[str] | None = None) -> dict[str, Path]:
        """The training logs of these settings that are there, by variant; None: of all.

        Without AsCL's, whose loss has other terms than the rest, which curves set side by side.
        """
        found = {}
        for name in VARIANTS if names is None else names:
            spec = find_variant(name)
            if spec.finetuned and not spec.of and spec.method != "ascl" and not self.lacks(name):
                found[name] = self.folder(self._finetuning(name)) / "log.jsonl"
        return {name: path for name, path in found.items() if path.exists()}


def load_best(folder: Path, build: Callable[[], Model]) -> Model:
    """What `build` gives, with the best weights of the finished run in `folder`."""
    model = build()
    load_model(model, read_tensors(folder / BEST), folder / BEST)
    return model.eval()
