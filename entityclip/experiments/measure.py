"""Measure an experiment's variants: rows a metric, and the ranks behind them for paired tests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.config import config_hash
from entityclip.devices import best_device
from entityclip.evaluation.afterwards import rank_dual_softmax, rank_expanded
from entityclip.evaluation.provenance import provenance
from entityclip.evaluation.retrieval import evaluate_retrieval
from entityclip.evaluation.sections import classify_sections
from entityclip.experiments.experiment import METHODS, Experiment
from entityclip.files import claimed
from entityclip.models.entityclip import EntityCLIP
from entityclip.results import (
    Provenance,
    Row,
    append_rows,
    find_rows,
    measurement_rows,
    read_log,
    rows_of,
    schema_of,
)
from entityclip.statistics import Retrieval, retrievals
from entityclip.training.run_folder import RECORD, read_record
from entityclip.variants import (
    CURVE_SPLITS,
    EXPANDED,
    TEMPLATES,
    TERM,
    After,
    find_variant,
)

log = logging.getLogger(__name__)

# how a model is asked after training, where not as its method asks
AFTERWARDS: dict[After | None, Callable[..., Retrieval]] = {
    "expanded": rank_expanded,
    "expanded-shuffled": rank_expanded,
    "dual-softmax": rank_dual_softmax,
}

Ranks = dict[tuple[str, str], Retrieval]  # by (variant, split)


# --------------------------------------------------------------------------------------- the memo


def measured(
    experiment: Experiment,
    kind: str,
    identity: Mapping[str, Any],
    split: str,
    make: Callable[[], Iterable[Row]] | None,
    *,
    on: Experiment | None = None,
    trained: Callable[[], str | None],
    shipped: bool = True,
) -> pd.DataFrame:
    """The stored rows of one measurement; where there are none, those that `make` gives, stored.

    `split` is `on`'s, by default `experiment`'s; `trained` gives the fingerprint of what trained
    the model. Rows of other data do not count, those that the repository ships do where `shipped`.
    With `make` None nothing is made.
    """
    find = partial(rows_of, experiment.profile, kind, [identity], shipped=shipped)
    if make is None and (rows := find()).empty:
        return rows  # before the data, which take longer
    find = partial(find, data=(on or experiment).fingerprint(split))
    rows = find()
    if rows["trained_fingerprint"].notna().any():
        rows = find(trained=trained())
    if rows.empty and make is not None:
        with alone(experiment, kind, identity, split):
            rows = find(trained=trained())  # another process may have made them meanwhile
            if rows.empty:
                store(experiment, kind, make(), trained())
                rows = find(trained=trained())
    return rows


def alone(
    experiment: Experiment, kind: str, identity: Mapping[str, Any], split: str, *, wait: bool = True
) -> AbstractContextManager[bool]:
    """The claim to make a measurement: other processes wait, and find its rows."""
    name = config_hash([kind, identity, split])
    return claimed(experiment.results / ".claims" / f"{name}.lock", wait=wait)


def store(experiment: Experiment, kind: str, rows: Iterable[Row], trained: str | None) -> list[Row]:
    """Append rows, all or none, with the fingerprint of what trained the model; the rows."""
    rows = [{**row, "trained_fingerprint": trained} for row in rows]
    append_rows(experiment.results / f"{kind}.jsonl", rows, schema_of(kind))
    return rows


def origin(
    on: Experiment, identity: Mapping[str, Any], split: str, seconds: float, seed: int
) -> Provenance:
    """What the rows of one measurement on a split of `on` share, which took `seconds`."""
    return provenance(
        config=identity, seed=seed, data_fingerprint=on.fingerprint(split), device=best_device(),
        wall_time_s=seconds,
    )  # fmt: skip


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all parts; of none where all are empty, with their columns."""
    filled = [part for part in parts if len(part)]
    return pd.concat(filled or parts[:1], ignore_index=True)


# ----------------------------------------------------------------------------------- measurements


