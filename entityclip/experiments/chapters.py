"""AsCL against plain contrastive fine-tuning: the runs of its chapter, and their stored rows.

All variants and seeds of a profile start from the same pretrained CLIP and read the same captions;
they differ in what VARIANTS says and in the seed of fine-tuning. A finished run is found again by
its configuration and data, an interrupted one goes on; so are rows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from entityclip import variants
from entityclip.checkpoints import read_tensors
from entityclip.config import (
    AsCLConfig,
    Profile,
    Settings,
    Task,
    config_hash,
    named_folder,
)
from entityclip.datasets import DATASETS, DRAWN, load_pairs
from entityclip.datasets.captions import SeveralCaptions
from entityclip.datasets.dataset import ImageTextDataset, PairDataset
from entityclip.datasets.pair import Pair, data_fingerprint
from entityclip.evaluation.inspection import alignment, uniformity
from entityclip.evaluation.relations import (
    Classes,
    classify,
    finetune_classifier,
    linear_probe,
    pair_embeddings,
    relation_classes,
    score,
    zero_shot_clusters,
)
from entityclip.evaluation.retrieval import (
    encode_pairs,
    evaluate_retrieval,
    result_rows,
    retrieve_ascl,
    retrieve_reranked,
    similarities,
)
from entityclip.experiments.experiment import Experiment, ITRRuns, device
from entityclip.experiments.measure import rank_rows
from entityclip.files import progress_bar
from entityclip.models.ascl import AsCL
from entityclip.models.clip import Backbone, create_backbone, load_clip_weights
from entityclip.results import (
    CLASSIFICATION,
    ClassificationRow,
    ResultsError,
    Row,
    append_rows,
    chapter_rows,
    in_reading_order,
    provenance,
    row_files,
    rows_of,
    write_shipped,
)
from entityclip.statistics import DIRECTIONS, METRICS, Retrieval
from entityclip.training.loop import train
from entityclip.training.run_folder import BEST, claim, is_finished, load_model
from entityclip.variants import (
    ASCL_VARIANTS,
    NOT_FINETUNED,
    PROTOCOLS,
    VARIANTS,
    Measured,
    Tasks,
    variant_name,
)


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
        if variant not in ASCL_VARIANTS:
            raise ValueError(f"no AsCL variant {variant!r}; there are {', '.join(ASCL_VARIANTS)}")
        return replace(self.settings.model, **ASCL_VARIANTS[variant])

    def identity(self, variant: str, seed: int) -> dict[str, Any]:
        """All that makes a run this run and no other, its data included."""
        identity = variants.ascl_identity(self.experiment.profile, variant, seed)
        data = {f"{role}_data": self._fingerprints[role] for role in ("train", "val")}
        return {**identity, **data}

    def _trained(self) -> str:
        """The fingerprint of all data that train these runs."""
        found = {role: self._fingerprints[role] for role in ("train", "val")}
        if self.experiment.settings.pretraining:
            found |= {s: self.experiment.fingerprint(s) for s in ("generic", "generic_val")}
        return config_hash(found)

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
        for variant in variants:
            for seed in seeds:
                missing = [w for w in ways if not self._stored(variant, seed, w)]
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
        return self._read([self._measured(*key) for key in wanted])

    def _stored(self, variant: str, seed: int, way: Measured) -> bool:
        return self._read([self._measured(variant, seed, way)])["ranks"].notna().any()

    def _read(self, identities: list[dict[str, Any]]) -> pd.DataFrame:
        """Rows of these on the present data; columns but no rows before there are."""
        known = rows_of(
            self.experiment.profile, "ascl", identities,
            data=self._fingerprints["test"], trained=self._trained(),
        )  # fmt: skip
        return known if "ranks" in known else known.assign(ranks=None)

    def _measured(self, variant: str, seed: int, way: Measured) -> dict[str, Any]:
        return variants.ascl_measured(self.experiment.profile, variant, seed, way)

    def retrieval(self, model: AsCL, way: Measured = Measured()) -> Retrieval:  # noqa: B008
        """A model's ranks on the test split, asked in one of the ways."""
        similarity, image_of = similarities(
            model, self.dataset("test"), short_queries=way.short_queries,
            workers=self.settings.finetuning.workers, progress=self.experiment.progress,
        )  # fmt: skip
        if not way.rerank:
            return retrieve_ascl(similarity, image_of)
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
                trained_fingerprint=self._trained(),
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


