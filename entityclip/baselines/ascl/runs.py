"""AsCL against plain contrastive fine-tuning: the runs of its chapter, and their stored rows.

All variants and seeds of a profile start from the same pretrained CLIP and read the same captions;
they differ in what VARIANTS says and in the seed of fine-tuning. A finished run is found again by
its configuration and data, an interrupted one goes on; so are rows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from entityclip.backbone import create_backbone, load_clip_weights
from entityclip.baselines.ascl.config import AsCLConfig, AsCLSettings
from entityclip.baselines.ascl.model import AsCL
from entityclip.baselines.ascl.retrieval import retrieve, retrieve_reranked, similarities
from entityclip.checkpoint import read_tensors
from entityclip.config import named_folder
from entityclip.datasets import load_pairs
from entityclip.datasets.captions import SeveralCaptions
from entityclip.datasets.images import ImageTextDataset
from entityclip.datasets.pair import Pair, PairDataset, data_fingerprint
from entityclip.embedding_space import alignment, uniformity
from entityclip.evaluation import Retrieval, encode_pairs, result_rows
from entityclip.experiments import Experiment, device
from entityclip.identity import as_dict, config_hash
from entityclip.measure import rank_rows, seed_retrievals
from entityclip.results import Row, append_rows, find_rows, provenance
from entityclip.run_state import BEST, claim, is_finished, load_model
from entityclip.stored import row_files
from entityclip.training import train

_NO_SAMPLES = {"richer": False, "poorer": False, "wrong": False}
# variant -> how its model differs from the profile's
VARIANTS: dict[str, dict[str, Any]] = {
    "contrastive": {"fusion": False, "temperature": None, **_NO_SAMPLES},
    "ascl": {},
    "ascl, no fusion": {"fusion": False},
    "ascl, no samples": _NO_SAMPLES,
    "ascl, no richer text": {"richer": False},
    "ascl, no poorer text": {"poorer": False},
    "ascl, no wrong text": {"wrong": False},
}


class Measured(NamedTuple):
    """How a model is asked: with the first half of each caption, and with re-ranking."""

    short_queries: bool = False
    rerank: bool = False

    def split(self, split: str) -> str:
        """The split's name in result rows."""
        return f"{split}, first halves" if self.short_queries else split

    def variant(self, variant: str) -> str:
        """The variant's name in result rows."""
        return f"{variant}, re-ranked" if self.rerank else variant


