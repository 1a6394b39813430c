"""What makes a run or a measurement this one and no other: settings alone, as JSON-ready dicts.

Rows are chosen by the hashes of these, so no data and no torch are needed to find them; a run's
checkpoints keep the fingerprints of its data beside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from entityclip.config import (
    CAPITALS,
    AsCLConfig,
    EntityCLIPConfig,
    ITRConfig,
    PairSource,
    Profile,
    Settings,
    as_dict,
)
from entityclip.variants import (
    ASCL_VARIANTS,
    ASCL_WAYS,
    DOMAINS,
    GENERALIZED,
    LISTED,
    NO_EXPERTS,
    PROTOCOLS,
    RELATION_LABELS,
    TABLES,
    TEMPLATES,
    VARIANTS,
    Measured,
    Tasks,
    find_variant,
    mix_name,
    variant_name,
    weights_name,
)


def model_config(settings: Settings, variant: str) -> EntityCLIPConfig | AsCLConfig:
    """The variant's model: the profile's, with the variant's overrides."""
    spec = find_variant(variant)
    own = settings.model
    if spec.method == "ascl":
        own = settings.ascl.model if settings.ascl else AsCLConfig()
    return replace(own, **spec.model)


def _run(settings: Settings, variant: str, seed: int, start: Any) -> dict[str, Any]:
    """What all runs are told apart by."""
    return {
        "variant": variant,
        "seed": seed,
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "start": start,
        "dataset": settings.dataset,
        "data_seed": settings.data_seed,
    }


def identity(settings: Settings, variant: str, seed: int) -> dict[str, Any]:
    """What makes a run of `variant` this run and no other: all of its settings, but no data.

    A row's `config` is this, or this and what was asked of the model. Raises ValueError for an
    unknown variant.
    """
    settings = settings.of_seed(seed)
    spec, start = find_variant(variant), _start(settings)
    if spec.method == "itr":
        start = {"itr": _itr_start(settings), "from": start}
    found = _run(settings, variant, seed, start)
    found["model"] = as_dict(model_config(settings, variant))
    if spec.finetuned:
        found["finetuning"] = as_dict(settings.finetuning)
        found["explanations"] = spec.explanations
        for name in ("train_pairs", "val_pairs", "explanation_policy"):
            found[name] = getattr(settings, name)
        if spec.after:
            found |= {"variant": spec.of, "after": spec.after}
        if found["model"].get("name_views") and settings.names != CAPITALS:
            found["names"] = settings.names
        # these came later: left out at what older runs had, whose hashes stay
        for name, older in (("explanation_source", "own"), ("train_decoding", "exact")):
            if getattr(settings, name) != older:
                found[name] = getattr(settings, name)
    return found


def measured_identity(settings: Settings, kind: str, variant: str, seed: int) -> dict[str, Any]:
    """The `config` of a run's rows of a kind: its identity and, with names, what found them.

    Rows of kind "floor" are about the data alone; their `variant` is one of FLOORS.
    """
    if kind == "floor":
        drawn = settings.of_seed(seed).data_seed
        return {"variant": variant, "dataset": settings.dataset, "data_seed": drawn}
    found = identity(settings, variant, seed)
    asks_names = kind in ("names", "names_cut") and settings.names != CAPITALS
    return found | ({"names": settings.names} if asks_names else {})


def _start(settings: Settings) -> Any:
    return as_dict(settings.pretraining) if settings.pretraining else settings.pretrained


def _itr_start(settings: Settings) -> dict[str, Any] | None:
    """What makes the weights of ITR's pretraining, next to the start and the run's seed."""
    if settings.itr is None:
        return None
    objective = as_dict(settings.itr.objective)
    del objective["seed"]  # it is the run's
    return {"objective": objective, **_unlabelled(settings)}


def _unlabelled(settings: Settings) -> dict[str, Any]:
    itr = settings.itr
    return {"unlabelled": _source(itr.unlabelled), "held_out": itr.held_out}


def _source(source: PairSource) -> dict[str, Any]:
    return source.model_dump(exclude={"data_root"})


# ---------------------------------------------------------------------------------------- tables


class Entry(NamedTuple):
    """A row of a table: how it is called there, and the variant under these settings that it is."""

    label: str
    settings: Settings
    variant: str


def table_entries(settings: Settings, table: str) -> list[Entry]:
    """The rows of one of TABLES, by variants' names, or of LISTED, as the profile lists them.

    What the others of a table are compared with comes first. A table that the profile lists nothing
    for is empty. Raises ValueError for another name.
    """
    if table in TABLES:
        return [Entry(name, settings, name) for name in TABLES[table]]
    if table not in _LISTED:
        raise ValueError(f"no table {table!r}; there are {', '.join((*TABLES, *_LISTED))}")
    return _LISTED[table](settings)


def _backbones(settings: Settings) -> list[Entry]:
    """The variants of notebook 07 from each backbone, the profile's own first."""
    others = [settings.model_copy(update=dict(choice)) for choice in settings.backbones]
    return [
        Entry(f"{there.backbone}: {VARIANTS[name].label}", there, name)
        for there in ([settings, *others] if others else [])
        for name in GENERALIZED
    ]


