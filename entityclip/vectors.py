"""Vectors with their ids, in memory and as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from entityclip.files import atomic_write_text, replacing


@dataclass(frozen=True)
class Vectors:
    """n ids and their vectors [n, d] float32, each of length 1."""

    ids: list[str]
    values: np.ndarray

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.values):
            raise ValueError(f"{len(self.ids)} ids for {len(self.values)} vectors")

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, path: str | Path) -> Path:
        """Write ``.parquet`` (columns id, vector) or ``.npy`` with ``<name>.ids.json`` beside it.

        Files are whole or not there. Raises ValueError for another ending, and for .parquet without
        pyarrow.
        """
        path = Path(path).expanduser()
        if path.suffix == ".parquet":
            pa, pq = _arrow(path)
            flat = pa.array(self.values.reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1])
            with replacing(path) as staged:
                pq.write_table(pa.table({"id": self.ids, "vector": vectors}), staged)
        elif path.suffix == ".npy":
            with replacing(path) as staged, open(staged, "wb") as file:
                np.save(file, self.values)
            atomic_write_text(_ids_of(path), json.dumps(self.ids, ensure_ascii=False) + "\n")
        else:
            raise ValueError(f"{path}: name it .parquet or .npy")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Read what `save` wrote. Raises ValueError for another ending or damaged files."""
        path = Path(path).expanduser()
        try:
            if path.suffix == ".parquet":
                _, pq = _arrow(path)
                table = pq.read_table(path, columns=["id", "vector"])
                vectors = table["vector"].combine_chunks()
                width = vectors.type.list_size
                values = np.asarray(vectors.flatten(), np.float32).reshape(len(table), width)
                return cls(table["id"].to_pylist(), values)
            if path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
                return cls(json.loads(_ids_of(path).read_text(encoding="utf-8")), values)
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} is damaged or not of ours: {error}") from error
        raise ValueError(f"{path}: only .parquet and .npy are read")


def _ids_of(path: Path) -> Path:
    return path.with_suffix(".ids.json")


def _arrow(path: Path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: pip install pyarrow for Parquet, or name it .npy") from error
    return pyarrow, pyarrow.parquet
