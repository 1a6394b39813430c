"""Pictures and texts to normalised vectors, resumably: ``entityclip.embed(...)``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.backbone import Backbone
from entityclip.datasets.decode import ImageError
from entityclip.datasets.pair import Pair, picture_tensor, split_preprocess
from entityclip.encoder import fingerprint, load_encoder
from entityclip.files import claimed
from entityclip.picture_sources import Images, Source, key_of, list_pictures, load, signature
from entityclip.progress import progress_bar
from entityclip.vector_cache import VectorCache
from entityclip.vectors import Vectors

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
