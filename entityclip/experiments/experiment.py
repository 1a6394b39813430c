"""The runs that train the variants of the tables.

A run is found again by what it is: variant, seed, configuration and data. A finished one is never
redone unless forced, an interrupted one goes on.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch

from entityclip import variants
from entityclip.checkpoints import read_tensors
from entityclip.config import (
    AsCLConfig,
    EntityCLIPConfig,
    ITRConfig,
    PairSource,
    Profile,
    Settings,
    Task,
    TrainConfig,
    as_dict,
    config_hash,
    named_folder,
)
from entityclip.datasets import load_pairs
from entityclip.datasets.captions import (
    ONE_CAPTION,
    SeveralCaptions,
    has_second_captions,
    second_captions,
    with_generated,
)
from entityclip.datasets.dataset import ImageTextDataset, PairDataset
from entityclip.datasets.pair import Pair, data_fingerprint
from entityclip.datasets.registry import LOADERS
from entityclip.experiments.preflight import find_problems
from entityclip.explanations.joining import training_pairs
from entityclip.models.ascl import AsCL
from entityclip.models.clip import Backbone, create_backbone, load_clip_weights
from entityclip.models.entityclip import EntityCLIP
from entityclip.training.itr import pretrain_itr
from entityclip.training.loop import train
from entityclip.training.processes import World, this_world
from entityclip.training.run_folder import BEST, RECORD, claim, is_finished, load_model
from entityclip.variants import NO_EXPERTS, VARIANTS, Explanations, Method, Variant, find_variant


class ITRRuns:
    """Pretrains towers as a profile's `itr` block says; checkpoints lie below `folder`.

    Raises ValueError for settings without that block.
    """

    def __init__(self, settings: Settings, folder: Path, *, progress: bool = True):
        if settings.itr is None:
            raise ValueError("these settings have no `itr` block; give one to pretrain by ITR")
        self.settings, self.itr = settings, settings.itr
        self.folder, self.progress = folder, progress
        self._kept: dict[tuple[str, str, bool], Any] = {}

    def config(self, seed: int, tasks: Sequence[Task] | None = None) -> ITRConfig:
        """The profile's objective with this seed and, where given, other tasks."""
        return variants.itr_config(self.settings, tasks, seed)

    def identity(
        self, start: dict[str, Any], seed: int, tasks: Sequence[Task] | None = None
    ) -> dict[str, Any]:
        """What makes a pretraining this one and no other; `start` tells of the start weights."""
        generated = self.config(seed, tasks).needs_generated
        identity = variants.itr_identity(self.settings, start, seed, tasks)
        return {**identity, "unlabelled": self.fingerprint("unlabelled", generated)}

    def pretrain(
        self,
        build: Callable[[], Backbone],
        start: dict[str, Any],
        *,
        seed: int,
        tasks: Sequence[Task] | None = None,
    ) -> Path:
        """Pretrain what `build` gives, unless a finished run is there; the run's folder.

        `start` (JSON-ready) says what `build` gives: the same `start` must mean the same weights.
        The towers are ``load_clip_weights(backbone, folder / "best.safetensors")``.
        """
        config, identity = self.config(seed, tasks), self.identity(start, seed, tasks)
        folder = self.folder / "checkpoints" / f"itr-seed{seed}-{config_hash(identity)[:8]}"
        with claim(folder):
            if is_finished(folder):
                return folder
            train_set, val_set = (
                self.dataset(role, config.needs_generated) for role in ("unlabelled", "held_out")
            )
            pretrain_itr(
                build(), train_set, config, folder, val_set=val_set, identity=identity,
                progress=self.progress,
            )  # fmt: skip
        return folder

    def pairs(self, role: str, generated: bool = False) -> Sequence[Pair]:
        """The pairs of a role: "unlabelled", "held_out", "labelled" or "judged".

        With `generated`, each carries a generated caption as its explanation.
        """
        return self._keep("pairs", role, generated, self._pairs)

    def fingerprint(self, role: str, generated: bool = False) -> str:
        """`data_fingerprint` of a role's pairs, taken once."""
        return self._keep("fingerprint", role, generated, self._fingerprint)

    def dataset(self, role: str, generated: bool = False) -> PairDataset:
        """A role's pairs ready for the towers; drawn pictures are kept in memory."""
        return self._keep("dataset", role, generated, self._dataset)

    def _keep(self, kind: str, role: str, generated: bool, make: Callable[[str, bool], Any]) -> Any:
        key = (kind, role, generated)
        if key not in self._kept:
            self._kept[key] = make(role, generated)
        return self._kept[key]

    def _pairs(self, role: str, generated: bool) -> Sequence[Pair]:
        unlabelled = role in ("unlabelled", "held_out")
        source = self.itr.unlabelled if unlabelled else getattr(self.itr, role)
        spared = self.itr.held_out if unlabelled else 0
        pairs = self._load(source, spared)
        if spared >= len(pairs):
            raise ValueError(
                f"{source.dataset} {source.split} has {len(pairs)} pairs, {spared} of which are "
                "held out; lower itr.held_out"
            )
        if unlabelled:
            cut = len(pairs) - spared
            pairs = pairs[:cut] if role == "unlabelled" else pairs[cut:]
        return with_generated(pairs, named_folder(source.data_root)) if generated else pairs

    def _fingerprint(self, role: str, generated: bool) -> str:
        return data_fingerprint(self.pairs(role, generated))

    def _load(self, source: PairSource, spared: int) -> Sequence[Pair]:
        return load_pairs(
            source.dataset,
            source.split,
            limit=None if source.limit is None else source.limit + spared,
            seed=self.settings.data_seed,
            image_size=self.settings.image_size,
            root=named_folder(source.data_root),
        )

    def _dataset(self, role: str, generated: bool) -> PairDataset:
        pairs = self.pairs(role, generated)
        return PairDataset(
            pairs,
            self._backbone.preprocess,
            self._backbone.tokenize,
            with_explanations=generated,
            cache=not isinstance(pairs[0].image, Path),
        )

    @cached_property
    def _backbone(self) -> Backbone:
        """A backbone with random weights, for its preprocessing and tokenizer."""
        return create_backbone(self.settings.backbone, image_size=self.settings.image_size)


