"""The cache: an append-only JSONL file, one row a (caption, model, prompt version, sampling).

A line starts with the row's key at a fixed place, so that a million lines are indexed without being
parsed. Any number of processes may use one file: each append holds a lock, first reads what others
have appended, and leaves out keys that are there by then.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from entityclip.explanations.llm import Sampling
from entityclip.files import append, lock, mend_tail, open_to_append, told

_HEAD = b'{"key": "'
_KEY = slice(len(_HEAD), len(_HEAD) + 32)  # the key's 32 hex digits
_NO_KEY = "starts with no key of 32 hex digits"
_SYNC_S = 5.0  # how much work, in seconds, a crash of the machine (not of a process) may cost


def _is_row(line: bytes) -> bool:
    """Whether a file that starts so is a cache; a torn line may be short."""
    head, digits = line[: len(_HEAD)], line[_KEY]
    return _HEAD.startswith(head) and not digits.strip(b"0123456789abcdef")


class CacheError(ValueError):
    """A file is no cache, or a line of it no explanation; names file, line and field."""


class Source(NamedTuple):
    """Where explanations come from: rows of other sources never answer for this one."""

    model: str
    prompt_version: str
    sampling: Sampling | None  # None: not known, as for imported files


@dataclass(frozen=True)
class Explanation:
    """A caption's explanation and where it came from; a row of the cache."""

    id: str  # of the pair
    text: str
    model: str
    prompt_version: str
    sampling: Sampling | None  # what made this text: after a retry, with the retry's seed
    finish_reason: str  # of the model; "unknown" if imported, "skipped" if there was no caption
    text_sha: str  # first 16 hex digits of the text's SHA-256
    checks: tuple[str, ...]  # names of the checks it failed
    attempts: int  # 2 if the first answer failed a check
    created: str  # ISO 8601, UTC
    note: str = ""  # why there is no answer; such rows are not stored

    @classmethod
    def made_now(
        cls, id: str, text: str, source: Source, reason: str, checks: tuple[str, ...]
    ) -> Explanation:
        """A first attempt's row of now, or of SOURCE_DATE_EPOCH, with the text's hash."""
        seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
        now = datetime.fromtimestamp(seconds, UTC).isoformat()
        return cls(id, text, *source, reason, text_sha(text), checks, 1, now)

    @property
    def ok(self) -> bool:
        """Whether it passed every check."""
        return not self.checks


