"""Pictures and texts to normalised vectors, resumably: ``entityclip.embed(...)``.

``entityclip embed`` is its command.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from entityclip.console import Part, progress_bar
from entityclip.datasets.dataset import picture_tensor, split_preprocess
from entityclip.datasets.pair import ImageError, decoding
from entityclip.devices import best_device
from entityclip.evaluation.retrieval import evaluating
from entityclip.files import (
    atomic_write_text,
    claimed,
    printable,
    read_json,
    replacing,
    unwritable,
)
from entityclip.models.clip import Backbone
from entityclip.models.encoder import load_encoder
from entityclip.search.sources import (
    Images,
    LeftOut,
    Source,
    Texts,
    arrow,
    list_pictures,
    list_texts,
    read_picture,
    signature,
    text_key,
)
from entityclip.search.vector_cache import VectorCache, fingerprint

_NAMED = 5  # files of a kind that the report's text names
_LENGTH = 1e-3  # how far from 1 a stored vector's length may be


class VectorsError(ValueError):
    """A file holds no vectors of ours; the message names it and what is wrong."""


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
        """Read what `save` wrote. Raises VectorsError, naming file and field, for anything else."""
        path = Path(path).expanduser()
        if path.suffix not in (".parquet", ".npy"):
            raise VectorsError(f"{path}: only .parquet and .npy are read")
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        try:
            if path.suffix == ".npy":
                ids = read_json(path.with_suffix(".ids.json"), VectorsError, list[str])
                values = np.load(path, allow_pickle=False)
            else:
                table = arrow(path).parquet.read_table(path, columns=["id", "vector"])
                column = table["vector"].combine_chunks()
                ids, width = table["id"].to_pylist(), column.type.list_size
                values = np.asarray(column.flatten()).reshape(len(table), width)
        except (VectorsError, FileNotFoundError):
            raise
        except PermissionError as error:
            raise VectorsError(f"{path} may not be read: {error.strerror}") from error
        except Exception as error:  # numpy and pyarrow raise almost anything for what is damaged
            what = " ".join(str(error).split())
            raise VectorsError(f"{path} is damaged or not of ours ({what})") from error
        _refuse_other(path, ids, values)
        return cls(ids, values)


def _refuse_other(path: Path, ids: list[str], values: np.ndarray) -> None:
    """Raise VectorsError unless there is an id a row, each once, and a vector of length 1."""
    wrong = [name for name in ids if not isinstance(name, str)]
    if wrong:
        problem = f"id {wrong[0]!r} is no text"
    elif len(set(ids)) < len(ids):
        problem = f"id {next(n for n, count in Counter(ids).items() if count > 1)!r} stands twice"
    elif values.dtype != np.float32 or values.ndim != 2:
        problem = f"vectors are {values.dtype} {[*values.shape]}, not float32 [n, d]"
    elif len(values) != len(ids):
        problem = f"{len(ids)} ids for {len(values)} vectors"
    elif len(off := np.flatnonzero(~(abs(np.linalg.norm(values, axis=1) - 1) < _LENGTH))):
        problem = f"vector {off[0]} ({ids[off[0]]!r}) is not of length 1"
    else:
        return
    raise VectorsError(f"{path} is damaged or not of ours: {problem}")


@dataclass
class EmbedReport:
    """What became of everything that was found; whatever has no vector stands in `left_out`."""

    pictures: int = 0  # with a vector
    texts: int = 0
    embedded: int = 0  # pictures and texts that ran through the model now
    duplicates: dict[str, str] = field(default_factory=dict)  # id -> the first with these bytes
    unreadable: dict[str, str] = field(default_factory=dict)  # id -> what is wrong
    cut: list[str] = field(default_factory=list)  # ids of texts longer than the model reads
    left_out: LeftOut = field(default_factory=LeftOut)  # why -> names

    def as_json(self) -> str:
        """Everything, lists included, as JSON text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        lines = [f"{self.pictures} pictures and {self.texts} texts, {self.embedded} embedded now"]
        for what, names in (
            ("duplicates of others", [f"{a} = {b}" for a, b in self.duplicates.items()]),
            ("unreadable, left out", [f"{a}: {why}" for a, why in self.unreadable.items()]),
            ("texts longer than the model reads, cut", self.cut),
            *((f"{why}, left out", names) for why, names in self.left_out.items()),
        ):
            if names:
                more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                lines.append(printable(f"{len(names)} {what}: {'; '.join(names[:_NAMED])}{more}"))
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
    workers: int = 4,
    device: str | torch.device | None = None,
    progress: bool = True,
    part: Part | None = None,
) -> Embedded:
    """Embed pictures and texts in a CLIP's joint space: normalised float32 vectors with their ids.

    Args:
        checkpoint, model: as `load_encoder` takes them.
        images: a folder, a .csv or .parquet (columns `image`, of paths or in Parquet also of files'
            bytes, and optionally `id`), paths or PIL pictures with or without names, or pairs
            (`list_pictures`).
        texts: texts with or without names, or pairs, of which the captions are taken.
        cache: a folder that keeps what was embedded, by content and weights; a stopped call goes on
            there, and at most a batch is lost to a kill. None: nothing is kept.
        batch_size: pictures or texts a forward pass.
        workers: threads that read and decode.
        device: None: the GPU if there is one. A loaded model is back on its own afterwards.
        part: only its batches are read, embedded and kept in `cache`, and only their vectors given.
            A call without it, after all parts, has what they kept and embeds what they left.

    What cannot be read is left out and told in the report; equal files are embedded once. Vectors
    are open_clip's own ``F.normalize(encode_image(preprocess(picture)))``.
    """
    if images is None and texts is None:
        raise ValueError("nothing to embed: give images, texts or both")
    if min(batch_size, workers) < 1:
        raise ValueError(f"batch_size {batch_size}, workers {workers}: each must be >= 1")
    if part and not cache:
        raise ValueError(f"part {part} needs a cache, where all parts meet")
    if cache and (reason := unwritable(cache)):
        raise ValueError(f"{reason}: set ENTITYCLIP_RUNS, or give another cache (--cache)")
    backbone = load_encoder(checkpoint, model)
    folder = Path(cache).expanduser() / fingerprint(backbone) if cache else None
    report, of_images, of_texts = EmbedReport(), None, None
    encoder = _Encoder(backbone, folder, report, batch_size, workers, progress, part)
    home, away = backbone.device, device or best_device()
    try:
        with evaluating(backbone.to(away)):
            if images is not None:
                pictures, report.left_out = list_pictures(images)
                of_images = encoder.pictures(pictures)
                report.pictures = len(of_images)
            if texts is not None:
                listed = list_texts(texts)
                names = list(listed)
                report.cut = [names[row] for row in backbone.too_long([*listed.values()])]
                of_texts = encoder.texts(listed)
                report.texts = len(of_texts)
    finally:
        backbone.to(home)
    return Embedded(of_images, of_texts, report)


