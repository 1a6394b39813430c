"""Every row of every table as data: a name, what it asks, and what it changes in the profile.

The paper's ablations ask what its parts add (tables on MMAE and GI-ITM); the controls ask what the
paper does not; the search looks for something better with the same data, steps and inference.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pandas as pd

from entityclip.config import (
    AsCLConfig,
    EntityCLIPConfig,
    ITRConfig,
    PairSource,
    Profile,
    Settings,
    Task,
    as_dict,
)

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
    explanations: Explanations = "own"  # what training reads
    # "itr" starts from ITR's pretraining, "ascl" is AsCL's model
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


# whose experts are asked how much of V*·T* is the explanation copied (entityclip.evaluation.probes)
LEAK = ("entityclip", "separate-experts", "shuffled-explanations", "crossed", "bridge-entityclip")


def find_variant(name: str) -> Variant:
    """The variant of that name. Raises ValueError, naming those there are, for another."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
    return VARIANTS[name]


# whose explanation each side reads, image and text: its own, or that of one other pair or another
CONDITIONS = {
    "own": ("own", "own"),
    "same wrong": ("other", "other"),
    "wrong for the image": ("other", "own"),
    "wrong for the text": ("own", "other"),
    "two different wrong": ("other", "another"),
}


MATCHING = ("matched", "wrong text", "wrong image")


# ------------------------------------------------------------------------------------- identities


def model_config(settings: Settings, variant: str) -> EntityCLIPConfig | AsCLConfig:
    """The variant's model: the profile's, with the variant's overrides."""
    spec = find_variant(variant)
    own = settings.model if spec.method != "ascl" else _ascl_model(settings)
    return replace(own, **spec.model)


def identity(settings: Settings, variant: str, seed: int) -> dict[str, Any]:
    """What makes a run of `variant` this run and no other: all of its settings, but no data.

    A row's `config` is this, or this and what was asked of the model. Raises ValueError for an
    unknown variant.
    """
    spec, start = find_variant(variant), _start(settings)
    if spec.method == "itr":
        start = _itr_start(settings, start)
    found = {
        "variant": variant,
        "seed": seed,
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "start": start,
        "dataset": settings.dataset,
        "data_seed": settings.data_seed,
        "model": as_dict(model_config(settings, variant)),
    }
    if spec.finetuned:
        found["finetuning"] = as_dict(settings.finetuning)
        found["train_pairs"] = settings.train_pairs
        found["val_pairs"] = settings.val_pairs
        found["explanation_policy"] = settings.explanation_policy
        if settings.explanation_source != "own":  # else the hashes of older runs would change
            found["explanation_source"] = settings.explanation_source
        found["explanations"] = spec.explanations
        if settings.train_decoding != "exact":  # drawn pictures, and runs before it, know none
            found["train_decoding"] = settings.train_decoding
    return found


def _start(settings: Settings) -> Any:
    return as_dict(settings.pretraining) if settings.pretraining else settings.pretrained


def _itr_start(settings: Settings, start: Any) -> dict[str, Any]:
    """What makes the weights of ITR's pretraining, next to the run's seed; from `start` on."""
    if settings.itr is None:
        return {"itr": None, "from": start}
    objective = as_dict(settings.itr.objective)
    del objective["seed"]  # it is the run's
    unlabelled = _source(settings.itr.unlabelled)
    itr = {"objective": objective, "unlabelled": unlabelled, "held_out": settings.itr.held_out}
    return {"itr": itr, "from": start}


def _source(source: PairSource) -> dict[str, Any]:
    return source.model_dump(exclude={"data_root"})


def _ascl_model(settings: Settings) -> AsCLConfig:
    return settings.ascl.model if settings.ascl else AsCLConfig()


# -------------------------------------------------------------------------------- AsCL's chapter


_NO_SAMPLES = {"richer": False, "poorer": False, "wrong": False}


