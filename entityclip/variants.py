"""Every row of every table as data: a name, what it asks, and what it changes in the profile.

The paper's ablations ask what its parts add (tables on MMAE and GI-ITM); the controls ask what the
paper does not; the search looks for something better with the same data, steps and inference.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from entityclip.baselines.ascl.config import AsCLConfig
from entityclip.config import EntityCLIPConfig

NO_EXPERTS = {"image_experts": 0, "text_experts": 0, "explanation_experts": 0}
BRIDGE = {"bridge": 1.0}

Explanations = Literal["own", "shuffled", "random", "caption"]
Method = Literal["entityclip", "itr", "ascl"]


@dataclass(frozen=True)
class Variant:
    """One row of a table: its name, what it asks, and how it differs from the profile's model."""

    name: str
    asks: str
    model: dict[str, Any] = field(default_factory=dict)  # overrides of the method's config
    finetuned: bool = True
    explanations: Explanations = "own"  # what training reads (entityclip.controls)
    # "itr" starts from ITR's pretraining, "ascl" is AsCL's model (entityclip.neighbours)
    method: Method = "entityclip"

    def __post_init__(self) -> None:
        config = AsCLConfig if self.method == "ascl" else EntityCLIPConfig
        unknown = set(self.model) - {f.name for f in dataclasses.fields(config)}
        if unknown:
            raise ValueError(f"variant {self.name}: {config.__name__} has no {', '.join(unknown)}")


_MAIN = (
    Variant("zero-shot", "What does pretraining alone know of entities?", NO_EXPERTS, False),
    Variant("clip", "What does fine-tuning on captions alone give?", NO_EXPERTS),
    Variant(
        "itr",
        "What if ITR pretrains on unlabelled pairs first, and captions fine-tune as for CLIP?",
        NO_EXPERTS,
        method="itr",
    ),
    Variant(
        "ascl",
        "What do AsCL's texts and fusion give? Its richer text reads a second caption a picture.",
        method="ascl",
    ),
    Variant("entityclip", "What do MMAE and GI-ITM add, reading explanations in training?"),
    Variant(
        "bridge",
        "What if CLIP simply contrasts the explanation with picture and caption, no experts?",
        NO_EXPERTS | BRIDGE,
    ),
    Variant(
        "bridge-entityclip",
        "Do MMAE and GI-ITM add anything once the explanation is contrasted itself?",
        BRIDGE,
    ),
)

_MMAE = (
    Variant("no-image-experts", "Do the experts on the picture's tokens matter?",
            {"image_experts": 0}),
    Variant("no-text-experts", "Do the experts on the caption's tokens matter?",
            {"text_experts": 0}),
    Variant("no-explanation-experts", "Do the experts on the explanation matter?",
            {"explanation_experts": 0}),
    *(
        Variant(f"experts-{n}", f"Are {n} experts a group enough, or more than enough?",
                {"image_experts": n, "text_experts": n, "explanation_experts": n})
        for n in (1, 2, 8)
    ),
    *(
        Variant(f"lambda-{weight}", f"What does weight {weight} on VTC(V*, T*) do?",
                {"lambda_moe": weight})
        for weight in (0.01, 1.0)
    ),
    Variant("separate-experts", "Must both sides share the explanation experts' weights?",
            {"shared_explanation_experts": False}),
    Variant("padding-attended", "Does attending to padding, as the authors' code does, cost?",
            {"mask_padding": False}),
    Variant("reference-compat", "What do all of the authors' code's choices give?",
            {"reference_compat": True}),
)  # fmt: skip

_GI_ITM = (
    Variant("no-matching", "Does GI-ITM matter?", {"matching": "none"}),
    Variant("mean-fusion", "Does its gate beat a plain mean of the vectors?", {"matching": "mean"}),
    Variant("uniform-negatives", "Must its negatives be hard?", {"negatives": "uniform"}),
    Variant("positive-explanation", "Must a negative text bring its own explanation?",
            {"negative_explanation": "positive"}),
    Variant("eta-1.0", "What does weight 1 on GI-ITM do?", {"eta_itm": 1.0}),
)  # fmt: skip

_CONTROLS = (
    Variant("shuffled-explanations", "Is it what explanations say, or only that there are any?",
            explanations="shuffled"),
    Variant("random-explanations", "Would random words do?", explanations="random"),
    Variant("caption-as-explanation", "Does the explanation say more than the caption again?",
            explanations="caption"),
    Variant("shuffled-bridge", "Is it what explanations say that makes the bridge carry?",
            NO_EXPERTS | BRIDGE, explanations="shuffled"),
)  # fmt: skip

_SEARCH = (
    Variant("bridge-mmae", "The bridge and MMAE, no GI-ITM.", BRIDGE | {"matching": "none"}),
    Variant("bridge-0.5", "Half the bridge's weight, no experts.", NO_EXPERTS | {"bridge": 0.5}),
    Variant("bridge-2", "Twice the bridge's weight, no experts.", NO_EXPERTS | {"bridge": 2.0}),
    Variant("crossed", "EntityCLIP whose V* and T* cannot both read the explanation.",
            {"crossed": True}),
    Variant("bridge-crossed", "The bridge, and experts that cannot copy the explanation.",
            BRIDGE | {"crossed": True}),
    Variant("bridge-detached", "The bridge alone trains the explanation's encoding.",
            BRIDGE | {"detach_explanation": True}),
    Variant("bridge-dropout", "The bridge, three explanations in ten replaced by their captions.",
            NO_EXPERTS | BRIDGE | {"explanation_dropout": 0.3}),
    Variant("bridge-fading", "The bridge, and experts whose weight λ falls to 0 as training ends.",
            BRIDGE | {"lambda_end": 0.0}),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {
    variant.name: variant for variant in (*_MAIN, *_MMAE, *_GI_ITM, *_CONTROLS, *_SEARCH)
}

# each table's rows in order; the first is what the others are compared with
TABLES: dict[str, tuple[str, ...]] = {
    "main": tuple(v.name for v in _MAIN),
    "ablation_mmae": ("entityclip", "clip", *(v.name for v in _MMAE)),
    "ablation_gi_itm": ("entityclip", *(v.name for v in _GI_ITM)),
    "controls": ("entityclip", "clip", "bridge", *(v.name for v in _CONTROLS)),
    "search": ("clip", "entityclip", "bridge", "bridge-entityclip", *(v.name for v in _SEARCH)),
}

# whose experts are asked how much of V*·T* is the explanation copied (entityclip.probes)
LEAK = ("entityclip", "separate-experts", "shuffled-explanations", "crossed", "bridge-entityclip")


def find_variant(name: str) -> Variant:
    """The variant of that name. Raises ValueError, naming those there are, for another."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]