class _Read(NamedTuple):
    key: str
    content: Any = None  # pixels or text; None: the cache has its vector
    signature: str | None = None


@dataclass(frozen=True)
class _Encoder:
    """A backbone, a folder for what it encodes (None: nothing is kept), and the report of it."""

    backbone: Backbone
    folder: Path | None
    report: EmbedReport
    batch_size: int  # pictures or texts read, run through the model, and kept together
    workers: int  # threads that read and decode
    progress: bool
    part: Part | None = None

    def pictures(self, sources: Mapping[str, Source]) -> Vectors:
        """Encode pictures: ``F.normalize(encode_image(preprocess(picture)))``."""
        geometry, normalize = split_preprocess(self.backbone.preprocess)
        device = self.backbone.device

        def opened(source: Source) -> tuple[str, Callable[[], Tensor]]:
            key, load = read_picture(source)

            def small() -> Tensor:
                with decoding():  # its pixels count until they are few
                    return picture_tensor(geometry(load()), normalize)

            return key, small

        def encode(pixels: list[Tensor]) -> Tensor:
            images = torch.stack(pixels).to(device)
            if normalize is not None:
                mean, std = (values.to(device) for values in normalize)
                images = images.to(torch.float32).div_(255).sub_(mean).div_(std)
            return self.backbone.encode_image(images)

        keys, vectors = self._run("images", sources, opened, encode)
        first: dict[str, str] = {}
        for name, key in keys.items():
            if first.setdefault(key, name) != name:
                self.report.duplicates[name] = first[key]
        return vectors

    def texts(self, texts: Mapping[str, str]) -> Vectors:
        """Encode texts: ``F.normalize(encode_text(tokenize(texts)))``."""

        def encode(texts: list[str]) -> Tensor:
            tokens = self.backbone.tokenize(texts).to(self.backbone.device)
            return self.backbone.encode_text(tokens)

        return self._run("texts", texts, lambda text: (text_key(text), lambda: text), encode)[1]

    def _run(
        self,
        kind: str,
        items: Mapping[str, Any],
        opened: Callable[[Any], tuple[str, Callable[[], Any]]],
        encode: Callable[[list[Any]], Tensor],
    ) -> tuple[dict[str, str], Vectors]:
        """Read and encode what the cache does not have: the key of each id, and the vectors.

        `opened` gives an item's key and what loads it. The cache is ours alone until all is done,
        or a part's alone. A batch is one part's, so that its vectors are those of one run to the
        bit; a picture that two parts hold is encoded by both.
        """
        names, folder = list(items), self.folder and self.folder / kind
        lock = ".lock" if self.part is None else f".lock-{self.part.index}-of-{self.part.count}"
        keys: dict[str, str] = {}
        with (
            claimed(folder / lock, wait=True) if folder else nullcontext(),
            ThreadPoolExecutor(self.workers) as pool,
            progress_bar(total=len(names), desc=kind, show=self.progress) as bar,
        ):
            known = VectorCache(folder, self.backbone.width, self.part)
            before = len(known.vectors)

            def read(name: str) -> _Read | ImageError:
                mark = signature(items[name])
                if mark in known.keys:
                    return _Read(known.keys[mark])
                try:
                    key, load = opened(items[name])
                    return _Read(key, None if key in known.vectors else load(), mark)
                except ImageError as error:
                    return error

            for number, start in enumerate(range(0, len(names), self.batch_size)):
                batch = names[start : start + self.batch_size]
                if self.part and not self.part.has(number):
                    bar.update(len(batch))
                    continue
                new: dict[str, _Read] = {}
                for name, got in zip(batch, pool.map(read, batch), strict=True):
                    if isinstance(got, ImageError):
                        self.report.unreadable[name] = str(got)
                        continue
                    keys[name] = got.key
                    if got.content is not None:
                        new.setdefault(got.key, got)
                if new:
                    vectors = encode([item.content for item in new.values()]).float()
                    if not vectors.isfinite().all():
                        raise ValueError(
                            f"{batch[0]} … {batch[-1]}: the model gives NaN or infinity"
                        )
                    marks = {item.signature: key for key, item in new.items() if item.signature}
                    known.add(list(new), F.normalize(vectors, dim=-1).cpu().numpy(), marks)
                bar.update(len(batch))
        self.report.embedded += len(known.vectors) - before
        values = np.array([known.vectors[key] for key in keys.values()], np.float32)
        return keys, Vectors(list(keys), values.reshape(-1, self.backbone.width))
