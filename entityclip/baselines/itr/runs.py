"""A profile's ITR pretrainings: its pairs, and runs found again by all they depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from entityclip.backbone import Backbone, create_backbone
from entityclip.baselines.itr.config import ITRConfig, PairSource, Task
from entityclip.baselines.itr.pretraining import pretrain_itr
from entityclip.config import Settings, named_folder
from entityclip.datasets import load_pairs
from entityclip.datasets.generated import with_generated
from entityclip.datasets.pair import Pair, PairDataset, data_fingerprint
from entityclip.identity import as_dict, config_hash
from entityclip.run_state import claim, is_finished


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
        tasks = self.itr.objective.tasks if tasks is None else tuple(tasks)
        return replace(self.itr.objective, seed=seed, tasks=tasks)

    def identity(
        self, start: dict[str, Any], seed: int, tasks: Sequence[Task] | None = None
    ) -> dict[str, Any]:
        """What makes a pretraining this one and no other; `start` tells of the start weights."""
        generated = self.config(seed, tasks).needs_generated
        return {
            "start": start,
            "backbone": self.settings.backbone,
            "image_size": self.settings.image_size,
            "unlabelled": self.fingerprint("unlabelled", generated),
            "held_out": self.itr.held_out,
            "itr": as_dict(self.config(seed, tasks)),
        }

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
