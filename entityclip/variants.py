"""Every row of every table as data: a name, what it asks, and what it changes in the profile.

The paper's ablations ask what its parts add (tables on MMAE and GI-ITM); the controls ask what the
paper does not; the search looks for something better with the same data, steps and inference.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pandas as pd

from entityclip.config import AsCLConfig, EntityCLIPConfig, Task

NO_EXPERTS = {"image_experts": 0, "text_experts": 0, "explanation_experts": 0}

BRIDGE = {"bridge": 1.0}

NAME_VIEWS = {"name_views": 0.5}

CONTEXT = {"context": 1.0}

Explanations = Literal["own", "shuffled", "random", "caption"]

Method = Literal["entityclip", "itr", "ascl"]

# what is done after training, with another variant's run: weights between its start and its end,
# or a random start and its end; queries beside their own or another's explanation; both softmaxes
After = Literal["wise-ft", "wise-ft-random", "expanded", "expanded-shuffled", "dual-softmax"]
INTERPOLATED, EXPANDED = ("wise-ft", "wise-ft-random"), ("expanded", "expanded-shuffled")


@dataclass(frozen=True)
class Variant:
    """One row of a table: its name, what it asks, and how it differs from the profile's model."""

    name: str
    label: str  # as readers of tables and figures see it
    asks: str
    model: dict[str, Any] = field(default_factory=dict)  # overrides of the method's config
    finetuned: bool = True
    explanations: Explanations = "own"  # what training reads
    method: Method = "entityclip"  # "itr" starts from ITR's pretraining, "ascl" is AsCL's model
    after: After | None = None  # what is done with the run of the variant `of`
    of: str = ""

    def __post_init__(self) -> None:
        config = AsCLConfig if self.method == "ascl" else EntityCLIPConfig
        unknown = set(self.model) - {f.name for f in dataclasses.fields(config)}
        if unknown:
            raise ValueError(f"variant {self.name}: {config.__name__} has no {', '.join(unknown)}")


_MAIN = (
    Variant("zero-shot", "CLIP, zero-shot", "What does pretraining alone know of entities?",
            NO_EXPERTS, finetuned=False),
    Variant("clip", "CLIP, fine-tuned", "What does fine-tuning on captions alone give?",
            NO_EXPERTS),
    Variant("itr", "ITR, fine-tuned",
            "What if ITR pretrains on unlabelled pairs first, and captions fine-tune as for CLIP?",
            NO_EXPERTS, method="itr"),
    Variant("ascl", "AsCL (fused at test)",
            "What do AsCL's texts and fusion give? Its richer text reads a second caption; at test "
            "its fusion compares each picture with each caption, not two vectors.",
            method="ascl"),
    Variant("entityclip", "EntityCLIP",
            "What do MMAE and GI-ITM add, reading explanations in training?"),
    Variant("bridge", "CLIP + bridge",
            "What if CLIP simply contrasts the explanation with picture and caption, no experts?",
            NO_EXPERTS | BRIDGE),
    Variant("bridge-entityclip", "EntityCLIP + bridge",
            "Do MMAE and GI-ITM add anything once the explanation is contrasted itself?", BRIDGE),
    Variant("name-views", "Bridge on name views",
            "And if names must carry the picture now and then? The bridge, half of a step's "
            "explanations read as some of their names alone.",
            NO_EXPERTS | BRIDGE | NAME_VIEWS),
    Variant("name-views-context", "Name views + context",
            "And if the scene is kept? The same, and caption and explanation together against the "
            "picture.",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT),
)  # fmt: skip

_MMAE = (
    Variant("no-image-experts", "No image experts",
            "Do the experts on the picture's tokens matter?", {"image_experts": 0}),
    Variant("no-text-experts", "No text experts",
            "Do the experts on the caption's tokens matter?", {"text_experts": 0}),
    Variant("no-explanation-experts", "No explanation experts",
            "Do the experts on the explanation matter?", {"explanation_experts": 0}),
    *(
        Variant(f"experts-{n}", f"{n} expert{'s' if n > 1 else ''} a group",
                f"Are {n} experts a group enough, or more than enough?",
                {"image_experts": n, "text_experts": n, "explanation_experts": n})
        for n in (1, 2, 8)
    ),
    *(
        Variant(f"lambda-{weight}", f"λ = {weight:g}",
                f"What does weight {weight} on VTC(V*, T*) do?", {"lambda_moe": weight})
        for weight in (0.01, 1.0)
    ),
    Variant("separate-experts", "Separate explanation experts",
            "Must both sides share the explanation experts' weights?",
            {"shared_explanation_experts": False}),
    Variant("padding-attended", "Padding attended",
            "Does attending to padding, as the authors' code does, cost?", {"mask_padding": False}),
    Variant("reference-compat", "As the public code",
            "What do all of the authors' code's choices give?", {"reference_compat": True}),
)  # fmt: skip

