"""What keeps an encoder from encoding anything twice: vectors by content and weights."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from typing_extensions import TypedDict

from entityclip.checkpoints import (
    CheckpointError,
    read_meta,
    read_tensors,
    refuse_misfit,
    write_checkpoint,
)
from entityclip.console import Part
from entityclip.models.clip import Backbone

log = logging.getLogger(__name__)


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

    A batch is a .safetensors file below `folder`, named after its first key and the `part` whose it
    is; None: kept in memory only. A chunk that is damaged, or none of ours, is passed over with a
    warning: what it held is encoded anew.
    """

    def __init__(self, folder: Path | None, width: int, part: Part | None = None) -> None:
        self.folder, self.part = folder, part
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
            # two parts may meet the same picture first
            of = f"-{self.part.index}-of-{self.part.count}" if self.part else ""
            path = self.folder / f"{keys[0]}{of}.safetensors"
            write_checkpoint(path, {"vectors": torch.from_numpy(vectors)}, meta)
        self.vectors |= zip(keys, vectors, strict=True)
        self.keys |= signatures
