"""Cross-domain retrieval (EntityCLIP, section 4): trained on one data set, tested on every other.

A domain is a data set by name. All domains start from the same weights: where a profile pretrains
its own small CLIP, that is the profile's, on the profile's data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd

from entityclip.config import Profile, Settings
from entityclip.datasets import DATASETS, DRAWN
from entityclip.evaluation import evaluate_retrieval
from entityclip.experiments import VARIANTS, Experiment
from entityclip.identity import config_hash
from entityclip.metrics import METRICS
from entityclip.results import DIRECTIONS, Row, append_rows, find_rows
from entityclip.stored import row_files
from entityclip.tables import retrieval_table

NOT_FINETUNED = "none"  # the training domain of a variant that is only pretrained


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
        identity = super().identity(variant)
        if self.settings.pretraining:  # the pairs it saw are home's
            identity["start"] = {**identity["start"], "dataset": self._home.settings.dataset}
        return identity


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
    finetuned, files = VARIANTS[variant].finetuned, row_files(source, "cross_domain")
    trained_on = source.settings.dataset if finetuned else NOT_FINETUNED
    config = {**source.identity(variant), "tested": "cross-domain"}
    if finetuned:  # the same settings on changed files are another model
        config |= {f"{s}_data": source.fingerprint(s) for s in ("train", "val")}
    model, parts = None, []
    for target, domain in zip(experiments, domains, strict=True):
        wanted = {
            **{"variant": variant, "dataset": domain.dataset, "split": domain.test},
            **{"seed": source.seed, "config_hash": config_hash(config)},
            "data_fingerprint": target.fingerprint(domain.test),
        }
        stored = find_rows(*files, **wanted)
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
            append_rows(files[-1], [CrossRow(**row, trained_on=trained_on) for row in rows])
            stored = find_rows(*files, **wanted)
        parts.append(stored)
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------------------------------- table


def cross_domain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """`retrieval_table` of each training domain, which is its first column, `trained_on`.

    Means and intervals over seeds where there are several. Raises ResultsError as
    `retrieval_table` does.
    """
    parts = []
    for name, group in rows.groupby("trained_on", sort=False):
        table = retrieval_table(group)
        table.insert(0, "trained_on", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def describe_transfer(table: pd.DataFrame, metric: str = "R@1") -> list[str]:
    """In words, for each variant and test domain: what training elsewhere costs, text to image.

    Intervals are compared, not differences: where two overlap, this test does not tell them apart.
    """
    chosen = table[table["direction"] == "text_to_image"]
    elsewhere = chosen[~chosen["trained_on"].isin([NOT_FINETUNED])]
    keyed = elsewhere.set_index(["variant", "dataset", "trained_on"])
    sentences = []
    for variant, tested, trained in keyed.index:
        if trained == tested or (variant, tested, tested) not in keyed.index:
            continue
        own, other = keyed.loc[(variant, tested, tested)], keyed.loc[(variant, tested, trained)]
        apart = other[f"{metric}_high"] < own[f"{metric}_low"]
        apart |= other[f"{metric}_low"] > own[f"{metric}_high"]
        sentences.append(
            f"{variant} on {tested}: {metric} {_numbers(other, metric)} trained on {trained}, "
            f"{_numbers(own, metric)} trained on its own; intervals "
            f"{'apart' if apart else 'overlap'}"
        )
    return sentences


def _numbers(row: pd.Series, metric: str) -> str:
    return f"{row[metric]:.1f} [{row[metric + '_low']:.1f}, {row[metric + '_high']:.1f}]"
