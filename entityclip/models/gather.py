"""Rows of a batch that other processes hold: gathered with their gradients, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")  # a dataclass


@dataclass(frozen=True)
class Peers:
    """What the processes hold of one batch: rows by rank, and the longest text among them all."""

    rank: int
    sizes: tuple[int, ...]
    length: int  # tokens of the longest caption or explanation
    negatives: Literal["global", "local"] = "global"

    @property
    def total(self) -> int:
        """Rows of the whole batch."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This process's rows within the whole batch."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def gather(self, x: Tensor) -> Tensor:
        """Rows [b, …] of every process, joined to [B, …] in the order of ranks.

        The gradient of a row is the sum of what all processes send back to it. Every process must
        call this, and go backward through it, in the same order.
        """
        if len(x) != self.sizes[self.rank]:
            raise ValueError(
                f"{len(x)} rows, but process {self.rank} announced {self.sizes[self.rank]}"
            )
        if not x[0].numel():  # the vectors of a group without experts
            return x.new_zeros(self.total, *x.shape[1:])
        if x.dtype == torch.bool:
            return self.gather(x.byte()).bool()
        return _GatherRows.apply(x, self)

    def joined(self, outputs: T, turned: Sequence[str] = ()) -> T:
        """A dataclass of outputs, gathered: tensors whose rows are pairs, `turned` [·, b, ·] ones.

        What is None or a scalar stays.
        """
        found = {}
        for name, value in vars(outputs).items():
            if name in turned and value is not None:
                found[name] = self.gather(value.transpose(0, 1)).transpose(0, 1)
            elif value is not None and value.ndim:
                found[name] = self.gather(value)
        return replace(outputs, **found)

    def gather_sequences(self, x: Tensor) -> Tensor:
        """`gather` for [b, L, …] whose L differs; shorter ones end in zeros (False: not valid)."""
        missing = max(self.length - x.shape[1], 0)
        return self.gather(F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)))

    def apart(self, device: torch.device) -> Tensor:
        """Which pairs of rows lie on different processes, [B, B]."""
        apart = torch.ones(self.total, self.total, dtype=torch.bool, device=device)
        for rank in range(len(self.sizes)):
            rows = replace(self, rank=rank).own
            apart[rows, rows] = False
        return apart


class Pool:
    """The rows that negatives are taken from: this process's, or all processes', gathered once."""

    def __init__(self, peers: Peers | None = None):
        self._peers = peers if peers is not None and peers.negatives == "global" else None
        self.spans = self._peers is not None  # whether negatives may be rows of other processes
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}  # by id; the key tensor stays alive

    def __call__(self, x: Tensor, *, sequences: bool = False) -> Tensor:
        """All rows that a negative's number may name, given this process's x [b, …]."""
        if self._peers is None:
            return x
        if id(x) not in self._gathered:
            gather = self._peers.gather_sequences if sequences else self._peers.gather
            self._gathered[id(x)] = x, gather(x)
        return self._gathered[id(x)][1]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.own = peers.own
        # all_gather wants equal shapes
        padded = torch.cat([x, x.new_zeros(max(peers.sizes) - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in peers.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, peers.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None
