"""``entityclip train``, ``evaluate`` and ``sweep``: their options, and what they print.

What imports torch is imported late: help, and the refusal of a misspelt name, need not wait for it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from entityclip.config import IN_CHECKOUT, Profile
from entityclip.console import refusing
from entityclip.experiments.options import add_options, choose, log
from entityclip.variants import DIRECTION_LABELS, KEPT, LISTED, TABLES, VARIANTS

if TYPE_CHECKING:
    import pandas as pd


def train(argv: Sequence[str] | None = None) -> int:
    """``entityclip train``; 0: done, 1: the training failed, 2: refused at the start."""
    parser = _parser("train", "Train one variant, unless a finished run is there, and measure it.")
    parser.add_argument("--no-measure", dest="measure", action="store_false", help="only train")
    parser.add_argument("--force", action="store_true", help="train and measure anew")
    parser.add_argument("--track", nargs="+", default=[], metavar="TRACKER",
        help="watch it in tensorboard or wandb: losses, rates, logit scale, validation, its recall"
    )  # fmt: skip
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    profile, variant = choose(options)
    from accelerate import PartialState

    from entityclip.experiments.train import train_variant
    from entityclip.training.processes import this_world

    world = this_world()
    if world.main:
        logging.getLogger("entityclip").setLevel(logging.INFO)
    try:
        folder = train_variant(
            profile, variant, measure=options.measure, force=options.force, trackers=options.track
        )
    finally:
        PartialState().destroy_process_group()
    if world.main:
        _tell_of_run(profile, variant, folder, world.size, options.measure)
    return 0


def _tell_of_run(
    profile: Profile, variant: str, folder: Path, processes: int, measured: bool
) -> None:
    """What a training came to: its metrics, and where it left what."""
    from entityclip.training.run_folder import BEST, read_record

    record = read_record(folder)
    print(
        f"{folder.name}: {record['steps']} steps on {processes} process(es), best "
        f"epoch {record['epoch']} with validation loss {record['val_loss']:.4f}"
    )
    if measured:
        print(_metrics(_rows_of(profile, variant, profile.settings.test_splits)))
    print(f"weights: {folder / BEST}\nlog:     {folder / 'log.jsonl'}")
    if measured:
        print(f"rows:    {profile.results / 'retrieval.jsonl'}")
    if (watched := profile.runs / "tracking" / folder.name).is_dir():
        print(f"watched: {watched}")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``entityclip evaluate``; 0: measured, 1: there is no trained run, 2: refused at the start."""
    parser = _parser(
        "evaluate",
        "Measure a trained variant, or the towers of any checkpoint, and print the metrics with "
        "their 95 % intervals. What is measured already is only printed.",
    )
    parser.add_argument("checkpoint", nargs="?", help="a run's, an exported or a Hugging Face "
        "model's folder, a .safetensors file, or hf-hub:NAME; else the variant's own run"
    )  # fmt: skip
    parser.add_argument("--model", help="open_clip's name, where the checkpoint does not tell it")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="of a checkpoint: append result "
        "rows to this .jsonl file, as export --rows reads them")  # fmt: skip
    parser.add_argument("--splits", nargs="+", help="default: the profile's test splits")
    parser.add_argument("--train", action="store_true", help="train it first, if need be")
    parser.add_argument("--force", action="store_true", help="measure anew")
    options = parser.parse_args(argv)
    profile, variant = choose(options)
    splits = options.splits or profile.settings.test_splits
    if options.checkpoint:
        return _evaluate_checkpoint(options, profile, splits)
    from entityclip.experiments.experiment import Experiment
    from entityclip.experiments.measure import measure, stored_ranks
    from entityclip.experiments.preflight import refuse_impossible

    experiment = Experiment(profile, progress=sys.stderr.isatty())
    with refusing():
        refuse_impossible(experiment, splits)
        stored = all(stored_ranks(experiment, variant, s, shipped=False) for s in splits)
    if not (options.train or experiment.trained(variant) or (stored and not options.force)):
        print(
            f"{variant} is not trained under these settings; the command that trains it:\n"
            f"{_training_command(options, profile, variant)}",
            file=sys.stderr,
        )
        return 1
    measure(experiment, [variant], splits, force=options.force)
    print(_metrics(_rows_of(profile, variant, splits)))
    return 0


def _evaluate_checkpoint(
    options: argparse.Namespace, profile: Profile, splits: Sequence[str]
) -> int:
    """Measure two towers on the profile's splits; what trained them is theirs to know."""
    import pandas as pd

    from entityclip.datasets.dataset import PairDataset
    from entityclip.devices import best_device
    from entityclip.evaluation.retrieval import evaluate_retrieval
    from entityclip.experiments.experiment import Experiment
    from entityclip.experiments.preflight import refuse_impossible
    from entityclip.models.encoder import load_encoder
    from entityclip.models.entityclip import EntityCLIP, EntityCLIPConfig
    from entityclip.results import append_rows
    from entityclip.variants import NO_EXPERTS

    with refusing():
        backbone = load_encoder(options.checkpoint, options.model)
    experiment = Experiment(profile, progress=sys.stderr.isatty())
    refuse_impossible(experiment, splits)
    model = EntityCLIP(backbone, EntityCLIPConfig(**NO_EXPERTS)).to(best_device())
    name, rows = Path(options.checkpoint).name, []
    for split in splits:
        served = PairDataset(experiment.pairs(split), backbone.preprocess, backbone.tokenize)
        _, found = evaluate_retrieval(
            model, served, variant=name, dataset_name=profile.settings.dataset, split=split,
            config={"checkpoint": name, "model": backbone.name}, seed=profile.seed,
            bootstrap=profile.settings.bootstrap, progress=experiment.progress,
        )  # fmt: skip
        rows += [row | {"trained_fingerprint": None} for row in found]
    print(_metrics(pd.DataFrame(rows)))
    if options.rows:
        append_rows(options.rows, rows)
        print(f"rows: {options.rows}")
    return 0


