"""The neighbours ITR and AsCL as rows of the main table, trained and measured as its others are.

ITR: the shared start is pretrained further on unlabelled pairs, anew for each seed, then fine-tuned
as CLIP is. AsCL: its model is fine-tuned from the shared start on the same pairs for the same
steps; its richer text also reads a second caption of each training picture, which is its own
ingredient (in the newsroom one of the same kind: it names entities and describes nothing). AsCL is
measured by S = u S_local + (1 - u) S_global, the similarity it is defined by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entityclip.baselines.ascl.config import AsCLConfig
from entityclip.baselines.ascl.retrieval import evaluate_similarity
from entityclip.config import Settings
from entityclip.datasets.captions import ONE_CAPTION, has_second_captions
from entityclip.datasets.registry import LOADERS
from entityclip.evaluation import Retrieval, evaluate_embeddings
from entityclip.identity import as_dict
from entityclip.variants import Method


def lacking(method: Method, settings: Settings) -> str | None:
    """What keeps a profile from training a method, in words; None if nothing does."""
    if method == "itr":
        if settings.itr is None:
            return "the profile has no `itr` block, which names the unlabelled pairs"
        source = settings.itr.unlabelled
        if source.dataset in LOADERS and source.data_root is None:
            return f"{source.dataset}, its unlabelled pairs, needs itr.unlabelled.data_root"
    if method == "ascl":
        if settings.ascl is None:
            return "the profile has no `ascl` block"
        if settings.ascl.model.richer and not has_second_captions(settings.dataset):
            return f"{settings.dataset} has {ONE_CAPTION}"
    return None


def itr_start(settings: Settings, start: Any) -> dict[str, Any]:
    """What makes the weights of ITR's pretraining, next to the run's seed; from `start` on."""
    if settings.itr is None:
        return {"itr": None, "from": start}
    objective = as_dict(settings.itr.objective)
    del objective["seed"]  # it is the run's
    source = settings.itr.unlabelled.model_dump(exclude={"data_root"})
    itr = {"objective": objective, "unlabelled": source, "held_out": settings.itr.held_out}
    return {"itr": itr, "from": start}


def ascl_config(settings: Settings) -> AsCLConfig:
    """AsCL's model as the profile has it."""
    return settings.ascl.model if settings.ascl else AsCLConfig()


def ranking(method: Method) -> Callable[..., Retrieval]:
    """How a method compares pictures with captions."""
    return evaluate_similarity if method == "ascl" else evaluate_embeddings