_GI_ITM = (
    Variant("no-matching", "No matching", "Does GI-ITM matter?", {"matching": "none"}),
    Variant("mean-fusion", "Mean fusion", "Does its gate beat a plain mean of the vectors?",
            {"matching": "mean"}),
    Variant("uniform-negatives", "Uniform negatives", "Must its negatives be hard?",
            {"negatives": "uniform"}),
    Variant("floored-negatives", "Floored negatives",
            "What does the public code's draw do: a floor under every pair, the pair itself too?",
            {"negatives": "floored"}),
    Variant("positive-explanation", "The positive's explanation",
            "Must a negative text bring its own explanation?",
            {"negative_explanation": "positive"}),
    Variant("eta-1.0", "η = 1", "What does weight 1 on GI-ITM do?", {"eta_itm": 1.0}),
)  # fmt: skip

_CONTROLS = (
    Variant("shuffled-explanations", "Explanations shuffled",
            "Is it what explanations say, or only that there are any?", explanations="shuffled"),
    Variant("random-explanations", "Random words", "Would random words do?",
            explanations="random"),
    Variant("caption-as-explanation", "Caption as explanation",
            "Does the explanation say more than the caption again?", explanations="caption"),
    Variant("shuffled-bridge", "Bridge, shuffled",
            "Is it what explanations say that makes the bridge carry?",
            NO_EXPERTS | BRIDGE, explanations="shuffled"),
    Variant("crossed", "Crossed", "What if V* and T* cannot both read the explanation?",
            {"crossed": True}),
)  # fmt: skip

_VIEWS = (
    Variant("context", "Bridge + context",
            "The bridge, and the explanation beside the caption against the picture.",
            NO_EXPERTS | BRIDGE | CONTEXT),
    Variant("entityclip-name-views", "EntityCLIP on name views",
            "The paper's own losses, its experts reading names alone half of the time.",
            NAME_VIEWS),
    Variant("word-views", "Any words as views",
            "Is it names, or only that half of the explanations are short?",
            NO_EXPERTS | BRIDGE | CONTEXT | NAME_VIEWS | {"views_of": "words"}),
    Variant("other-views", "Another pair's names",
            "Must the names be the explanation's own?",
            NO_EXPERTS | BRIDGE | CONTEXT | NAME_VIEWS | {"views_of": "others"}),
    Variant("caption-views", "The caption's names",
            "Are the names enough that the caption tells already?",
            NO_EXPERTS | BRIDGE | CONTEXT | NAME_VIEWS | {"views_of": "caption"}),
    Variant("shuffled-context", "Name views + context, shuffled",
            "Is it what explanations say?",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT, explanations="shuffled"),
    Variant("caption-context", "Name views + context, captions",
            "Does the caption twice do as much?",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT, explanations="caption"),
)  # fmt: skip


_METHODS = (
    Variant("masked-negatives", "False negatives masked",
            "Do pairs of one article hurt as negatives of each other?",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT | {"false_negatives": "masked"}),
    Variant("random-masked", "As many masked at random",
            "Is it those pairs, or only fewer negatives?",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT | {"false_negatives": "random"}),
    Variant("frozen-image", "Picture tower frozen",
            "Need pictures be seen otherwise, or only names be learned (Zhai et al. 2022)?",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT | {"frozen": "image"}),
    Variant("frozen-text", "Text tower frozen", "Or is it the other way round?",
            NO_EXPERTS | BRIDGE | NAME_VIEWS | CONTEXT | {"frozen": "text"}),
    Variant("alias-swaps", "Alias-swapped captions",
            "What if half of a step's captions tell one name by another that explanations give?",
            NO_EXPERTS | BRIDGE | CONTEXT | {"alias_swaps": 0.5}),
    Variant("other-swaps", "Swapped with another's",
            "Must the other name be the same country's?",
            NO_EXPERTS | BRIDGE | CONTEXT | {"alias_swaps": 0.5, "swaps_of": "others"}),
)  # fmt: skip


def _after(of: str, after: After, label: str, asks: str) -> Variant:
    """A variant that takes another's run."""
    base = next(variant for variant in _MAIN if variant.name == of)
    name, label = f"{after}-{of}", f"{base.label}, {label}"
    return dataclasses.replace(base, name=name, label=label, asks=asks, after=after, of=of)