def lacking(method: Method, settings: Settings) -> str | None:
    """What keeps a profile from training a method, in words; None if nothing does."""
    if method == "itr":
        if settings.itr is None:
            return "the profile has no `itr` block, which names the unlabelled pairs"
        source = settings.itr.unlabelled
        if source.dataset in LOADERS and source.data_root is None:
            return f"{source.dataset}, its unlabelled pairs, needs itr.unlabelled.data_root"
    if method == "ascl":
        if settings.ascl is None:
            return "the profile has no `ascl` block"
        if settings.ascl.model.richer and not has_second_captions(settings.dataset):
            return f"{settings.dataset} has {ONE_CAPTION}"
    return None


def replace_explanations(pairs: Sequence[Pair], kind: Explanations, *, seed: int = 0) -> list[Pair]:
    """The same pairs with other explanations; `own` leaves them as they are.

    `shuffled`: each pair has another pair's (a cyclic shift of a random order, so no pair keeps its
    row). `random`: as many words as its own has, drawn from all explanations' words as often as
    they occur. `caption`: the caption once more. A function of (pairs, kind, seed) alone. Raises
    ValueError for another kind, a pair without an explanation, and fewer than 2 pairs to shuffle.
    """
    if kind == "own":
        return list(pairs)
    lacking = [pair.id for pair in pairs if not pair.explanation]
    if lacking and kind != "caption":
        raise ValueError(f"{len(lacking)} pairs have no explanation, the first is {lacking[0]!r}")
    rng = np.random.default_rng(seed)
    if kind == "shuffled":
        if len(pairs) < 2:
            raise ValueError("one pair has nobody to swap its explanation with")
        order = rng.permutation(len(pairs))
        source = np.empty_like(order)
        source[order] = np.roll(order, 1)
        texts = [pairs[row].explanation for row in source]
    elif kind == "random":
        words = [pair.explanation.split() for pair in pairs]
        drawn = iter(rng.permutation([word for text in words for word in text]).tolist())
        texts = [" ".join(next(drawn) for _ in text) for text in words]
    elif kind == "caption":
        texts = [pair.caption for pair in pairs]
    else:
        raise ValueError(f"no control {kind!r}; there are own, shuffled, random and caption")
    return [replace(pair, explanation=text) for pair, text in zip(pairs, texts, strict=True)]


log = logging.getLogger(__name__)