def measure_sections(
    experiment: Experiment,
    variants: Iterable[str],
    split: str = "test",
    *,
    on: Experiment | None = None,
    templates: Sequence[str] = TEMPLATES,
    train: bool = True,
) -> pd.DataFrame:
    """Each variant's rows in ``results/sections.jsonl``; what is stored is not measured again.

    That holds for rows that the repository ships, too. With `train` False nothing is measured, and
    what has no rows is left out. Models are `experiment`'s, trained first if need be; pictures are
    those of a split of `on`, by default `experiment` too. Raises ValueError as `classify_sections`.
    """
    on, parts = on or experiment, []
    for variant in variants:
        identity = {**experiment.identity(variant), "templates": list(templates)}

        make = partial(_section_rows, experiment, on, variant, identity, split)
        rows = measured(
            experiment, "sections", identity, split, make if train else None,
            on=on, trained=partial(experiment.trained_on, variant),
        )  # fmt: skip
        parts.append(rows)
    return joined(parts)


def _section_rows(
    experiment: Experiment, on: Experiment, variant: str, identity: dict[str, Any], split: str
) -> list[Row]:
    """A row a metric; that of "accuracy" carries the sections and the whole confusion matrix."""
    model, dataset, start = experiment.load(variant), on.dataset(split), time.perf_counter()
    templates = identity["templates"]
    result = classify_sections(model, dataset, templates=templates, progress=experiment.progress)
    took = time.perf_counter() - start
    rows = measurement_rows(
        result.metrics(), result.intervals(experiment.settings.bootstrap, experiment.seed),
        variant=variant, dataset=on.settings.dataset, split=split, direction="image_to_section",
        n_queries=len(result.truth), n_candidates=len(result.sections),
        provenance=origin(on, identity, split, took, experiment.seed),
    )  # fmt: skip
    whole = {"sections": list(result.sections), "confusion": result.confusion().tolist()}
    nothing = dict.fromkeys(whole)
    return [row | (whole if row["metric"] == "accuracy" else nothing) for row in rows]


# -------------------------------------------------------------------------- retrieval and curves


def measure(
    experiment: Experiment,
    variants: Iterable[str],
    splits: Iterable[str],
    *,
    shipped: bool = False,
    force: bool = False,
) -> Ranks:
    """Ranks of each variant on each split; what is not stored is trained, evaluated and stored.

    `shipped` also accepts the rows that the repository ships. `force` measures anew. A variant that
    the profile `lacks` is left out, with a warning that says why.
    """
    splits, ranks = list(splits), {}
    for variant in variants:
        if reason := experiment.lacks(variant):
            log.warning("%s is left out: %s", variant, reason)
            continue
        model = cache(partial(experiment.load, variant))
        for split in splits:
            ranks[variant, split] = measured_ranks(
                experiment, model, variant, split, shipped=shipped, force=force
            )
    return ranks


def measured_ranks(
    experiment: Experiment,
    model: Callable[[], EntityCLIP],
    variant: str,
    split: str,
    *,
    shipped: bool,
    force: bool = False,
) -> Retrieval:
    """The stored ranks of a variant on a split, else those of the model that `model` gives."""

    def stored() -> Retrieval | None:
        return None if force else stored_ranks(experiment, variant, split, shipped=shipped)

    if (found := stored()) is not None:
        return found
    with alone(experiment, "retrieval", experiment.identity(variant), split):
        return stored() or evaluate(experiment, model(), variant, split)


def stored_ranks(
    experiment: Experiment, variant: str, split: str, *, shipped: bool = True
) -> Retrieval | None:
    """The ranks of an earlier measurement with this very seed, settings and data, if stored."""
    rows = measured(
        experiment, "ranks", experiment.identity(variant), split, None,
        trained=partial(experiment.trained_on, variant), shipped=shipped,
    )  # fmt: skip
    if rows.empty:
        return None
    return retrievals(rows).get(experiment.seed)


def measure_pretraining(experiment: Experiment) -> Retrieval:
    """Retrieval by generic captions on unseen pictures: is the small CLIP a CLIP at all?"""
    model = experiment.build("zero-shot")
    return evaluate(experiment, model, "zero-shot", "generic_val", "pretraining")