_AFTERWARDS = tuple(
    _after(of, after, label, asks)
    for of in ("clip", "name-views-context")
    for after, label, asks in (
        ("wise-ft", "WiSE-FT",
         "Do weights between the start and the end of fine-tuning do better? How far between is "
         "chosen on the validation splits (Wortsman et al. 2022)."),
        ("wise-ft-random", "from a random start",
         "Is it the start that pretraining left, or would any do?"),
        ("expanded", "query expansion",
         "What if a language model explained each query at test, too? norm(T* + E*) asks: an upper "
         "bound."),
        ("expanded-shuffled", "expanded by another's",
         "Must the explanation be the query's own?"),
        ("dual-softmax", "dual softmax",
         "What if all test queries were known at once? Scores by softmax over pictures and over "
         "queries; not to be compared with the others."),
    )
)  # fmt: skip

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (*_MAIN, *_MMAE, *_GI_ITM, *_CONTROLS, *_VIEWS, *_METHODS, *_AFTERWARDS)
}

# each table's rows in order; the first is what the others are compared with
TABLES: dict[str, tuple[str, ...]] = {
    "main": tuple(v.name for v in _MAIN),
    "ablation_mmae": ("entityclip", "clip", *(v.name for v in _MMAE)),
    "ablation_gi_itm": ("entityclip", *(v.name for v in _GI_ITM)),
    "controls": ("entityclip", "clip", "bridge", *(v.name for v in _CONTROLS)),
    "views": ("name-views-context", "clip", "entityclip", "bridge", "name-views",
              *(v.name for v in _VIEWS)),
    "methods": ("name-views-context", "clip", "bridge", "context", *(v.name for v in _METHODS)),
    "afterwards": ("name-views-context", "clip", *(v.name for v in _AFTERWARDS)),
    # what may win, chosen by R@1 on VAL_SPLITS alone: no refuters, nothing that reads other data
    "search": ("clip", "entityclip", "bridge", "bridge-entityclip", "name-views-context",
               "name-views", "context", "entityclip-name-views"),
}  # fmt: skip

# whose weights the notebooks look at, and table "afterwards" takes
KEPT = ("clip", "entityclip", "name-views-context")

# training captions that hold a query's rarest name, by the least of a bin; -1: it has no name
NAME_BINS = {-1: "no name", 0: "0", 1: "1–3", 4: "4–19", 20: "20–99", 100: "100 and more"}
BY_NAME, NAMES_CUT = "rarest name in {} training captions", "names cut"

# what a caption's picture is compared with (evaluation.distractors), in percent
IN_SCENE = "in-scene percentile"
ONE_FLAG = "one flag in common, beaten"  # distractors of the same scene
SAME_FLAGS = "same flags, beaten"  # distractors of another scene: forgotten events
DISTRACTORS = (IN_SCENE, ONE_FLAG, SAME_FLAGS)

# what a step and a query cost (evaluation.cost), in the units that tables print
COSTED = ("clip", "bridge", "no-matching", "entityclip", "name-views-context")
COSTS = {
    "parameters": "parameters (millions)",
    "GFLOPs a pair": "GFLOPs a pair",
    "MMAE's share": "of these MMAE and GI-ITM (%)",
    "ms a pair": "step, ms a pair",
    "memory": "memory of a step (MiB)",
    "query": "1,000 queries (s)",
}

# whose experts are asked how much of V*·T* is the explanation copied (evaluation.inspection)
LEAK = ("entityclip", "separate-experts", "shuffled-explanations", "crossed", "bridge-entityclip")


# tables of notebook 13, whose rows the profile lists (`identities.table_entries`)
LISTED = ("backbones", "mixes", "grid", "explanation_sources")

_MIX = re.compile(r"mix-(\d+)-(\d+)-(\d+)")
_WEIGHTS = re.compile(r"weights-(\d[\d.e+-]*)-x-(\d[\d.e+-]*)")


def mix_name(mix: str) -> str:
    """The variant of a mix of experts, v-s-e: the picture's, the caption's, the explanation's."""
    return f"mix-{mix}"


def weights_name(lambda_moe: float, eta_itm: float) -> str:
    """The variant of a place in the grid λ × η."""
    return f"weights-{lambda_moe:g}-x-{eta_itm:g}"


