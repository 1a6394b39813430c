"""A profile's splits: each loaded, fingerprinted and made ready for the model once."""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from entityclip.config import PairSource, Profile, config_hash
from entityclip.datasets import load_pairs
from entityclip.datasets.captions import SeveralCaptions, second_captions, with_generated
from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.names import Names, cut_names, find_names, rarest
from entityclip.datasets.pair import Pair, data_fingerprint
from entityclip.datasets.prepared import find_copy
from entityclip.datasets.registry import DATASETS, LOADERS
from entityclip.datasets.views import AliasSwaps, NameViews, Siblings, alias_swaps
from entityclip.explanations.joining import training_pairs
from entityclip.hyperparameters import ViewsOf
from entityclip.models.clip import Backbone, create_backbone
from entityclip.models.encoder import start_weights
from entityclip.variants import INTERPOLATED, VAL_SPLITS, Explanations, find_variant

log = logging.getLogger(__name__)

Served = PairDataset | SeveralCaptions | NameViews | AliasSwaps | Siblings

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Splits:
    """The data of a profile under one training seed.

    Splits are called as their data set calls them; those of the chapters ``ascl:train``,
    ``ascl:val``, ``ascl:test`` and ``itr:unlabelled``, ``itr:held_out``, ``itr:labelled``,
    ``itr:judged``.
    """

    def __init__(self, profile: Profile, *, progress: bool = True):
        self.profile, self.progress = profile, progress
        self.settings, self.seed = profile.settings, profile.seed
        self.home = self  # whose pretraining is the start, and whose generic pairs it read
        self._pairs: dict[tuple[str, bool], Sequence[Pair]] = {}
        self._fingerprints: dict[tuple[str, bool], str] = {}
        self._seconds: dict[str, list[str] | None] = {}
        self._datasets: dict[tuple[Any, ...], Served] = {}
        self._names: dict[str, list[Names]] = {}

    def of_seed(self, seed: int) -> Self:
        """The same experiment under another training seed; the equal pairs are shared."""
        settings = self.settings.of_seed(seed)
        other = self.under(settings) if settings != self.settings else copy.copy(self)
        other.profile, other.seed = replace(other.profile, seed=seed), seed
        other._datasets = {}  # a control's explanations depend on the seed
        return other

    def pairs(self, split: str, *, generated: bool = False) -> Sequence[Pair]:
        """A split's pairs under the profile's limits and, for training, its explanation policy.

        With `generated`, each carries a generated caption as its explanation.
        """
        key = (split, generated)
        if key not in self._pairs:
            if generated:
                root = _folder(self._source(split).data_root)
                self._pairs[key] = with_generated(self.pairs(split), root)
            else:
                self._pairs[key] = self._load_pairs(split)
        return self._pairs[key]

    def _source(self, split: str) -> PairSource:
        settings = self.settings
        chapter, _, role = split.rpartition(":")
        if chapter == "itr":
            return getattr(settings.itr, "unlabelled" if role == "held_out" else role)
        if chapter == "ascl":
            own, name = settings.ascl, getattr(settings.ascl, f"{role}_split")
            limit = getattr(own, f"{role}_pairs")
        else:
            own, name = settings, split
            limits = {
                "train": settings.train_pairs,
                **dict.fromkeys(VAL_SPLITS, settings.val_pairs),
            }
            if settings.pretraining:
                limits["generic"] = settings.pretraining.pairs
                limits["generic_val"] = settings.pretraining.eval_pairs
            limit = limits.get(split, settings.test_pairs)
        return PairSource(dataset=own.dataset, split=name, data_root=own.data_root, limit=limit)

    def _load_pairs(self, split: str) -> Sequence[Pair]:
        settings, source = self.settings, self._source(split)
        root = _folder(source.data_root)
        spared = settings.itr.held_out if split in ("itr:unlabelled", "itr:held_out") else 0
        pairs = load_pairs(
            source.dataset,
            source.split,
            limit=None if source.limit is None else source.limit + spared,
            seed=settings.data_seed,
            image_size=settings.image_size,
            root=root,
            prepared=None if ":" in split else find_copy(source.dataset, root, settings.prepared),
        )
        if spared >= len(pairs):
            raise ValueError(
                f"{source.dataset} {source.split} has {len(pairs)} pairs, {spared} of which are "
                "held out; lower itr.held_out"
            )
        if spared:
            cut = len(pairs) - spared
            pairs = pairs[cut:] if split == "itr:held_out" else pairs[:cut]
        return self._explained(split, pairs) if split in ("train", "val") else pairs

    def _explained(self, split: str, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """Pairs to train on with the explanations that the profile wants.

        Those that have none are left out, for variants that read none, too: all train on the same.
        """
        source, policy = self.settings.explanation_source, self.settings.explanation_policy
        dataset, folder = self.settings.dataset, self.profile.runs / "explanations"
        pairs, report = training_pairs(
            pairs, source, policy, dataset=dataset, split=split, folder=folder
        )
        level = logging.WARNING if report.checks else logging.INFO
        log.log(level, "%s %s, explanations %s: %s", dataset, split, source, report)
        return pairs

    @property
    def val_splits(self) -> list[str]:
        """Where all is chosen, of VAL_SPLITS those that the data set has."""
        return [split for split in VAL_SPLITS if split in DATASETS[self.settings.dataset]]

    def fingerprint(self, split: str, *, generated: bool = False) -> str:
        """`data_fingerprint` of a split's pairs, taken once."""
        key = (split, generated)
        if key not in self._fingerprints:
            self._fingerprints[key] = data_fingerprint(self.pairs(split, generated=generated))
        return self._fingerprints[key]

    def trained_fingerprint(self, *splits: str, generated: bool = False) -> str | None:
        """One fingerprint of these and of the pairs that the start was pretrained on, if any."""
        start = ("generic", "generic_val") if self.settings.pretraining else ()
        found = {split: self.home.fingerprint(split) for split in start}
        for split in splits:
            of_generated = generated and split == "itr:unlabelled"
            role = split.rpartition(":")[2]
            found[role] = self.fingerprint(split, generated=of_generated)
        return config_hash(found) if found else None

    def trained_on(self, variant: str) -> str | None:
        """`trained_fingerprint` of all that trains a variant."""
        spec = find_variant(variant)
        splits = ["train", "val"] if spec.finetuned else []
        if spec.after in INTERPOLATED:  # all that chose the weights
            splits = list(dict.fromkeys([*splits, *self.val_splits]))
        if spec.method == "itr":
            generated = self.settings.itr.objective.needs_generated
            return self.trained_fingerprint(*splits, "itr:unlabelled", generated=generated)
        return self.trained_fingerprint(*splits)

    def dataset(
        self,
        split: str,
        *,
        explanations: bool = False,
        control: Explanations = "own",
        generated: bool = False,
        others: bool = False,
        names_cut: bool = False,
    ) -> Served:
        """A split ready for the model: drawn pictures are kept in memory, files read.

        `control` puts something else in place of the explanations; `generated` serves generated
        captions as explanations; `others` adds a second caption of each picture; `names_cut` takes
        the names out of captions. Training leaves out up to the share `settings.max_broken` of
        files that cannot be read; evaluation raises at the first.
        """
        key = (split, explanations, control, generated, others, names_cut)
        if key not in self._datasets:
            self._datasets[key] = self._serve(*key)
        return self._datasets[key]

    def viewed(self, served: PairDataset, share: float, of: ViewsOf) -> NameViews:
        """Training pairs of whose explanations a share is read as names alone (`NameViews`)."""
        text = "caption" if of == "caption" else "explanation"
        found = find_names([str(getattr(pair, text)) for pair in served.pairs],
                           self.settings.names, cache=self._found)  # fmt: skip
        if of == "others":
            found = [found[row] for row in _others(len(found), np.random.default_rng(self.seed))]
        return NameViews(served, self.backbone.tokenize, found, share, of)

    def swapped(self, served: Served, share: float, of: str) -> AliasSwaps:
        """Training pairs of whose captions a share tells a name by another of its entity's."""
        told = [_SENTENCE.split(str(pair.explanation)) for pair in served.pairs]
        captions = [pair.caption for pair in served.pairs]
        texts = [*captions, *itertools.chain(*told)]
        found = iter(find_names(texts, self.settings.names, cache=self._found))
        names = [next(found) for _ in captions]
        swaps = [
            alias_swaps(of_caption, [next(found) for _ in sentences])
            for of_caption, sentences in zip(names, told, strict=True)
        ]
        if of == "others":  # another pair's aliases
            order = _others(len(swaps), np.random.default_rng(self.seed))
            theirs = [[other for _, others in swaps[row] for other in others] for row in order]
            swaps = [
                [(name, tuple(given)) for name, _ in own] if given else []
                for own, given in zip(swaps, theirs, strict=True)
            ]
        return AliasSwaps(served, self.backbone.tokenize, swaps, share)

    @property
    def _found(self) -> Path:
        """Where what a recogniser found is kept."""
        return self.profile.results / "found" / "names.jsonl"

    def names(self, split: str) -> list[Names]:
        """The names in a split's captions, found as `settings.names` says, together with train's.

        What a recogniser found is kept beside the profile's rows.
        """
        if split not in self._names:
            wanted = dict.fromkeys(("train", split))
            texts = [pair.caption for name in wanted for pair in self.pairs(name)]
            found = iter(find_names(texts, self.settings.names, cache=self._found))
            self._names |= {name: [next(found) for _ in self.pairs(name)] for name in wanted}
        return self._names[split]

    def rarest_names(self, split: str) -> NDArray[np.int64]:
        """How many training captions hold each caption's rarest name: [N], see `names.rarest`."""
        return rarest(self.names(split), self.names("train"))

    def _serve(
        self, split: str, explanations: bool, control: Explanations, generated: bool, others: bool,
        names_cut: bool,
    ) -> Served:  # fmt: skip
        if others:
            served = self.dataset(split, explanations=explanations, control=control)
            seconds = None if ":" in split else self.second_captions(split)
            return SeveralCaptions(served, self.backbone.tokenize, seconds)
        pairs = self.pairs(split, generated=generated)
        if control != "own":  # which would turn a table of a million rows into a list
            pairs = replace_explanations(pairs, control, seed=self.seed)
        if names_cut:
            found = zip(pairs, self.names(split), strict=True)
            pairs = [replace(pair, caption=cut_names(pair.caption, names)) for pair, names in found]
        in_files = self._source(split).dataset in LOADERS
        return PairDataset(
            pairs,
            self.backbone.preprocess,
            self.backbone.tokenize,
            with_explanations=explanations or generated,
            cache=not in_files,
            decoding=self.settings.train_decoding if in_files and split == "train" else "exact",
            max_broken=self.settings.max_broken if in_files and "itr:" not in split else None,
        )

    def second_captions(self, split: str) -> list[str] | None:
        """A second caption of each pair's picture; None where it is that of another pair."""
        if split not in self._seconds:
            self._seconds[split] = second_captions(self.settings.dataset, self.pairs(split))
        return self._seconds[split]

    @cached_property
    def backbone(self) -> Backbone:
        """One with random weights, for its tokenizer, shapes and the profile's preprocessing."""
        settings = self.settings
        start = start_weights(settings.pretrained)
        return create_backbone(settings.backbone, start, settings.image_size, weights=False)


def _folder(path: str | None) -> Path | None:
    return Path(path).expanduser() if path else None


def _others(count: int, rng: np.random.Generator) -> list[int]:
    """Another row for each of `count`: a random order's cyclic shift, none keeping its own."""
    order = rng.permutation(count)
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    return source.tolist()


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
        texts = [pairs[row].explanation for row in _others(len(pairs), rng)]
    elif kind == "random":
        words = [pair.explanation.split() for pair in pairs]
        drawn = iter(rng.permutation([word for text in words for word in text]).tolist())
        texts = [" ".join(next(drawn) for _ in text) for text in words]
    elif kind == "caption":
        texts = [pair.caption for pair in pairs]
    else:
        raise ValueError(f"no control {kind!r}; there are own, shuffled, random and caption")
    return [replace(pair, explanation=text) for pair, text in zip(pairs, texts, strict=True)]
