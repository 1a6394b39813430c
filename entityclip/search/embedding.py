"""Pictures and texts to normalised vectors, resumably: ``entityclip.embed(...)``.

``entityclip embed`` is its command.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from entityclip.files import atomic_write_text, replacing
from entityclip.search.encoder import encoder
from entityclip.search.sources import Images, Texts, arrow, list_pictures, list_texts

_NAMED = 5  # files of a kind that the report's text names


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
            pa = arrow(path)
            flat = pa.array(self.values.reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1])
            with replacing(path) as staged:
                pa.parquet.write_table(pa.table({"id": self.ids, "vector": vectors}), staged)
        elif path.suffix == ".npy":
            with replacing(path) as staged, open(staged, "wb") as file:
                np.save(file, self.values)
            ids = json.dumps(self.ids, ensure_ascii=False) + "\n"
            atomic_write_text(path.with_suffix(".ids.json"), ids)
        else:
            raise ValueError(f"{path}: name it .parquet or .npy")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Read what `save` wrote. Raises ValueError for another ending or damaged files."""
        path = Path(path).expanduser()
        try:
            if path.suffix == ".parquet":
                table = arrow(path).parquet.read_table(path, columns=["id", "vector"])
                vectors = table["vector"].combine_chunks()
                width = vectors.type.list_size
                values = np.asarray(vectors.flatten(), np.float32).reshape(len(table), width)
                return cls(table["id"].to_pylist(), values)
            if path.suffix == ".npy":
                ids = path.with_suffix(".ids.json").read_text(encoding="utf-8")
                return cls(json.loads(ids), np.load(path, allow_pickle=False))
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} is damaged or not of ours: {error}") from error
        raise ValueError(f"{path}: only .parquet and .npy are read")


@dataclass
class EmbedReport:
    """What became of everything that was found."""

    pictures: int = 0  # with a vector
    texts: int = 0
    embedded: int = 0  # pictures and texts that ran through the model now
    duplicates: dict[str, str] = field(default_factory=dict)  # id -> the first with these bytes
    unreadable: dict[str, str] = field(default_factory=dict)  # id -> what is wrong
    not_pictures: list[str] = field(default_factory=list)  # other files of the folder

    def as_json(self) -> str:
        """Everything, lists included, as JSON text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        lines = [f"{self.pictures} pictures and {self.texts} texts, {self.embedded} embedded now"]
        for what, names in (
            ("duplicates of others", [f"{a} = {b}" for a, b in self.duplicates.items()]),
            ("unreadable, left out", [f"{a}: {why}" for a, why in self.unreadable.items()]),
            ("no pictures, left out", self.not_pictures),
        ):
            if names:
                more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                lines.append(f"{len(names)} {what}: {'; '.join(names[:_NAMED])}{more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Embedded:
    """Vectors of pictures and of texts, and what was left out; None for what was not asked for."""

    images: Vectors | None
    texts: Vectors | None
    report: EmbedReport


def embed(
    checkpoint: str | Path | torch.nn.Module,
    images: Images | None = None,
    texts: Texts | None = None,
    *,
    model: str | None = None,
    cache: str | Path | None = None,
    batch_size: int = 64,
    chunk: int = 512,
    workers: int = 4,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Embedded:
    """Embed pictures and texts in a CLIP's joint space: normalised float32 vectors with their ids.

    Args:
        checkpoint: as `load_encoder` takes it, or a loaded `Backbone` or `EntityCLIP`.
        images: a folder, a .csv or .parquet of paths (columns `image` and, optionally, `id`), paths
            or PIL pictures with or without names, or pairs (`list_pictures`).
        texts: texts with or without names, or pairs, of which the captions are taken.
        model: open_clip's name of the model, where the checkpoint does not tell it.
        cache: a folder that keeps what was embedded, by content and weights; a stopped call goes on
            there, and at most `chunk` pictures are lost to a kill. None: nothing is kept.
        batch_size: pictures or texts a forward pass.
        chunk: pictures or texts decoded ahead and written together.
        workers: threads that read and decode.
        device: None: the GPU if there is one.

    What cannot be read is left out and told in the report; equal files are embedded once. Vectors
    are open_clip's own ``F.normalize(encode_image(preprocess(picture)))``.
    """
    if images is None and texts is None:
        raise ValueError("nothing to embed: give images, texts or both")
    if min(batch_size, chunk, workers) < 1:
        raise ValueError(f"batch_size {batch_size}, chunk {chunk}, workers {workers}: each >= 1")
    report, of_images, of_texts = EmbedReport(), None, None
    how = dict(batch_size=batch_size, chunk=chunk, workers=workers, progress=progress)
    with encoder(checkpoint, model=model, cache=cache, device=device, **how) as towers:
        if images is not None:
            pictures, report.not_pictures = list_pictures(images)
            found = towers.pictures(pictures)
            of_images = Vectors(list(found.keys), found.vectors)
            first: dict[str, str] = {}
            for name, key in found.keys.items():
                if first.setdefault(key, name) != name:
                    report.duplicates[name] = first[key]
            report.unreadable, report.pictures = found.unreadable, len(of_images)
            report.embedded += found.new
        if texts is not None:
            found = towers.texts(list_texts(texts))
            of_texts = Vectors(list(found.keys), found.vectors)
            report.texts = len(of_texts)
            report.embedded += found.new
    return Embedded(of_images, of_texts, report)