def _training_command(options: argparse.Namespace, profile: Profile, variant: str) -> str:
    """The words of ``entityclip train`` that train what these options ask for."""
    words = ["entityclip", "train"]
    words += ["--data", options.data] if options.data else []
    if options.profile or not options.data:
        words += ["--profile", profile.asked]
    words += ["--backbone", options.backbone] if options.backbone else []
    words += ["--from-scratch"] if options.from_scratch else []
    words += ["--variant", variant, "--seed", str(profile.seed)]
    words += ["--set", *options.set] if options.set else []
    return shlex.join(words)


def _rows_of(profile: Profile, variant: str, splits: Sequence[str]) -> pd.DataFrame:
    """The retrieval rows of a variant on some splits, of the profile's own seed."""
    from entityclip.results import find_rows

    rows = find_rows(profile, "retrieval", variants=[variant], shipped=False)
    return rows[rows["split"].isin(splits) & (rows["seed"] == profile.seed)]


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
    add_options(parser, of_a_run=False)
    add("--tables", nargs="+", choices=[*TABLES, *LISTED], default=[])
    add("--variants", nargs="+", choices=list(VARIANTS), default=[], metavar="NAME",
        help="with --data by default zero-shot, clip and, where explained, entityclip and bridge"
    )  # fmt: skip
    add("--seeds", nargs="+", type=int, help="instead of the profile's")
    add("--keep", nargs="*", default=KEPT, help="variants whose weights stay")
    add("--anew", action="store_true", help="ignore the rows that are shipped")
    add("--ship", action="store_true", help="merge the rows into figures/rows of the checkout")
    options = parser.parse_args(argv)
    if options.ship and not IN_CHECKOUT:
        parser.error("--ship is for a checkout: an installed package has no figures/rows")
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("entityclip").setLevel(logging.INFO)  # open_clip's is not news
    profile, variant = choose(options)
    if not (options.tables or options.variants or options.ship):
        if not options.data:
            parser.error("give --tables, --variants or --data")
        options.variants = ["zero-shot", "clip"]
        options.variants += ["entityclip", "bridge"] if variant != "clip" else []
    from entityclip.experiments.chapters import ship_chapters
    from entityclip.experiments.experiment import Experiment
    from entityclip.experiments.preflight import refuse_impossible, refuse_training
    from entityclip.experiments.sweep import ship_rows, sweep, table_runs, work_off

    settings = profile.settings
    base = Experiment(profile, progress=False)
    refuse_impossible(base, settings.test_splits)
    refuse_training(base, settings.test_splits)
    how = {"shipped": not options.anew, "keep": options.keep}
    for table in options.tables:
        work_off(table_runs(base, table, options.seeds), **how)
    chosen = [base.of_seed(seed) for seed in options.seeds or settings.ablation_seeds]
    sweep(chosen, options.variants, **how)
    if options.ship:
        log.info("shipped: %s", ship_rows(base) | ship_chapters(base))
    _tell_of_sweep(profile, options.tables, options.variants)
    return 0


def _tell_of_sweep(profile: Profile, tables: Sequence[str], variants: Sequence[str]) -> None:
    """The table of what was swept, and where rows and checkpoints lie."""
    import pandas as pd

    from entityclip.results import find_rows, table_rows
    from entityclip.statistics import RSUM_AT, over_seeds

    names = dict.fromkeys(itertools.chain(*(TABLES.get(t, ()) for t in tables), variants))
    parts = [find_rows(profile, "retrieval", variants=list(names))]
    parts += [table_rows(profile, "retrieval", table) for table in tables if table in LISTED]
    rows = pd.concat([part for part in parts if len(part)] or parts[:1])
    rows = rows[rows["metric"].isin([f"R@{k}" for k in RSUM_AT])]
    if rows.empty:
        return
    found = {}
    keys = ["split", "direction", "variant"]
    for (split, direction, variant, metric), group in rows.groupby([*keys, "metric"], sort=False):
        value, low, high = over_seeds(group)
        row = found.setdefault((split, DIRECTION_LABELS[direction], variant), {})
        row |= {metric: f"{value:.1f} [{low:.1f}, {high:.1f}]", "seeds": len(group)}
    table = pd.DataFrame.from_dict(found, orient="index").rename_axis(keys)
    print(table.sort_index(level=[0, 1], sort_remaining=False, kind="stable").to_string())
    print(f"rows: {profile.results / 'retrieval.jsonl'}\nruns: {profile.runs / 'checkpoints'}")


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    """The options of what works on one variant under one seed."""
    parser = argparse.ArgumentParser(prog=f"entityclip {command}", description=description)
    add_options(parser)
    return parser
