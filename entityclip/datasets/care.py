"""Is a downloaded data set whole? Layout, counts, checksums, every picture decoded."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from entityclip.datasets import DATASETS, DRAWN, LOADERS
from entityclip.datasets.manifest import Entry, LayoutEntry, expand
from entityclip.datasets.pair import ImageError, Pair, decode
from entityclip.datasets.reading import inside, sha256_of
from entityclip.datasets.table import PairTable, Report
from entityclip.files import atomic_write_text, printable, read_json

_WINDOW = 512  # pictures in flight: bounds memory on a million
_CAPTIONS = 20_000  # of a split that a summary looks at
_COUNTS = ("pairs", "rows")  # of a split that the manifest gives

# runs of capitalised words, joined by "of", "the" … as in "Bank of England"
_NAME = r"[^\W\d_a-z][\w'’.-]*"
_NAMES = re.compile(rf"\b{_NAME}(?:\s+(?:(?:of|the|de|da|van|von|al)\s+)*{_NAME})*")


class Overlap(NamedTuple):
    """What stands in both of two splits, in numbers of distinct values, with the first few ids."""

    first: str
    second: str
    ids: int
    pictures: int
    captions: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} share {self.ids} ids, {self.pictures} pictures and "
            f"{self.captions} captions (e.g. {', '.join(self.examples)})"
        )


def overlaps(splits: Mapping[str, Sequence[Pair]]) -> list[Overlap]:
    """Every two splits that share an id, a picture's path or a caption, in the order given.

    Agencies' short captions may recur for good reasons: a shared one alone is a hint and no fault.
    """
    hashed = {name: _hashes(pairs) for name, pairs in splits.items()}
    found = []
    for first, second in itertools.combinations(splits, 2):
        columns = zip(hashed[first], hashed[second], strict=True)
        where = [np.intersect1d(*both, return_indices=True)[1] for both in columns]
        rows = sorted({row for shared in where for row in shared[:3].tolist()})[:3]
        if rows:
            examples = tuple(splits[first][row].id for row in rows)
            found.append(Overlap(first, second, *map(len, where), examples))
    return found


def _hashes(pairs: Sequence[Pair]) -> np.ndarray:
    """64-bit hashes of ids, pictures and captions, [3, n] uint64."""
    texts = ([pair.id, pair.image_key, pair.caption] for pair in pairs)
    digests = (blake2b(text.encode(), digest_size=8).digest() for row in texts for text in row)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 3).T


@dataclass
class Verification:
    """What was found; `ok` if nothing contradicts the manifest and everything can be read."""

    dataset: str
    layout: list[dict[str, Any]] = field(default_factory=list)  # one a pattern
    splits: list[dict[str, Any]] = field(default_factory=list)  # one a split, with its Report
    checksums: list[dict[str, str]] = field(default_factory=list)  # recorded, same or changed
    pictures: int = 0  # distinct pictures decoded
    broken: dict[str, str] = field(default_factory=dict)  # path below the root -> what is wrong
    unreadable: dict[str, str] = field(default_factory=dict)  # likewise, for want of permission
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, no fault

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def as_json(self) -> str:
        """Everything, as JSON text."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        tables = {"Layout": self.layout, "Splits": self.splits, "Checksums": self.checksums}
        parts = []
        for title, rows in tables.items():
            shown = [{key: printable(str(value)) for key, value in row.items()} for row in rows]
            parts += [f"{title}\n{pd.DataFrame(shown).to_string(index=False)}"] if rows else []
        counts = f"{len(self.broken)} broken, {len(self.unreadable)} not readable"
        parts.append(f"{self.pictures - len(self.unreadable)} pictures decoded, {counts}")
        parts += [printable(f"note: {note}") for note in self.notes]
        parts += [printable(f"PROBLEM: {problem}") for problem in self.problems]
        parts.append(f"{self.dataset}: " + ("whole" if self.ok else "NOT whole, see above"))
        return "\n\n".join(parts)


