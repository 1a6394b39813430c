"""Gradient caching: batches larger than memory, to the same gradient (arXiv 2101.06983).

The towers' activations are what fills the memory, and a row's encoding depends on no other row. So
all rows are encoded a chunk at a time without a graph; objective, experts and matching run on
these tokens as leaves; then each chunk is encoded again, and the leaves' gradients go back through
it. The towers' forward pass is paid twice, and memory holds one chunk's activations.

The second encoding must equal the first, and does: CLIP has no dropout and no batch statistics.
Towers that have are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from entityclip.backbone import Tokens
from entityclip.datasets.pair import Batch
from entityclip.model import Encoded, EntityCLIP, Outputs
from entityclip.step_log import TrainingError

Autocast = Callable[[], AbstractContextManager[Any]]


def refuse_random_towers(backbone: nn.Module) -> None:
    """Raise TrainingError for towers whose second encoding of a chunk would be another one."""
    for name, module in backbone.named_modules():
        shares = [getattr(module, key, 0) for key in ("p", "prob", "dropout")]
        random = any(isinstance(share, float) and share > 0 for share in shares)
        if random or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise TrainingError(
                f"chunk encodes each row twice, and {name} ({type(module).__name__}) would give "
                "another result the second time; train without chunk, or with its dropout at 0"
            )


def encode_in_chunks(model: EntityCLIP, batch: Batch, chunk: int, autocast: Autocast) -> Encoded:
    """The batch's tokens without a graph, encoded `chunk` rows at a time."""
    parts = []
    with torch.no_grad():
        for inputs in _chunks(model, batch, chunk):
            with autocast():
                parts.append(_kept(model, model.encode(**inputs)))
    return Encoded(*(_joined(sides) for sides in zip(*parts, strict=True)))


def compare(model: EntityCLIP, encoded: Encoded, batch: Batch, autocast: Autocast) -> Outputs:
    """What the model's forward pass yields, from tokens that are encoded already."""
    with autocast():
        return model.compare(encoded, batch.captions, batch.image_keys, peers=batch.peers)


def cached_backward(
    model: EntityCLIP,
    batch: Batch,
    chunk: int,
    objective: Callable[[Outputs], dict[str, Tensor]],
    backward: Callable[[Tensor], None],
    autocast: Autocast,
) -> dict[str, Tensor]:
    """Add the gradient of `objective(outputs)["loss"]` to the parameters'; the named terms.

    `backward` goes back from the loss (scaled as the caller likes) to the tokens, parameters of
    experts and matching on the way. Equal to one backward pass through the whole batch.
    """
    encoded = encode_in_chunks(model, batch, chunk, autocast)
    leaves = Encoded(*(side and _leaf(side) for side in encoded))
    terms = objective(compare(model, leaves, batch, autocast))
    backward(terms["loss"])
    start = 0
    for inputs in _chunks(model, batch, chunk):
        rows = slice(start, start := start + len(inputs["images"]))
        with autocast():
            again = _kept(model, model.encode(**inputs))
        sides = [(a, b) for a, b in zip(again, leaves, strict=True) if a is not None]
        _send_back(sides, rows)
    return terms


def _send_back(sides: list[tuple[Tokens, Tokens]], rows: slice) -> None:
    """Go back from a chunk's tokens with the gradients that its rows of the leaves received."""
    ends, gradients = [], []
    for again, leaf in sides:
        for end, cached in ((again.pooled, leaf.pooled), (again.tokens, leaf.tokens)):
            if cached.grad is not None:
                ends.append(end)
                gradients.append(cached.grad[rows])
    torch.autograd.backward(ends, gradients)


def _chunks(model: EntityCLIP, batch: Batch, chunk: int) -> Iterator[dict[str, Any]]:
    """`encode`'s arguments, `chunk` rows at a time; texts as long as the whole batch's."""
    texts = batch.captions, batch.explanations
    lengths = model.text_lengths(*texts) if batch.lengths is None else batch.lengths
    for start in range(0, len(batch), chunk):
        rows = slice(start, start + chunk)
        captions, explanations = (None if side is None else side[rows] for side in texts)
        yield {
            "images": batch.images[rows],
            "captions": captions,
            "explanations": explanations,
            "lengths": lengths,
        }


def _kept(model: EntityCLIP, encoded: Encoded) -> Encoded:
    """Without experts nothing but the pooled features is read."""
    if model.mmae is not None:
        return encoded
    return Encoded(*(side and side._replace(tokens=side.tokens[:, :0]) for side in encoded))


def _joined(parts: tuple[Tokens | None, ...]) -> Tokens | None:
    if parts[0] is None:
        return None
    return Tokens(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _leaf(side: Tokens) -> Tokens:
    return side._replace(
        pooled=side.pooled.detach().requires_grad_(), tokens=side.tokens.detach().requires_grad_()
    )
