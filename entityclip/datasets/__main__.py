"""Look after downloaded data: ``entityclip data verify|summary|prepare DATASET …``.

``verify`` checks layout, counts, checksums and every picture, and names those that splits share by
content; ``summary`` counts and draws what is there; ``prepare`` writes a resized copy. Each exits
with 0 if all is well, 1 if the data are not, 2 for a wrong command line, and says in words what to
do.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from entityclip.console import add_part, refusing
from entityclip.datasets import DATASETS, DRAWN
from entityclip.datasets.manifest import MANIFEST, Entry, ManifestError, load_manifest
from entityclip.datasets.prepared import data_folder
from entityclip.datasets.reading import known
from entityclip.files import atomic_write_bytes, atomic_write_text, cores, printable

_SHOWN = 5  # broken pictures
# (summaries of the splits, folder) -> the files of the figure drawn there
Draw = Callable[[list, Path], list[Path]]


def main(argv: Sequence[str] | None = None, draw: Draw | None = None) -> int:
    """Run a command; the exit status. A summary's figure is `draw`'s, none without it.

    Raises Refused for what cannot be started, and what is wrong with the data or the manifest.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    options.draw = draw
    with refusing():
        for split in options.splits or ():
            known(options.dataset, split, DATASETS[options.dataset])
        if options.root is None and options.dataset not in DRAWN:
            raise ValueError(f"{options.dataset} lies in files: give --root PATH")
    return options.run(options, _entry(options))


def _verify(options: argparse.Namespace, entry: Entry) -> int:
    from entityclip.datasets.verification import verify

    out = _home(options)
    record, before = out / "checksums.json", data_folder(options.dataset, None) / "checksums.json"
    # earlier versions kept one, whatever the root
    if not (options.out or options.dataset == "folder" or record.exists()) and before.is_file():
        atomic_write_bytes(record, before.read_bytes())
    result = verify(
        options.dataset, entry, options.root, splits=options.splits,
        folder=out, workers=options.workers, pictures=not options.no_pictures,
        again=options.again, accept=options.accept, progress=not options.quiet,
    )  # fmt: skip
    print(result)
    atomic_write_text(out / "verify.json", result.as_json())
    print(printable(f"written to {out / 'verify.json'}"))
    return 0 if result.ok else 1


def _summary(options: argparse.Namespace, entry: Entry) -> int:
    from entityclip.datasets.care import summarise, summary_table

    parts = summarise(
        options.dataset, options.root, splits=options.splits, pictures=options.pictures
    )
    table = summary_table(parts)
    print(f"{entry.title}: {entry.about}\n\n{table.T.to_string(header=False)}")
    out = _home(options)
    written = [out / "summary.csv"]
    atomic_write_text(written[0], table.to_csv(index=False))
    written += options.draw(parts, out) if options.draw else []
    print("written to " + ", ".join(str(path) for path in written))
    return 0


def _prepare(options: argparse.Namespace, entry: Entry) -> int:
    from entityclip.datasets.care import found_splits
    from entityclip.datasets.prepare import PrepareOptions, earlier_copy, prepare
    from entityclip.datasets.prepared import copy_name

    if options.dataset in DRAWN:
        raise ValueError(f"{options.dataset} is drawn at any size; there is nothing to prepare")
    splits = options.splits or [s for s, x in entry.splits.items() if not x.contains_others]
    tables, required = [], options.splits is not None
    found = found_splits(options.dataset, options.root, splits, required=required)
    for split, table, report in found:
        print(printable(f"{split}: {report}"))
        tables += [table] if len(table) else []
    if not tables:
        raise ValueError(f"{options.dataset} below {options.root} has no picture to prepare")
    chosen = PrepareOptions(options.side, options.quality, options.lossless, options.shard_pictures)
    if before := earlier_copy(options.dataset, tables, chosen, options.out):
        print(printable(f"{before}, of an earlier version, holds them all; {_use(before)}"))
        return 0
    out = _home(options) / copy_name(options.dataset, tables[0].root, asdict(chosen), splits)
    manifest = prepare(
        options.dataset, tables, out, chosen, workers=options.workers,
        max_broken=options.max_broken, progress=not options.quiet, part=options.shard,
    )  # fmt: skip
    if manifest is None:
        print(printable(f"part {options.shard} is done below {out}; when all parts are, the same "
                        "command without --shard puts them together"))  # fmt: skip
        return 0
    for name, problem in list(manifest["broken"].items())[:_SHOWN]:
        print(printable(f"left out: {name}: {problem}"))
    print(printable(
        f"{manifest['pictures']} pictures in {len(manifest['shards'])} shards below {out}, "
        f"{len(manifest['broken'])} broken left out, fingerprint {manifest['fingerprint']}"
    ))  # fmt: skip
    print(printable(_use(out)))
    return 0


def _use(copy: Path) -> str:
    return f"to train on them: --set {shlex.quote(f'prepared={copy.absolute()}')}"


def _home(options: argparse.Namespace) -> Path:
    """Where to write: a folder for each data set and root, if not told."""
    return options.out or data_folder(options.dataset, options.root)


def _entry(options: argparse.Namespace) -> Entry:
    entries = load_manifest(options.manifest).datasets
    if options.dataset not in entries:
        raise ManifestError(f"{options.manifest.name} has no data set {options.dataset!r}")
    lacking = set(DATASETS[options.dataset]) ^ set(entries[options.dataset].splits)
    if lacking:
        where = f"{options.manifest.name}: datasets.{options.dataset}.splits"
        raise ManifestError(f"{where} and the loader differ in {', '.join(sorted(lacking))}")
    return entries[options.dataset]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="entityclip data", description=__doc__.split("\n\n")[1])
    commands = parser.add_subparsers(required=True, metavar="verify|summary|prepare")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("dataset", choices=DATASETS)
    common.add_argument("--root", type=Path, help="the folder the data set lies in")
    common.add_argument("--splits", nargs="+", help="only these; default: all found")
    common.add_argument("--out", type=Path, help="default: below runs/data, a folder a root")
    common.add_argument("--workers", type=int, default=cores())
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    common.add_argument("--manifest", type=Path, default=MANIFEST)
    verify, summary, prepare = (commands.add_parser(name, parents=[common])
                                for name in ("verify", "summary", "prepare"))  # fmt: skip
    verify.set_defaults(run=_verify)
    verify.add_argument("--no-pictures", action="store_true", help="don't decode them")
    verify.add_argument("--again", action="store_true", help="pictures seen whole before, too")
    verify.add_argument("--accept", action="store_true", help="changed files are meant to be so")
    summary.set_defaults(run=_summary)
    summary.add_argument("--pictures", type=int, default=500, help="sampled for their size")
    prepare.set_defaults(run=_prepare)
    add_part(prepare)
    prepare.add_argument("--side", type=int, default=256, help="shorter side, pixels")
    prepare.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    prepare.add_argument("--lossless", action="store_true", help="PNG instead of JPEG")
    prepare.add_argument("--shard-pictures", type=int, default=1000)
    prepare.add_argument("--max-broken", type=float, default=0.01, help="largest share")
    return parser
