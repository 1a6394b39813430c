"""A checkpoint's two towers as an encoder, and what keeps it from encoding anything twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.checkpoints import CheckpointError, read_meta, read_tensors, write_checkpoint
from entityclip.datasets.dataset import picture_tensor, split_preprocess
from entityclip.datasets.pair import ImageError
from entityclip.files import claimed, progress_bar
from entityclip.models.clip import Backbone, BackboneError, create_backbone
from entityclip.search.sources import Source, read_picture, signature, text_key
from entityclip.training.run_folder import BEST


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


class VectorCache:
    """What was encoded so far: key → vector [width], in ``NNNNNN.safetensors`` below a folder.

    Each chunk also tells which files its keys were read from (`signatures`), so that an unchanged
    file need not be read again to know its key. Without a folder everything stays in memory.
    Raises CheckpointError naming a chunk that is damaged.
    """

    def __init__(self, folder: Path | None, width: int) -> None:
        self.folder, self.width = folder, width
        self.signatures: dict[str, str] = {}
        self._chunks: list[Path | np.ndarray] = []
        self._places: dict[str, tuple[int, int]] = {}  # key -> place of its chunk, row
        for path in sorted(folder.glob("[0-9]*.safetensors")) if folder else ():
            meta = read_meta(path)
            self._learn(path, meta["keys"], meta["signatures"])

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, keys: Sequence[str], vectors: np.ndarray, signatures: Mapping[str, str]) -> None:
        """Keep a chunk: `vectors` [n, width] float32 of n new keys; file signature → key."""
        chunk: Path | np.ndarray = vectors
        if self.folder:
            number = int(self._chunks[-1].stem) + 1 if self._chunks else 0
            chunk = self.folder / f"{number:06d}.safetensors"
            meta = {"keys": list(keys), "signatures": dict(signatures)}
            write_checkpoint(chunk, {"vectors": torch.from_numpy(vectors)}, meta)
        self._learn(chunk, keys, signatures)

    def gather(self, keys: Sequence[str]) -> np.ndarray:
        """The vectors [n, width] of some keys, in their order; each chunk is read once."""
        found = np.empty((len(keys), self.width), np.float32)
        places = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        for place in np.unique(places[:, 0]).tolist():
            rows, chunk = places[:, 0] == place, self._chunks[place]
            vectors = read_tensors(chunk)["vectors"].numpy() if isinstance(chunk, Path) else chunk
            found[rows] = vectors[places[rows, 1]]
        return found

    def _learn(
        self, chunk: Path | np.ndarray, keys: Sequence[str], signatures: Mapping[str, str]
    ) -> None:
        self._places |= {key: (len(self._chunks), row) for row, key in enumerate(keys)}
        self._chunks.append(chunk)
        self.signatures.update(signatures)


class Encoded(NamedTuple):
    """What became of some named pictures or texts."""

    keys: dict[str, str]  # of what could be read, by id
    vectors: np.ndarray  # [n, width] float32, of length 1, one for each of `keys`
    unreadable: dict[str, str]  # id -> what is wrong
    new: int  # vectors that were not in the cache


class _Read(NamedTuple):
    key: str
    content: Any  # pixels or text; None: the cache has its vector
    signature: str | None = None


@dataclass(frozen=True)
class Encoder:
    """A backbone on a device, with a folder for what it encodes; None: nothing is kept."""

    backbone: Backbone
    device: torch.device
    folder: Path | None
    batch_size: int  # pictures or texts a forward pass
    chunk: int  # pictures or texts read ahead and written together
    workers: int  # threads that read and decode
    progress: bool

    def pictures(self, sources: Mapping[str, Source]) -> Encoded:
        """Encode pictures: ``F.normalize(encode_image(preprocess(picture)))``."""
        geometry, normalize = split_preprocess(self.backbone.preprocess)

        def read(source: Source, known: VectorCache) -> _Read:
            mark = signature(source)
            key = known.signatures.get(mark)
            if key in known:
                return _Read(key, None)
            key, load = read_picture(source)
            if key in known:
                return _Read(key, None)
            return _Read(key, picture_tensor(geometry(load()), normalize), mark)

        def encode(pixels: list[Tensor]) -> Tensor:
            images = torch.stack(pixels).to(self.device)
            if normalize is not None:
                mean, std = (values.to(self.device) for values in normalize)
                images = images.to(torch.float32).div_(255).sub_(mean).div_(std)
            return self.backbone.encode_image(images)

        return self._run("images", sources, read, encode)

    def texts(self, texts: Mapping[str, str]) -> Encoded:
        """Encode texts: ``F.normalize(encode_text(tokenize(texts)))``."""

        def read(text: str, known: VectorCache) -> _Read:
            key = text_key(text)
            return _Read(key, None if key in known else text)

        def encode(texts: list[str]) -> Tensor:
            return self.backbone.encode_text(self.backbone.tokenize(texts).to(self.device))

        return self._run("texts", texts, read, encode)

    def _run(
        self,
        kind: str,
        items: Mapping[str, Any],
        read: Callable[[Any, VectorCache], _Read],
        encode: Callable[[list[Any]], Tensor],
    ) -> Encoded:
        """Read and encode what the cache does not have, which is ours alone until it is done."""
        names, folder = list(items), self.folder and self.folder / kind
        keys, unreadable = {}, {}
        with (
            claimed(folder / ".lock", wait=True) if folder else nullcontext(),
            ThreadPoolExecutor(self.workers) as pool,
            progress_bar(total=len(names), desc=kind, show=self.progress) as bar,
        ):
            known = VectorCache(folder, self.backbone.width)
            before = len(known)

            def tried(name: str) -> _Read | ImageError:
                try:
                    return read(items[name], known)
                except ImageError as error:
                    return error

            for start in range(0, len(names), self.chunk):
                window = names[start : start + self.chunk]
                new: dict[str, _Read] = {}
                for name, got in zip(window, pool.map(tried, window), strict=True):
                    if isinstance(got, ImageError):
                        unreadable[name] = str(got)
                        continue
                    keys[name] = got.key
                    if got.content is not None:
                        new.setdefault(got.key, got)
                bar.update(len(window) - len(new))
                self._encode(known, list(new.values()), encode, bar.update)
            vectors = known.gather(list(keys.values()))
            return Encoded(keys, vectors, unreadable, len(known) - before)

    def _encode(
        self,
        known: VectorCache,
        new: list[_Read],
        encode: Callable[[list[Any]], Tensor],
        update: Callable[[int], Any],
    ) -> None:
        """Run what is new through the model in batches; what was done is kept even if stopped."""
        vectors: list[np.ndarray] = []
        try:
            for start in range(0, len(new), self.batch_size):
                batch = [item.content for item in new[start : start + self.batch_size]]
                vectors.append(F.normalize(encode(batch).float(), dim=-1).cpu().numpy())
                update(len(batch))
        finally:
            if vectors:
                done = new[: sum(map(len, vectors))]
                marks = {item.signature: item.key for item in done if item.signature}
                known.add([item.key for item in done], np.concatenate(vectors), marks)


@contextmanager
def encoder(
    checkpoint: str | Path | nn.Module,
    *,
    model: str | None,
    cache: str | Path | None,
    device: str | torch.device | None,
    **how: Any,
) -> Iterator[Encoder]:
    """An `Encoder` of a checkpoint or of a loaded model, which afterwards is as it was."""
    backbone = checkpoint
    if isinstance(checkpoint, (str, Path)):
        backbone = load_encoder(checkpoint, model)
    elif not isinstance(checkpoint, Backbone):
        backbone = checkpoint.backbone
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(cache).expanduser() / fingerprint(backbone) if cache else None
    training, home = backbone.training, backbone.device
    backbone.eval().to(device)
    try:
        with torch.inference_mode():
            yield Encoder(backbone, device, folder, **how)
    finally:
        backbone.train(training).to(home)
