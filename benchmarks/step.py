"""A whole training step, four ways, in one run.

    python -m benchmarks.step --device cuda --backbone ViT-B-32 --batch 192
    python -m benchmarks.step --device cpu  --backbone ViT-B-32 --batch 4 --steps 2
    python -m benchmarks.step --device cuda --variations

On synthetic batches that are copied from the host each step: plain CLIP fine-tuning; the same plus
encoding the explanations (and contrasting their EOT feature, so that they are trained); our
EntityCLIP step; and the literal formulation of tests/literal.py, four full expert passes on all
tokens, on the same towers. Texts fill the whole context, so that leaving padding out, which
only ours does, earns nothing (``--caption-tokens`` shortens the captions). Each is forward,
backward and a fused Adam step, in bf16 where the GPU has it, or in the ``--precision`` given. In
each of ``--rounds`` turns each way runs ``--warmup`` steps, then the ``--steps`` that are timed.

Printed as Markdown: steps a second, the time against the second row, peak memory. Goals for the
EntityCLIP step: at most 1.05 x the time and 1.10 x the memory of the second row, at least 2.3 x as
fast as the last. ``--variations`` times our step with one choice changed at a time instead.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import statistics
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.turns import options as command_line
from benchmarks.turns import timed
from entityclip.config import EntityCLIPConfig, TrainConfig
from entityclip.evaluation.provenance import environment, peak_memory_mb
from entityclip.models.clip import Backbone, Tokens, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.losses import itm_loss, vtc_loss
from entityclip.models.negatives import Negatives, draw_negatives, same_pairs
from entityclip.training.loop import make_optimizer
from entityclip.variants import BRIDGE, NO_EXPERTS
from tests.literal import LiteralEntityCLIP, Sides, mix

WAYS = {
    "clip": "CLIP fine-tuning",
    "explanations": "and explanations encoded",
    "entityclip": "EntityCLIP, ours",
    "literal": "EntityCLIP, literal",
}
_START, _END = 49406, 49407  # of CLIP's vocabulary


class Literal(nn.Module):
    """The towers and, on all their tokens, four full passes of textbook experts.

    The passes are those of tests/literal.py; the losses are the package's, whose literal twins loop
    over the pairs and would be slow for another reason.
    """

    def __init__(self, backbone: Backbone, config: EntityCLIPConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.experts = LiteralEntityCLIP(backbone.width, config)

    def forward(
        self, images: Tensor, captions: Tensor, explanations: Tensor, image_keys: Tensor
    ) -> Tensor:
        image = self.backbone.image_tokens(images)
        text, explanation = self.backbone.texts_tokens(captions, explanations, trim=False)
        scale = self.backbone.clip.logit_scale.exp()
        unit = [_unit(side.pooled) for side in (image, text)]
        logits = scale.detach() * unit[0].detach() @ unit[1].detach().T
        negatives = draw_negatives(logits, same_pairs(captions, image_keys))
        with torch.device(images.device):  # where the twin makes its row numbers
            return self.loss(image, text, explanation, negatives, unit, scale)

    def loss(
        self,
        image: Tokens,
        text: Tokens,
        explanation: Tokens,
        negatives: Negatives,
        unit: list[Tensor],
        scale: Tensor,
    ) -> Tensor:
        twin, (other_text, other_image, valid) = self.experts, negatives
        sides = (image, text, explanation)
        true = Sides.of(*sides)
        negatives = Sides.of(*sides, texts=other_text), Sides.of(*sides, images=other_image)
        v, ve, te, t = twin.vectors(true)
        mixed = (
            mix(twin.image_gate, image.pooled, [*v, *ve]),
            mix(twin.text_gate, text.pooled, [*t, *te]),
        )
        matched = [twin.match(pairs).float() for pairs in (true, *negatives)]
        return (
            vtc_loss(*unit, scale)
            + self.config.lambda_moe * vtc_loss(*map(_unit, mixed), scale)
            + self.config.eta_itm * itm_loss(torch.stack(matched), valid)
        )


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)


class Choices(NamedTuple):
    """What ``--variations`` changes, one at a time."""

    precision: str  # "bf16" or "fp32"
    fused: bool = True
    compiled: bool = False
    channels_last: bool = False
    non_blocking: bool = True


class Measured(NamedTuple):
    seconds: float  # a step
    memory_mb: float


def make_batch(
    options: argparse.Namespace, backbone: Backbone, choices: Choices
) -> dict[str, Tensor]:
    """A batch of noise on the host, page-locked where it goes to a GPU."""
    size = backbone.clip.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    context = backbone.clip.positional_embedding.shape[0]

    def texts(length: int) -> Tensor:
        ids = torch.zeros(options.batch, context, dtype=torch.long)
        ids[:, :length] = torch.randint(1, _START, (options.batch, length))
        ids[:, 0], ids[:, length - 1] = _START, _END
        return ids

    images = torch.randn(options.batch, 3, height, width)
    if choices.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    batch = {
        "images": images,
        "captions": texts(min(options.caption_tokens or context, context)),
        "explanations": texts(context),
        "image_keys": torch.arange(options.batch),
    }
    if options.device == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return batch


def make_step(
    way: str, options: argparse.Namespace, choices: Choices
) -> tuple[Callable[[], Tensor], nn.Module]:
    """One training step as a call, and its model."""
    torch.manual_seed(0)
    backbone = create_backbone(options.backbone)
    config = EntityCLIPConfig(
        **{"clip": NO_EXPERTS, "explanations": NO_EXPERTS | BRIDGE}.get(way, {})
    )
    model: nn.Module = (Literal if way == "literal" else EntityCLIP)(backbone, config)
    model = model.to(options.device).train()
    if choices.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, TrainConfig())
    if not choices.fused:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, False
    batch = make_batch(options, backbone, choices)
    forward = torch.compile(model) if choices.compiled else model
    enabled = choices.precision == "bf16"

    def step() -> Tensor:
        here = {
            name: tensor.to(options.device, non_blocking=choices.non_blocking)
            for name, tensor in batch.items()
        }
        with torch.autocast(options.device, dtype=torch.bfloat16, enabled=enabled):
            found = forward(**here)
            loss = found if way == "literal" else model.losses(found)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, model


def measure(way: str, options: argparse.Namespace, choices: Choices) -> Measured:
    """Time and peak memory of one way, built anew; nothing of the ways before it is left."""
    before = reset_peak(options.device)
    step, _ = make_step(way, options, choices)

    def steps(n: int) -> float:
        loss = torch.zeros(())
        for _ in range(n):
            loss = step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    steps(options.warmup)
    loss, taken = timed(steps, options.steps)
    if not math.isfinite(loss):
        raise SystemExit(f"{way}: the loss is {loss}; its time means nothing")
    return Measured(taken.wall / options.steps, peak_memory_mb(options.device) - before)


def reset_peak(device: str) -> float:
    """Give freed memory back and count peaks from here; returns the MiB still in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError, AttributeError):  # Linux only; else peaks of earlier ways stay
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mb(device)