def text_sha(text: str) -> str:
    """The first 16 hex digits of a text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:16]


def cache_keys(captions: Iterable[str], source: Source) -> list[bytes]:
    """The 16-byte key of each caption under `source`: equal for equal captions only."""
    sampling = asdict(source.sampling) if source.sampling else None
    start = json.dumps([source.model, source.prompt_version, sampling], sort_keys=True)
    origin = blake2b(start.encode() + b"\0", digest_size=16)
    keys = []
    for caption in captions:
        digest = origin.copy()
        digest.update(caption.encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return keys


class ExplanationCache(AbstractContextManager):
    """One JSONL file of explanations, made on first use. Close it, or use it in a ``with``.

    Opening indexes the whole file (about 2 s a million rows) and mends a last line torn by a killed
    process, which is moved to ``<name>.torn``. With ``write=False`` it is only read, also from a
    disk that cannot be written, and a torn last line is passed over. Raises CacheError for content
    that is no explanation, and leaves such a file as it is; OSError where it cannot be opened.
    """

    def __init__(self, path: str | Path, *, write: bool = True):
        self.path = Path(path)
        self._index: dict[bytes, int] = {}  # key -> where its line starts
        self._end, self._synced = 0, time.monotonic()
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = open_to_append(self.path) if write else None
        self._file = self.path.open("rb")  # another: appending moves the place to read from
        try:
            self.refresh()  # before anything is mended: is it a cache?
            if write:
                with lock(self._descriptor):
                    mend_tail(self._descriptor, self.path, _is_row, CacheError)
                self.refresh()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index

    def close(self) -> None:
        """Flush to disk and close; appending afterwards is an error."""
        if not self._file.closed:
            self._file.close()
            if self._descriptor is not None:
                os.fsync(self._descriptor)
                os.close(self._descriptor)

    def refresh(self) -> None:
        """Index the whole lines that were appended since, by whichever process."""
        self._file.seek(0)
        if self._end == 0 and not _is_row(self._file.read(_KEY.stop)):
            raise self._error(_NO_KEY, 0)  # a foreign file may be one line of gigabytes
        self._file.seek(self._end)
        for line in self._file:
            if not line.endswith(b"\n"):
                if self._descriptor is None and line.endswith(b"}"):  # a whole row, never mended
                    self._index.setdefault(self._key(line), self._end)
                return  # else another process is at it: next time
            self._index.setdefault(self._key(line), self._end)
            self._end += len(line)

    def _key(self, line: bytes) -> bytes:
        try:
            key = bytes.fromhex(line[_KEY].decode("ascii"))
        except ValueError:
            key = b""
        if len(key) != 16 or not (line.startswith(_HEAD) and line.rstrip().endswith(b"}")):
            raise self._error(_NO_KEY, self._end)
        return key

    def missing(self, keys: Sequence[bytes]) -> list[bytes]:
        """The keys without a row, each once, in order of their first place."""
        return [key for key in dict.fromkeys(keys) if key not in self._index]

    def append(self, rows: Sequence[tuple[bytes, Explanation]]) -> int:
        """Append rows whose keys are not there yet; how many those were.

        A row survives the death of this process at once, of the machine within 5 s or on `close`.
        """
        if not rows:
            return 0
        # encoded before the lock; the first row of a key counts
        encoded = {key: encode_row(key, row) for key, row in reversed(rows)}
        with lock(self._descriptor):
            if os.fstat(self._descriptor).st_size != self._end:  # others have appended
                mend_tail(self._descriptor, self.path, _is_row, CacheError)
                self.refresh()
            fresh = [line for key, line in reversed(encoded.items()) if key not in self._index]
            if fresh:
                due = time.monotonic() - self._synced > _SYNC_S
                append(self._descriptor, b"".join(fresh), self.path, sync=due)
                self._synced = time.monotonic() if due else self._synced
                self.refresh()
        return len(fresh)

    def read(self, key: bytes) -> Explanation | None:
        """The row of a key, or None."""
        start = self._index.get(key)
        return None if start is None else self._parse(start)

    def keys(self) -> list[bytes]:
        """The keys of all rows, in the order they were appended."""
        return list(self._index)

    def rows(self) -> Iterator[tuple[bytes, Explanation]]:
        """All rows with their keys, in the order they were appended."""
        for key, start in list(self._index.items()):
            yield key, self._parse(start)

    def _parse(self, start: int) -> Explanation:
        from pydantic import ValidationError

        self._file.seek(start)
        try:
            row = _reader().validate_json(self._file.readline(), strict=True)
        except ValidationError as error:
            raise self._error(f"is no explanation ({told(error)})", start) from None
        if text_sha(row.text) != row.text_sha:
            raise self._error("holds another text than its field text_sha says", start)
        return row

    def _error(self, problem: str, start: int) -> CacheError:
        self._file.seek(0)
        number = self._file.read(start).count(b"\n") + 1
        shown = self._file.readline(60).decode("utf-8", "replace")
        return CacheError(
            f"{self.path}, line {number} {problem}: {shown!r}…; the file is left as it is; if it "
            "is a cache, restore that line or move it elsewhere: only its caption is asked anew"
        )


@lru_cache(maxsize=1)
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Explanation)


def encode_row(key: bytes, row: Explanation) -> bytes:
    """A row as its line in the file."""
    # vars, not asdict: the deep copy would cost more than all else here
    record: dict[str, Any] = {"key": key.hex(), **vars(row)}
    record["sampling"] = vars(row.sampling) if row.sampling else None
    del record["note"]
    # an id may be a file's name that is no UTF-8
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def merge_caches(
    parts: Sequence[str | Path], target: str | Path, order: Iterable[bytes] = ()
) -> dict[str, int]:
    """Bring the rows of several caches, e.g. of an extraction's shards, into one.

    First the keys of `order`, as one run that is answered in order would append them, then the
    rest. A key that is in `target` or an earlier part keeps that row. Returns how many rows were
    ``added`` and how many ``already_there``. The parts are only read.
    Raises FileNotFoundError for a part that does not exist, before anything is written.
    """
    for part in parts:
        if not Path(part).is_file():
            raise FileNotFoundError(f"{part} does not exist; has that shard run?")
    counts = {"added": 0, "already_there": 0}
    with ExitStack() as stack:
        whole = stack.enter_context(ExplanationCache(target))
        caches = [stack.enter_context(ExplanationCache(part, write=False)) for part in parts]
        first: dict[bytes, ExplanationCache] = {}
        for cache in reversed(caches):
            first |= dict.fromkeys(cache.keys(), cache)
        keys = iter(dict.fromkeys([key for key in order if key in first] + list(first)))
        while block := [(key, first[key].read(key)) for key in islice(keys, 1000)]:
            counts["added"] += whole.append(block)
    counts["already_there"] = sum(map(len, caches)) - counts["added"]
    return counts
