"""ITR's pretraining: subset by subset, cluster, reset the heads, train.

A run is a folder as a training run's: ``last.safetensors`` (weights, optimizer, position),
``best.safetensors`` (weights at the lowest contrast of held-out pairs; without that task, the
last), ``log.jsonl`` (a row a step, a row an iteration) and, when finished, ``run.json``. The towers
of both checkpoints load by `backbone.load_clip_weights`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from entityclip.checkpoints import (
    pack_optimizer,
    read_meta,
    read_tensors,
    refuse_other_run,
    unpack_optimizer,
    write_checkpoint,
)
from entityclip.config import ITRConfig, as_dict
from entityclip.datasets.dataset import Batch, PairDataset
from entityclip.files import atomic_write_text, progress_bar
from entityclip.models.clip import Backbone
from entityclip.models.itr import ITRModel, cluster, joint
from entityclip.training.loop import repeatable
from entityclip.training.run_folder import (
    BEST,
    LAST,
    RECORD,
    StepLog,
    TrainingError,
    load_model,
    model_tensors,
)

_EMBED_BATCH = 256


@dataclass(frozen=True)
class ITRResult:
    """Where a finished run left its files, and what it cost."""

    folder: Path
    steps: int
    best_iteration: int
    wall_time_s: float
    resumed_from: int | None  # the iteration after which an interrupted run went on

    @property
    def best(self) -> Path:
        """The weights to go on with."""
        return self.folder / BEST


def pretrain_itr(
    backbone: Backbone,
    train_set: PairDataset,
    config: ITRConfig,
    folder: Path,
    *,
    val_set: PairDataset | None = None,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
) -> ITRResult:
    """Pretrain `backbone` in place on unlabelled pairs and leave a run in `folder`.

    An interrupted run goes on after its last whole iteration and ends with the same weights. Pairs
    carry the generated caption as their explanation where `config` clusters it. `val_set` chooses
    the best checkpoint of a run that contrasts. `identity` (JSON-ready) is kept with the
    checkpoint; one of another identity or configuration is refused.

    Raises TrainingError for fewer pairs than a batch or than clusters and for a loss that is not
    finite, ValueError for lacking generated captions, CheckpointError for damaged files.
    """
    return _Pretrainer(backbone, train_set, val_set, config, folder, identity or {}, progress).run()


def subset_rows(n: int, size: int, seed: int, iteration: int) -> list[int]:
    """The rows of an iteration's subset, in order of training: a function of its arguments alone.

    An epoch cuts a permutation of all n rows into subsets; what does not fill one is left out.
    """
    size = min(size, n)
    epoch, part = divmod(iteration, n // size)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator)[part * size : (part + 1) * size].tolist()


def make_optimizer(model: ITRModel, config: ITRConfig) -> torch.optim.Optimizer:
    """AdamW: towers at `lr`, all else at `head_lr_scale` times that; vectors never decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        rate = config.lr * (1 if name.startswith("backbone.") else config.head_lr_scale)
        decay = 0.0 if parameter.ndim < 2 else config.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        fused=True,
    )