class AsCLRuns:
    """The runs of one profile's `ascl` block; `experiment` gives the start they share."""

    def __init__(self, experiment: Experiment):
        settings = experiment.settings.ascl
        if settings is None:
            raise ValueError(
                f"profile {experiment.profile.name} has no `ascl` block; give its data and "
                "training there"
            )
        self.experiment, self.settings = experiment, settings
        self._sets: dict[tuple[str, bool], PairDataset | ImageTextDataset | SeveralCaptions] = {}
        self._pairs: dict[str, list[Pair]] = {}

    @property
    def seeds(self) -> range:
        """Seeds of fine-tuning, from the profile's own on."""
        return range(self.experiment.seed, self.experiment.seed + self.settings.seeds)

    # ------------------------------------------------------------------------------------ data

    def pairs(self, role: str) -> list[Pair]:
        """The pairs of ``train``, ``val`` or ``test``, one a caption."""
        if role not in self._pairs:
            settings, common = self.settings, self.experiment.settings
            self._pairs[role] = load_pairs(
                settings.dataset,
                getattr(settings, f"{role}_split"),
                limit=getattr(settings, f"{role}_pairs"),
                seed=common.data_seed,
                image_size=common.image_size,
                root=named_folder(settings.data_root),
            )
        return self._pairs[role]

    def dataset(
        self, role: str, *, others: bool = False
    ) -> PairDataset | ImageTextDataset | SeveralCaptions:
        """Those pairs ready for the model (`Experiment.serve`); `others` adds second captions.

        Files that cannot be read are left out of training up to the profile's `max_broken`;
        evaluation raises at the first.
        """
        if (role, others) not in self._sets:
            served = self.experiment.serve(self.settings.dataset, self.pairs(role))
            if others:
                served = SeveralCaptions(served, self.experiment.backbone.tokenize)
            self._sets[role, others] = served
        return self._sets[role, others]

    # ------------------------------------------------------------------------------------ runs

    def config(self, variant: str) -> AsCLConfig:
        """The variant's model. Raises ValueError for an unknown one."""
        if variant not in VARIANTS:
            raise ValueError(f"no AsCL variant {variant!r}; there are {', '.join(VARIANTS)}")
        return replace(self.settings.model, **VARIANTS[variant])

    def identity(self, variant: str, seed: int) -> dict[str, Any]:
        """All that makes a run this run and no other, its data included."""
        common = self.experiment.settings
        start = as_dict(common.pretraining) if common.pretraining else common.pretrained
        settings: AsCLSettings = self.settings
        return {
            "method": "ascl",
            "variant": variant,
            "seed": seed,
            "backbone": common.backbone,
            "image_size": common.image_size,
            "start": start,
            "start_seed": self.experiment.seed,
            "dataset": settings.dataset,
            "data_seed": common.data_seed,
            "train_data": self._fingerprints["train"],
            "val_data": self._fingerprints["val"],
            "model": as_dict(self.config(variant)),
            "finetuning": as_dict(replace(settings.finetuning, seed=seed)),
        }

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {role: data_fingerprint(self.pairs(role)) for role in ("train", "val", "test")}

    def folder(self, variant: str, seed: int) -> Path:
        """Where the run lies."""
        hashed = config_hash(self.identity(variant, seed))[:8]
        name = variant.replace(", ", "-").replace(" ", "-")
        return self.experiment.profile.runs / "checkpoints" / f"ascl-{name}-seed{seed}-{hashed}"

    def build(self, variant: str, seed: int) -> AsCL:
        """The variant before fine-tuning: the shared pretrained towers and a new fusion."""
        common = self.experiment.settings
        torch.manual_seed(seed)
        backbone = create_backbone(common.backbone, common.pretrained, common.image_size)
        if common.pretraining:
            load_clip_weights(backbone, self.experiment.pretrain() / BEST)
        return AsCL(backbone, self.config(variant)).to(device())

    def finetune(self, variant: str, seed: int) -> Path:
        """Fine-tune unless a finished run is there; the run's folder."""
        folder = self.folder(variant, seed)
        with claim(folder):
            if is_finished(folder):
                return folder
            model = self.build(variant, seed)
            sets = [self.dataset(role, others=model.needs_others) for role in ("train", "val")]
            train(
                model, *sets, replace(self.settings.finetuning, seed=seed), folder,
                identity=self.identity(variant, seed), progress=self.experiment.progress,
            )  # fmt: skip
        return folder

    def load(self, variant: str, seed: int) -> AsCL:
        """The variant with its best weights, trained first if no finished run is found."""
        folder = self.finetune(variant, seed)
        model = self.build(variant, seed)
        load_model(model, read_tensors(folder / BEST))
        return model.eval()

    # ------------------------------------------------------------------------------------ rows

    @property
    def results(self) -> Path:
        """The file of this chapter's result rows."""
        return self.experiment.results / "ascl.jsonl"

    def measure(
        self,
        variants: Iterable[str],
        seeds: Iterable[int],
        ways: Iterable[Measured] = (Measured(),),
    ) -> pd.DataFrame:
        """Train and evaluate what has no rows yet; `rows` of all that was asked for."""
        variants, seeds, ways = list(variants), list(seeds), list(ways)
        known = self._read()
        for variant in variants:
            for seed in seeds:
                missing = [w for w in ways if not self._stored(known, variant, seed, w)]
                if missing:
                    self._measure(self.load(variant, seed), variant, seed, missing)
        return self.rows(variants, seeds, ways)

    def rows(
        self,
        variants: Iterable[str],
        seeds: Iterable[int],
        ways: Iterable[Measured] = (Measured(),),
    ) -> pd.DataFrame:
        """Stored rows of these runs under the present settings; none leaves an empty frame."""
        wanted = itertools.product(variants, list(seeds), list(ways))
        place = {config_hash(self._measured(*key)): at for at, key in enumerate(wanted)}
        known = self._read()
        places = known["config_hash"].map(place).dropna().sort_values(kind="stable")
        return known.loc[places.index].reset_index(drop=True)

    def retrievals(
        self,
        variant: str,
        seeds: Iterable[int],
        way: Measured = Measured(),  # noqa: B008
    ) -> list[Retrieval]:
        """Stored ranks of a variant on the test split, one a seed that has them."""
        return list(self.by_seed(variant, seeds, way).values())

    def by_seed(
        self,
        variant: str,
        seeds: Iterable[int],
        way: Measured = Measured(),  # noqa: B008
    ) -> dict[int, Retrieval]:
        """`retrievals` by their seed."""
        rows = self.rows([variant], seeds, [way])
        if rows.empty:
            return {}
        return seed_retrievals(rows[rows["metric"] == "MeanR"], self.pairs("test"))

    def _stored(self, known: pd.DataFrame, variant: str, seed: int, way: Measured) -> bool:
        of_run = known["config_hash"] == config_hash(self._measured(variant, seed, way))
        return known.loc[of_run, "ranks"].notna().any()

    def _read(self) -> pd.DataFrame:
        """All rows on these test data, of whatever runs; columns but no rows before there are."""
        known = find_rows(*row_files(self.experiment, "ascl"))
        known = known if "ranks" in known else known.assign(ranks=None)
        return known[known["data_fingerprint"] == self._fingerprints["test"]]

    def _measured(self, variant: str, seed: int, way: Measured) -> dict[str, Any]:
        depths = {"text": self.settings.rerank_text, "image": self.settings.rerank_image}
        asked = {"short_queries": way.short_queries, "rerank": depths if way.rerank else None}
        return {**self.identity(variant, seed), **asked}

    def retrieval(self, model: AsCL, way: Measured = Measured()) -> Retrieval:  # noqa: B008
        """A model's ranks on the test split, asked in one of the ways."""
        similarity, image_of = similarities(
            model, self.dataset("test"), short_queries=way.short_queries,
            workers=self.settings.finetuning.workers, progress=self.experiment.progress,
        )  # fmt: skip
        if not way.rerank:
            return retrieve(similarity, image_of)
        depths = {"k_text": self.settings.rerank_text, "k_image": self.settings.rerank_image}
        return retrieve_reranked(similarity, image_of, **depths)

    def _measure(self, model: AsCL, variant: str, seed: int, ways: list[Measured]) -> None:
        rows: list[Row] = []
        for way in ways:
            start = time.perf_counter()
            retrieval = self.retrieval(model, way)
            origin = provenance(
                config=self._measured(variant, seed, way),
                seed=seed,
                data_fingerprint=self._fingerprints["test"],
                device=device(),
                wall_time_s=time.perf_counter() - start,
            )
            measured = result_rows(
                retrieval, origin, variant=way.variant(variant), dataset_name=self.settings.dataset,
                split=way.split(self.settings.test_split),
                bootstrap=self.experiment.settings.bootstrap,
            )  # fmt: skip
            with_ranks = rank_rows(measured, retrieval)
            rows += [row for row in measured if row["metric"] != "MeanR"] + with_ranks
        append_rows(self.results, rows)

    def spaces(self, models: dict[str, AsCL]) -> pd.DataFrame:
        """Alignment and uniformity of each model's global features on the test split."""
        found = []
        for name, model in models.items():
            e = encode_pairs(model, self.dataset("test"), progress=False)
            found.append(
                {
                    "variant": name,
                    "alignment": alignment(e.images[e.image_of.to(e.images.device)], e.texts),
                    "uniformity, pictures": uniformity(e.images),
                    "uniformity, captions": uniformity(e.texts),
                }
            )
        return pd.DataFrame(found)