def compare(options: argparse.Namespace, precision: str) -> None:
    runs: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):  # in turns, so that what else the machine does hits all alike
        for way in WAYS:
            runs[way].append(measure(way, options, Choices(precision)))
    seconds = {way: statistics.median(m.seconds for m in found) for way, found in runs.items()}
    memory = {way: max(m.memory_mb for m in found) for way, found in runs.items()}
    base = "explanations"
    print("| step | steps/s | time | peak memory, MiB | memory |\n|---|--:|--:|--:|--:|")
    for way, title in WAYS.items():
        print(
            f"| {title} | {1 / seconds[way]:.3f} | {seconds[way] / seconds[base]:.2f} x "
            f"| {memory[way]:.0f} | {memory[way] / memory[base]:.2f} x |"
        )
    ours, literal = seconds["entityclip"], seconds["literal"]
    print(
        f"\nours takes {ours / seconds[base]:.3f} x the time (goal 1.05) and "
        f"{memory['entityclip'] / memory[base]:.3f} x the memory (goal 1.10) of encoding alone, "
        f"and is {literal / ours:.2f} x as fast as the literal form (goal 2.3)"
    )


def vary(options: argparse.Namespace, precision: str) -> None:
    default = Choices(precision)
    choices = {
        "as in training": default,
        "fp32": default._replace(precision="fp32"),
        "optimizer not fused": default._replace(fused=False),
        "torch.compile": default._replace(compiled=True),
        "channels-last": default._replace(channels_last=True),
        "blocking copies": default._replace(non_blocking=False),
    }
    if precision == "fp32":
        del choices["fp32"]
    found = {name: measure("entityclip", options, choice) for name, choice in choices.items()}
    base = found["as in training"].seconds
    print("| EntityCLIP step | steps/s | time | peak memory, MiB |\n|---|--:|--:|--:|")
    for name, (seconds, memory_mb) in found.items():
        print(f"| {name} | {1 / seconds:.3f} | {seconds / base:.3f} x | {memory_mb:.0f} |")


def main() -> None:
    options = command_line(
        __doc__, device="cpu", backbone="ViT-B-32", batch=192, steps=10, warmup=3, rounds=2,
        caption_tokens=0, precision="auto", variations=False,
    )  # fmt: skip
    precision = options.precision
    if precision == "auto":
        able = options.device == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if able else "fp32"
    if precision not in ("bf16", "fp32"):
        raise SystemExit(f"--precision is {precision!r}; it must be auto, bf16 or fp32")
    here = environment()
    device = torch.cuda.get_device_name() if options.device == "cuda" else here["device"]
    threads = "" if options.device == "cuda" else f", {torch.get_num_threads()} threads"
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {device.removesuffix(threads)}{threads}, "
        f"torch {here['torch']}: {options.backbone}, batch {options.batch}, {precision}, captions "
        f"of {options.caption_tokens or 'all'} tokens, {options.rounds} x {options.steps} steps\n"
    )
    (vary if options.variations else compare)(options, precision)


if __name__ == "__main__":
    main()
