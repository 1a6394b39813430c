"""The runs that train the variants of the tables.

A run is found again by what it is: variant, seed, configuration and data. A finished one is never
redone unless forced, an interrupted one goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from entityclip import neighbours
from entityclip.backbone import create_backbone, load_clip_weights
from entityclip.baselines.ascl.config import AsCLConfig
from entityclip.baselines.ascl.model import AsCL
from entityclip.baselines.itr.runs import ITRRuns
from entityclip.checkpoint import read_tensors
from entityclip.config import EntityCLIPConfig
from entityclip.distributed import World, this_world
from entityclip.identity import as_dict, config_hash
from entityclip.model import EntityCLIP
from entityclip.preflight import find_problems
from entityclip.profile_data import ProfileData
from entityclip.run_state import BEST, RECORD, claim, is_finished, load_model
from entityclip.train_config import TrainConfig
from entityclip.training import train
from entityclip.variants import NO_EXPERTS, VARIANTS, Variant, find_variant


class _Run(NamedTuple):
    folder: Path
    identity: dict[str, Any]
    splits: tuple[str, str]
    config: TrainConfig


class Experiment(ProfileData):
    """A profile's runs: its data, its pretraining, its variants and their results."""

    def check(self, *, training: bool = True) -> None:
        """Say now what would fail later: missing data, packages, and memory for `training`."""
        for problem in find_problems(self.profile, training=training):
            print(f"CHECK THIS FIRST: {problem}")

    # ---------------------------------------------------------------------------------- models

    def lacks(self, variant: str) -> str | None:
        """What keeps this profile from training `variant`, in words; None if nothing does."""
        return neighbours.lacking(find_variant(variant).method, self.settings)

    def config(self, variant: str) -> EntityCLIPConfig | AsCLConfig:
        """The variant's model: the profile's, with the variant's overrides."""
        spec = find_variant(variant)
        ascl = spec.method == "ascl"
        own = neighbours.ascl_config(self.settings) if ascl else self.settings.model
        return replace(own, **spec.model)

    def identity(self, variant: str) -> dict[str, Any]:
        """What makes a run of `variant` this run and no other: all of its settings and its data."""
        settings, spec = self.settings, find_variant(variant)
        start = as_dict(settings.pretraining) if settings.pretraining else settings.pretrained
        if spec.method == "itr":
            start = neighbours.itr_start(settings, start)
        identity = {
            "variant": variant,
            "seed": self.seed,
            "backbone": settings.backbone,
            "image_size": settings.image_size,
            "start": start,
            "dataset": settings.dataset,
            "data_seed": settings.data_seed,
            "model": as_dict(self.config(variant)),
        }
        if spec.finetuned:
            identity["finetuning"] = as_dict(settings.finetuning)
            identity["train_pairs"] = settings.train_pairs
            identity["val_pairs"] = settings.val_pairs
            identity["explanation_policy"] = settings.explanation_policy
            if settings.explanation_source != "own":  # else the hashes of older runs would change
                identity["explanation_source"] = settings.explanation_source
            identity["explanations"] = spec.explanations
            if settings.train_decoding != "exact":  # drawn pictures, and runs before it, know none
                identity["train_decoding"] = settings.train_decoding
        return identity

    def build(self, variant: str) -> EntityCLIP | AsCL:
        """The variant before fine-tuning: pretrained towers, freshly drawn experts or fusion."""
        settings, method = self.settings, find_variant(variant).method
        torch.manual_seed(self.seed)
        backbone = create_backbone(settings.backbone, settings.pretrained, settings.image_size)
        if method == "itr":
            load_clip_weights(backbone, self.pretrain_itr() / BEST)
        elif settings.pretraining:
            load_clip_weights(backbone, self.pretrain() / BEST)
        kind = AsCL if method == "ascl" else EntityCLIP
        return kind(backbone, self.config(variant)).to(device())

    def load(self, variant: str) -> EntityCLIP | AsCL:
        """The variant with its best weights, trained first if no finished run is found."""
        if not find_variant(variant).finetuned:
            return self.build(variant).eval()
        folder = self.finetune(variant)
        model = self.build(variant)
        load_model(model, read_tensors(folder / BEST))
        return model.eval()

    # -------------------------------------------------------------------------------- training

    def pretrain(self, *, force: bool = False) -> Path:
        """Train the small CLIP on generic captions; the run's folder. Shared by all variants."""
        pretraining = self.settings.pretraining
        if pretraining is None:
            raise ValueError(f"profile {self.profile.name} starts from pretrained weights")
        seed = pretraining.seed
        identity = {
            "seed": seed,
            "backbone": self.settings.backbone,
            "image_size": self.settings.image_size,
            "dataset": self.settings.dataset,
            "data_seed": self.settings.data_seed,
            "pairs": pretraining.pairs,
        }

        def build() -> EntityCLIP:
            torch.manual_seed(seed)
            backbone = create_backbone(self.settings.backbone, image_size=self.settings.image_size)
            return EntityCLIP(backbone, EntityCLIPConfig(**NO_EXPERTS))

        splits = ("generic", "generic_val")
        run = self._describe("pretraining", identity, splits, replace(pretraining.train, seed=seed))
        return self._run(run, build, force)

    def pretrain_itr(self) -> Path:
        """Train the shared start on by ITR, with this experiment's seed; the run's folder."""
        start = self.identity("zero-shot")
        return self._itr.pretrain(lambda: self.build("zero-shot").backbone, start, seed=self.seed)

    @cached_property
    def _itr(self) -> ITRRuns:
        return ITRRuns(self.settings, self.profile.runs, progress=self.progress)

    def finetune(self, variant: str, *, force: bool = False) -> Path:
        """Fine-tune `variant` unless a finished run is there; the run's folder.

        Raises ValueError for a variant that has no training or that this profile `lacks`.
        """
        if not find_variant(variant).finetuned:
            raise ValueError(f"{variant} is not fine-tuned")
        if reason := self.lacks(variant):
            raise ValueError(f"{variant} cannot be trained: {reason}")
        return self._run(self._finetuning(variant), lambda: self.build(variant), force)

    def _finetuning(self, variant: str) -> _Run:
        config = replace(self.settings.finetuning, seed=self.seed)
        identity, method = self.identity(variant), find_variant(variant).method
        # and with it the texts it reads beyond those that all read
        if method == "itr":
            identity["itr"] = self._itr.identity(self.identity("zero-shot"), self.seed)
        elif method == "ascl" and self.config(variant).richer:
            identity["second_captions"] = config_hash(self.second_captions("train"))
        return self._describe(variant, identity, ("train", "val"), config)

    def _describe(
        self, name: str, identity: dict[str, Any], splits: tuple[str, str], config: TrainConfig
    ) -> _Run:
        """Name a run's folder after all that it depends on."""
        fingerprints = {f"{s}_data": self.fingerprint(s) for s in splits}
        identity = {**identity, **fingerprints}
        hashed = config_hash({**identity, "train": as_dict(config)})
        folder = self.profile.runs / "checkpoints" / f"{name}-seed{config.seed}-{hashed[:8]}"
        return _Run(folder, identity, splits, config)

    def _run(self, run: _Run, build: Callable[[], EntityCLIP | AsCL], force: bool) -> Path:
        world = this_world()
        # processes that train one run together claim it together
        with claim(run.folder) if world.main else nullcontext():
            return self._train(run, build, force, world)

    def _train(
        self, run: _Run, build: Callable[[], EntityCLIP | AsCL], force: bool, world: World
    ) -> Path:
        previous = run.folder.with_name(run.folder.name + ".previous")
        if force and world.main and run.folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            run.folder.rename(previous)  # kept until the new run is finished
        if world.agree(is_finished(run.folder)):
            return run.folder
        model = build()
        reads, control = model.needs_explanations, run.identity.get("explanations", "own")
        sets = [self.dataset(s, explanations=reads, control=control) for s in run.splits]
        if isinstance(model, AsCL) and model.needs_others:
            sets = [self.with_seconds(s, given) for s, given in zip(run.splits, sets, strict=True)]
        train(model, *sets, run.config, run.folder, identity=run.identity, progress=self.progress)
        if world.main:
            shutil.rmtree(previous, ignore_errors=True)
        return run.folder

    def busy(self, variant: str) -> bool:
        """Whether another process is training `variant` at this moment."""
        with claim(self._finetuning(variant).folder, wait=False) as free:
            return not free

    def discard(self, variant: str) -> None:
        """Delete a finished run's weights, not its record or log; it would be trained anew."""
        for path in self._finetuning(variant).folder.glob("*.safetensors"):
            path.unlink()

    # ---------------------------------------------------------------------------------- records

    @property
    def results(self) -> Path:
        """The folder of this profile's result rows."""
        return self.profile.runs / "results"

    def run_record(self, folder: Path) -> dict[str, Any]:
        """A finished run in one line: steps, best epoch, validation loss and minutes."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {
            "run": folder.name,
            "steps": record["steps"],
            "best_epoch": record["epoch"],
            "val_loss": record["val_loss"],
            "minutes": record["wall_time_s"] / 60,
        }

    def logs(self, variants: Iterable[str] | None = None) -> dict[str, Path]:
        """The training logs of these settings that are there, by variant; None: of all.

        Without AsCL's, whose loss has other terms than the rest, which curves set side by side.
        """
        logs = {
            name: self._finetuning(name).folder / "log.jsonl"
            for name in (VARIANTS if variants is None else variants)
            if _has_curve(find_variant(name)) and not self.lacks(name)
        }
        return {name: path for name, path in logs.items() if path.exists()}


def _has_curve(variant: Variant) -> bool:
    return variant.finetuned and variant.method != "ascl"


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
