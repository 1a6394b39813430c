"""AsCL's cross-attention similarity, literal against ours, in one run.

    python -m benchmarks.ascl [--batch 64] [--regions 49] [--words 32] [--width 512] [--repeats 3]
    python -m benchmarks.ascl --evaluate 1000 5000

Forward and backward of the similarities of B pictures with B texts from given tokens: the loop over
captions of tests/literal_ascl.py and the package's, on the same weights, taking turns. Printed are
medians of wall and of processor time, their ratios, and the largest difference of a gradient,
relative to the largest gradient. ``--evaluate M N`` compares M pictures with N captions instead
and prints similarities a second, of wall and of processor time, and the peak memory of the
process; the time grows with M N, so a part tells the whole's.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.gradients import compare_gradients, noise
from benchmarks.turns import options, timed
from entityclip.evaluation.provenance import peak_memory_mb
from entityclip.models.ascl import HierarchicalFusion
from tests.literal_ascl import similarity as literal_similarity


def make_fusion(width: int, device: str) -> HierarchicalFusion:
    """With random weights: the identity it starts from would not test much."""
    fusion = HierarchicalFusion(width, heads=8, local_weight=0.8).to(device)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=width**-0.5)
    return fusion


def compare(args: argparse.Namespace) -> None:
    image = noise(args.batch, 1 + args.regions, args.width, args.device)
    text = noise(args.batch, args.words, args.width, args.device)
    fusion, tokens = make_fusion(args.width, args.device), [image.tokens, text.tokens]

    def sides():  # pooled rows are taken anew so that each repetition has a graph of its own
        return (side._replace(pooled=side.tokens[:, 0]) for side in (image, text))

    def ours():
        picture, caption = sides()
        return fusion(fusion.image_side(picture), fusion.text_side(caption, text.valid))

    def literal():
        return literal_similarity(fusion, *sides(), text.valid)

    print(
        f"B={args.batch} regions={args.regions} words={args.words} d={args.width}, 8 heads, "
        f"{args.device}, {torch.get_num_threads()} threads"
    )
    ways = {"literal": lambda: literal().sin().sum(), "ours": lambda: ours().sin().sum()}
    compare_gradients(ways, tokens, list(fusion.parameters()), args.repeats)


@torch.inference_mode()
def evaluate(args: argparse.Namespace, pictures: int, captions: int, at_once: int = 64) -> None:
    fusion = make_fusion(args.width, args.device)
    before = peak_memory_mb(args.device)

    def similarities() -> Tensor:
        image = fusion.image_side(noise(pictures, 1 + args.regions, args.width, args.device))
        found = torch.empty(pictures, captions)
        for first in range(0, captions, at_once):
            n = min(at_once, captions - first)
            text = noise(n, args.words, args.width, args.device)
            found[:, first : first + n] = fusion(image, fusion.text_side(text, text.valid)).cpu()
        return found

    found, taken = timed(similarities)
    assert torch.isfinite(found).all()
    print(f"{pictures} pictures x {captions} captions, {args.regions} regions, {args.words} words")
    for name, spent in taken._asdict().items():
        print(f"{spent:8.1f} s {name:9} {pictures * captions / spent:8.0f} similarities a second")
    print(f"peak {peak_memory_mb(args.device):.0f} MiB, "
          f"{before:.0f} MiB of it before the first token")  # fmt: skip


def main() -> None:
    args = options(
        __doc__, batch=64, regions=49, words=32, width=512, repeats=3, device="cpu", evaluate=(0, 0)
    )
    torch.manual_seed(0)
    if any(args.evaluate):
        evaluate(args, *args.evaluate)
    else:
        compare(args)


if __name__ == "__main__":
    main()