def _mixes(settings: Settings) -> list[Entry]:
    """Experts v-s-e, the profile's own mix first."""
    own = "-".join(map(str, settings.model.groups))
    listed = dict.fromkeys([own, *settings.mixes] if settings.mixes else [])
    found = []
    for mix in listed:
        counts = dict(zip(NO_EXPERTS, map(int, mix.split("-")), strict=True))
        found.append(Entry(mix, settings, _trained_as(settings, counts, mix_name(mix))))
    return found


def _grid(settings: Settings) -> list[Entry]:
    """λ × η, row by row."""
    found = []
    for moe, itm in itertools.product(settings.grid.lambda_moe, settings.grid.eta_itm):
        weights = {"lambda_moe": moe, "eta_itm": itm}
        variant = _trained_as(settings, weights, weights_name(moe, itm))
        found.append(Entry(f"{moe:g} × {itm:g}", settings, variant))
    return found


def _explanation_sources(settings: Settings) -> list[Entry]:
    """What reads explanations, from each source; the caption in their place; and none at all."""
    found = [
        Entry(
            f"{called}: {VARIANTS[name].label}",
            settings.model_copy(update={"explanation_source": source}),
            name,
        )
        for called, source in settings.explanation_sources.items()
        for name in ("entityclip", "name-views-context")
    ]
    controls = ("caption-as-explanation", "clip") if found else ()
    return [*found, *(Entry(VARIANTS[name].label, settings, name) for name in controls)]


_LISTED: dict[str, Callable[[Settings], list[Entry]]] = dict(
    zip(LISTED, (_backbones, _mixes, _grid, _explanation_sources), strict=True)
)


def _trained_as(settings: Settings, changes: dict[str, Any], spelt: str) -> str:
    """The variant that is the profile's model so changed and is trained once, or `spelt`."""
    wanted = replace(settings.model, **changes)
    for name, spec in VARIANTS.items():
        plain = spec.finetuned and spec.explanations == "own" and spec.method == "entityclip"
        if plain and model_config(settings, name) == wanted:
            return name
    return spelt


# -------------------------------------------------------------------------------- AsCL's chapter


def ascl_identity(profile: Profile, variant: str, seed: int) -> dict[str, Any]:
    """What makes a run of AsCL's chapter; `variant` is one of ASCL_VARIANTS, or ValueError."""
    if variant not in ASCL_VARIANTS:
        raise ValueError(f"no AsCL variant {variant!r}; there are {', '.join(ASCL_VARIANTS)}")
    settings, ascl = profile.settings, profile.settings.ascl
    return {
        **_run(settings, variant, seed, _start(settings)),
        "method": "ascl",
        "start_seed": profile.seed,
        "dataset": ascl.dataset,
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
        **_unlabelled(settings),
        "itr": as_dict(itr_config(settings, tasks, seed)),
    }


def relation_identity(profile: Profile, tasks: Tasks, seed: int, protocol: str) -> dict[str, Any]:
    """What makes a measurement of relations: towers before (`tasks` None) or after ITR, judged."""
    settings, itr = profile.settings, profile.settings.itr
    start = identity(settings, "zero-shot", profile.seed)
    towers = {"start": start} if tasks is None else itr_identity(settings, start, seed, tasks)
    frozen = {} if protocol == "fine-tuning" else {"features": "before projection"}
    return {
        "towers": towers,
        **frozen,
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


CROSS_DOMAIN = {"tested": "cross-domain"}  # what such a measurement adds to the run's identity


def drawn_domains(settings: Settings) -> list[str]:
    """The profile's own data set and, beside a drawn one, the other drawn ones."""
    own = settings.dataset
    return [own, *(name for name in DOMAINS if own in DOMAINS and name != own)]


def domain_identity(settings: Settings, variant: str, seed: int, trained_on: str) -> dict[str, Any]:
    """`identity` of a variant fine-tuned on the data set `trained_on`, from the profile's start."""
    there = identity(settings.model_copy(update={"dataset": trained_on}), variant, seed)
    if trained_on != settings.dataset and settings.pretraining:
        there["start"] = {**there["start"], "dataset": settings.dataset}  # whose pairs it saw
    return there


# -------------------------------------------------------------------------------------- chapters


def _cross_domain(profile: Profile) -> list[dict[str, Any]]:
    settings, found = profile.settings, []
    for seed, variant in itertools.product(settings.ablation_seeds, GENERALIZED):
        finetuned = VARIANTS[variant].finetuned  # else it is the same, wherever it is trained
        for source in drawn_domains(settings) if finetuned else [settings.dataset]:
            found.append(domain_identity(settings, variant, seed, source) | CROSS_DOMAIN)
    return found


def _sections(profile: Profile) -> list[dict[str, Any]]:
    asked = itertools.product(profile.settings.ablation_seeds, GENERALIZED)
    by = {"templates": list(TEMPLATES)}
    return [identity(profile.settings, variant, seed) | by for seed, variant in asked]


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
