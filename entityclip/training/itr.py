"""ITR's pretraining: subset by subset, cluster, reset the heads, train.

The run's folder is a training run's (`run_folder`); its log has a row a step and a row an
iteration, and ``best.safetensors`` the weights at the lowest contrast of held-out pairs (without
that task, the last): the authors' code reports the best of its iterations on the test pairs, which
flatters. The towers of both checkpoints load by `clip.load_clip_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from entityclip.config import ITRConfig, as_dict
from entityclip.console import progress_bar
from entityclip.datasets.dataset import Batch, PairDataset
from entityclip.models.clip import Backbone
from entityclip.models.itr import PARTNER, ITRModel, cluster, joint
from entityclip.training.loop import cut_texts, repeatable
from entityclip.training.processes import CannotTrain, SplitServer, covering_batches, full_batches
from entityclip.training.run_folder import RunFolder, TrainResult

_EMBED_BATCH = 256


def pretrain_itr(
    backbone: Backbone,
    train_set: PairDataset,
    config: ITRConfig,
    folder: Path,
    *,
    val_set: PairDataset | None = None,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Pretrain `backbone` in place on unlabelled pairs and leave a run in `folder`.

    An interrupted run goes on after its last whole iteration and ends with the same weights. Pairs
    carry the generated caption as their explanation where `config` clusters it. `val_set` chooses
    the best checkpoint of a run that contrasts. `identity` (JSON-ready) is kept with the
    checkpoint; one of another identity or configuration is refused.

    Raises TrainingError for fewer pairs than a batch or than clusters and for a loss that is not
    finite, ValueError for lacking generated captions, CheckpointError for damaged files.
    """
    sets = train_set, val_set
    _check_sets(*sets, config)
    return _Pretrainer(backbone, sets, config, folder, identity or {}).run(progress)