class RelationStudy:
    """An experiment's start weights before and after ITR, over several seeds of ITR.

    All seeds start from the same weights, those of the experiment's own seed: what varies is the
    order of pairs, the clustering and the heads.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.runs = ITRRuns(
            experiment.settings, experiment.profile.runs, progress=experiment.progress
        )
        self.files = row_files(experiment.profile, "relations")

    # ---------------------------------------------------------------------------------- towers

    def pretrain(self, tasks: Sequence[Task], seed: int) -> Path:
        """Pretrain the start weights by `tasks`, if not done yet; the run's folder."""
        return self.runs.pretrain(
            lambda: self.experiment.build("zero-shot").backbone,
            self.experiment.identity("zero-shot"),
            seed=seed,
            tasks=tasks,
        )

    def towers(self, tasks: Tasks, seed: int) -> Backbone:
        """The start weights (`tasks` None), or what ITR's pretraining makes of them."""
        backbone = self.experiment.build("zero-shot").backbone
        if tasks is not None:
            folder = self.pretrain(tasks, seed)
            load_clip_weights(backbone, folder / BEST)
        return backbone.eval()

    def variants(self) -> dict[str, Tasks]:
        """What is compared: the start weights, then each set of tasks of the profile."""
        return {variant_name(tasks): tasks for tasks in (None, *self.runs.itr.compared)}

    # ------------------------------------------------------------------------------ measurement

    def measure(
        self, seeds: Iterable[int] | None = None, protocols: Iterable[str] = PROTOCOLS
    ) -> pd.DataFrame:
        """Measure what is not yet stored, by default over the profile's seeds; all stored rows.

        Raises ValueError for an unknown protocol and for pairs without labels.
        """
        protocols = tuple(protocols)
        unknown = sorted({*protocols} - {*PROTOCOLS})
        if unknown:
            raise ValueError(f"no protocol {unknown[0]!r}; there are {', '.join(PROTOCOLS)}")
        seeds = list(self.runs.itr.seeds if seeds is None else seeds)
        missing = [
            (tasks, seed, lacking)
            for tasks in self.variants().values()
            for seed in seeds
            if (lacking := self._lacking(tasks, seed, protocols))
        ]
        for tasks, seed, lacking in progress_bar(
            missing, desc="relations", show=self.experiment.progress
        ):
            append_rows(self.files[-1], self._measure(tasks, seed, lacking), CLASSIFICATION)
        return self.rows(seeds, protocols)

    def rows(
        self, seeds: Iterable[int] | None = None, protocols: Iterable[str] = PROTOCOLS
    ) -> pd.DataFrame:
        """Stored rows of these very settings. Raises ResultsError if there are none."""
        seeds = list(self.runs.itr.seeds if seeds is None else seeds)
        identities = [
            self._identity(tasks, seed, protocol)
            for tasks in self.variants().values()
            for seed in seeds
            for protocol in protocols
        ]
        kept = rows_of(self.experiment.profile, "relations", identities)
        if kept.empty:
            raise ResultsError(
                f"{self.files[-1]} has no rows of the present settings; measure first"
            )
        return in_reading_order(self.experiment.profile, "relations", kept)

    def _lacking(self, tasks: Tasks, seed: int, protocols: Iterable[str]) -> list[str]:
        """The protocols without a stored row."""
        data = self.runs.fingerprint("judged")
        return [
            protocol
            for protocol in protocols
            if rows_of(
                self.experiment.profile, "relations", [self._identity(tasks, seed, protocol)],
                data=data, trained=self._trained(tasks, protocol),
            ).empty
        ]  # fmt: skip

    def _trained(self, tasks: Tasks, protocol: str) -> str | None:
        """The fingerprint of all data that train the towers and what judges them."""
        found = {}
        if self.experiment.settings.pretraining:
            found |= {s: self.experiment.fingerprint(s) for s in ("generic", "generic_val")}
        if tasks is not None:
            found["unlabelled"] = self.runs.fingerprint("unlabelled", "cluster_generated" in tasks)
        if protocol != "clusters":
            found["labelled"] = self.runs.fingerprint("labelled")
        return config_hash(found) if found else None

    def _identity(self, tasks: Tasks, seed: int, protocol: str) -> dict[str, Any]:
        return variants.relation_identity(self.experiment.profile, tasks, seed, protocol)

    def _measure(
        self, tasks: Tasks, seed: int, protocols: Iterable[str]
    ) -> list[ClassificationRow]:
        """The rows of one pretraining and seed, judged by each of `protocols`."""
        settings, judged = self.experiment.settings, self.runs.pairs("judged")
        true, rows = relation_classes(judged), []
        backbone, start = self.towers(tasks, seed), time.perf_counter()
        for protocol, predicted in self._predict(backbone, seed, protocols):
            found = score(predicted, true, n_resamples=settings.bootstrap, seed=seed)
            origin = provenance(
                config=self._identity(tasks, seed, protocol),
                seed=seed,
                data_fingerprint=self.runs.fingerprint("judged"),
                trained_fingerprint=self._trained(tasks, protocol),
                device=backbone.device,
                wall_time_s=time.perf_counter() - start,
            )
            rows += [
                ClassificationRow(
                    variant=variant_name(tasks),
                    dataset=settings.itr.judged.dataset,
                    split=settings.itr.judged.split,
                    protocol=protocol,
                    label=label,
                    metric="weighted F1",
                    **f1._asdict(),
                    n_train=0 if protocol == "clusters" else len(self.runs.pairs("labelled")),
                    n_test=len(judged),
                    **origin,
                )
                for label, f1 in found.items()
            ]
            start = time.perf_counter()
        return rows

    def _predict(
        self, backbone: Backbone, seed: int, protocols: Iterable[str]
    ) -> Iterator[tuple[str, Classes]]:
        """Predicted classes of the judged pairs, protocol by protocol."""
        train, test = (self.runs.dataset(role) for role in ("labelled", "judged"))
        labels, true = relation_classes(train.pairs), relation_classes(test.pairs)
        frozen = pair_embeddings(backbone, test)
        # fine-tuning changes the towers, so it comes last
        for protocol in sorted(protocols, key=PROTOCOLS.index):
            if protocol == "linear probe":
                predicted = linear_probe(pair_embeddings(backbone, train), labels, frozen)
            elif protocol == "clusters":
                predicted = zero_shot_clusters(frozen, true, seed=seed)
            else:
                config = self.runs.itr.classifier
                progress = self.experiment.progress
                model = finetune_classifier(
                    backbone, train, labels, config, seed=seed, progress=progress
                )
                predicted = classify(model, test)
            yield protocol, predicted


