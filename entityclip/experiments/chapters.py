"""What the chapters measure: AsCL against plain contrast, ITR's relations, other domains.

Each is a few functions on an experiment: a run or a start, and `measured` rows of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entityclip import identities, variants
from entityclip.config import AsCLConfig, Profile, Settings, config_hash
from entityclip.datasets import DATASETS, DRAWN
from entityclip.devices import best_device
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
    retrieve_ascl,
    retrieve_reranked,
    similarities,
)
from entityclip.experiments.experiment import Experiment, Run, load_best
from entityclip.experiments.measure import joined, measured, origin, rank_rows, retrieved
from entityclip.experiments.splits import Served
from entityclip.models.ascl import AsCL
from entityclip.models.clip import Backbone, load_clip_weights
from entityclip.results import (
    ClassificationRow,
    Row,
    chapter_rows,
    in_reading_order,
    write_shipped,
)
from entityclip.statistics import Retrieval
from entityclip.training.run_folder import BEST
from entityclip.variants import NOT_FINETUNED, PROTOCOLS, VARIANTS, Measured, Tasks

# ------------------------------------------------------------------------------------------ AsCL


def ascl_run(experiment: Experiment, variant: str, seed: int) -> Run:
    """The run of one of ASCL_VARIANTS; all start from the same pretrained CLIP.

    Raises ValueError for another variant and for a profile without an `ascl` block.
    """
    settings = experiment.settings.ascl
    if settings is None:
        raise ValueError(f"profile {experiment.profile.name} has no `ascl` block")
    identity = identities.ascl_identity(experiment.profile, variant, seed)
    for role in ("train", "val"):
        identity[f"{role}_data"] = experiment.fingerprint(f"ascl:{role}")
    config = replace(settings.model, **variants.ASCL_VARIANTS[variant])
    name = f"ascl-{variant.replace(', ', '-').replace(' ', '-')}-seed{seed}"

    def data(model: AsCL) -> list[Served]:
        others = model.needs_others
        return [experiment.dataset(f"ascl:{role}", others=others) for role in ("train", "val")]

    return Run(
        f"{name}-{config_hash(identity)[:8]}", identity, replace(settings.finetuning, seed=seed),
        partial(build_ascl, experiment, config, seed), data,
    )  # fmt: skip


def build_ascl(experiment: Experiment, config: AsCLConfig, seed: int) -> AsCL:
    """AsCL before fine-tuning: the shared pretrained towers and a new fusion."""
    pretrained = experiment.settings.pretraining
    towers = experiment.towers(seed, lambda: experiment.pretrain() if pretrained else None)
    return AsCL(towers, config).to(best_device())


def load_ascl(experiment: Experiment, variant: str, seed: int) -> AsCL:
    """A variant with its best weights, trained first if no finished run is found."""
    run = ascl_run(experiment, variant, seed)
    return load_best(experiment.run(run), run.build)


def measure_ascl(
    experiment: Experiment,
    names: Iterable[str],
    seeds: Iterable[int] | None = None,
    ways: Iterable[Measured] = (Measured(),),
    *,
    train: bool = True,
) -> pd.DataFrame:
    """Rows of ASCL_VARIANTS asked in some ways; what is not stored is trained and measured.

    `seeds` are the profile's unless given. With `train` False only what is stored is found.
    """
    seeds = list(identities.ascl_seeds(experiment.profile) if seeds is None else seeds)
    trained = partial(experiment.trained_fingerprint, "ascl:train", "ascl:val")
    parts, models = [], {}
    for name, seed, way in itertools.product(names, seeds, list(ways)):
        identity = identities.ascl_measured(experiment.profile, name, seed, way)

        def make(run=(name, seed), way=way, identity=identity) -> list[Row]:
            if run not in models:
                models.clear()  # one in memory at a time
                models[run] = load_ascl(experiment, *run)
            return _ascl_rows(experiment, models[run], *run, way, identity)

        make = make if train else None
        parts.append(measured(experiment, "ascl", identity, "ascl:test", make, trained=trained))
    return joined(parts)


def _ascl_rows(
    experiment: Experiment,
    model: AsCL,
    name: str,
    seed: int,
    way: Measured,
    identity: dict[str, Any],
) -> list[Row]:
    settings = experiment.settings
    retrieval, rows = evaluate_retrieval(
        model, experiment.dataset("ascl:test"), variant=way.variant(name),
        dataset_name=settings.ascl.dataset, split=way.split(settings.ascl.test_split),
        config=identity, seed=seed, bootstrap=settings.bootstrap,
        rank=lambda *_, **__: ascl_retrieval(experiment, model, way),
    )  # fmt: skip
    return [row for row in rows if row["metric"] != "MeanR"] + rank_rows(rows, retrieval)


def ascl_retrieval(experiment: Experiment, model: AsCL, way: Measured = Measured()) -> Retrieval:  # noqa: B008
    """A model's ranks on the chapter's test split, asked in one of the ways."""
    settings = experiment.settings.ascl
    similarity, image_of = similarities(
        model, experiment.dataset("ascl:test"), short_queries=way.short_queries,
        workers=settings.finetuning.workers, progress=experiment.progress,
    )  # fmt: skip
    if not way.rerank:
        return retrieve_ascl(similarity, image_of)
    depths = {"k_text": settings.rerank_text, "k_image": settings.rerank_image}
    return retrieve_reranked(similarity, image_of, **depths)


def feature_spaces(experiment: Experiment, models: Mapping[str, AsCL]) -> pd.DataFrame:
    """Alignment and uniformity of each model's global features on AsCL's test split."""
    found = {}
    for name, model in models.items():
        e = encode_pairs(model, experiment.dataset("ascl:test"), progress=False)
        found[name] = {
            "alignment": alignment(e.images[e.image_of.to(e.images.device)], e.texts),
            "uniformity, pictures": uniformity(e.images),
            "uniformity, captions": uniformity(e.texts),
        }
    return pd.DataFrame.from_dict(found, "index").rename_axis("variant").reset_index()


# ------------------------------------------------------------------------------ ITR and relations


def relation_towers(experiment: Experiment, tasks: Tasks, seed: int) -> Backbone:
    """The start weights (`tasks` None), or what ITR's pretraining by `tasks` makes of them.

    All seeds of ITR start from the same weights, those of the experiment's own seed: what varies is
    the order of pairs, the clustering and the heads.
    """
    backbone = experiment.build("zero-shot").backbone
    if tasks is not None:
        load_clip_weights(backbone, experiment.run(experiment.itr_run(seed, tasks)) / BEST)
    return backbone.eval()


def measure_relations(
    experiment: Experiment,
    seeds: Iterable[int] | None = None,
    protocols: Iterable[str] = PROTOCOLS,
    *,
    train: bool = True,
) -> pd.DataFrame:
    """Rows of relations before and after ITR; what is not stored is trained and measured.

    `seeds` are the profile's unless given. With `train` False only what is stored is found. Raises
    ValueError for an unknown protocol and for pairs without labels.
    """
    protocols, settings = tuple(protocols), experiment.settings
    unknown = sorted({*protocols} - {*PROTOCOLS})
    if unknown:
        raise ValueError(f"no protocol {unknown[0]!r}; there are {', '.join(PROTOCOLS)}")
    seeds, parts = list(settings.itr.seeds if seeds is None else seeds), []
    for tasks, seed in itertools.product(identities.relation_variants(settings).values(), seeds):
        judge = _Judge(experiment, tasks, seed)
        # fine-tuning changes the towers, so it comes last
        for protocol in sorted(protocols, key=PROTOCOLS.index):
            identity = identities.relation_identity(experiment.profile, tasks, seed, protocol)
            splits = [] if tasks is None else ["itr:unlabelled"]
            splits += [] if protocol == "clusters" else ["itr:labelled"]
            generated = tasks is not None and "cluster_generated" in tasks
            trained = partial(experiment.trained_fingerprint, *splits, generated=generated)
            make = partial(_relation_rows, experiment, judge, protocol, identity) if train else None
            rows = measured(experiment, "relations", identity, "itr:judged", make, trained=trained)
            parts.append(rows)
    return in_reading_order(experiment.profile, "relations", joined(parts))


class _Judge:
    """The towers after one pretraining, made when first asked, and what protocols say of them."""

    def __init__(self, experiment: Experiment, tasks: Tasks, seed: int):
        self.experiment, self.tasks, self.seed = experiment, tasks, seed

    @cached_property
    def towers(self) -> Backbone:
        return relation_towers(self.experiment, self.tasks, self.seed)

    @cached_property
    def frozen(self) -> NDArray[np.float32]:
        return pair_embeddings(self.towers, self.experiment.dataset("itr:judged"))

    def predict(self, protocol: str) -> Classes:
        """Classes of the judged pairs; fine-tuning changes the towers."""
        train, test = (self.experiment.dataset(f"itr:{role}") for role in ("labelled", "judged"))
        labels = relation_classes(train.pairs)
        if protocol == "linear probe":
            return linear_probe(pair_embeddings(self.towers, train), labels, self.frozen)
        if protocol == "clusters":
            return zero_shot_clusters(self.frozen, relation_classes(test.pairs), seed=self.seed)
        model = finetune_classifier(
            self.towers, train, labels, self.experiment.settings.itr.classifier,
            seed=self.seed, progress=self.experiment.progress,
        )  # fmt: skip
        return classify(model, test)


def _relation_rows(
    experiment: Experiment, judge: _Judge, protocol: str, identity: dict[str, Any]
) -> list[ClassificationRow]:
    settings, judged = experiment.settings, experiment.pairs("itr:judged")
    judge.towers.eval()  # made before the clock starts
    start = time.perf_counter()
    predicted, true = judge.predict(protocol), relation_classes(judged)
    found = score(predicted, true, n_resamples=settings.bootstrap, seed=judge.seed)
    shared = origin(experiment, identity, "itr:judged", time.perf_counter() - start, judge.seed)
    learned = 0 if protocol == "clusters" else len(experiment.pairs("itr:labelled"))
    return [
        ClassificationRow(
            variant=variants.variant_name(judge.tasks),
            dataset=settings.itr.judged.dataset,
            split=settings.itr.judged.split,
            protocol=protocol,
            label=label,
            metric="weighted F1",
            **f1._asdict(),
            n_train=learned,
            n_test=len(judged),
            **shared,
        )
        for label, f1 in found.items()
    ]


# --------------------------------------------------------------------------------------- domains


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


def choose_domains(settings: Settings) -> list[Domain]:
    """The profile's own data set, the other drawn ones beside a drawn one, and its `domains`.

    Raises ValueError as `Domain`.
    """
    own, *drawn = identities.drawn_domains(settings)
    others = [Domain(name) for name in drawn]
    others += [Domain(name, root) for name, root in settings.domains.items() if name != own]
    return [Domain(own, settings.data_root), *others]


def domain_experiment(home: Experiment, domain: Domain) -> Experiment:
    """`home` with the domain's data, from the same pretrained weights; for its own, `home`."""
    return home.on(domain.dataset, domain.root)