def evaluate(
    experiment: Experiment, model: EntityCLIP, variant: str, split: str, kind: str = "retrieval"
) -> Retrieval:
    """Evaluate a model on one split and store its rows under `variant`."""
    identity = experiment.identity(variant)
    retrieval, rows = retrieved(experiment, model, variant, identity, split, experiment)
    trained = experiment.trained_on(variant)
    rows = store(experiment, kind, rows, trained)
    if kind == "retrieval":  # ranks last: who finds them skips the measurement
        store(experiment, "ranks", rank_rows(rows, retrieval), trained)
    return retrieval


def retrieved(
    experiment: Experiment,
    model: EntityCLIP,
    variant: str,
    identity: dict[str, Any],
    split: str,
    on: Experiment,
    *,
    names_cut: bool = False,
) -> tuple[Retrieval, list[Row]]:
    """Ranks and rows of an experiment's model on a split of `on`, under `identity`."""
    settings, spec = experiment.settings, find_variant(variant)
    control = "shuffled" if spec.after == "expanded-shuffled" else "own"
    asked = on.dataset(
        split, names_cut=names_cut, explanations=spec.after in EXPANDED, control=control
    )
    retrieval, rows = evaluate_retrieval(
        model, asked, variant=variant,
        dataset_name=on.settings.dataset, split=split, config=identity,
        seed=experiment.seed, bootstrap=settings.bootstrap,
        workers=settings.finetuning.workers, progress=experiment.progress,
        rank=AFTERWARDS.get(spec.after, METHODS[spec.method].ranks),
    )  # fmt: skip
    # the split's own, whose queries these are, whatever they were told by
    return retrieval, [{**row, "data_fingerprint": on.fingerprint(split)} for row in rows]


def rank_rows(rows: list[Row], retrieval: Retrieval) -> list[dict]:
    """The mean rank of each direction, beside it every query's rank.

    `image_of` has each caption's picture, `clusters` the same where some share one.
    """
    out = []
    for row in rows:
        if row["metric"] == "MeanR":
            pictures = retrieval.clusters(row["direction"])
            pictures = None if pictures is None else pictures.tolist()
            shared = pictures is not None and len(set(pictures)) < len(pictures)
            ranks = retrieval.ranks(row["direction"]).tolist()
            clusters = pictures if shared else None
            out.append({**row, "ranks": ranks, "clusters": clusters, "image_of": pictures})
    return out


def store_curves(experiment: Experiment, variants: Iterable[str]) -> int:
    """Store rows of kind "curves" for each finished run that has none; how many rows were added.

    The loss stands as the value, with the pairs of an epoch as `n_queries`.
    """
    logs = experiment.logs(variants)
    known = find_rows(experiment.profile, "curves")
    done = set() if known.empty else set(known.loc[known["seed"] == experiment.seed, "variant"])
    count = 0
    for name, log_file in logs.items():
        if name not in done and (log_file.parent / RECORD).exists():
            rows = _curve_rows(experiment, name, log_file)
            count += len(store(experiment, "curves", rows, experiment.trained_on(name)))
    return count


def _curve_rows(experiment: Experiment, variant: str, log: Path) -> list[Row]:
    record = read_record(log.parent)
    tables: list[pd.DataFrame] = list(read_log(log))
    rows: list[Row] = []
    for (split, column), table in zip(CURVE_SPLITS.items(), tables, strict=True):
        pairs = experiment.pairs(split)
        means = table.groupby("epoch")[column].mean()
        rows += measurement_rows(
            {f"{TERM}, epoch {epoch}": float(mean) for epoch, mean in means.items()}, {},
            variant=variant, dataset=experiment.settings.dataset, split=split, direction="pairs",
            n_queries=len(pairs), n_candidates=experiment.settings.finetuning.batch_size,
            provenance=origin(
                experiment, experiment.identity(variant), split, record["wall_time_s"],
                experiment.seed,
            ),
        )  # fmt: skip
    return rows
