"""Every picture of a data set decoded and hashed, once: a journal has those that were whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from entityclip.console import progress_bar
from entityclip.datasets.duplicates import perceptual_hash
from entityclip.datasets.pair import Picture, decode, decoding
from entityclip.datasets.reading import sha256_of
from entityclip.files import append, locked, mend_tail

_WINDOW = 512  # pictures in flight, and rows written at once: bounds memory on a million
Stamp = tuple[int, int, int]  # bytes, and nanoseconds of the last change of content and of anything


class Row(NamedTuple):
    """A line of the journal: a picture that was whole."""

    name: str
    stamp: Stamp
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    look: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # its perceptual hash


_ROW = TypeAdapter(Row)


class JournalError(ValueError):
    """The journal cannot be used; the message says why."""


@dataclass
class Checked:
    """What was found of n pictures; rows of zeros stand for those that cannot be read."""

    names: list[str]
    sums: np.ndarray  # [n, 32] uint8, sha256
    looks: np.ndarray  # [n, 4] uint64, perceptual hashes
    known: int = 0  # whole and unchanged since an earlier call, and not read now
    broken: dict[str, str] = field(default_factory=dict)  # name -> what is wrong
    unreadable: dict[str, str] = field(default_factory=dict)  # likewise, for want of permission
    changed: list[str] = field(default_factory=list)  # whole, with other bytes than before
    decayed: list[str] = field(default_factory=list)  # likewise, though nothing wrote to the file

    @property
    def digest(self) -> str:
        """One sha256 of all names and contents."""
        total = sha256()
        for name, row in zip(self.names, self.sums, strict=True):
            total.update(f"{name} {bytes(row).hex() if row.any() else ''}\n".encode())
        return total.hexdigest()


def check_pictures(
    pictures: Mapping[str, Path | Picture],
    journal: Path | None = None,
    *,
    workers: int = 4,
    again: bool = False,
    progress: bool = True,
) -> Checked:
    """Decode and hash pictures, each once as long as its file's size and times stay the same.

    Args:
        pictures: each by its name, which is its path below the root.
        journal: JSONL file with a line for each picture that was whole, added to window by window,
            so that a stopped call goes on; None: check them all. What failed is tried each time.
        workers: threads that decode (Pillow decodes outside Python's lock).
        again: also read those that the journal has.
        progress: show a bar.

    Raises JournalError for a journal that is something else.
    """
    names = sorted(pictures)
    found = Checked(names, np.zeros((len(names), 32), np.uint8), np.zeros((len(names), 4), "u8"))
    stamps = [_stamp(pictures[name]) for name in names]
    same = _recall(found, stamps, journal)
    left = np.arange(len(names)) if again else np.flatnonzero(~same)
    before = found.sums[left]
    found.sums[left] = found.looks[left] = 0
    found.known = len(names) - len(left)
    # `initial`, so that time left is reckoned from what is left
    bar = progress_bar(total=len(names), initial=found.known, desc="pictures", unit="picture",
                       show=progress)  # fmt: skip
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        for start in range(0, len(left), _WINDOW):
            window, rows = left[start : start + _WINDOW].tolist(), []
            results = pool.map(_check_picture, [pictures[names[place]] for place in window])
            for number, (place, result) in enumerate(zip(window, results, strict=True), start):
                bar.update()
                if isinstance(result, OSError):
                    closed = isinstance(result.__cause__ or result, PermissionError)
                    (found.unreadable if closed else found.broken)[names[place]] = str(result)
                    continue
                _note(found, place, *result)
                new = not before[number].any()
                other = not new and not np.array_equal(before[number], found.sums[place])
                if other:
                    (found.decayed if same[place] else found.changed).append(names[place])
                # of one that has decayed, the journal keeps what it was
                if stamps[place] and not same[place]:
                    rows.append(Row(names[place], stamps[place], *result))
            _write(journal, rows)
    return found


def _recall(found: Checked, stamps: list[Stamp | None], journal: Path | None) -> np.ndarray:
    """Note what the journal has; [n] bool, whose files are still what they were then."""
    same, place_of = np.zeros(len(stamps), bool), {n: place for place, n in enumerate(found.names)}
    for row in read_journal(journal) if journal else ():
        if (place := place_of.get(row.name)) is not None:
            _note(found, place, row.sha256, row.look)
            same[place] = row.stamp == stamps[place]
    return same


def _note(found: Checked, place: int, digest: str, look: str) -> None:
    found.sums[place] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    found.looks[place] = np.frombuffer(bytes.fromhex(look), ">u8")


def _check_picture(image: Path | Picture) -> tuple[str, str] | OSError:
    """The sha256 of a picture's bytes (of its pixels, if it lies in no file) and its look."""
    try:
        with decoding():
            picture = decode(image) if isinstance(image, Path) else image.load()
            look = perceptual_hash(picture).astype(">u8").tobytes().hex()
            if isinstance(image, Path):
                return sha256_of(image), look
            read: Callable[[], bytes] = getattr(image, "read", picture.tobytes)
            return sha256(read()).hexdigest(), look
    except OSError as error:  # ImageError is one
        return error


def _stamp(image: Path | Picture) -> Stamp | None:
    """What changes with a file's content; None: nothing is known of it."""
    try:
        status = image.stat()  # type: ignore[union-attr]
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
    except (AttributeError, OSError):
        return None


def read_journal(journal: Path) -> Iterator[Row]:
    """Its rows, later ones of a name last; lines that are none are passed over: checked again.

    Raises JournalError for a file that does not begin as a journal does.
    """
    if not journal.exists():
        return
    with journal.open("rb") as file:
        for number, line in enumerate(file):
            if not number and not _is_row(line):
                raise JournalError(f"{journal} holds something else: name another folder by --out")
            if row := _row(line):
                yield row


def _row(line: bytes) -> Row | None:
    try:
        return _ROW.validate_json(line)
    except ValidationError:
        return None


def _is_row(line: bytes) -> bool:
    # a first line that a killed call left unfinished is a beginning
    return _row(line) is not None or (line.startswith(b'["') and not line.endswith(b"\n"))


def _write(journal: Path | None, rows: list[Row]) -> None:
    if journal is not None and rows:
        journal.parent.mkdir(parents=True, exist_ok=True)
        lines = b"".join(_ROW.dump_json(row) + b"\n" for row in rows)
        with locked(journal) as descriptor:
            mend_tail(descriptor, journal, _is_row, JournalError)
            append(descriptor, lines, journal, sync=False)