def measure_cross_domain(
    profile: Profile,
    domains: Sequence[Domain],
    names: Iterable[str],
    *,
    seeds: Iterable[int] | None = None,
    train: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Every variant on every domain; the rows in ``results/cross_domain.jsonl``.

    Trained are they on the profile's own data set and, beside a drawn one, on the other drawn ones;
    models of another archive are its own profile's, by its own settings, and the figure of several
    profiles puts their rows together. Rows and finished runs that are there, or that the repository
    ships, are not made again; with
    `train` False nothing is made, and what has no rows is left out. A variant that is not
    fine-tuned has no training domain and is tested once on each, `trained_on` being "none". `seeds`
    are the profile's unless given. Raises ValueError for a domain named twice.
    """
    sets = [domain.dataset for domain in domains]
    if len(set(sets)) < len(sets) or not sets:
        raise ValueError(f"domains are {sets}; name each once, and at least one")
    names, parts, home = list(names), [], Experiment(profile, progress=progress)
    bases = [domain_experiment(home, domain) for domain in domains]
    for seed in [profile.seed] if seeds is None else seeds:
        there = [base.of_seed(seed) for base in bases]
        sources = there[: len(identities.drawn_domains(profile.settings))]
        for name in names:
            for source in sources if VARIANTS[name].finetuned else [home.of_seed(seed)]:
                tests = zip(there, domains, strict=True)
                parts += _measured_from(source, name, tests, train=train)
    return joined(parts)


def _measured_from(
    source: Experiment, name: str, tests: Iterable[tuple[Experiment, Domain]], *, train: bool
) -> list[pd.DataFrame]:
    """One model on the test split of every domain."""
    identity = source.identity(name) | identities.CROSS_DOMAIN
    trained_on = source.settings.dataset if VARIANTS[name].finetuned else NOT_FINETUNED
    loaded, parts = [], []
    for target, domain in tests:

        def make(target=target, domain=domain) -> list[dict[str, Any]]:
            loaded[:] = loaded or [source.load(name)]
            _, rows = retrieved(source, loaded[0], name, identity, domain.test, target)
            return [row | {"trained_on": trained_on} for row in rows]

        rows = measured(
            source, "cross_domain", identity, domain.test, make if train else None,
            on=target, trained=partial(source.trained_on, name),
        )  # fmt: skip
        parts.append(rows)
    return parts


def ship_chapters(experiment: Experiment) -> dict[str, int]:
    """Put the chapters' rows among those that the repository ships; how many of each kind."""
    counts = {}
    for kind in identities.CHAPTERS:
        rows = chapter_rows(experiment.profile, kind)
        write_shipped(experiment.profile, kind, rows)
        if len(rows):
            counts[kind] = len(rows)
    return counts