def verify(
    dataset: str,
    entry: Entry,
    root: Path | None,
    *,
    splits: Sequence[str] | None = None,
    record: Path | None = None,
    workers: int = 4,
    pictures: bool = True,
    progress: bool = True,
) -> Verification:
    """Check a data set against its manifest entry.

    Args:
        dataset: a key of `DATASETS`.
        entry: what the manifest says of it.
        root: where it lies; the drawn newsrooms have none.
        splits: which to check; None: every split whose files are there.
        record: JSON file of checksums, written at the first call and compared with later.
        workers: threads that decode (Pillow decodes outside Python's lock).
        pictures: decode and hash every picture; else only layout, texts and annotation files.
        progress: show a bar.

    A problem ends up in the result and raises nothing, so that one call shows all of them.
    """
    result = Verification(dataset)
    if dataset in DRAWN:
        for split in splits or DATASETS[dataset]:
            _compare(result, entry, split, dict.fromkeys(_COUNTS, DRAWN[dataset].size(split)))
        return result
    if root is None or not root.is_dir():
        result.problems.append(f"root {root} is no folder; give --root where {dataset} lies")
        return result
    annotations = [path for line in entry.layout for path in _check_layout(result, root, line)]
    tables = _check_splits(result, entry, root, splits)
    result.notes += [str(overlap) for overlap in _shared(tables, entry)]
    sums = {}
    for path in annotations:
        try:
            sums[path.relative_to(root).as_posix()] = sha256_of(path)
        except OSError as error:
            result.problems.append(f"{path} may not be read: {error.strerror}")
    if pictures and tables:
        same, sums["all pictures"] = _check_pictures(result, tables, workers, progress)
        _note_repeated(result, entry, tables, same)
    if record is not None:
        _check_sums(result, sums, record)
    return result


def _check_layout(result: Verification, root: Path, line: LayoutEntry) -> list[Path]:
    """Count a pattern's files; the annotation files among them that may be read."""
    found, size = [], 0
    result.problems += _closed_folders(root, line)
    for plain in expand(line.path):
        folders = plain.split("/")[:-1]
        fixed = root.joinpath(*itertools.takewhile(lambda part: "*" not in part, folders))
        if not fixed.resolve().is_relative_to(root.resolve()):
            result.problems.append(f"{fixed} is a link that leads out of {root}")
            continue
        for path in root.glob(plain):
            try:
                # lstat for pictures: following a million links is the loaders' business
                size += path.lstat().st_size if line.pictures else inside(root, path).stat().st_size
                found.append(path)
            except (ValueError, OSError) as error:
                result.problems.append(str(error))
    row = {"pattern": line.path, "files": len(found), "bytes": size, "required": line.required}
    result.layout.append(row)
    if line.required and not found:
        result.problems.append(f"no file fits {line.path} ({line.what}) below {root}")
    if found and line.files not in (None, len(found)):
        result.problems.append(f"{line.path}: {len(found)} files, expected {line.files}")
    return [] if line.pictures else found


def _closed_folders(root: Path, line: LayoutEntry) -> list[str]:
    """What is wrong with folders on a pattern's way that cannot be listed: `glob` says nothing."""
    closed: dict[str, None] = {}
    for pattern in dict.fromkeys(plain.rpartition("/")[0] for plain in expand(line.path)):
        parts = pattern.split("/") if pattern else []
        ways = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        for folder in itertools.chain([root], *(root.glob(way) for way in ways)):
            try:
                os.scandir(folder).close()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                closed[f"{folder} may not be listed: {error.strerror}; make it readable"] = None
    return list(closed)


def _check_splits(
    result: Verification, entry: Entry, root: Path, splits: Sequence[str] | None
) -> dict[str, PairTable]:
    tables = {}
    for split in splits or DATASETS[result.dataset]:
        try:
            table, report = LOADERS[result.dataset](root, split)
        except (ValueError, OSError) as error:
            # a set may be fetched in parts: what was not asked for by name may be absent
            absent = isinstance(error, FileNotFoundError) and not splits
            (result.notes if absent else result.problems).append(f"{split}: {error}")
            continue
        _compare(result, entry, split, {"pairs": len(table), **report.counts})
        if report.left_out or report.notes:
            result.notes.append(f"{split}: {report}")
        if not len(table):
            result.problems.append(f"{split} holds no usable pair: {report}")
        tables[split] = table
    if not tables:
        result.problems.append(f"no split of {result.dataset} could be read below {root}")
    return tables


