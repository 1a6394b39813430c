"""A checkpoint's two towers as an encoder, and what keeps it from encoding anything twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, with_config
from torch import nn
from typing_extensions import TypedDict

from entityclip.checkpoints import (
    CheckpointError,
    read_meta,
    read_tensors,
    refuse_misfit,
    write_checkpoint,
)
from entityclip.files import read_json
from entityclip.models.clip import Backbone, BackboneError, create_backbone, library
from entityclip.training.run_folder import BEST

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"  # of `export`


def load_encoder(
    checkpoint: str | Path | nn.Module,
    model: str | None = None,
    *,
    image_size: int | None = None,
) -> Backbone:
    """The two towers of a checkpoint, ready to encode, or those of a loaded model, as it is.

    Args:
        checkpoint: a run's folder or its ``best.safetensors``, a folder that `export` or Hugging
            Face's ``save_pretrained`` wrote, any open_clip model's weights as .safetensors, the tag
            of weights that open_clip knows, or a loaded `Backbone` or `EntityCLIP`.
        model: open_clip's name of the model; our own checkpoints and exports name it themselves.
        image_size: side of the pictures in pixels; None: the checkpoint's or the model's own.

    Raises BackboneError for what is no such checkpoint, where `model` is missing or contradicts the
    file, and as `create_backbone` does (a picture tower that is no ViT, weights that do not fit).
    """
    if isinstance(checkpoint, nn.Module):
        return getattr(checkpoint, "backbone", checkpoint)
    path = Path(checkpoint).expanduser()
    if not (path.is_dir() or path.suffix):
        if model is None:
            raise BackboneError(
                f"{str(checkpoint)!r} is no file or folder here; for weights by tag also give the "
                "model, e.g. model='ViT-B-32-quickgelu'"
            )
        return create_backbone(model, str(checkpoint), image_size).eval()
    try:
        path = weights_in(path)
        identity = read_meta(path, _Meta).get("identity", {})
        named = identity.get("backbone") or _named_by(path.with_name(CONFIG))
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    if model is None and named is None:
        raise BackboneError(
            f"{path} does not say which model its weights are of; give it, e.g. model='ViT-B-32'"
        )
    if None not in (model, named) and model != named:
        raise BackboneError(f"{path} holds weights of {named}, not of {model}")
    size = image_size or identity.get("image_size")
    return create_backbone(model or named, str(path), size).eval()


@with_config(ConfigDict(extra="allow"))
class _Identity(TypedDict, total=False):
    backbone: str
    image_size: Annotated[int, Field(ge=1)] | None


@with_config(ConfigDict(extra="allow"))
class _Meta(TypedDict, total=False):
    """What of a checkpoint's metadata an encoder looks at."""

    identity: _Identity


def read_about(path: Path) -> dict[str, Any]:
    """A checkpoint's metadata, for whoever builds its model. Raises CheckpointError by field."""
    return read_meta(path, _Meta)


def weights_in(path: Path) -> Path:
    """The weights of a run's folder, of one that `export` or Hugging Face wrote, or `path` itself.

    Raises CheckpointError for a folder without any.
    """
    if not path.is_dir():
        return path
    names = (BEST, WEIGHTS, "model.safetensors")
    there = [path / name for name in names if (path / name).is_file()]
    if not there:
        raise CheckpointError(f"no checkpoint at {path / BEST}, nor {' or '.join(names[1:])} there")
    return there[0]


def _named_by(config: Path) -> str | None:
    """Which of the models that open_clip knows an open_clip_config.json describes, if any."""
    if not config.exists():
        return None
    described = read_json(config, CheckpointError).get("model_cfg")
    known = library()
    return next((n for n in known.list_models() if known.get_model_config(n) == described), None)


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


class _Chunk(TypedDict):
    """What stands beside a chunk's vectors."""

    keys: list[str]
    signatures: dict[str, str]


class VectorCache:
    """What was encoded so far: key → vector [d], and signature of a file → the key it was read as.

    A batch is a .safetensors file below `folder`, named after its first key; None: kept in memory
    only. A chunk that is damaged, or none of ours, is passed over with a warning: what it held is
    encoded anew.
    """

    def __init__(self, folder: Path | None, width: int) -> None:
        self.folder = folder
        self.vectors: dict[str, np.ndarray] = {}
        self.keys: dict[str, str] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            try:
                meta, tensors = read_meta(path, _Chunk), read_tensors(path)
                refuse_misfit(tensors, {"vectors": torch.empty(len(meta["keys"]), width)}, path)
            except CheckpointError as error:
                log.warning("%s; what it held is embedded anew", error)
                continue
            self.vectors |= zip(meta["keys"], tensors["vectors"].numpy(), strict=True)
            self.keys |= {s: key for s, key in meta["signatures"].items() if key in self.vectors}

    def add(self, keys: Sequence[str], vectors: np.ndarray, signatures: Mapping[str, str]) -> None:
        """Keep `vectors` [n, d] float32 of n new keys, and the keys of some files' signatures."""
        if self.folder:
            meta = {"keys": list(keys), "signatures": dict(signatures)}
            path = self.folder / f"{keys[0]}.safetensors"
            write_checkpoint(path, {"vectors": torch.from_numpy(vectors)}, meta)
        self.vectors |= zip(keys, vectors, strict=True)
        self.keys |= signatures
