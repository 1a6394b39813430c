"""The data of a profile: its splits as pairs, and as datasets ready for the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, Self

from entityclip.backbone import Backbone, create_backbone
from entityclip.config import Profile, named_folder
from entityclip.controls import replace_explanations
from entityclip.datasets import load_pairs
from entityclip.datasets.captions import SeveralCaptions, second_captions
from entityclip.datasets.images import ImageTextDataset
from entityclip.datasets.pair import Pair, PairDataset, data_fingerprint
from entityclip.datasets.registry import LOADERS
from entityclip.explanations.joining import training_pairs
from entityclip.variants import Explanations

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

        `control` puts something else in place of the explanations (`entityclip.controls`).
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