def _compare(result: Verification, entry: Entry, split: str, counts: dict[str, int]) -> None:
    wanted = entry.splits[split]
    result.splits.append({"split": split, "expected": wanted.pairs, **counts})
    for name in _COUNTS:
        if getattr(wanted, name) not in (None, counts[name]):
            says = f"the manifest says {getattr(wanted, name)}"
            result.problems.append(f"{split}: {counts[name]} {name}, {says}")


def _check_pictures(
    result: Verification, tables: Mapping[str, PairTable], workers: int, progress: bool
) -> tuple[dict[str, list[str]], str]:
    """Decode every distinct picture: names by sha256, and one sha256 of all names and contents."""
    places = {name: table.root for table in tables.values() for name in table.image_names}
    names, digest, same = sorted(places), sha256(), defaultdict(list)
    bar = tqdm(total=len(names), desc="pictures", unit="picture", disable=not progress)
    with ThreadPoolExecutor(max(1, workers)) as pool, bar:
        for start in range(0, len(names), _WINDOW):
            window = names[start : start + _WINDOW]
            found = pool.map(_check_picture, [places[name] / name for name in window])
            for name, (checksum, error) in zip(window, found, strict=True):
                digest.update(f"{name} {checksum}\n".encode())
                if error is None:
                    same[checksum].append(name)
                elif isinstance(error.__cause__ or error, PermissionError):
                    result.unreadable[name] = str(error)
                else:
                    result.broken[name] = str(error)
            bar.update(len(window))
    result.pictures = len(names)
    for what, wrong in (("broken", result.broken), ("not readable", result.unreadable)):
        if wrong:
            shown = "; ".join(f"{name}: {why}" for name, why in list(wrong.items())[:5])
            result.problems.append(f"{len(wrong)} of {len(names)} pictures {what}: {shown}")
    return same, digest.hexdigest()


def _check_picture(path: Path) -> tuple[str, OSError | None]:
    try:
        decode(path)
        return sha256_of(path), None
    except OSError as error:  # ImageError is one
        return "", error


def _note_repeated(
    result: Verification, entry: Entry, tables: Mapping[str, PairTable], same: dict[str, list[str]]
) -> None:
    """Note pictures that are others byte for byte, and those of them that two splits share."""
    groups = [names for names in same.values() if len(names) > 1]
    if not groups:
        return
    repeats, example = sum(map(len, groups)) - len(groups), " = ".join(groups[0][:2])
    result.notes.append(f"{repeats} pictures repeat others byte for byte (e.g. {example})")
    among = {name for names in groups for name in names}
    found = {
        split: among.intersection(table.image_names)
        for split, table in tables.items()
        if not entry.splits[split].contains_others
    }
    for first, second in itertools.combinations(found, 2):
        shared = [two for names in groups for two in itertools.permutations(names, 2)
                  if two[0] in found[first] and two[1] in found[second]]  # fmt: skip
        if shared:
            what = f"byte-equal pictures under other names (e.g. {' = '.join(shared[0])})"
            result.notes.append(f"{first} and {second} share {len(shared)} {what}")


def _check_sums(result: Verification, sums: dict[str, str], record: Path) -> None:
    try:
        known = read_json(record, ValueError, dict[str, str]) if record.exists() else {}
    except ValueError as error:
        result.problems.append(f"{error}; mend it, or name another folder by --out")
        return
    for name, checksum in sums.items():
        status = "recorded" if name not in known else "same"
        if known.get(name, checksum) != checksum:
            status = "changed"
            what = "is not the file that was first verified"
            result.problems.append(f"{name} {what} (sha256 in {record})")
        result.checksums.append({"file": name, "sha256": checksum, "status": status})
    if not result.broken and not result.unreadable and set(sums) - set(known):
        # what was recorded first stays: a changed file must not become the standard
        atomic_write_text(record, json.dumps({**sums, **known}, indent=1) + "\n")


