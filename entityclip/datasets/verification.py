"""Is a data set whole? Layout, counts, checksums, every picture decoded and compared by content."""

from __future__ import annotations

import itertools
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.datasets import DATASETS, DRAWN, LOADERS
from entityclip.datasets.care import shared_pairs
from entityclip.datasets.duplicates import SAME_FILE, Alike, Leak, leaks
from entityclip.datasets.manifest import Entry, LayoutEntry, expand
from entityclip.datasets.picture_checks import Checked, JournalError, check_pictures
from entityclip.datasets.prepared import originals
from entityclip.datasets.reading import inside, sha256_of
from entityclip.datasets.table import PairTable
from entityclip.files import atomic_write_text, printable, read_json

_COUNTS = ("pairs", "rows")  # of a split that the manifest gives
_SHOWN = 10  # leaks that are printed
_ALL = "all pictures"  # their line among the checksums


@dataclass
class Verification:
    """What was found; `ok` if nothing contradicts the manifest and everything can be read."""

    dataset: str
    layout: list[dict[str, Any]] = field(default_factory=list)  # one a pattern
    splits: list[dict[str, Any]] = field(default_factory=list)  # one a split, with its Report
    checksums: list[dict[str, str]] = field(default_factory=list)  # recorded, same or changed
    pictures: int = 0  # distinct pictures
    known: int = 0  # of them, seen whole by an earlier call, and unchanged since
    broken: dict[str, str] = field(default_factory=dict)  # path below the root -> what is wrong
    unreadable: dict[str, str] = field(default_factory=dict)  # likewise, for want of permission
    leaks: list[dict[str, Any]] = field(default_factory=list)  # pictures that two splits share
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
        tables[f"Pictures that splits share, {len(self.leaks)} in all"] = self.leaks[:_SHOWN]
        parts = []
        for title, rows in tables.items():
            shown = [{key: printable(str(value)) for key, value in row.items()} for row in rows]
            parts += [f"{title}\n{pd.DataFrame(shown).to_string(index=False)}"] if rows else []
        counts = f"{len(self.broken)} broken, {len(self.unreadable)} not readable"
        if self.known:
            counts += f" ({self.known} of them earlier, and unchanged: --again decodes all anew)"
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
    folder: Path | None = None,
    workers: int = 4,
    pictures: bool = True,
    again: bool = False,
    accept: bool = False,
    progress: bool = True,
) -> Verification:
    """Check a data set against its manifest entry.

    Args:
        dataset: a key of `DATASETS`.
        entry: what the manifest says of it.
        root: where it lies; the drawn newsrooms have none.
        splits: which to check; None: every split whose files are there.
        folder: where to remember what was whole: ``checksums.json`` and ``pictures.jsonl``, written
            at the first call and compared with later; None: nowhere.
        workers: threads that decode.
        pictures: decode and hash every picture; else only layout, texts and annotation files.
        again: also decode pictures that were whole before and whose files nothing has written to.
        accept: take files that have changed for those first verified, if they can be read.
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
    tables, whole = _check_splits(result, entry, root, splits)
    result.notes += [str(overlap) for overlap in shared_pairs(tables, entry)]
    sums = {}
    for path in annotations:
        try:
            sums[path.relative_to(root).as_posix()] = sha256_of(path)
        except OSError as error:
            result.problems.append(f"{path} may not be read: {error.strerror}")
    if pictures and tables:
        below = {name: image for t in tables.values() for name, image in originals(t).items()}
        journal = folder / "pictures.jsonl" if folder else None
        try:
            found = check_pictures(below, journal, workers=workers, again=again, progress=progress)
        except JournalError as error:
            result.problems.append(str(error))
        else:
            _tell_pictures(result, found)
            _compare_pictures(result, entry, tables, found, progress)
            # of some of the splits, another sum than of all
            sums |= {} if splits else {_ALL: found.digest}
            whole = whole and not result.broken and not result.unreadable and not found.decayed
    if folder is not None:
        own = dataset == "folder"  # whose files are there to be worked on
        _check_sums(result, sums, folder / "checksums.json", keep=whole, accept=accept or own)
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
) -> tuple[dict[str, PairTable], bool]:
    """The splits that could be read, and whether no other is there."""
    tables, wrong = {}, defaultdict(list)
    for split in splits or DATASETS[result.dataset]:
        try:
            table, report = LOADERS[result.dataset](root, split)
        except (ValueError, OSError) as error:
            # a set may be fetched in parts: what was not asked for by name may be absent
            if isinstance(error, FileNotFoundError) and not splits:
                result.notes.append(f"{split}: {error}")
            else:
                wrong[str(error)].append(split)
            continue
        _compare(result, entry, split, {"pairs": len(table), **report.counts})
        if report.left_out or report.notes:
            result.notes.append(f"{split}: {report}")
        if not len(table):
            # a table of one's own need not have every split
            spared = result.dataset == "folder" and not report.rows and not splits
            what = f"{split} holds no usable pair: {report}"
            (result.notes if spared else result.problems).append(what)
        tables[split] = table
    result.problems += [f"{', '.join(of)}: {what}" for what, of in wrong.items()]
    if not any(map(len, tables.values())):
        result.problems.append(f"no split of {result.dataset} could be read below {root}")
    return tables, not wrong


def _compare(result: Verification, entry: Entry, split: str, counts: dict[str, int]) -> None:
    wanted = entry.splits[split]
    result.splits.append({"split": split, "expected": wanted.pairs, **counts})
    for name in _COUNTS:
        if getattr(wanted, name) not in (None, counts[name]):
            says = f"the manifest says {getattr(wanted, name)}"
            result.problems.append(f"{split}: {counts[name]} {name}, {says}")


def _tell_pictures(result: Verification, found: Checked) -> None:
    result.pictures, result.known = len(found.names), found.known
    result.broken, result.unreadable = found.broken, found.unreadable
    for what, wrong in (("broken", result.broken), ("not readable", result.unreadable)):
        if wrong:
            shown = "; ".join(f"{name}: {why}" for name, why in list(wrong.items())[:5])
            result.problems.append(f"{len(wrong)} of {len(found.names)} pictures {what}: {shown}")
    if found.changed:
        shown = ", ".join(found.changed[:5])
        result.notes.append(f"{len(found.changed)} pictures are others now, and whole: {shown}")
    if found.decayed:
        what = "pictures have other bytes than before, though nothing wrote to their files; is the"
        shown = ", ".join(found.decayed[:5])
        result.problems.append(
            f"{len(found.decayed)} {what} disk failing? Put good copies there: {shown}"
        )


def _compare_pictures(
    result: Verification, entry: Entry, tables: Mapping[str, PairTable], found: Checked,
    progress: bool,
) -> None:  # fmt: skip
    """Note pictures that repeat others, and list those that two splits share, by content."""
    alike, names = Alike(found.sums, found.looks, progress=progress), found.names
    if groups := list(alike.groups()):
        repeats, (one, other, *_) = sum(map(len, groups)) - len(groups), groups[0]
        example = f"{names[one]} = {names[other]}"
        result.notes.append(f"{repeats} pictures repeat others byte for byte (e.g. {example})")
    shared = leaks(names, alike, {
        split: set(table.image_names)
        for split, table in tables.items()
        if not entry.splits[split].contains_others
    })  # fmt: skip
    result.leaks = [leak._asdict() for leak in shared]
    told: dict[tuple[str, str, str], list[Leak]] = defaultdict(list)
    for leak in shared:
        told[leak.first, leak.second, leak.how].append(leak)
    for (first, second, how), found_here in told.items():
        if how != SAME_FILE:  # which the rows that two splits share tell already
            example = f"{found_here[0].picture} = {found_here[0].other}"
            what = f"are {how} as pictures of {first} under other names (e.g. {example})"
            result.notes.append(f"{len(found_here)} pictures of {second} {what}")


def _check_sums(
    result: Verification, sums: dict[str, str], record: Path, *, keep: bool, accept: bool
) -> None:
    """Compare with the checksums recorded; with `keep`, record new ones, with `accept`, all."""
    try:
        known = read_json(record, ValueError, dict[str, str]) if record.exists() else {}
    except ValueError as error:
        result.problems.append(f"{error}; mend it, or name another folder by --out")
        return
    for name, checksum in sums.items():
        status = "recorded" if name not in known else "same"
        if known.get(name, checksum) != checksum:
            status = "changed"
            what = f"{name} is not the file that was first verified"
            if name == _ALL:
                result.notes.append("pictures came, went or changed since all were first verified")
            elif accept:
                result.notes.append(what)
            else:
                restore = "put that back, or run verify with --accept if the change is meant"
                result.problems.append(f"{what} (sha256 in {record}); {restore}")
        result.checksums.append({"file": name, "sha256": checksum, "status": status})
    # what was recorded first stays: a changed file must not become the standard unasked
    free = {name for name in sums if accept or name == _ALL or name not in known}
    if keep and (standard := known | {name: sums[name] for name in free}) != known:
        atomic_write_text(record, json.dumps(standard, indent=1) + "\n")