class ProfileData:
    """A profile's splits, each loaded and made ready once, under one training seed."""

    def __init__(self, profile: Profile, *, progress: bool = True):
        self.profile, self.progress = profile, progress
        self.settings, self.seed = profile.settings, profile.seed
        self._pairs: dict[str, list[Pair]] = {}
        self._fingerprints: dict[str, str] = {}
        self._seconds: dict[str, list[str] | None] = {}
        self._datasets: dict[tuple[str, bool, str], PairDataset | ImageTextDataset] = {}

    def of_seed(self, seed: int) -> Self:
        """The same experiment under another training seed; the equal pairs are shared."""
        other = copy.copy(self)
        other.profile, other.seed = replace(self.profile, seed=seed), seed
        other._datasets = {}  # a control's explanations depend on the seed
        return other

    def pairs(self, split: str) -> list[Pair]:
        """A split's pairs under the profile's limits and, for training, its explanation policy."""
        if split not in self._pairs:
            settings = self.settings
            limits = {"train": settings.train_pairs, "val": settings.val_pairs}
            if settings.pretraining:
                limits["generic"] = settings.pretraining.pairs
                limits["generic_val"] = settings.pretraining.eval_pairs
            pairs = load_pairs(
                settings.dataset,
                split,
                limit=limits.get(split, settings.test_pairs),
                seed=settings.data_seed,
                image_size=settings.image_size,
                root=named_folder(settings.data_root),
                prepared=named_folder(settings.prepared),
            )
            source, policy = settings.explanation_source, settings.explanation_policy
            # the data set's own under "use" stay as they are
            if split in ("train", "val") and (source, policy) != ("own", "use"):
                folder = self.profile.runs / "explanations"
                pairs, report = training_pairs(
                    pairs, source, policy, dataset=settings.dataset, split=split, folder=folder
                )
                level = logging.WARNING if report.failed else logging.INFO
                log.log(
                    level, "%s %s, explanations %s: %s", settings.dataset, split, source, report
                )
            self._pairs[split] = pairs
        return self._pairs[split]

    def fingerprint(self, split: str) -> str:
        """`data_fingerprint` of a split's pairs, taken once."""
        if split not in self._fingerprints:
            self._fingerprints[split] = data_fingerprint(self.pairs(split))
        return self._fingerprints[split]

    def dataset(
        self, split: str, *, explanations: bool = False, control: Explanations = "own"
    ) -> PairDataset | ImageTextDataset:
        """A split ready for the model, as `serve` makes it.

        `control` puts something else in place of the explanations.
        """
        key = (split, explanations, control)
        if key not in self._datasets:
            pairs = self.pairs(split)
            if control != "own":  # which would turn a table of a million rows into a list
                pairs = replace_explanations(pairs, control, seed=self.seed)
            decoding = self.settings.train_decoding if split == "train" else "exact"
            self._datasets[key] = self.serve(
                self.settings.dataset, pairs, explanations=explanations, decoding=decoding
            )
        return self._datasets[key]

    def serve(
        self,
        dataset: str,
        pairs: Sequence[Pair],
        *,
        explanations: bool = False,
        decoding: Literal["exact", "draft"] = "exact",
    ) -> PairDataset | ImageTextDataset:
        """Pairs of a data set ready for the model: drawn pictures are kept in memory, files read.

        Training leaves out up to the share `settings.max_broken` of files that cannot be read;
        evaluation raises at the first.
        """
        made_of = pairs, self.backbone.preprocess, self.backbone.tokenize
        if dataset not in LOADERS:
            return PairDataset(*made_of, with_explanations=explanations, cache=True)
        return ImageTextDataset(
            *made_of,
            with_explanations=explanations,
            decoding=decoding,
            max_broken=self.settings.max_broken,
        )

    def second_captions(self, split: str) -> list[str] | None:
        """A second caption of each pair's picture; None where it is that of another pair."""
        if split not in self._seconds:
            self._seconds[split] = second_captions(self.settings.dataset, self.pairs(split))
        return self._seconds[split]

    def with_seconds(self, split: str, dataset: PairDataset | ImageTextDataset) -> SeveralCaptions:
        """A split's dataset whose batches carry a second caption of each picture."""
        return SeveralCaptions(dataset, self.backbone.tokenize, self.second_captions(split))

    @cached_property
    def backbone(self) -> Backbone:
        """A backbone with random weights, for its preprocessing, tokenizer and shapes."""
        return create_backbone(self.settings.backbone, image_size=self.settings.image_size)


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
        return lacking(find_variant(variant).method, self.settings)

    def config(self, variant: str) -> EntityCLIPConfig | AsCLConfig:
        """The variant's model: the profile's, with the variant's overrides."""
        return variants.model_config(self.settings, variant)

    def identity(self, variant: str) -> dict[str, Any]:
        """What makes a run of `variant` this run and no other: all of its settings and its data."""
        return variants.identity(self.settings, variant, self.seed)

    def trained_fingerprint(self, variant: str) -> str | None:
        """Of all data that train `variant`, the pretraining's too; None: nothing known."""
        splits = ("train", "val") if find_variant(variant).finetuned else ()
        if self.settings.pretraining:
            splits = ("generic", "generic_val", *splits)
        found = {split: self.fingerprint(split) for split in splits}
        if find_variant(variant).method == "itr":
            found["unlabelled"] = self._itr.fingerprint(
                "unlabelled", self._itr.itr.objective.needs_generated
            )
        return config_hash(found) if found else None

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

    def trained(self, variant: str) -> bool:
        """Whether a finished run of `variant` is there, with its weights."""
        return is_finished(self._finetuning(variant).folder)

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
        return self.profile.results

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
