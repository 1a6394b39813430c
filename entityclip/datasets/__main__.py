"""Look after downloaded data: ``entityclip data verify|summary|prepare DATASET …``.

``verify`` checks layout, counts, checksums and every picture; ``summary`` counts and draws what is
there; ``prepare`` writes a resized copy. Each exits with 0 if all is well, 1 if the data are not,
2 for a wrong command line, and says in words what to do.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from entityclip.config import runs_folder
from entityclip.datasets import DATASETS, DRAWN, LOADERS
from entityclip.datasets.manifest import MANIFEST, Entry, ManifestError, load_manifest, record_pairs
from entityclip.files import atomic_write_text, cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    unknown = sorted(set(options.splits or ()) - set(DATASETS[options.dataset]))
    if unknown:
        known = ", ".join(DATASETS[options.dataset])
        print(f"{options.dataset} has no split {unknown[0]!r}; there are {known}", file=sys.stderr)
        return 2
    if options.root is None and options.dataset not in DRAWN:
        print(f"{options.dataset} lies in files: give --root PATH", file=sys.stderr)
        return 2
    try:
        return options.run(options, _entry(options))
    except (ManifestError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _verify(options: argparse.Namespace, entry: Entry) -> int:
    from entityclip.datasets.care import verify

    result = verify(
        options.dataset,
        entry,
        options.root,
        splits=options.splits,
        record=options.out / "checksums.json",
        workers=options.workers,
        pictures=not options.no_pictures,
        progress=not options.quiet,
    )
    print(result)
    atomic_write_text(options.out / "verify.json", result.as_json())
    print(f"written to {options.out / 'verify.json'}")
    if options.record and result.ok:
        counts = {row["split"]: row["pairs"] for row in result.splits}
        filled = record_pairs(options.dataset, counts, options.manifest)
        print(f"{options.manifest.name}: filled {', '.join(filled) or 'nothing, no null was left'}")
    elif options.record:
        print("nothing recorded: mend the problems first")
    return 0 if result.ok else 1


def _summary(options: argparse.Namespace, entry: Entry) -> int:
    from entityclip.datasets.care import summarise, summary_table
    from entityclip.reporting.charts import draw_summary

    summaries = summarise(
        options.dataset, options.root, splits=options.splits, pictures=options.pictures
    )
    table = summary_table(summaries)
    print(f"{entry.title}: {entry.about}\n\n{table.T.to_string(header=False)}")
    try:
        from entityclip.reporting.style import save_figure, save_table
    except ImportError as error:
        print(f"no figure: {error.name} is missing; pip install 'entityclip[notebooks]'")
        return 0
    written = [
        *save_figure(draw_summary(summaries), options.out, "summary"),
        save_table(table, options.out, "summary"),
    ]
    print("written to " + ", ".join(str(path) for path in written))
    return 0


def _prepare(options: argparse.Namespace, entry: Entry) -> int:
    from entityclip.datasets.prepare import PrepareOptions, prepare

    if options.dataset in DRAWN:
        raise ValueError(f"{options.dataset} is drawn at any size; there is nothing to prepare")
    tables = []
    for split in options.splits or DATASETS[options.dataset]:
        if options.splits or not entry.splits[split].contains_others:
            try:
                table, report = LOADERS[options.dataset](options.root, split)
            except FileNotFoundError:
                if options.splits:
                    raise
                continue  # a set may be fetched in parts
            print(f"{split}: {report}")
            tables.append(table)
    chosen = PrepareOptions(options.side, options.quality, options.lossless, options.shard_pictures)
    manifest = prepare(
        options.dataset, tables, options.out / "prepared", chosen, workers=options.workers,
        max_broken=options.max_broken, progress=not options.quiet,
    )  # fmt: skip
    print(
        f"{manifest['pictures']} pictures in {len(manifest['shards'])} shards below "
        f"{options.out / 'prepared'}, {len(manifest['broken'])} broken left out, fingerprint "
        f"{manifest['fingerprint']}"
    )
    return 0


def _entry(options: argparse.Namespace) -> Entry:
    entries = load_manifest(options.manifest).datasets
    if options.dataset not in entries:
        raise ManifestError(f"{options.manifest.name} has no data set {options.dataset!r}")
    lacking = set(DATASETS[options.dataset]) ^ set(entries[options.dataset].splits)
    if lacking:
        raise ManifestError(
            f"{options.manifest.name}: datasets.{options.dataset}.splits and the loader differ in "
            f"{', '.join(sorted(lacking))}"
        )
    options.out = options.out or runs_folder() / "data" / options.dataset
    return entries[options.dataset]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="entityclip data", description=__doc__.split("\n\n")[1])
    commands = parser.add_subparsers(required=True, metavar="verify|summary|prepare")
    for name, run in (("verify", _verify), ("summary", _summary), ("prepare", _prepare)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("dataset", choices=DATASETS)
        command.add_argument("--root", type=Path, help="the folder the data set lies in")
        command.add_argument("--splits", nargs="+", help="only these; default: all found")
        command.add_argument("--out", type=Path, help="default: runs/data/DATASET")
        command.add_argument("--workers", type=int, default=cores())
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        command.add_argument("--manifest", type=Path, default=MANIFEST)
        if name == "verify":
            command.add_argument("--record", action="store_true", help="fill the manifest's nulls")
            command.add_argument("--no-pictures", action="store_true", help="don't decode them")
        elif name == "summary":
            command.add_argument("--pictures", type=int, default=500, help="sampled for their size")
        else:
            command.add_argument("--side", type=int, default=256, help="shorter side, pixels")
            command.add_argument("--quality", type=int, default=90, help="of the JPEGs")
            command.add_argument("--lossless", action="store_true", help="PNG instead of JPEG")
            command.add_argument("--shard-pictures", type=int, default=1000)
            command.add_argument("--max-broken", type=float, default=0.01, help="largest share")
    return parser
