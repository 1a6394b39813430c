"""The options that commands share, and what they choose: a profile, its data, a variant.

``--data FOLDER`` is all that your own pictures and captions need: the profile is then `own`, and
what else it must know is read from the data. This module imports no torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entityclip.config import (
    HUB,
    OWN_DATA,
    PACKAGE,
    SHIPPED_PROFILE,
    Profile,
    load_profile,
    merged,
    parse_settings,
)
from entityclip.console import Refused, refusing
from entityclip.datasets import load_pairs
from entityclip.datasets.pair import Pair
from entityclip.variants import VARIANTS

TRAINED = [name for name, variant in VARIANTS.items() if variant.finetuned and not variant.of]
OWN_PROFILE = "own"
_LR_FROM_SCRATCH = 5e-4  # random weights learn nothing at a fine-tuning's rate
_STEPS = 4  # an epoch has of a small data set at least, so that a batch is not all of it

log = logging.getLogger("entityclip.commands")


def add_options(parser: argparse.ArgumentParser, *, of_a_run: bool = True) -> None:
    """The options that choose a profile; `of_a_run`: and a variant and a seed of it."""
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="your own pictures and captions; with --profile, where "
        "that profile's data lie")  # fmt: skip
    add("--profile", help="a shipped one (demo, own, paper, smoke) or a .yaml file of yours "
        "(default: demo, with --data own)")  # fmt: skip
    add("--backbone", help="another model of open_clip, such as ViT-B-16")
    add("--from-scratch", action="store_true", help="from random weights, not pretrained ones; "
        "with --backbone newsroom-tiny a try that a CPU can do")  # fmt: skip
    if of_a_run:
        add("--variant", choices=TRAINED, metavar="NAME", help=f"one of {', '.join(TRAINED)} "
            "(default: entityclip; of own data without explanations clip)")  # fmt: skip
        add("--seed", type=int, help="instead of the profile's")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="override a setting, e.g. finetuning.epochs=3")  # fmt: skip


def choose(options: argparse.Namespace) -> tuple[Profile, str]:
    """The profile that the options ask for, and the variant.

    Of own data, a batch size that would leave few steps an epoch is lowered, explanations that
    ``entityclip explain --data`` extracted are found, and where there are none the variant is
    `clip`. Raises Refused (ProfileError) for what contradicts itself or cannot be read.
    """
    asked = parse_settings(options.set)
    over = merged(_overrides(options, asked), asked)
    name = options.profile or (OWN_PROFILE if options.data else SHIPPED_PROFILE)
    seed, variant = getattr(options, "seed", None), getattr(options, "variant", None)
    profile = load_profile(name, seed=seed, settings=over)
    if profile.settings.dataset != OWN_DATA or not profile.settings.data_root:
        return profile, variant or "entityclip"
    with refusing():
        pairs = load_pairs(OWN_DATA, "train", root=profile.settings.data_root)
    found, explained = _suited(profile, pairs, asked)
    if found:
        profile = load_profile(name, seed=seed, settings=merged(over, found))
    if variant is None and not explained and not getattr(options, "checkpoint", None):
        log.warning(
            "these captions have no explanations, so CLIP is trained; for EntityCLIP have a "
            "language model write some first: entityclip explain --data %s --server URL",
            shlex.quote(str(profile.settings.data_root)),
        )
    return profile, variant or ("entityclip" if explained else "clip")


def data_root(data: str) -> str:
    """What ``--data`` gives as the setting: a folder's whole path, or a name on the hub."""
    if data.startswith(HUB):
        return data
    root = Path(data).expanduser().resolve()
    if not root.is_dir():
        raise Refused(f"--data: {root} is no folder; give the one your pictures lie in")
    return str(root)


def _overrides(options: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """The settings that `--data`, `--backbone` and `--from-scratch` stand for."""
    over: dict[str, Any] = {}
    if options.data:
        over["data_root"] = data_root(options.data)
    if options.backbone:
        over["backbone"] = options.backbone
        ours = PACKAGE / "backbones" / f"{options.backbone}.json"
        if ours.is_file():
            over["image_size"] = json.loads(ours.read_text())["vision_cfg"]["image_size"]
            if not options.from_scratch and "pretrained" not in asked:
                raise Refused(f"--backbone {options.backbone} has no weights; add --from-scratch")
    if options.from_scratch:
        over |= {"from_scratch": True, "pretrained": None, "pretraining": None}
        over["finetuning"] = {"lr": _LR_FROM_SCRATCH, "optimizer": "adamw", "weight_decay": 0.1}
    twice = over.keys() & asked.keys() - {"image_size", "finetuning"}
    if twice:
        raise Refused(f"{min(twice)} is given twice, by an option and by --set; leave one out")
    return over


def _suited(
    profile: Profile, pairs: Sequence[Pair], asked: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Settings that follow from own data where they were not asked for; whether it is explained."""
    settings, found = profile.settings, {}
    explained = any(pair.explanation for pair in pairs)
    if not explained and "explanation_source" not in asked and profile.extracted.is_file():
        found["explanation_source"] = str(profile.extracted)
    batch, fitting = settings.finetuning.batch_size, max(2, len(pairs) // _STEPS)
    if fitting < batch and "batch_size" not in asked.get("finetuning", {}):
        found["finetuning"] = {"batch_size": fitting}
        log.info("%d pairs to train on: batches of %d, not %d (finetuning.batch_size)",
                 len(pairs), fitting, batch)  # fmt: skip
    elsewhere = settings.explanation_source != "own"
    return found, explained or elsewhere or "explanation_source" in found
