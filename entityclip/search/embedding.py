"""Pictures and texts to normalised vectors, resumably: ``entityclip.embed(...)``.

``entityclip embed`` is its command.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from entityclip.checkpoints import CheckpointError, read_meta, read_tensors, write_checkpoint
from entityclip.config import EntityCLIPConfig
from entityclip.datasets.dataset import picture_tensor, split_preprocess
from entityclip.datasets.pair import ImageError, Pair, Picture, decode
from entityclip.datasets.reading import csv_rows
from entityclip.files import atomic_write_text, claimed, progress_bar, replacing
from entityclip.models.clip import Backbone, BackboneError, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.training.run_folder import BEST
from entityclip.training.run_folder import load_model as load_weights


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


ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"))


MAX_BYTES = 1 << 29  # of a file; a picture that Pillow would decode is smaller


Source = Path | Picture | Image.Image


Images = str | Path | Mapping[str, Any] | Sequence[Any]


@dataclass
class Listing:
    """Pictures by id, and the files beside them that are none."""

    pictures: dict[str, Source] = field(default_factory=dict)
    not_pictures: list[str] = field(default_factory=list)


def list_pictures(images: Images) -> Listing:
    """The pictures of a folder, a CSV or Parquet file of paths, pairs, a mapping or a sequence.

    Ids are paths below the folder, a table's column `id` (else its paths), the pairs' ids, a
    mapping's keys, or a sequence's paths (its pictures' numbers). Whether a file can be read shows
    later. Raises FileNotFoundError, and ValueError for a table without column `image`, for repeated
    ids and for what is none of these.
    """
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder or a table of paths")
        return Listing(_unique(_of_table(path), str(path)))
    if isinstance(images, Mapping):
        return Listing({str(name): _source(value) for name, value in images.items()})
    return Listing(_unique(_of_sequence(images), "the pictures"))


def key_of(picture: Source) -> tuple[str, bytes | None]:
    """A key that only the same picture has, and a file's bytes.

    Raises ImageError for a file that cannot be read.
    """
    if isinstance(picture, Path):
        data = _read(picture)
        return _digest(b"file", data), data
    if isinstance(picture, Image.Image):
        about = f"{picture.mode} {picture.size}".encode()
        return _digest(about, picture.tobytes()), None
    return _digest(b"made", picture.key.encode()), None


def load(picture: Source, data: bytes | None) -> Image.Image:
    """The picture in upright 8-bit RGB; `data` is its file's content. Raises ImageError."""
    if data is not None:
        return decode(data)
    return picture.convert("RGB") if isinstance(picture, Image.Image) else picture.load()


def signature(picture: Source) -> str | None:
    """Path, size and time of a file, by which an unchanged one is known without reading it."""
    if not isinstance(picture, Path):
        return None
    try:
        status = picture.stat()
    except OSError:
        return None
    return readable(f"{picture.resolve()}|{status.st_size}|{status.st_mtime_ns}")


def readable(name: str) -> str:
    r"""A file name as text: bytes of it that are not UTF-8 are written as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _of_folder(folder: Path) -> Listing:
    listing, home = Listing(), folder.resolve()
    for path in sorted(_walk(folder)):
        name = readable(path.relative_to(folder).as_posix())
        if path.suffix.lower() in ENDINGS and _inside(home, path):
            listing.pictures[name] = path
        else:
            listing.not_pictures.append(name)
    return listing


def _inside(home: Path, path: Path) -> bool:
    """Whether links lead nowhere else: beyond the folder may lie anything of this machine."""
    try:
        return path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _of_table(path: Path) -> Iterator[tuple[str, Source]]:
    """Rows of columns `image` and, if there is one, `id`; paths count from the table's folder."""
    if path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix.lower() == ".csv":
        rows = ((row.values["image"], row.values.get("id"))
                for row in csv_rows(path, ("image",), optional=("id",), first=2))  # fmt: skip
    else:
        raise ValueError(f"{path} is no folder, and no table: give .csv or .parquet")
    for image, name in rows:
        yield str(image if name is None else name), path.parent / str(image)


def _parquet_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(f"{path}: pip install pyarrow to read Parquet, or give CSV") from error
    try:
        names = pq.read_schema(path).names
        if "image" not in names:
            raise ValueError(f"{path} has no column 'image'; it has {', '.join(names)}")
        table = pq.read_table(path, columns=[name for name in ("image", "id") if name in names])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not readable Parquet ({error})") from error
    images = table["image"].to_pylist()
    return zip(images, table["id"].to_pylist() if "id" in names else images, strict=True)


def _of_sequence(images: Sequence[Any]) -> Iterator[tuple[str, Source]]:
    for number, value in enumerate(images):
        if isinstance(value, Pair):
            yield value.id, value.image
        else:
            source = _source(value)
            yield (str(value) if isinstance(source, Path) else str(number)), source


def _source(value: Any) -> Source:
    if isinstance(value, (str, os.PathLike)):
        return Path(value).expanduser()
    if isinstance(value, (Image.Image, Picture)):
        return value
    raise ValueError(f"{value!r:.80} is no picture: give a path, a PIL picture or a pair")


def _unique(items: Iterator[tuple[str, Source]], what: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for name, source in items:
        if name in found:
            raise ValueError(f"{what}: id {name!r} stands twice; give each picture its own id")
        found[name] = source
    return found


def _read(path: Path) -> bytes:
    try:
        # also keeps named pipes and devices, which would block, from being opened
        if not path.is_file():
            raise ImageError("no such file" if not path.exists() else "not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path.stat().st_size} bytes are more than {MAX_BYTES}")
        return path.read_bytes()
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{type(error).__name__}: {error.strerror}") from error


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(np.uint64(len(part)).tobytes() + part)
    return digest.hexdigest()


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


Texts = Mapping[str, str] | Sequence[str] | Sequence[Pair]


_SHOWN = 5  # files of a kind that the report's text names


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
                more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{len(names)} {what}: {'; '.join(names[:_SHOWN])}{more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Embedded:
    """Vectors of pictures and of texts, and what was left out; None for what was not asked for."""

    images: Vectors | None
    texts: Vectors | None
    report: EmbedReport


class _Prepared(NamedTuple):
    key: str
    signature: str | None
    pixels: Tensor | None  # None: the cache has it


@torch.inference_mode()
def embed(
    checkpoint: str | Path | nn.Module,
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
    backbone = _backbone(checkpoint, model)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(cache).expanduser() / fingerprint(backbone) if cache else None
    report = EmbedReport()
    job = _Job(backbone, device, folder, batch_size, chunk, workers, progress, report)
    with _on(backbone, device):
        vectors = [
            None if images is None else job.pictures(images),
            None if texts is None else job.texts(texts),
        ]
    return Embedded(*vectors, report)


@dataclass
class _Job:
    backbone: Backbone
    device: torch.device
    folder: Path | None
    batch_size: int
    chunk: int
    workers: int
    progress: bool
    report: EmbedReport

    def pictures(self, images: Images) -> Vectors:
        listing = list_pictures(images)
        self.report.not_pictures = listing.not_pictures
        names = list(listing.pictures)
        keys: dict[str, str] = {}
        with self._cache("images") as cache, ThreadPoolExecutor(self.workers) as pool:
            prepare = _preparer(self.backbone, cache)
            with progress_bar(total=len(names), desc="pictures", show=self.progress) as bar:
                for start in range(0, len(names), self.chunk):
                    window = names[start : start + self.chunk]
                    prepared = pool.map(prepare, [listing.pictures[name] for name in window])
                    keys |= self._picture_chunk(cache, window, list(prepared), bar.update)
            vectors = cache.gather(list(keys.values()))
        first: dict[str, str] = {}
        for name, key in keys.items():
            if first.setdefault(key, name) != name:
                self.report.duplicates[name] = first[key]
        self.report.pictures = len(keys)
        return Vectors(list(keys), vectors)

    def texts(self, texts: Texts) -> Vectors:
        named = _named(texts)
        keys = {name: _text_key(text) for name, text in named.items()}
        with self._cache("texts") as cache:
            new = {key: named[name] for name, key in keys.items() if key not in cache}
            todo = list(new.items())
            with progress_bar(total=len(todo), desc="texts", show=self.progress) as bar:
                for start in range(0, len(todo), self.chunk):
                    part = dict(todo[start : start + self.chunk])
                    self._encode(cache, part, {}, self._text_batch, bar.update)
            vectors = cache.gather(list(keys.values()))
        self.report.texts = len(keys)
        return Vectors(list(keys), vectors)

    def _picture_chunk(
        self,
        cache: VectorCache,
        names: list[str],
        prepared: list[_Prepared | str],
        update: Callable[[int], Any],
    ) -> dict[str, str]:
        """Encode what of some prepared pictures is new; the keys of the readable ones by name."""
        keys, new, signatures = {}, {}, {}
        for name, got in zip(names, prepared, strict=True):
            if isinstance(got, str):
                self.report.unreadable[name] = got
                continue
            keys[name] = got.key
            if got.pixels is not None:
                new.setdefault(got.key, got.pixels)
                if got.signature:
                    signatures[got.signature] = got.key
        update(len(names) - len(new))
        self._encode(cache, new, signatures, self._picture_batch, update)
        return keys

    def _encode(
        self,
        cache: VectorCache,
        new: dict[str, Any],
        signatures: dict[str, str],
        encode: Callable[[list[Any]], Tensor],
        update: Callable[[int], Any],
    ) -> None:
        """Run `new` through the model in batches; what was done is kept even if interrupted."""
        keys, vectors = list(new), []
        try:
            for start in range(0, len(keys), self.batch_size):
                batch = [new[key] for key in keys[start : start + self.batch_size]]
                vectors.append(F.normalize(encode(batch).float(), dim=-1).cpu().numpy())
                update(len(batch))
        finally:
            done = sum(map(len, vectors))
            if done:
                kept = set(keys[:done])
                told = {mark: key for mark, key in signatures.items() if key in kept}
                cache.add(keys[:done], np.concatenate(vectors), told)
                self.report.embedded += done

    def _picture_batch(self, pixels: list[Tensor]) -> Tensor:
        images = torch.stack(pixels).to(self.device)
        normalize = split_preprocess(self.backbone.preprocess)[1]
        if normalize is not None:
            mean, std = (values.to(self.device) for values in normalize)
            images = images.to(torch.float32).div_(255).sub_(mean).div_(std)
        return self.backbone.encode_image(images)

    def _text_batch(self, texts: list[str]) -> Tensor:
        return self.backbone.encode_text(self.backbone.tokenize(texts).to(self.device))

    @contextmanager
    def _cache(self, kind: str):
        """The cache of one kind, ours alone while it is used: a second process waits."""
        folder = self.folder / kind if self.folder else None
        with claimed(folder / ".lock", wait=True) if folder else nullcontext():
            yield VectorCache(folder, self.backbone.width)


def _preparer(backbone: Backbone, cache: VectorCache) -> Callable[[Source], _Prepared | str]:
    """What turns a picture into pixels, unless the cache has it, or into what is wrong with it."""
    geometry, normalize = split_preprocess(backbone.preprocess)

    def prepare(picture: Source) -> _Prepared | str:
        mark = signature(picture)
        known = cache.signatures.get(mark) if mark else None
        if known in cache:
            return _Prepared(known, mark, None)
        try:
            key, data = key_of(picture)
            if key in cache:
                return _Prepared(key, mark, None)
            return _Prepared(key, mark, picture_tensor(geometry(load(picture, data)), normalize))
        except ImageError as error:
            return str(error)

    return prepare


def _backbone(checkpoint: str | Path | nn.Module, model: str | None) -> Backbone:
    if isinstance(checkpoint, (str, Path)):
        return load_encoder(checkpoint, model)
    return checkpoint if isinstance(checkpoint, Backbone) else checkpoint.backbone


@contextmanager
def _on(backbone: Backbone, device: torch.device):
    """The backbone on `device` for evaluation, and afterwards as it was."""
    training, home = backbone.training, backbone.device
    backbone.eval().to(device)
    try:
        yield
    finally:
        backbone.train(training).to(home)


def _named(texts: Texts) -> dict[str, str]:
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of texts")
    if isinstance(texts, Mapping):
        return {str(name): text for name, text in texts.items()}
    pairs = [
        (text.id, text.caption) if isinstance(text, Pair) else (str(number), text)
        for number, text in enumerate(texts)
    ]
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError(f"{len(pairs) - len(named)} texts repeat another's id; ids must differ")
    return named


def _text_key(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
