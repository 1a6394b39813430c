"""What benchmarks share: the clock, and two ways of one loss that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def compare_gradients(
    ways: Mapping[str, Callable[[], Tensor]],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    repeats: int,
) -> None:
    """Print what the forward and backward passes of two losses take, the literal way first.

    Medians of wall and of processor time, their ratios, and the largest difference of a gradient of
    `inputs`, relative to the largest gradient; `parameters` are all others that have one.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    losses, gradients = {}, {}
    for _ in range(repeats):  # in turns, so that what else the machine does hits both alike
        for name, loss_of in ways.items():
            for tensor in (*inputs, *parameters):
                tensor.grad = None
            wall, processor = time.perf_counter(), time.process_time()
            loss = loss_of()
            loss.backward()
            if loss.is_cuda:
                torch.cuda.synchronize()
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
            losses[name] = loss.item()
            gradients[name] = torch.cat([tensor.grad.flatten() for tensor in inputs])
    medians = {
        name: [statistics.median(kind) for kind in zip(*times, strict=True)]
        for name, times in taken.items()
    }
    for name, (wall, processor) in medians.items():
        print(f"{name:8} {wall:8.3f} s wall {processor:8.3f} s processor   loss {losses[name]:.6f}")
    literal, ours = ways
    wall, processor = (a / b for a, b in zip(medians[literal], medians[ours], strict=True))
    print(f"ratio    {wall:8.1f}   wall {processor:8.1f}   processor")
    error = (gradients[ours] - gradients[literal]).abs().max() / gradients[literal].abs().max()
    apart = abs(losses[ours] / losses[literal] - 1)
    print(f"largest difference: gradient {error:.1e}, loss {apart:.1e}")
