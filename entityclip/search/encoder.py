"""A checkpoint's two towers as an encoder, and what keeps it from encoding anything twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from entityclip.checkpoints import CheckpointError, read_meta, read_tensors, write_checkpoint
from entityclip.models.clip import Backbone, BackboneError, create_backbone
from entityclip.training.run_folder import BEST


def load_encoder(
    checkpoint: str | Path | nn.Module,
    model: str | None = None,
    *,
    image_size: int | None = None,
) -> Backbone:
    """The two towers of a checkpoint, ready to encode, or those of a loaded model, as it is.

    Args:
        checkpoint: a run's folder or its ``best.safetensors``, any open_clip model's weights as
            .safetensors (an exported one of ours too), the tag of weights that open_clip knows, or
            a loaded `Backbone` or `EntityCLIP`.
        model: open_clip's name of the model; our own checkpoints name it themselves.
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
    path = best_of(path)
    try:
        identity = read_meta(path).get("identity", {})
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    named = identity.get("backbone")
    if model is None and named is None:
        raise BackboneError(
            f"{path} does not say which model its weights are of; give it, e.g. model='ViT-B-32'"
        )
    if None not in (model, named) and model != named:
        raise BackboneError(f"{path} holds weights of {named}, not of {model}")
    size = image_size or identity.get("image_size")
    return create_backbone(model or named, str(path), size).eval()


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


class VectorCache:
    """What was encoded so far: key → vector [d], and signature of a file → the key it was read as.

    A batch is a .safetensors file below `folder`, named after its first key; None: kept in memory
    only. Raises CheckpointError naming a file that is damaged.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.vectors: dict[str, np.ndarray] = {}
        self.keys: dict[str, str] = {}
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            meta = read_meta(path)
            self.vectors |= zip(meta["keys"], read_tensors(path)["vectors"].numpy(), strict=True)
            self.keys |= meta["signatures"]

    def add(self, keys: Sequence[str], vectors: np.ndarray, signatures: Mapping[str, str]) -> None:
        """Keep `vectors` [n, d] float32 of n new keys, and the keys of some files' signatures."""
        if self.folder:
            meta = {"keys": list(keys), "signatures": dict(signatures)}
            path = self.folder / f"{keys[0]}.safetensors"
            write_checkpoint(path, {"vectors": torch.from_numpy(vectors)}, meta)
        self.vectors |= zip(keys, vectors, strict=True)
        self.keys |= signatures
