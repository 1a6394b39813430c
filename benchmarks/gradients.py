"""Two ways of one loss, the literal and ours, on the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.turns import medians, take_turns
from entityclip.models.clip import Tokens


def noise(batch: int, length: int, width: int, device: str, at: Tensor | None = None) -> Tokens:
    """Random tokens that have gradients; `at` [batch] the row that is pooled: the last valid one.

    None: row 0 is pooled, as a picture's, and all are valid.
    """
    tokens = torch.randn(batch, length, width, device=device, requires_grad=True)
    rows, places = torch.arange(batch, device=device), torch.arange(length, device=device)
    if at is None:
        at, valid = torch.zeros_like(rows), (places >= 0).expand(batch, length)
    else:
        at = at.to(device)
        valid = places <= at[:, None]
    return Tokens(tokens[rows, at], tokens, valid, at)


def both_passes(
    loss_of: Callable[[], Tensor], inputs: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[float, Tensor]:
    """A loss and its gradient by `inputs`, one flat row; those of `parameters` are found anew."""
    for tensor in (*inputs, *parameters):
        tensor.grad = None
    loss = loss_of()
    loss.backward()
    # .item() waits for all that a GPU was given to do
    return loss.item(), torch.cat([tensor.grad.flatten() for tensor in inputs])


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
    found, taken = take_turns(
        {name: lambda way=way: both_passes(way, inputs, parameters) for name, way in ways.items()},
        repeats,
    )
    literal, ours = (medians(rounds) for rounds in taken.values())
    for name, (wall, processor) in zip(found, (literal, ours), strict=True):
        print(
            f"{name:8} {wall:8.3f} s wall {processor:8.3f} s processor   loss {found[name][0]:.6f}"
        )
    wall, processor = (a / b for a, b in zip(literal, ours, strict=True))
    print(f"ratio    {wall:8.1f}   wall {processor:8.1f}   processor")
    (loss, gradient), (our_loss, our_gradient) = found.values()
    error = (our_gradient - gradient).abs().max() / gradient.abs().max()
    print(f"largest difference: gradient {error:.1e}, loss {abs(our_loss / loss - 1):.1e}")