# variant -> how its model differs from the profile's
ASCL_VARIANTS: dict[str, dict[str, Any]] = {
    "contrastive": {"fusion": False, "temperature": None, **_NO_SAMPLES},
    "ascl": {},
    "ascl, no fusion": {"fusion": False},
    "ascl, no samples": _NO_SAMPLES,
    "ascl, no richer text": {"richer": False},
    "ascl, no poorer text": {"poorer": False},
    "ascl, no wrong text": {"wrong": False},
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


def ascl_identity(profile: Profile, variant: str, seed: int) -> dict[str, Any]:
    """What makes a run of AsCL's chapter; `variant` is one of ASCL_VARIANTS, or ValueError."""
    if variant not in ASCL_VARIANTS:
        raise ValueError(f"no AsCL variant {variant!r}; there are {', '.join(ASCL_VARIANTS)}")
    settings, ascl = profile.settings, profile.settings.ascl
    return {
        "method": "ascl",
        "variant": variant,
        "seed": seed,
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "start": _start(settings),
        "start_seed": profile.seed,
        "dataset": ascl.dataset,
        "data_seed": settings.data_seed,
        "model": as_dict(replace(ascl.model, **ASCL_VARIANTS[variant])),
        "finetuning": as_dict(replace(ascl.finetuning, seed=seed)),
    }


def ascl_measured(profile: Profile, variant: str, seed: int, way: Measured) -> dict[str, Any]:
    """What makes a measurement of that run, asked in one way."""
    ascl = profile.settings.ascl
    depths = {"text": ascl.rerank_text, "image": ascl.rerank_image}
    return {
        **ascl_identity(profile, variant, seed),
        "train": [ascl.train_split, ascl.train_pairs],
        "val": [ascl.val_split, ascl.val_pairs],
        "test": ascl.test_split,
        "short_queries": way.short_queries,
        "rerank": depths if way.rerank else None,
    }


def ascl_seeds(profile: Profile) -> range:
    """Seeds of the chapter's fine-tunings, from the profile's own on."""
    return range(profile.seed, profile.seed + profile.settings.ascl.seeds)


# ------------------------------------------------------------------------------- ITR's relations


PROTOCOLS = ("linear probe", "clusters", "fine-tuning")
RELATION_LABELS = ("text", "image", "combined")  # what the text says, the image adds, and both


BEFORE = "CLIP"  # the start weights, without ITR


Tasks = Sequence[Task] | None  # of ITR's pretraining; None: no ITR


def variant_name(tasks: Tasks) -> str:
    """A pretraining's name in rows and figures, e.g. ``ITR: cluster_image + contrast``."""
    return BEFORE if tasks is None else f"ITR: {' + '.join(tasks)}"


def itr_config(settings: Settings, tasks: Tasks, seed: int) -> ITRConfig:
    """The profile's objective with this seed and, unless None, these tasks."""
    objective = settings.itr.objective
    tasks = objective.tasks if tasks is None else tuple(tasks)
    return replace(objective, seed=seed, tasks=tasks)


def itr_identity(
    settings: Settings, start: dict[str, Any], seed: int, tasks: Tasks = None
) -> dict[str, Any]:
    """What makes a pretraining by ITR; `start` tells of the weights it starts from."""
    return {
        "start": start,
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "unlabelled": _source(settings.itr.unlabelled),
        "held_out": settings.itr.held_out,
        "itr": as_dict(itr_config(settings, tasks, seed)),
    }


def relation_identity(profile: Profile, tasks: Tasks, seed: int, protocol: str) -> dict[str, Any]:
    """What makes a measurement of relations: towers before (`tasks` None) or after ITR, judged."""
    settings, itr = profile.settings, profile.settings.itr
    start = identity(settings, "zero-shot", profile.seed)
    towers = {"start": start} if tasks is None else itr_identity(settings, start, seed, tasks)
    return {
        "towers": towers,
        "protocol": protocol,
        "seed": seed,
        "labelled": _source(itr.labelled),
        "judged": _source(itr.judged),
        "classifier": as_dict(itr.classifier) if protocol == "fine-tuning" else None,
        "bootstrap": settings.bootstrap,
    }


def relation_variants(settings: Settings) -> dict[str, Tasks]:
    """What is compared by name: the start weights, then each set of tasks of the profile."""
    return {variant_name(tasks): tasks for tasks in (None, *settings.itr.compared)}


# ------------------------------------------------------------------ cross-domain, and sections


DOMAINS = ("newsroom", "newsroom-b")  # the drawn ones, which are each other's


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


def drawn_domains(settings: Settings) -> list[str]:
    """The profile's own data set and, beside a drawn one, the other drawn ones."""
    own = settings.dataset
    return [own, *(name for name in DOMAINS if own in DOMAINS and name != own)]


def domain_identity(settings: Settings, variant: str, seed: int, trained_on: str) -> dict[str, Any]:
    """`identity` of a variant fine-tuned on the data set `trained_on`, from the profile's start."""
    there = identity(settings.model_copy(update={"dataset": trained_on}), variant, seed)
    if (
        trained_on != settings.dataset and settings.pretraining
    ):  # the pairs it saw are the profile's
        there["start"] = {**there["start"], "dataset": settings.dataset}
    return there


def cross_domain_identity(
    settings: Settings, variant: str, seed: int, trained_on: str
) -> dict[str, Any]:
    """What makes a measurement on any domain of a variant fine-tuned on `trained_on`."""
    return {**domain_identity(settings, variant, seed, trained_on), "tested": "cross-domain"}


def section_identity(
    settings: Settings, variant: str, seed: int, templates: Sequence[str] = TEMPLATES
) -> dict[str, Any]:
    """What makes a measurement of zero-shot sections, on any domain."""
    return {**identity(settings, variant, seed), "templates": list(templates)}


# -------------------------------------------------------------------------------------- chapters


def _cross_domain(profile: Profile) -> list[dict[str, Any]]:
    settings, found = profile.settings, []
    for seed, variant in itertools.product(settings.ablation_seeds, GENERALIZED):
        finetuned = VARIANTS[variant].finetuned  # else it is the same, wherever it is trained
        sources = drawn_domains(settings) if finetuned else [settings.dataset]
        found += [cross_domain_identity(settings, variant, seed, source) for source in sources]
    return found


def _sections(profile: Profile) -> list[dict[str, Any]]:
    asked = itertools.product(profile.settings.ablation_seeds, GENERALIZED)
    return [section_identity(profile.settings, variant, seed) for seed, variant in asked]


def _relations(profile: Profile) -> list[dict[str, Any]]:
    if profile.settings.itr is None:
        return []
    compared = relation_variants(profile.settings).values()
    asked = itertools.product(PROTOCOLS, compared, profile.settings.itr.seeds)
    return [relation_identity(profile, tasks, seed, protocol) for protocol, tasks, seed in asked]


def _ascl(profile: Profile) -> list[dict[str, Any]]:
    if profile.settings.ascl is None:
        return []
    asked = itertools.product(ASCL_VARIANTS, ascl_seeds(profile), ASCL_WAYS)
    return [ascl_measured(profile, *key) for key in asked]


# the identities of a chapter's rows under a profile
CHAPTERS: dict[str, Callable[[Profile], list[dict[str, Any]]]] = {
    "cross_domain": _cross_domain,
    "sections": _sections,
    "relations": _relations,
    "ascl": _ascl,
}


def reading_order(settings: Settings, kind: str) -> dict[str, Sequence[str]]:
    """By which columns a chapter's rows are ordered to be shown, and these columns' values."""
    if kind == "sections":
        return {"dataset": drawn_domains(settings)}
    if kind == "relations" and settings.itr:
        names = list(relation_variants(settings))
        return {"protocol": PROTOCOLS, "variant": names, "label": RELATION_LABELS}
    return {}


# --------------------------------------------------------------------------------- curves, labels


TERM = "vtc"  # the one that all variants have, so the one to compare


CURVE_SPLITS = {"train": TERM, "val": f"val_{TERM}"}  # a split, and the log's column for it


VARIANT_LABELS = {
    "zero-shot": "CLIP, zero-shot",
    "clip": "CLIP, fine-tuned",
    "itr": "ITR, fine-tuned",
    "ascl": "AsCL",
    "entityclip": "EntityCLIP",
    "bridge": "CLIP + bridge",
    "bridge-entityclip": "EntityCLIP + bridge",
    "no-image-experts": "No image experts",
    "no-text-experts": "No text experts",
    "no-explanation-experts": "No explanation experts",
    "experts-1": "1 expert a group",
    "experts-2": "2 experts a group",
    "experts-8": "8 experts a group",
    "lambda-0.01": "λ = 0.01",
    "lambda-1.0": "λ = 1",
    "separate-experts": "Separate explanation experts",
    "padding-attended": "Padding attended",
    "reference-compat": "As the public code",
    "no-matching": "No matching",
    "mean-fusion": "Mean fusion",
    "uniform-negatives": "Uniform negatives",
    "positive-explanation": "The positive's explanation",
    "eta-1.0": "η = 1",
    "shuffled-explanations": "Explanations shuffled",
    "random-explanations": "Random words",
    "caption-as-explanation": "Caption as explanation",
    "shuffled-bridge": "Bridge, shuffled",
    "bridge-mmae": "Bridge + MMAE",
    "bridge-0.5": "Bridge, weight 0.5",
    "bridge-2": "Bridge, weight 2",
    "crossed": "Crossed",
    "bridge-crossed": "Bridge + crossed",
    "bridge-detached": "Bridge, detached",
    "bridge-dropout": "Bridge, dropout",
    "bridge-fading": "Bridge, fading λ",
}


SPLIT_LABELS = {
    "test": "Test",
    "test_longtail": "Long tail",
    "val": "Validation",
    "generic_val": "Generic captions",
}


DIRECTION_LABELS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def label(name: str, names: dict[str, str]) -> str:
    """A name as a reader should see it; one that `names` lacks stands for itself."""
    return names.get(name, name)


def in_order(names: pd.Series, known: dict[str, str]) -> list[str]:
    """The distinct names: known ones in the house's order, then the others by alphabet."""
    present = set(names)
    return [n for n in known if n in present] + sorted(present - set(known))
