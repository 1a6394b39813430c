"""``entityclip train``, ``evaluate`` and ``sweep``: their options, and what they print.

What imports torch is imported late: help, and the refusal of a misspelt name, need not wait for it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from entityclip.config import IN_CHECKOUT, Profile, load_profile, parse_settings
from entityclip.console import refusing
from entityclip.variants import DIRECTION_LABELS, TABLES, VARIANTS

if TYPE_CHECKING:
    import pandas as pd

TRAINED = [name for name, variant in VARIANTS.items() if variant.finetuned]

log = logging.getLogger("entityclip.commands")


def train(argv: Sequence[str] | None = None) -> int:
    """``entityclip train``; 0: done, 1: the training failed, 2: refused at the start."""
    parser = _parser("train", "Train one variant, unless a finished run is there, and measure it.")
    parser.add_argument("--no-measure", dest="measure", action="store_false", help="only train")
    parser.add_argument("--force", action="store_true", help="train and measure anew")
    options = parser.parse_args(argv)
    profile = _profile(options)
    from accelerate import PartialState

    from entityclip.experiments.train import train_variant
    from entityclip.training.processes import this_world
    from entityclip.training.run_folder import read_record

    world = this_world()
    logging.basicConfig(format="%(asctime)s %(message)s")
    if world.main:
        logging.getLogger("entityclip").setLevel(logging.INFO)
    try:
        folder = train_variant(
            profile, options.variant, measure=options.measure, force=options.force
        )
    finally:
        PartialState().destroy_process_group()
    if world.main:
        record = read_record(folder)
        print(
            f"{folder.name}: {record['steps']} steps on {world.size} process(es), best "
            f"epoch {record['epoch']} with validation loss {record['val_loss']:.4f}"
        )
    return 0


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``entityclip evaluate``; 0: measured, 1: there is no trained run, 2: refused at the start."""
    parser = _parser(
        "evaluate",
        "Measure a trained variant and print the metrics with their 95 % intervals. What is "
        "measured already is only printed.",
    )
    parser.add_argument("--splits", nargs="+", help="default: the profile's test splits")
    parser.add_argument("--train", action="store_true", help="train it first, if need be")
    parser.add_argument("--force", action="store_true", help="measure anew")
    options = parser.parse_args(argv)
    profile = _profile(options)
    splits = options.splits or profile.settings.test_splits
    from entityclip.experiments.experiment import Experiment
    from entityclip.experiments.measure import measure, stored_ranks
    from entityclip.experiments.preflight import refuse_impossible
    from entityclip.results import find_rows

    experiment, variant = Experiment(profile, progress=sys.stderr.isatty()), options.variant
    with refusing():
        refuse_impossible(experiment, splits)
        stored = all(stored_ranks(experiment, variant, s, shipped=False) for s in splits)
    if not (options.train or experiment.trained(variant) or (stored and not options.force)):
        given = "".join(f" {text}" for text in options.set)
        print(
            f"{variant} is not trained under these settings; the command that trains it:\n"
            f"entityclip train --profile {profile.name} --variant {variant} "
            f"--seed {profile.seed}" + (f" --set{given}" if given else ""),
            file=sys.stderr,
        )
        return 1
    measure(experiment, [variant], splits, force=options.force)
    rows = find_rows(profile, "retrieval", variants=[variant], shipped=False)
    print(_metrics(rows[rows["split"].isin(splits) & (rows["seed"] == profile.seed)]))
    return 0


def _metrics(rows: pd.DataFrame) -> str:
    """A line a split and direction, a column a metric with its interval."""
    last = rows.drop_duplicates(["split", "direction", "metric"], keep="last")
    told = [
        f"{value:.1f} [{low:.1f}, {high:.1f}]"
        for value, low, high in zip(last["value"], last["low"], last["high"], strict=True)
    ]
    table = last.assign(told=told, direction=last["direction"].map(DIRECTION_LABELS))
    table = table.pivot(index=["split", "direction"], columns="metric", values="told")
    return table[list(dict.fromkeys(rows["metric"]))].rename_axis(columns=None).to_string()


def sweep(argv: Sequence[str] | None = None) -> int:
    """``entityclip sweep``; 0: done, 2: refused at the start."""
    parser = argparse.ArgumentParser(
        prog="entityclip sweep",
        description="Train and measure the variants of the tables over several seeds. What is "
        "measured already, with the same settings and data, is skipped; what was interrupted goes "
        "on. Start it twice, with OMP_NUM_THREADS=1, and two processes share the work.",
    )
    add = parser.add_argument
    add("--profile", default="demo", help="one of entityclip/profiles/ (default: demo)")
    add("--tables", nargs="+", choices=list(TABLES), default=[])
    add("--variants", nargs="+", choices=list(VARIANTS), default=[], metavar="NAME")
    add("--seeds", nargs="+", type=int, help="instead of the profile's")
    add("--keep", nargs="*", default=["clip", "entityclip"], help="variants whose weights stay")
    add("--anew", action="store_true", help="ignore the rows that are shipped")
    add("--ship", action="store_true", help="merge the rows into figures/rows of the checkout")
    options = parser.parse_args(argv)
    if options.ship and not IN_CHECKOUT:
        parser.error("--ship is for a checkout: an installed package has no figures/rows")
    options.seed, options.set = None, []
    profile = _profile(options)
    from entityclip.experiments.chapters import ship_chapters
    from entityclip.experiments.experiment import Experiment
    from entityclip.experiments.preflight import refuse_impossible, refuse_training
    from entityclip.experiments.sweep import ship_rows, sweep

    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("entityclip").setLevel(logging.INFO)  # open_clip's is not news
    settings = profile.settings
    work = {table: (settings.ablation_seeds, TABLES[table]) for table in options.tables}
    if "main" in work:
        work["main"] = (settings.main_seeds, TABLES["main"])
    work["chosen by name"] = (settings.ablation_seeds, options.variants)
    base = Experiment(profile, progress=False)
    refuse_impossible(base, settings.test_splits)
    refuse_training(base, settings.test_splits)
    for seeds, names in work.values():
        experiments = [base.of_seed(seed) for seed in options.seeds or seeds]
        sweep(experiments, names, shipped=not options.anew, keep=options.keep)
    if options.ship:
        log.info("shipped: %s", ship_rows(base) | ship_chapters(base))
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    """The options of what works on one variant under one seed."""
    parser = argparse.ArgumentParser(prog=f"entityclip {command}", description=description)
    add = parser.add_argument
    add("--profile", default="demo", help="one of entityclip/profiles/ (default: demo)")
    add("--variant", default="entityclip", choices=TRAINED, metavar="NAME",
        help=f"one of {', '.join(TRAINED)}")  # fmt: skip
    add("--seed", type=int, help="instead of the profile's")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="override a setting, e.g. finetuning.epochs=3")  # fmt: skip
    return parser


def _profile(options: argparse.Namespace) -> Profile:
    """The profile with what `--seed` and `--set` override."""
    settings = parse_settings(options.set)
    return load_profile(options.profile, seed=options.seed, settings=settings)
