"""Several processes that train as one: who they are, what they tell each other, shared batches.

A batch is one batch however many processes there are: each encodes a contiguous share of its rows,
features are gathered with their gradients, and every process computes the objective of the whole.
Gradients are averaged over processes (by DDP, as accelerate sets it up), and all start from the
same seed, so that the number of processes changes speed and the last digits, nothing else.

Why the average is right: let L be the objective and W the number of processes, each of which
computes all of L. `Peers.gather` sums the gradients that all processes send back to a row, so a
process's own parameters receive W · ∂L/∂θ along the paths through its rows. Their mean over
processes is the sum of those paths, ∂L/∂θ; a parameter that L reads directly (the logit scale) has
∂L/∂θ on each process, and so has the mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.data import DataLoader

from entityclip.console import Refused
from entityclip.datasets.dataset import Batch, Broken, BrokenPairs, PairDataset
from entityclip.devices import best_device
from entityclip.models.gather import Peers

Found = Callable[[dict[str, str]], None]  # told of broken pairs, id → problem
_PATIENCE = timedelta(days=7)  # a process may wait while another one's machine reads a data set


class TrainingError(RuntimeError):
    """Training can't start or go on; the message says where it stood and what to do."""


class CannotTrain(TrainingError, Refused):
    """A training that cannot begin: nothing was written."""


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
    # several processes without a GPU that they can share are what accelerate asks to be told
    gpu = torch.accelerator.is_available() and best_device().type != "mps"
    on_cpu = started > 1 and not gpu
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


def full_batches(rows: Sequence[int], size: int) -> list[list[int]]:
    """`rows` in batches of `size`; what does not fill one is left out."""
    return [list(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]


def covering_batches(n: int, size: int, least: int = 2) -> list[list[int]]:
    """All of n rows in order, in batches of `size`: no pair of a validation is left out.

    A rest of less than half a batch, or than `least` rows, joins the batch before it: a contrast
    with few others is easy, and with none it is nothing.
    """
    batches = [list(range(start, min(start + size, n))) for start in range(0, n, size)]
    if len(batches) > 1 and len(batches[-1]) < max(least, size / 2):
        rest = batches.pop()
        batches[-1] += rest
    return batches


class SplitServer:
    """Serves rows of `dataset` in the order asked for; `broken` counts and lists what it left out.

    A batch stays one batch however many of its pictures are broken, so that the number of a step
    says where a resumed run goes on. Of several processes each gets a share of a batch's rows, and
    all know of all broken pairs.

    `text_lengths` (captions, explanations, others → tokens of the longest) is asked before a batch
    goes to the device, so that the model need not ask a GPU.
    """

    def __init__(
        self,
        dataset: PairDataset,
        workers: int,
        device: torch.device,
        world: World = World(),
        *,
        text_lengths: Callable[..., list[int] | None] | None = None,
        negatives: Literal["global", "local"] = "global",
    ) -> None:
        self.dataset, self.workers, self.device = dataset, workers, device
        self.world, self.text_lengths, self.negatives = world, text_lengths, negatives
        self.broken = BrokenPairs(len(dataset), getattr(dataset, "max_broken", None))

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(
        self,
        rows: list[list[int]],
        seed: int,
        found: Found | None = None,
    ) -> Iterator[Batch]:
        """The batches of these rows on the device.

        `found` is told of broken pairs met for the first time before their batch is given. Raises
        TooManyBroken above the dataset's share, TrainingError for a batch of which a process has
        no whole picture; on all processes alike.
        """
        if hasattr(self.dataset, "begin"):
            self.dataset.begin(seed)
        loader = DataLoader(
            self.dataset,
            batch_sampler=[self.world.share(batch) for batch in rows],
            collate_fn=self.dataset.collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # an iterator draws its workers' seed: from here, not from the stream that draws
            # negatives, or an epoch resumed in its middle would draw others
            generator=torch.Generator().manual_seed(seed),
        )
        for served in loader:
            batch = served if isinstance(served, Batch) else None
            if batch is not None and self.text_lengths is not None:
                lengths = self.text_lengths(batch.captions, batch.explanations, batch.others)
                batch = replace(batch, lengths=lengths)
            broken = served if batch is None else batch.broken
            pinned = self.device.type == "cuda"
            yield self._shared(batch, broken, found).to(self.device, non_blocking=pinned)

    def _shared(
        self,
        batch: Batch | None,
        broken: list[Broken],
        found: Found | None,
    ) -> Batch:
        """The batch as all processes know it; what is broken is counted, listed or refused."""
        mine = [0, 0] if batch is None else [len(batch), max(batch.lengths or [0])]
        facts = self.world.exchange([*mine, len(broken)])
        sizes, lengths, left_out = zip(*facts, strict=True)
        if any(left_out):
            everyone = self.world.collect([tuple(item) for item in broken])
            broken = [Broken(*item) for part in everyone for item in part]
        new = self.broken.add(broken)
        if new and found is not None:
            found(new)
        if not all(sizes):
            whose = "" if len(sizes) == 1 else "a process's share of "
            raise TrainingError(
                f"{whose}a batch has no whole picture: "
                f"{'; '.join(item.problem for item in broken)}. "
                "Fetch them again, or raise batch_size"
            )
        if len(sizes) == 1:
            return batch
        return replace(batch, peers=Peers(self.world.rank, sizes, max(lengths), self.negatives))