@dataclass
class SplitSummary:
    """One split: what its load left out, and one value a (sampled) pair."""

    split: str
    loaded: Sequence[Pair]
    report: Report
    words: np.ndarray  # [n] words a caption
    names: np.ndarray  # [n] runs of capitalised words a caption, see `count_names`
    sizes: np.ndarray  # [m, 2] width and height in pixels of the readable pictures sampled
    broken: int  # of the pictures sampled
    samples: list[Pair]  # up to 8 of those whose pictures are readable


def summarise(
    dataset: str, root: Path | None, *, splits: Sequence[str] | None = None, pictures: int = 500
) -> list[SplitSummary]:
    """Every split found below root: captions of up to 20,000 pairs, sizes of `pictures` of them.

    Splits whose files are missing are passed over unless `splits` names them. Raises ValueError and
    OSError as the loaders do, and FileNotFoundError where no split is found.
    """
    loaded = found_splits(dataset, root, splits or DATASETS[dataset], required=bool(splits))
    found = [_summary(*split, pictures) for split in loaded if len(split[1])]
    if not found:
        raise FileNotFoundError(f"no usable split of {dataset} below {root}; run verify to see why")
    return found


def found_splits(
    dataset: str, root: Path | None, splits: Sequence[str], *, required: bool
) -> Iterator[tuple[str, Sequence[Pair], Report]]:
    """Each split with its pairs and what was left out; unless `required`, missing ones are not.

    Of a drawn data set, no more pairs than are looked at.
    """
    for split in splits:
        if dataset in DRAWN:
            size = DRAWN[dataset].size(split)
            yield split, DRAWN[dataset].pairs(split, min(_CAPTIONS, size)), Report(rows=size)
            continue
        try:
            pairs, report = LOADERS[dataset](root, split)
        except FileNotFoundError:
            if required:
                raise
            continue  # a set may be fetched in parts
        yield split, pairs, report


def count_names(caption: str) -> int:
    """Runs of capitalised words, the caption's first word set aside unless it goes on capitalised.

    A proxy for entities that needs no model: it misses lower-case names and counts capitalised
    words that name nothing.
    """
    first = caption.split(" ", 1)[0] if caption else ""
    runs = [match.group() for match in _NAMES.finditer(caption)]
    return len(runs) - bool(runs and runs[0] == first.rstrip(".,:;"))


def summary_table(summaries: Sequence[SplitSummary]) -> pd.DataFrame:
    """One row a split."""
    rows = []
    for part in summaries:
        low, median, high = np.percentile(part.words, [5, 50, 95])
        width, height = np.median(part.sizes, axis=0) if len(part.sizes) else (np.nan, np.nan)
        rows.append({
            "split": part.split, "pairs": len(part.loaded), **part.report.counts,
            "words_p5": low, "words_median": median, "words_p95": high,
            "names_mean": float(part.names.mean()),
            "pictures_sampled": len(part.sizes) + part.broken, "pictures_broken": part.broken,
            "width_median": width, "height_median": height,
        })  # fmt: skip
    return pd.DataFrame(rows)


def shared_rows(summaries: Sequence[SplitSummary], entry: Entry) -> list[Overlap]:
    """What the splits share that should share nothing; `entry` says which contain one another."""
    return _shared({part.split: part.loaded for part in summaries}, entry)


def _shared(loaded: Mapping[str, Sequence[Pair]], entry: Entry) -> list[Overlap]:
    return overlaps({k: v for k, v in loaded.items() if not entry.splits[k].contains_others})


def _summary(split: str, pairs: Sequence[Pair], report: Report, pictures: int) -> SplitSummary:
    order = np.random.default_rng(0).permutation(len(pairs))
    chosen = [pairs[int(row)] for row in order[:_CAPTIONS]]
    sizes, samples = [], []
    for pair in chosen[:pictures]:
        with suppress(ImageError):
            sizes.append(pair.load_image().size)
            samples = [*samples, pair][:8]
    return SplitSummary(
        split, pairs, report,
        words=np.array([len(pair.caption.split()) for pair in chosen]),
        names=np.array([count_names(pair.caption) for pair in chosen]),
        sizes=np.array(sizes).reshape(-1, 2),
        broken=len(chosen[:pictures]) - len(sizes),
        samples=samples,
    )  # fmt: skip
