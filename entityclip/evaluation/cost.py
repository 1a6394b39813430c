"""What a model costs: parameters, FLOPs, seconds and memory of a training step, seconds of a query.

Of untrained weights, since what they are changes none of it. Queries need the two CLIP towers
alone, whatever else was trained: MMAE and GI-ITM cost nothing there (section 3).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from entityclip.config import TrainConfig
from entityclip.datasets.dataset import Batch
from entityclip.devices import own_draws
from entityclip.models.entityclip import EntityCLIP
from entityclip.training.loop import make_optimizer, precision

_QUERIES = 256  # captions encoded at a time
_MIB = 2**20


class Spread(NamedTuple):
    """A number measured several times: the median, the least and the greatest."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of repeats."""
        return cls(statistics.median(values), min(values), max(values))


def training_cost(
    model: EntityCLIP, batch: Batch, config: TrainConfig, *, repeats: int = 5
) -> dict[str, Spread]:
    """What a step on `batch` costs: forward, backward and the optimizer's, `repeats` times.

    "parameters" in millions, "GFLOPs a pair" of forward and backward, "MMAE's share" of these (with
    GI-ITM's) in percent, "ms a pair", and "memory" in MiB: on a GPU the most that was allocated,
    elsewhere the weights, gradients and optimizer's state with what forward keeps for backward.
    `model` is changed: it has taken the steps. Raises ValueError for no repeats.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one step must be timed")
    numbers = [p.numel() for p in model.parameters() if p.requires_grad]
    optimizer, batch = make_optimizer(model, config), batch.to(model.device)
    bf16 = precision(config) == "bf16"

    def losses() -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return model.losses(model(**batch.inputs()))["loss"]

    def step() -> None:
        losses().backward()
        optimizer.step()
        optimizer.zero_grad()

    with own_draws(model.device):
        torch.manual_seed(config.seed)
        model.train()
        total = _flops(losses)
        towers = _flops(lambda: _towers_alone(model, batch)) if model.mmae else total
        model.zero_grad()
        kept = _kept_for_backward(losses)
        step()  # warms up, and makes the optimizer's state
        seconds = [_timed(step, model.device) for _ in range(repeats)]
        memory = 16 * sum(numbers) + kept  # fp32 weights, gradients and Adam's two moments
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
            step()
            memory = torch.cuda.max_memory_allocated(model.device)
    pairs = len(batch)
    once = {
        "parameters": sum(numbers) / 1e6,
        "GFLOPs a pair": total / 1e9 / pairs,
        "MMAE's share": 100 * (1 - towers / total),
        "memory": memory / _MIB,
    }
    times = Spread.of([1000 * taken / pairs for taken in seconds])
    return {name: Spread(v, v, v) for name, v in once.items()} | {"ms a pair": times}


@torch.inference_mode()
def query_cost(
    model: EntityCLIP, captions: Sequence[str], pictures: int, *, repeats: int = 5
) -> Spread:
    """Seconds for 1,000 captions to find the best ten of `pictures` whose vectors are there."""
    device, tokens = model.device, model.backbone.tokenize(list(captions[:_QUERIES]))
    vectors = F.normalize(torch.ones(pictures, model.backbone.width, device=device), dim=-1)

    def ask() -> None:
        found = model.encode_text(tokens.to(device)) @ vectors.T
        found.topk(min(10, pictures)).indices.cpu()

    model.eval()
    ask()
    seconds = [_timed(ask, device) for _ in range(repeats)]
    return Spread.of([1000 * taken / len(tokens) for taken in seconds])


def _flops(losses: Callable[[], Tensor]) -> int:
    """FLOPs of forward and backward."""
    with FlopCounterMode(display=False) as counter:
        losses().backward()
    return counter.get_total_flops()


def _towers_alone(model: EntityCLIP, batch: Batch) -> Tensor:
    """Something that trains every token which the experts read, and nothing else."""
    image = model.backbone.image_tokens(batch.images)
    texts = model.backbone.texts_tokens(batch.captions, batch.explanations)
    return sum(side.tokens.sum() for side in (image, *texts))


def _kept_for_backward(losses: Callable[[], Tensor]) -> int:
    """Bytes that forward keeps for backward, a storage counted once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses()
    return sum(kept.values())


def _timed(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
