"""A checkpoint as an encoder: one of ours, any open_clip .safetensors file, or open_clip's tag."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from entityclip.backbone import Backbone, BackboneError, create_backbone
from entityclip.checkpoint import CheckpointError, read_meta, read_tensors
from entityclip.config import EntityCLIPConfig
from entityclip.model import EntityCLIP
from entityclip.run_state import BEST
from entityclip.run_state import load_model as load_weights


def load_encoder(
    checkpoint: str | Path, model: str | None = None, *, image_size: int | None = None
) -> Backbone:
    """The two towers of a checkpoint, ready to encode.

    Args:
        checkpoint: a run's folder or its ``best.safetensors``, any open_clip model's weights as
            .safetensors (an exported one of ours too), or the tag of weights that open_clip knows.
        model: open_clip's name of the model; our own checkpoints name it themselves.
        image_size: side of the pictures in pixels; None: the checkpoint's or the model's own.

    Raises BackboneError for what is no such checkpoint, where `model` is missing or contradicts the
    file, and as `create_backbone` does (a picture tower that is no ViT, weights that do not fit).
    """
    path = Path(checkpoint).expanduser()
    if not (path.is_dir() or path.suffix):
        if model is None:
            raise BackboneError(
                f"{str(checkpoint)!r} is no file or folder here; for weights by tag also give the "
                "model, e.g. model='ViT-B-32-quickgelu'"
            )
        return create_backbone(model, str(checkpoint), image_size).eval()
    path = best_of(path)
    identity = _identity(path)
    named = identity.get("backbone")
    if model is None and named is None:
        raise BackboneError(
            f"{path} does not say which model its weights are of; give it, e.g. model='ViT-B-32'"
        )
    if None not in (model, named) and model != named:
        raise BackboneError(f"{path} holds weights of {named}, not of {model}")
    size = image_size or identity.get("image_size")
    return create_backbone(model or named, str(path), size).eval()


def load_model(checkpoint: str | Path) -> EntityCLIP:
    """A run's whole model, experts and matching included, from its folder or best.safetensors.

    Raises BackboneError for a file that is not of one of our runs.
    """
    path = best_of(Path(checkpoint).expanduser())
    identity = _identity(path)
    if not {"backbone", "model"} <= set(identity):
        raise BackboneError(f"{path} tells of no run of ours; only its towers can be used")
    backbone = create_backbone(identity["backbone"], image_size=identity.get("image_size"))
    model = EntityCLIP(backbone, EntityCLIPConfig(**identity["model"]))
    load_weights(model, read_tensors(path))
    return model.eval()


def best_of(path: Path) -> Path:
    """The weights of a run's folder; another path as it is."""
    return path / BEST if path.is_dir() else path


def fingerprint(backbone: Backbone) -> str:
    """Sixteen hex digits that differ whenever a weight or the preprocessing does."""
    digest = hashlib.blake2b(digest_size=8)
    visual = backbone.clip.visual
    about = [backbone.name, visual.image_size, visual.preprocess_cfg]
    digest.update(json.dumps(about, default=str).encode())
    for name, tensor in sorted(backbone.clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _identity(path: Path) -> dict[str, Any]:
    try:
        return read_meta(path).get("identity", {})
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
