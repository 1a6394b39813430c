"""Making a prepared copy of a data set's pictures, smaller and in tars, to be read from then on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from entityclip.console import Part, progress_bar
from entityclip.datasets.pair import Picture, decode, decoding
from entityclip.datasets.prepared import (
    MANIFEST,
    Index,
    PreparedError,
    Shard,
    checksum_of,
    copy_of_before,
    fingerprint_of,
    originals,
    parse_index,
    plan_of,
    read_copy,
    sha256_of_text,
    size_of,
    use_prepared,
)
from entityclip.datasets.table import PairTable
from entityclip.files import (
    atomic_write_bytes,
    atomic_write_text,
    printable,
    read_json,
)

FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareOptions:
    """How pictures are stored.

    JPEG changes pixels a little. With `lossless` (PNG) and `side` equal to the model's input size,
    open_clip's evaluation pixels from the copy are exactly those from the originals, since both are
    resized to that side by the same bicubic filter.
    """

    side: int = 256  # pixels of the shorter side; smaller pictures keep their size
    quality: int = 90  # of the JPEGs
    lossless: bool = False  # PNG instead of JPEG
    shard_pictures: int = 1000

    def __post_init__(self) -> None:
        ranges = {"side": (16, 4096), "quality": (1, 100), "shard_pictures": (1, 100_000)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be from {low} to {high}")


def prepare(
    dataset: str,
    tables: Sequence[PairTable],
    out: Path,
    options: PrepareOptions | None = None,
    *,
    workers: int = 4,
    max_broken: float = 0.01,
    progress: bool = True,
    part: Part | None = None,
) -> dict[str, Any] | None:
    """Write every distinct picture of the tables below `out`; what ``prepared.json`` then holds.

    With `part` only its shards and no ``prepared.json``: None. A call without it, after all parts,
    makes what they left and writes it.

    A stopped call goes on at its first missing shard; finished shards are kept if their bytes,
    their pictures' names and sizes, and the options are unchanged. The same originals and options
    give the same bytes.

    Raises PreparedError for a folder made with other options, from another root or by something
    else, for no pictures, and (after the shards, before the manifest is written) where more than
    the share `max_broken` is broken.
    """
    options = options or PrepareOptions()
    described = _described(dataset, options)
    pictures = {name: image for table in tables for name, image in originals(table).items()}
    if not pictures:
        raise PreparedError(f"{dataset} has no picture to prepare")
    root = str(tables[0].root.expanduser().resolve())
    _claim(out, dataset, described, root)
    names, shards, broken = sorted(pictures), [], {}
    bar = progress_bar(total=len(names), desc="pictures", unit="picture", show=progress)
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        starts = range(0, len(names), options.shard_pictures)
        for number, start in enumerate(starts):
            if part and not part.has(number):
                bar.update(min(starts.step, len(names) - start))
                continue
            chosen = {name: pictures[name] for name in names[start : start + starts.step]}
            path = out / f"{dataset}-{number:06d}.tar"
            shard, lost = _shard(path, chosen, start, described, pool, bar.update)
            shards.append(shard)
            broken.update(lost)
    if part:
        return None
    if len(broken) > max_broken * len(names):
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(broken.items())[:5])
        raise PreparedError(
            f"{len(broken)} of {len(names)} pictures are broken, more than the share "
            f"{max_broken:g}: {shown}; mend them, or raise max_broken"
        )
    manifest = {
        "options": described, "root": root, "pictures": len(names) - len(broken),
        "shards": [shard.model_dump() for shard in shards],
        "broken": broken, "fingerprint": fingerprint_of(described, shards),
    }  # fmt: skip
    atomic_write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _described(dataset: str, options: PrepareOptions) -> dict[str, Any]:
    return {"format": FORMAT_VERSION, "dataset": dataset, **asdict(options)}


def _claim(out: Path, dataset: str, described: dict[str, Any], root: str) -> None:
    """Make a folder that of a copy. Raises PreparedError where it is another's."""
    settings = out / "options.json"
    # first: another part may write its options and a tar between the two questions
    has_tars = any(out.glob(f"{dataset}-*.tar"))
    if settings.exists():
        before = read_json(settings, PreparedError)
        made_from = before.pop("root", root)  # earlier versions did not write it
        if before != described:
            raise PreparedError(f"{out} was prepared with {before}; choose another folder")
        if made_from != root:
            raise PreparedError(f"{out} was prepared from {made_from}; choose another folder")
    elif has_tars:
        raise PreparedError(f"{out} holds tars that prepare did not write; choose another folder")
    atomic_write_text(settings, json.dumps({**described, "root": root}, indent=1) + "\n")


