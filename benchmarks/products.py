"""A computation against the matrix products that it is made of, alone.

The products are those that ran, noted while the computation ran once: of torch.matmul and its like,
forward and backward, with nothing of what torch adds to one (a bias) and nothing between them. They
are run again in their order and shapes on random factors, drawn once and each product's own. These
lie contiguous, row by row, however the computation lays its own out: a factor that it reads turned
or with gaps, or copies first, is its own cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.turns import medians, take_turns

_FIRST_FACTOR = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # a summand may stand before it


class Product(NamedTuple):
    """Shapes of two factors, [m, k] and [k, n], or of b such pairs, [b, m, k] and [b, k, n]."""

    left: torch.Size
    right: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.left.numel() * self.right[-1]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name in _FIRST_FACTOR:
            left, right = args[_FIRST_FACTOR[name] :][:2]
            self.products.append(Product(left.shape, right.shape, left.dtype, left.device))
        return func(*args, **(kwargs or {}))


def products_of(function: Callable[[], Any]) -> list[Product]:
    """The matrix products of a call, in the order in which they run."""
    with _Recorder() as recorder:
        function()
    return recorder.products


def products_alone(products: list[Product]) -> Callable[[], None]:
    """A function that computes these products anew at each call, and nothing else."""
    factors = [
        [torch.randn(shape, device=p.device).to(p.dtype) for shape in (p.left, p.right)]
        for p in products
    ]

    def run() -> None:
        for left, right in factors:
            product = left @ right
        product.flatten()[0].item()  # waits for all that a GPU was given to do

    return run


def compare_products(function: Callable[[], Any], rounds: int) -> None:
    """Print the medians of what a call and its products alone take, in turns, and their ratios."""
    products = products_of(function)
    alone = products_alone(products)
    alone()  # warms up
    _, taken = take_turns({"ours": function, "products": alone}, rounds)
    ours, least = (medians(of) for of in taken.values())
    print(f"its {len(products)} matrix products alone, {sum(p.flops for p in products) / 1e9:.1f} "
          f"GFLOP, in {rounds} more turns:")  # fmt: skip
    for name, (wall, processor) in (("ours", ours), ("products", least)):
        print(f"{name:8} {wall:8.3f} s wall {processor:8.3f} s processor")
    wall, processor = (a / b for a, b in zip(ours, least, strict=True))
    print(f"ratio    {wall:8.2f}   wall {processor:8.2f}   processor")
