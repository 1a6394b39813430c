"""Several processes that train as one: who they are, what they tell each other, shared batches.

A batch is one batch however many processes there are: each encodes a contiguous share of its rows,
features are gathered with their gradients, and every process computes the objective of the whole.
Gradients are averaged over processes (by DDP, as accelerate sets it up), and all start from the
same seed, so that the number of processes changes speed and the last digits, nothing else.

Why the average is right: let L be the objective and W the number of processes, each of which
computes all of L. `gather_rows` sums the gradients that all processes send back to a row, so a
process's own parameters receive W · ∂L/∂θ along the paths through its rows. Their mean over
processes is the sum of those paths, ∂L/∂θ; a parameter that L reads directly (the logit scale) has
∂L/∂θ on each process, and so has the mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

_PATIENCE = timedelta(days=7)  # a process may wait while another one's machine reads a data set


@dataclass(frozen=True)
class World:
    """The processes that train together; `size` 1 is the usual case, and nothing is exchanged.

    What they tell each other about sizes and files goes from CPU to CPU: no GPU is waited for.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, rows: Sequence[int]) -> list[int]:
        """This process's part of a batch's rows: contiguous, none longer than another by over 1."""
        least, more = divmod(len(rows), self.size)
        start = self.rank * least + min(self.rank, more)
        return list(rows[start : start + least + (self.rank < more)])

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every process's `numbers` (as many each), by rank."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.long)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=_cpu_group())
        return [part.tolist() for part in found]

    def collect(self, value: Any) -> list[Any]:
        """Every process's JSON-ready `value`, by rank."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        lengths = [n for (n,) in self.exchange([len(text)])]
        mine = torch.zeros(max(lengths), dtype=torch.uint8)
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(found, mine, group=_cpu_group())
        pairs = zip(found, lengths, strict=True)
        return [json.loads(bytes(part[:n].tolist())) for part, n in pairs]

    def agree(self, value: Any) -> Any:
        """Process 0's JSON-ready value, on all: what the others would say is not asked."""
        return self.collect(value if self.main else None)[0] if self.size > 1 else value


def this_world() -> World:
    """The processes that `accelerate launch`, torchrun or a notebook launcher started with this.

    Raises RuntimeError where they were started together and yet don't find each other.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    # several processes without a GPU are what accelerate asks to be told
    on_cpu = started > 1 and not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if started != state.num_processes:
        raise RuntimeError(
            f"{started} processes were started (WORLD_SIZE), and {state.num_processes} found each "
            "other; start them by accelerate launch --multi_gpu or torchrun"
        )
    return World(state.process_index, state.num_processes)


@cache
def _cpu_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