class CrossRow(Row):
    """A measurement on `dataset` of a model fine-tuned on another one, or on none."""

    trained_on: str


@dataclass(frozen=True)
class Domain:
    """A data set to train and to test on. Raises ValueError for one without the splits."""

    dataset: str
    root: str | None = None  # where it lies; drawn ones need none
    test: str = "test"  # the split to test on; "train" and "val" train

    def __post_init__(self) -> None:
        needed = ("train", "val", self.test)
        known = DATASETS.get(self.dataset, ())
        if not set(needed) <= set(known):
            raise ValueError(
                f"{self.dataset} is no domain: it needs splits {', '.join(needed)} and has "
                f"{', '.join(known) or 'none, being no data set'}"
            )
        if self.root is None and self.dataset not in DRAWN:
            raise ValueError(f"domain {self.dataset} lies in files: give the folder as its root")


def choose_domains(settings: Settings, roots: Mapping[str, str]) -> list[Domain]:
    """The profile's own data set, the other drawn ones beside a drawn one, and those with a root.

    `roots` maps data sets that lie in files to their folders. Raises ValueError as `Domain`.
    """
    own = settings.dataset
    drawn = [name for name in DRAWN if name != own] if own in DRAWN else []
    others = [Domain(name) for name in drawn]
    others += [Domain(name, root) for name, root in roots.items() if name != own]
    return [Domain(own, settings.data_root or roots.get(own)), *others]


