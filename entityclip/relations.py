"""ITR's chapter: what pretraining on unlabelled pairs teaches of how text and image relate.

Each (pretraining, seed) is judged by a linear probe, by clusters without labels and by fine-tuning.
Rows go to ``results/relations.jsonl`` of the profile; what stands there is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.backbone import Backbone, load_clip_weights
from entityclip.baselines.itr.classifier import classify, finetune_classifier
from entityclip.baselines.itr.config import Task
from entityclip.baselines.itr.probing import linear_probe, pair_embeddings, zero_shot_clusters
from entityclip.baselines.itr.runs import ITRRuns
from entityclip.baselines.itr.scores import CLASSES, Classes, relation_classes, score
from entityclip.experiments import Experiment
from entityclip.identity import as_dict, config_hash
from entityclip.progress import progress_bar
from entityclip.results import (
    CLASSIFICATION,
    ClassificationRow,
    ResultsError,
    append_rows,
    provenance,
    read_rows,
)
from entityclip.run_state import BEST
from entityclip.seed_intervals import mean_over_seeds
from entityclip.stored import row_files

PROTOCOLS = ("linear probe", "clusters", "fine-tuning")
BEFORE = "CLIP"  # the start weights, without ITR


Tasks = Sequence[Task] | None  # of ITR's pretraining; None: no ITR


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
        self.files = row_files(experiment, "relations")

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
        rows = read_rows(*self.files, schema=CLASSIFICATION)  # before the data, which take longer
        seeds = list(self.runs.itr.seeds if seeds is None else seeds)
        hashes = {
            config_hash(self._identity(tasks, seed, protocol))
            for tasks in self.variants().values()
            for seed in seeds
            for protocol in protocols
        }
        kept = rows[rows["config_hash"].isin(hashes)]
        if kept.empty:
            raise ResultsError(
                f"{self.files[-1]} has no rows of the present settings; measure first"
            )
        known = {"protocol": PROTOCOLS, "variant": self.variants(), "label": CLASSES}

        def place(column: pd.Series) -> pd.Series:
            names = known.get(column.name, ())
            return column.map({name: at for at, name in enumerate(names)}) if names else column

        # in one order, whatever was stored first
        return kept.sort_values([*known, "seed"], key=place, kind="stable", ignore_index=True)

    def _lacking(self, tasks: Tasks, seed: int, protocols: Iterable[str]) -> list[str]:
        """The protocols without a stored row."""
        if not any(file.exists() for file in self.files):
            return list(protocols)
        stored = {*read_rows(*self.files, schema=CLASSIFICATION)["config_hash"]}
        return [p for p in protocols if config_hash(self._identity(tasks, seed, p)) not in stored]

    def _identity(self, tasks: Tasks, seed: int, protocol: str) -> dict[str, Any]:
        start, itr = self.experiment.identity("zero-shot"), self.runs.itr
        towers = {"start": start}
        if tasks is not None:
            towers = self.runs.identity(start, seed, tasks)
        return {
            "towers": towers,
            "protocol": protocol,
            "seed": seed,
            "labelled": self.runs.fingerprint("labelled"),
            "judged": self.runs.fingerprint("judged"),
            "classifier": as_dict(itr.classifier) if protocol == "fine-tuning" else None,
            "bootstrap": self.experiment.settings.bootstrap,
        }

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


def variant_name(tasks: Tasks) -> str:
    """A pretraining's name in rows and figures, e.g. ``ITR: cluster_image + contrast``."""
    return BEFORE if tasks is None else f"ITR: {' + '.join(tasks)}"


# ------------------------------------------------------------------------------------------ tables


def relation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Weighted F1 by protocol, variant and label: mean over seeds and gain over no ITR.

    `value` is the mean over `seeds` seeds; `gain` the mean of the seed-by-seed difference from the
    start weights, `gain_low` to `gain_high` its 95 % t interval over the seeds (NaN for one seed).
    The interval holds the luck of ITR's seed, not that of the pairs judged.
    """
    keys = ["protocol", "variant", "label"]
    table = []
    for (protocol, variant, label), group in rows.groupby(keys, sort=False):
        before = rows[
            (rows["variant"] == BEFORE) & (rows["protocol"] == protocol) & (rows["label"] == label)
        ]
        gains = group.set_index("seed")["value"].sub(before.set_index("seed")["value"]).dropna()
        gain, low, high = mean_over_seeds(gains)
        table.append(
            {
                "protocol": protocol, "variant": variant, "label": label,
                "value": group["value"].mean(), "gain": gain, "gain_low": low,
                "gain_high": high, "seeds": len(group),
            }
        )  # fmt: skip
    return pd.DataFrame(table)
