"""EntityCLIP's expert objective, literal against ours, in one run.

    python -m benchmarks.mmae [--batch 32] [--width 512] [--experts 4] [--repeats 3]

Forward and backward of MMAE and GI-ITM from given tokens (50 picture, 77 caption, 77 explanation
tokens): the textbook form of tests/literal.py (every token, four full passes) and the package's.
Both run in this process on the same weights and negatives; printed are the medians, their ratio
and the largest difference of a token's gradient, relative to the largest gradient. Then
ours takes turns with the matrix products that it is made of, forward and backward, and nothing else
(`benchmarks.products` says which and how). Goals: 60 x faster than the literal form, and at most
1.5 x the time of its products.
"""

from __future__ import annotations

import torch

from benchmarks.gradients import both_passes, compare_gradients, noise
from benchmarks.products import compare_products
from benchmarks.turns import options
from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import Tokens
from entityclip.models.entityclip import GatedMatching
from entityclip.models.experts import MMAE
from entityclip.models.losses import itm_loss, vtc_loss
from entityclip.models.negatives import Negatives
from tests.literal import Sides, twin_of

LENGTHS = {"image": 50, "text": 77, "explanation": 77}


def make_tokens(batch: int, width: int, device: str) -> list[Tokens]:
    return [
        noise(
            *(batch, length, width, device),
            at=None if kind == "image" else torch.randint(8, length, (batch,)),
        )
        for kind, length in LENGTHS.items()
    ]


def our_loss(mmae: MMAE, matching: GatedMatching, sides: list[Tokens], negatives: Negatives, scale):
    image, text, explanation = sides
    rows = torch.arange(len(image.pooled), device=scale.device)
    # pooled rows are taken anew so that each repetition has a graph of its own
    image, text = (s._replace(pooled=s.tokens[rows, s.at]) for s in (image, text))
    unit = torch.nn.functional.normalize
    pairs = mmae(image, text, explanation, negatives)
    mixed = mmae.mix(image, text, pairs[0])
    images = torch.cat([image.pooled, image.pooled, image.pooled[negatives.image]])
    texts = torch.cat([text.pooled, text.pooled[negatives.text], text.pooled])
    vectors = type(pairs[0])(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
    logits = matching(images, texts, vectors).view(3, -1, 2)
    vtc = vtc_loss(unit(image.pooled, dim=-1), unit(text.pooled, dim=-1), scale)
    vtc_moe = vtc_loss(unit(mixed[0], dim=-1), unit(mixed[1], dim=-1), scale)
    return vtc + 0.1 * vtc_moe + 0.1 * itm_loss(logits, negatives.valid)


def main() -> None:
    args = options(__doc__, batch=32, width=512, experts=4, repeats=3, device="cpu")
    torch.manual_seed(0)
    counts = (args.experts,) * 3
    config = EntityCLIPConfig(*counts)
    mmae = MMAE(args.width, config).to(args.device)
    matching = GatedMatching(args.width, 4 * args.experts).to(args.device)
    twin = twin_of(mmae, matching, config).to(args.device)
    sides = make_tokens(args.batch, args.width, args.device)
    scale = torch.tensor(14.3, device=args.device)
    rows = torch.arange(args.batch, device=args.device)
    negatives = Negatives(rows.roll(1), rows.roll(2), torch.ones_like(rows, dtype=torch.bool))
    whole = Sides.of(*sides)

    name = torch.cuda.get_device_name() if args.device != "cpu" else "CPU"
    print(f"B={args.batch} d={args.width} experts={counts} L={tuple(LENGTHS.values())} on {name}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    tokens = [side.tokens for side in sides]
    parameters = [*mmae.parameters(), *matching.parameters(), *twin.parameters()]

    def ours():
        return our_loss(mmae, matching, sides, negatives, scale)

    ways = {"literal": lambda: twin(whole, scale, *negatives)["loss"], "ours": ours}
    compare_gradients(ways, tokens, parameters, args.repeats)
    # more rounds than of the literal form, which takes as long as hundreds of these
    compare_products(lambda: both_passes(ours, tokens, parameters), 5 * args.repeats)


if __name__ == "__main__":
    main()