class _Elsewhere(Experiment):
    """An experiment on another domain that starts from `home`'s pretraining."""

    def __init__(self, home: Experiment, domain: Domain) -> None:
        changed = {"dataset": domain.dataset, "data_root": domain.root, "prepared": None}
        settings = home.settings.model_copy(update=changed)
        super().__init__(replace(home.profile, settings=settings), progress=home.progress)
        self._home = home

    def pretrain(self, *, force: bool = False) -> Path:
        return self._home.pretrain(force=force)

    def of_seed(self, seed: int) -> Self:
        other = super().of_seed(seed)
        other._home = self._home.of_seed(seed)
        return other

    def identity(self, variant: str) -> dict[str, Any]:
        settings, here = self._home.settings, self.settings.dataset
        return variants.domain_identity(settings, variant, self.seed, here)

    def fingerprint(self, split: str) -> str:
        pretrained = split in ("generic", "generic_val")
        return self._home.fingerprint(split) if pretrained else super().fingerprint(split)


def domain_experiment(home: Experiment, domain: Domain) -> Experiment:
    """`home` with its data set replaced by the domain's, from the same pretrained weights.

    The home domain itself is `home`, so that its finished runs are found.
    """
    own = (home.settings.dataset, home.settings.data_root)
    return home if (domain.dataset, domain.root) == own else _Elsewhere(home, domain)


# ---------------------------------------------------------------------------------- measurement


def measure_cross_domain(
    profile: Profile,
    domains: Sequence[Domain],
    variants: Iterable[str],
    *,
    seeds: Iterable[int] | None = None,
    train: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Every variant on every pair of domains; the rows in ``results/cross_domain.jsonl``.

    Rows and finished runs that are there, or that the repository ships, are not made again; with
    `train` False nothing is made, and what has no rows is left out. A variant that is not
    fine-tuned has no training domain and is tested once on each, `trained_on` being "none". `seeds`
    are the profile's unless given. Raises ValueError for a domain named twice.
    """
    names = [domain.dataset for domain in domains]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"domains are {names}; name each once, and at least one")
    parts, home = [], Experiment(profile, progress=progress)
    bases = [domain_experiment(home, domain) for domain in domains]
    for seed in [profile.seed] if seeds is None else seeds:
        experiments = [base.of_seed(seed) for base in bases]
        for variant in variants:
            finetuned = VARIANTS[variant].finetuned
            sources = experiments if finetuned else [home.of_seed(seed)]
            for source in sources:
                parts.append(_measure_from(source, variant, experiments, domains, train=train))
    return pd.concat(parts, ignore_index=True)


def _measure_from(
    source: Experiment,
    variant: str,
    experiments: Sequence[Experiment],
    domains: Sequence[Domain],
    *,
    train: bool,
) -> pd.DataFrame:
    """One model on the test split of every domain."""
    profile, files = source.profile, row_files(source.profile, "cross_domain")
    finetuned = VARIANTS[variant].finetuned
    trained_on = source.settings.dataset if finetuned else NOT_FINETUNED
    config = {**source.identity(variant), "tested": "cross-domain"}
    trained = source.trained_fingerprint(variant)
    model, parts = None, []
    for target, domain in zip(experiments, domains, strict=True):

        def stored_rows(target: Experiment = target, domain: Domain = domain) -> pd.DataFrame:
            found = target.fingerprint(domain.test)
            rows = rows_of(profile, "cross_domain", [config], data=found, trained=trained)
            return rows[(rows["dataset"] == domain.dataset) & (rows["split"] == domain.test)]

        stored = stored_rows()
        if train and len(stored) < len(METRICS) * len(DIRECTIONS):
            model = model or source.load(variant)
            _, rows = evaluate_retrieval(
                model,
                target.dataset(domain.test),
                variant=variant,
                dataset_name=domain.dataset,
                split=domain.test,
                config=config,
                seed=source.seed,
                bootstrap=source.settings.bootstrap,
                progress=source.progress,
            )
            stamp = {"trained_fingerprint": trained, "trained_on": trained_on}
            append_rows(files[-1], [CrossRow(**row | stamp) for row in rows])
            stored = stored_rows()
        parts.append(stored)
    return pd.concat(parts, ignore_index=True)


def ship_chapters(experiment: Experiment) -> dict[str, int]:
    """Put the chapters' rows among those that the repository ships; how many of each kind."""
    counts = {}
    for kind in variants.CHAPTERS:
        rows = chapter_rows(experiment.profile, kind)
        write_shipped(experiment.profile, kind, rows)
        if len(rows):
            counts[kind] = len(rows)
    return counts