def find_variant(name: str) -> Variant:
    """The variant of that name: one of VARIANTS, or one that its name spells out.

    Such are `mix_name` and `weights_name`. Raises ValueError, naming those there are, for another.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if mix := _MIX.fullmatch(name):
        counts = dict(zip(NO_EXPERTS, map(int, mix.groups()), strict=True))
        return Variant(
            name, f"{'-'.join(mix.groups())} experts", "What does this mix give?", counts
        )
    if weights := _WEIGHTS.fullmatch(name):
        first, second = map(float, weights.groups())
        label, both = f"λ = {first:g}, η = {second:g}", {"lambda_moe": first, "eta_itm": second}
        return Variant(name, label, "What do these weights give?", both)
    raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")


# whose explanation each side reads, image and text: its own, or that of one other pair or another
CONDITIONS = {
    "own": ("own", "own"),
    "same wrong": ("other", "other"),
    "wrong for the image": ("other", "own"),
    "wrong for the text": ("own", "other"),
    "two different wrong": ("other", "another"),
}

MATCHING = ("matched", "wrong text", "wrong image")


# -------------------------------------------------------------------------------- AsCL's chapter

_NO_SAMPLES = {"richer": False, "poorer": False, "wrong": "none"}

# variant -> how its model differs from the profile's
ASCL_VARIANTS: dict[str, dict[str, Any]] = {
    "contrastive": {"fusion": False, "temperature": None, **_NO_SAMPLES},
    "ascl": {},
    "ascl, no fusion": {"fusion": False},
    "ascl, no samples": _NO_SAMPLES,
    "ascl, no richer text": {"richer": False},
    "ascl, no poorer text": {"poorer": False},
    "ascl, no wrong text": {"wrong": "none"},
}


class Measured(NamedTuple):
    """How a model is asked: with the first half of each caption, and with re-ranking."""

    short_queries: bool = False
    rerank: bool = False

    def split(self, split: str) -> str:
        """The split's name in result rows."""
        return f"{split}, first halves" if self.short_queries else split

    def variant(self, variant: str) -> str:
        """The variant's name in result rows."""
        return f"{variant}, re-ranked" if self.rerank else variant


ASCL_WAYS = (Measured(), Measured(short_queries=True), Measured(rerank=True))


# ------------------------------------------------------------------------------- ITR's relations

PROTOCOLS = ("linear probe", "clusters", "fine-tuning")
# what the text says, the image adds, and both; then the first two, read from a probe of the third
RELATION_LABELS = ("text", "image", "combined", "text of combined", "image of combined")

BEFORE = "CLIP"  # the start weights, without ITR

Tasks = Sequence[Task] | None  # of ITR's pretraining; None: no ITR


def variant_name(tasks: Tasks) -> str:
    """A pretraining's name in rows and figures, e.g. ``ITR: cluster_image + contrast``."""
    return BEFORE if tasks is None else f"ITR: {' + '.join(tasks)}"


# ------------------------------------------------------------------ cross-domain, and sections

DOMAINS = ("newsroom", "newsroom-b")  # the drawn ones, which are each other's
ARCHIVES = ("n24news", "visualnews", "goodnews")  # the paper's

# what a section's name stands in when a picture is compared with it
TEMPLATES = (
    "a news photo from the {section} section",
    "a press photo for the {section} section of a newspaper",
    "a picture of {section} news",
    "the {section} pages of a newspaper",
    "a photo from a report on {section}",
)

NOT_FINETUNED = "none"  # the training domain of a variant that is only pretrained

GENERALIZED = ("zero-shot", "clip", "entityclip")  # the variants of notebook 07


# --------------------------------------------------------------------------------- curves, labels

TERM = "vtc"  # the one that all variants have, so the one to compare

CURVE_SPLITS = {"train": TERM, "val": f"val_{TERM}"}  # a split, and the log's column for it

# what is found without knowing any name: no variants, but rows beside them
FLOORS = {
    "scene-only": "Floor: scene known, no name",
    "names-cut": "Floor: names cut from the captions",
}

VARIANT_LABELS = {variant.name: variant.label for variant in VARIANTS.values()} | FLOORS

VAL_SPLITS = ("val", "val_longtail")  # where everything that is chosen is chosen

SPLIT_LABELS = {
    "test": "Test",
    "test, by article": "Test, by article",
    "test_rare": "Rare names",
    "test_alias": "Aliases",
    "test_unseen": "Unseen names",
    "val": "Validation",
    "val_longtail": "Validation, rare names and aliases",
    "generic_val": "Generic captions",
}

DATASET_LABELS = {
    "n24news": "N24News",
    "visualnews": "VisualNews",
    "goodnews": "GoodNews",
    "newsroom": "Newsroom",
}

DIRECTION_LABELS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def label(name: str, names: dict[str, str]) -> str:
    """A name as a reader should see it; one that `names` lacks stands for itself."""
    return names.get(name, name)


def in_order(names: pd.Series, known: dict[str, str]) -> list[str]:
    """The distinct names: known ones in the house's order, then the others by alphabet."""
    present = set(names)
    return [n for n in known if n in present] + sorted(present - set(known))
