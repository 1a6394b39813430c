"""Vectors by key, kept in chunks that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from entityclip.checkpoint import read_meta, read_tensors, write_checkpoint


class VectorCache:
    """What was embedded so far: key → vector [width], in ``NNNNNN.safetensors`` below a folder.

    Each chunk also tells which files its keys were read from (`signatures`), so that an unchanged
    file need not be read again to know its key. Without a folder everything stays in memory.
    Raises CheckpointError naming a chunk that is damaged.
    """

    def __init__(self, folder: Path | None, width: int) -> None:
        self.folder, self.width = folder, width
        self.signatures: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}  # key -> number of its chunk, row
        self._memory: dict[int, np.ndarray] = {}
        self._next = 0
        for path in sorted(folder.glob("[0-9]*.safetensors")) if folder else ():
            meta = read_meta(path)
            self._learn(int(path.stem), meta["keys"], meta["signatures"])

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, keys: Sequence[str], vectors: np.ndarray, signatures: Mapping[str, str]) -> None:
        """Keep a chunk: `vectors` [n, width] float32 of n new keys; file signature → key."""
        number = self._next
        if self.folder is None:
            self._memory[number] = vectors
        else:
            meta = {"keys": list(keys), "signatures": dict(signatures)}
            path = self.folder / f"{number:06d}.safetensors"
            write_checkpoint(path, {"vectors": torch.from_numpy(vectors)}, meta)
        self._learn(number, keys, signatures)

    def gather(self, keys: Sequence[str]) -> np.ndarray:
        """The vectors [n, width] of some keys, in their order; each chunk is read once."""
        found = np.empty((len(keys), self.width), np.float32)
        places = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        for number in np.unique(places[:, 0]).tolist():
            rows = places[:, 0] == number
            found[rows] = self._chunk(number)[places[rows, 1]]
        return found

    def _learn(self, number: int, keys: Sequence[str], signatures: Mapping[str, str]) -> None:
        self._places |= {key: (number, row) for row, key in enumerate(keys)}
        self.signatures.update(signatures)
        self._next = number + 1

    def _chunk(self, number: int) -> np.ndarray:
        if self.folder is None:
            return self._memory[number]
        return read_tensors(self.folder / f"{number:06d}.safetensors")["vectors"].numpy()