def subset_rows(n: int, size: int, seed: int, iteration: int) -> list[int]:
    """The rows of an iteration's subset, in order of training: a function of its arguments alone.

    Subsets are cut from one permutation of all n rows after another, so no pair comes again before
    all have come. A subset that takes what is left of one is filled with other rows of the next.
    """
    size, stream, epoch = min(size, n), [], 0
    while len(stream) < (iteration + 1) * size:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(n, generator=generator).tolist()
        left = len(stream) % size  # at the end, waiting to be filled
        waiting = {*stream[len(stream) - left :]}
        fill = [row for row in order if row not in waiting][: (size - left) % size]
        filling = {*fill}
        stream += fill + [row for row in order if row not in filling]
        epoch += 1
    return stream[iteration * size : (iteration + 1) * size]


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
    def __init__(self, backbone: Backbone, sets, config: ITRConfig, folder: Path, identity: dict):
        self.config, self.device = config, backbone.device
        torch.manual_seed(config.seed)
        self.model = ITRModel(backbone, config).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        counted = {"text_lengths": self.model.text_lengths}
        self.train_set = SplitServer(sets[0], config.workers, self.device, **counted)
        validates = sets[1] is not None and "contrast" in config.tasks
        self.val_set = SplitServer(sets[1], 0, self.device, **counted) if validates else None
        facts = {"preprocessing": backbone.preprocessing}
        identity = {**identity, "itr": as_dict(config)}
        self.folder = RunFolder(folder, identity, self.device, facts=facts)
        self.per_iteration = min(config.subset, len(self.train_set)) // config.batch_size
        self.iteration = self.step = 0  # done
        self.best: dict[str, Any] = {"iteration": 0, "val_contrast": None}

    def run(self, progress: bool) -> TrainResult:
        resumed = self._resume()
        cut = cut_texts(self.model.backbone, {"train": self.train_set.dataset}, tell=True)
        total, done = (n * self.per_iteration for n in (self.config.iterations, self.iteration))
        bar = progress_bar(total=total, initial=done, show=progress, desc="ITR", unit="step")
        with bar, repeatable(self.device):
            while self.iteration < self.config.iterations:
                self._iterate(bar)
        return self.folder.finish(self.step, self.best, resumed, cut=cut)

    def _iterate(self, bar: tqdm) -> None:
        """Cluster one subset, reset the heads, train on it once, validate, save."""
        config, seed = self.config, self.config.seed
        # all that is drawn follows from seed and iteration, so that a resumed run draws the same
        torch.manual_seed(seed * 1_000_003 + self.iteration)
        rows = subset_rows(len(self.train_set), config.subset, seed, self.iteration)
        labels = self._pseudo_labels(rows)
        sizes = {task: np.bincount(found).tolist() for task, found in labels.items()}
        # one cluster for all teaches nothing
        labels = {task: torch.from_numpy(found) for task, found in labels.items() if found.any()}
        self.model.reset_heads()
        for parameter in self.model.heads.parameters():
            self.optimizer.state.pop(parameter, None)
        self.model.train()
        if labels or "contrast" in config.tasks:
            batches = full_batches(rows, config.batch_size)
            places = full_batches(range(len(rows)), config.batch_size)
            for at, batch in zip(places, self._served(batches), strict=True):
                row = self._step(batch, {t: found[at] for t, found in labels.items()})
                self.folder.add(row, batch.ids)
                bar.update()
        self.folder.flush()
        self.iteration += 1
        val = self._validate()
        row = {"step": self.step, "iteration": self.iteration, "sizes": sizes}
        self.folder.write(row | ({} if val is None else {"val_contrast": val}))
        lowest = self.best["val_contrast"]
        improved = val is None or lowest is None or val < lowest
        if improved:
            self.best = {"iteration": self.iteration, "val_contrast": val}
        position = {"step": self.step, "iteration": self.iteration, "best": self.best}
        self.folder.save(self.model, self.optimizer, position, improved=improved, generators=False)

    def _step(self, batch: Batch, labels: dict[str, Tensor]) -> dict[str, Any]:
        labels = {task: found.to(self.device) for task, found in labels.items()}
        terms = self.model.losses(self.model.encode(batch), labels)
        terms["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        tensors = {name: term.detach() for name, term in terms.items()}
        return {"step": self.step, "iteration": self.iteration + 1, **tensors}

    def _served(self, batches: list[list[int]]) -> Iterator[Batch]:
        return self.train_set.batches(batches, self.config.seed + self.iteration)

    @torch.no_grad()
    def _pseudo_labels(self, rows: list[int]) -> dict[str, np.ndarray]:
        """Cluster numbers [len(rows)] of each clustering task."""
        config = self.config
        parts: dict[str, list[Tensor]] = {task: [] for task in config.clustering}
        if not parts:
            return {}
        self.model.eval()
        batches = [rows[i : i + _EMBED_BATCH] for i in range(0, len(rows), _EMBED_BATCH)]
        for batch in self._served(batches):
            sides = self.model.encode(batch, generated=config.needs_generated)
            for task, found in parts.items():
                found.append(joint(sides, PARTNER[task]).float().cpu())
        k, above, seed = config.clusters, config.mini_batch_above, config.seed + self.iteration
        return {
            task: cluster(torch.cat(found).numpy(), k, seed=seed, mini_batch_above=above)
            for task, found in parts.items()
        }

    @torch.no_grad()
    def _validate(self) -> float | None:
        """The mean contrast of all held-out pairs, batch by batch."""
        if self.val_set is None:
            return None
        self.model.eval()
        rows = covering_batches(len(self.val_set), self.config.batch_size)
        found, sizes = [], []
        for batch in self.val_set.batches(rows, self.config.seed):
            found.append(self.model.contrast(self.model.encode(batch)).item())
            sizes.append(len(batch))
        mean = float(np.average(found, weights=sizes))
        self.folder.refuse_infinite("the held-out contrast", mean, f"after step {self.step}")
        return mean

    def _resume(self) -> int | None:
        total = self.config.iterations * self.per_iteration
        meta, _ = self.folder.resume(self.model, self.optimizer, total)
        if meta is None:
            return None
        self.step, self.iteration, self.best = meta["step"], meta["iteration"], meta["best"]
        return self.iteration


def _check_sets(train_set: PairDataset, val_set: PairDataset | None, config: ITRConfig) -> None:
    least = max(config.batch_size, config.clusters if config.clustering else 0)
    if len(train_set) < least:
        raise CannotTrain(
            f"{len(train_set)} pairs to pretrain on are fewer than a batch of {config.batch_size} "
            f"or {config.clusters} clusters; lower batch_size and clusters or give more pairs"
        )
    if val_set is not None and len(val_set) < config.batch_size:
        raise CannotTrain(
            f"{len(val_set)} held-out pairs don't fill one batch of {config.batch_size}"
        )
    if config.needs_generated and train_set.explanations is None:
        raise ValueError(
            "cluster_generated needs generated captions: make the data set of "
            "`datasets.captions.with_generated` pairs, with_explanations=True"
        )