def earlier_copy(
    dataset: str, tables: Sequence[PairTable], options: PrepareOptions, parent: Path | None
) -> Path | None:
    """The copy that an earlier version made below `parent` if it holds all of this, else None."""
    before = copy_of_before(parent, dataset)
    with contextlib.suppress(PreparedError):
        if read_copy(before).options == _described(dataset, options):
            for table in tables:
                use_prepared(table, before, dataset)
            return before
    return None


def _shard(
    path: Path, pictures: dict[str, Path | Picture], start: int, options: dict[str, Any],
    pool: ThreadPoolExecutor, done: Callable[[int], object],
) -> tuple[Shard, dict[str, str]]:  # fmt: skip
    """Write one shard and its index, unless they stand there already; the broken of its pictures.

    An index that cannot be used is ours to write anew, as is a shard whose bytes have changed.
    """
    sizes = {name: size_of(image) for name, image in pictures.items()}
    side_file, plan = path.with_suffix(".json"), plan_of(options, sizes)
    with contextlib.suppress(FileNotFoundError, PreparedError):
        index, text = parse_index(side_file)
        if index.plan == plan and _describes(index, pictures, path.read_bytes()):
            done(len(pictures))
            return _summary(index, text)
    buffer, places, kept, broken = io.BytesIO(), [], [], []
    ending = "png" if options["lossless"] else "jpg"
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        encoded = pool.map(lambda image: _encode(image, options), pictures.values())
        for number, (name, result) in enumerate(zip(pictures, encoded, strict=True), start):
            done(1)
            if isinstance(result, str):
                broken.append((name, result))
                continue
            data, size, original = result
            about = json.dumps({"picture": name, "width": size[0], "height": size[1]}).encode()
            offset = _member(tar, f"{number:09d}.{ending}", data)
            _member(tar, f"{number:09d}.json", about)
            places.append((name, offset, len(data), zlib.crc32(data)))
            kept.append(original)
    content = buffer.getvalue()
    index = Index(
        name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
        plan=plan, pictures=places, broken=broken, originals=kept,
    )  # fmt: skip
    if grown := [name for name, image in pictures.items() if size_of(image) != sizes[name]]:
        what = "changed while they were prepared; prepare again"
        _log.warning("%s: %d pictures (%s, …) %s", path, len(grown), printable(grown[0]), what)
    text = json.dumps(index.model_dump()) + "\n"
    atomic_write_bytes(path, content)  # the index last: where it stands, its shard is whole
    atomic_write_text(side_file, text)
    return _summary(index, text)


def _describes(index: Index, names: Iterable[str], shard: bytes) -> bool:
    """Whether an index is that of these pictures and bytes."""
    lost = {name for name, _ in index.broken}
    return (
        index.sha256 == hashlib.sha256(shard).hexdigest()
        and [name for name, *_ in index.pictures] == [name for name in names if name not in lost]
        and all(zlib.crc32(shard[at : at + size]) == sum_ for _, at, size, sum_ in index.pictures)
    )


def _summary(index: Index, text: str) -> tuple[Shard, dict[str, str]]:
    digest = sha256_of_text(text)
    shard = Shard(name=index.name, bytes=index.bytes, sha256=index.sha256, index=digest)
    return shard, dict(index.broken)


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file without dates or owners; the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # one header block, the names are short
    tar.addfile(info, io.BytesIO(data))
    return offset


def _encode(
    image: Path | Picture, options: dict[str, Any]
) -> tuple[bytes, tuple[int, int], tuple[int, int]] | str:
    """A picture's stored bytes; its upright original's (width, height), bytes and CRC-32.

    Or what is wrong with it.
    """
    try:
        with decoding():
            picture = decode(image) if isinstance(image, Path) else image.load()
            size = picture.size
            if min(size) > options["side"]:
                # torchvision's resize to a shorter side, without the seconds its import takes
                shape = tuple(options["side"] * edge // min(size) for edge in size)
                picture = picture.resize(shape, Image.Resampling.BICUBIC)
        original = max(0, size_of(image)), checksum_of(image)
    except OSError as error:  # ImageError is one
        return str(error)
    buffer = io.BytesIO()
    plain = Image.new("RGB", picture.size)
    plain.paste(picture)  # the pixels alone: no EXIF, profile or comment comes along
    # the quality is JPEG's alone
    plain.save(buffer, "PNG" if options["lossless"] else "JPEG", quality=options["quality"])
    return buffer.getvalue(), size, original
