"""A tiny training run, made alike in any process: model, drawn pairs, and its gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from entityclip.config import EntityCLIPConfig, TrainConfig
from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import Pair, PairDataset
from entityclip.datasets.views import Siblings
from entityclip.models.clip import Backbone, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.training.loop import _Trainer, train

TRAIN, VAL = 24, 10
CONFIG = TrainConfig(epochs=2, batch_size=7, lr=1e-3, precision="fp32", seed=3)
NO_EXPERTS = {"image_experts": 0, "text_experts": 0, "explanation_experts": 0}


@cache
def backbone() -> Backbone:
    """For its preprocessing and tokenizer."""
    return create_backbone("newsroom-tiny")


def make_model(**config: Any) -> EntityCLIP:
    """The tiny model with one expert a group unless told otherwise, the same in every process."""
    torch.manual_seed(5)
    experts = {f"{side}_experts": 1 for side in ("image", "text", "explanation")}
    return EntityCLIP(create_backbone("newsroom-tiny"), EntityCLIPConfig(**(experts | config)))


def _served(pairs: list[Pair], **options: Any) -> PairDataset:
    clip = backbone()
    return PairDataset(pairs, clip.preprocess, clip.tokenize, with_explanations=True, **options)


def make_sets() -> list[PairDataset]:
    """Drawn pairs to train and to validate with."""
    return [
        _served(load_pairs("newsroom", split, limit=n, seed=0, image_size=64), cache=True)
        for split, n in (("train", TRAIN), ("val", VAL))
    ]


def write_pictures(folder: Path, broken: dict[str, list[int]]) -> None:
    """The same pairs' pictures as files, those rows of `broken` damaged."""
    for split, dataset in zip(("train", "val"), make_sets(), strict=True):
        for row, pair in enumerate(dataset.pairs):
            path = folder / f"{split}-{row}.png"
            pair.load_image().save(path)
            if row in broken.get(split, ()):
                path.write_bytes(b"no picture")


def make_file_sets(folder: Path) -> list[PairDataset]:
    """`make_sets` read from `write_pictures`' files."""
    found = []
    for split, dataset in zip(("train", "val"), make_sets(), strict=True):
        files = [folder / f"{split}-{row}.png" for row in range(len(dataset))]
        pairs = [replace(pair, image=f) for pair, f in zip(dataset.pairs, files, strict=True)]
        found.append(_served(pairs, max_broken=0.5))
    return found


class Interrupted(Exception):
    """Stands for what ended a process."""


@contextmanager
def stopped_at(step: int, trainer: type = _Trainer) -> Iterator[None]:
    """What a `trainer` trains dies as a kill would, at the start of `step`; it must come so far."""
    original = trainer._step

    def counted(self: Any, *given: Any) -> dict[str, Any]:
        if self.step == step:
            raise Interrupted
        return original(self, *given)

    with patch.object(trainer, "_step", counted), pytest.raises(Interrupted):
        yield


def read_log(folder: Path) -> list[dict[str, Any]]:
    """A run's log without what depends on the machine's speed."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "pairs_per_s"} for row in rows]


def first_gradients(
    folder: Path, model: dict[str, Any], training: dict[str, Any], passes: int = 1
) -> dict[str, Tensor]:
    """Terms and gradients of a run's first optimizer step in fp64, by its own training loop."""
    built, sets = make_model(**model).double(), make_sets()
    if built.config.false_negatives != "kept":
        sets[0] = Siblings(sets[0], backbone().tokenize)
    losses, collate = built.losses, sets[0].collate
    found: dict[str, Tensor] = {}

    def watched(*given: Any) -> dict[str, Tensor]:
        terms = losses(*given)
        number = sum(name.endswith(".loss") for name in found)
        found.update({f"term.{number}.{k}": value.detach().clone() for k, value in terms.items()})
        return terms

    def in_fp64(items: Any) -> Any:
        batch = collate(items)
        return replace(batch, images=batch.images.double())

    def stop(*_: Any) -> None:
        raise Interrupted

    built.losses, sets[0].collate = watched, in_fp64
    config = replace(CONFIG, accumulate=passes, **training)
    hook = register_optimizer_step_pre_hook(stop)
    with suppress(Interrupted):
        train(built, *sets, config, folder / "run", progress=False)
    hook.remove()
    return found | {n: p.grad for n, p in built.named_parameters() if p.grad is not None}