class _Pretrainer:
    def __init__(self, backbone, train_set, val_set, config, folder, identity, progress):
        _check_sets(train_set, val_set, config)
        self.sets, self.config, self.folder, self.progress = (
            (train_set, val_set), config, folder, progress,
        )  # fmt: skip
        # through JSON, so that it compares equal to what a checkpoint hands back
        self.identity = json.loads(json.dumps({**identity, "itr": as_dict(config)}))
        torch.manual_seed(config.seed)
        self.device = backbone.device
        self.model = ITRModel(backbone, config).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.per_iteration = min(config.subset, len(train_set)) // config.batch_size
        self.iteration = self.step = 0  # done
        self.elapsed = 0.0  # seconds that earlier, interrupted calls spent
        self.best = {"iteration": 0, "val_contrast": None}
        self.log = StepLog(folder / "log.jsonl", 1 if self.device.type == "cpu" else 20)

    def run(self) -> ITRResult:
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = self._resume()
        self.start = time.perf_counter()
        bar = progress_bar(
            total=self.config.iterations * self.per_iteration,
            initial=self.iteration * self.per_iteration,
            show=self.progress,
            desc="ITR",
            unit="step",
        )
        with bar, repeatable(self.device):
            while self.iteration < self.config.iterations:
                self._iterate(bar)
        result = ITRResult(
            self.folder, self.step, self.best["iteration"], self._spent(), resumed
        )  # fmt: skip
        record = {"identity": self.identity, "steps": self.step, **self.best,
                  "wall_time_s": result.wall_time_s, "resumed_from": resumed}  # fmt: skip
        atomic_write_text(self.folder / RECORD, json.dumps(record, indent=1) + "\n")
        return result

    def _iterate(self, bar: Any) -> None:
        """Cluster one subset, reset the heads, train on it once."""
        train_set, config = self.sets[0], self.config
        # all that is drawn follows from seed and iteration, so that a resumed run draws the same
        torch.manual_seed(config.seed * 1_000_003 + self.iteration)
        rows = subset_rows(len(train_set), config.subset, config.seed, self.iteration)
        labels = self._pseudo_labels(rows)
        sizes = {task: np.bincount(found).tolist() for task, found in labels.items()}
        # one cluster for all teaches nothing
        labels = {task: torch.from_numpy(found) for task, found in labels.items() if found.any()}
        self.model.reset_heads()
        for parameter in self.model.heads.parameters():
            self.optimizer.state.pop(parameter, None)
        self.model.train()
        if labels or "contrast" in config.tasks:
            batches = _batches(len(rows), config.batch_size)
            for at, batch in zip(batches, self._loader(rows, batches), strict=True):
                row = self._step(batch, {t: found[at] for t, found in labels.items()})
                self.log.add(row, batch.ids, self._last_good)
                bar.update()
        self.log.flush(self._last_good)
        self.iteration += 1
        val = self._validate()
        self.log.write({"step": self.step, "iteration": self.iteration, "sizes": sizes, **val})
        self._save(val.get("val_contrast"))

    def _step(self, batch: Batch, labels: dict[str, Tensor]) -> dict[str, Any]:
        labels = {task: found.to(self.device) for task, found in labels.items()}
        terms = self.model.losses(self.model.encode(batch), labels)
        terms["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        tensors = {name: term.detach() for name, term in terms.items()}
        return {"step": self.step, "iteration": self.iteration + 1, **tensors}

    @torch.no_grad()
    def _pseudo_labels(self, rows: list[int]) -> dict[str, np.ndarray]:
        """Cluster numbers [len(rows)] of each clustering task."""
        config, parts = self.config, {task: [] for task in self.config.clustering}
        if not parts:
            return {}
        self.model.eval()
        batches = [
            range(i, min(i + _EMBED_BATCH, len(rows))) for i in range(0, len(rows), _EMBED_BATCH)
        ]
        for batch in self._loader(rows, batches):
            sides = self.model.encode(batch)
            for task, found in parts.items():
                found.append(joint(sides, task).float().cpu())
        return {
            task: cluster(
                torch.cat(found).numpy(), config.clusters,
                seed=config.seed + self.iteration, mini_batch_above=config.mini_batch_above,
            )
            for task, found in parts.items()
        }  # fmt: skip

    def _loader(self, rows: list[int], batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The pairs at `batches`, which count within `rows`."""
        data, workers = self.sets[0], self.config.workers
        loader = DataLoader(
            data,
            batch_sampler=[[rows[i] for i in batch] for batch in batches],
            collate_fn=data.collate,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(self.config.seed + self.iteration),
        )
        for batch in loader:
            yield batch.to(self.device, non_blocking=True)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The mean contrast of the held-out pairs' full batches."""
        val_set, size = self.sets[1], self.config.batch_size
        if val_set is None or "contrast" not in self.config.tasks:
            return {}
        self.model.eval()
        found = []
        for at in range(0, len(val_set) - size + 1, size):
            batch = val_set.collate([val_set[i] for i in range(at, at + size)])
            found.append(self.model.contrast(self.model.encode(batch.to(self.device))).item())
        mean = sum(found) / len(found)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the held-out contrast is {mean} after step {self.step}; {self._last_good()}"
            )
        return {"val_contrast": mean}

    def _save(self, val_contrast: float | None) -> None:
        lowest = self.best["val_contrast"]
        improved = val_contrast is None or lowest is None or val_contrast < lowest
        if improved:
            self.best = {"iteration": self.iteration, "val_contrast": val_contrast}
        weights = model_tensors(self.model)
        meta = {"step": self.step, "iteration": self.iteration, "best": self.best,
                "identity": self.identity}  # fmt: skip
        if improved:
            write_checkpoint(self.folder / BEST, weights, meta)
        optimizer, groups = pack_optimizer(self.optimizer)
        write_checkpoint(
            self.folder / LAST,
            weights | optimizer,
            meta | {"groups": groups, "elapsed": self._spent()},
        )

    def _resume(self) -> int | None:
        path = self.folder / LAST
        if not path.exists():
            self.log.truncate(0)
            return None
        meta, tensors = read_meta(path), read_tensors(path)
        refuse_other_run(path, meta, self.identity)
        load_model(self.model, tensors)
        unpack_optimizer(self.optimizer, tensors, meta["groups"])
        self.step, self.iteration = meta["step"], meta["iteration"]
        self.best, self.elapsed = meta["best"], meta["elapsed"]
        self.log.truncate(self.step)
        return self.iteration

    def _spent(self) -> float:
        return self.elapsed + time.perf_counter() - self.start

    def _last_good(self) -> str:
        path = self.folder / LAST
        if not path.exists():
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {path} of iteration {read_meta(path)['iteration']}"


def _batches(n: int, size: int) -> list[range]:
    return [range(i, i + size) for i in range(0, n - size + 1, size)]


def _check_sets(train_set: PairDataset, val_set: PairDataset | None, config: ITRConfig) -> None:
    least = max(config.batch_size, config.clusters if config.clustering else 0)
    if len(train_set) < least:
        raise TrainingError(
            f"{len(train_set)} pairs to pretrain on are fewer than a batch of {config.batch_size} "
            f"or {config.clusters} clusters; lower batch_size and clusters or give more pairs"
        )
    if val_set is not None and len(val_set) < config.batch_size:
        raise TrainingError(
            f"{len(val_set)} held-out pairs don't fill one batch of {config.batch_size}"
        )
    if config.needs_generated and train_set.explanations is None:
        raise ValueError(
            "cluster_generated needs generated captions: make the data set of "
            "`datasets.generated.with_generated` pairs, with_explanations=True"
        )
