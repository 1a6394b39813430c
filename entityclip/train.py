"""Train one variant of a profile and measure it, with one process or with a process a GPU.

Examples::

    python -m entityclip.train --profile demo --variant entityclip
    accelerate launch --multi_gpu --num_processes 8 -m entityclip.train --profile paper \\
        --variant entityclip --set data_root=/data/N24News finetuning.workers=8

The batch is the profile's `finetuning.batch_size` whatever the number of processes: they share it.
What was interrupted goes on; what is finished is not done again.
"""

# Import this module from nowhere: `entityclip.train` is the function of training.py.

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from entityclip.config import ProfileError, load_profile
from entityclip.overrides import parse_settings
from entityclip.variants import VARIANTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code: 0 done, 1 training failed, 2 refused at the start."""
    options = _parser().parse_args(arguments)
    try:
        settings = parse_settings(options.set)
        profile = load_profile(options.profile, seed=options.seed, settings=settings)
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # imported late because they import torch, and a misspelt name should be refused at once
    from accelerate import PartialState

    from entityclip.checkpoint import CheckpointError
    from entityclip.distributed import this_world
    from entityclip.launch import train_variant
    from entityclip.run_state import RECORD
    from entityclip.step_log import TrainingError

    world = this_world()
    logging.basicConfig(format="%(asctime)s %(message)s")
    if world.main:
        logging.getLogger("entityclip").setLevel(logging.INFO)
    try:
        folder = train_variant(
            profile, options.variant, measure=options.measure, force=options.force
        )
    except (TrainingError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        PartialState().destroy_process_group()
    if world.main:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        print(
            f"{folder.name}: {record['steps']} steps on {world.size} process(es), best "
            f"epoch {record['epoch']} with validation loss {record['val_loss']:.4f}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m entityclip.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    trained = [name for name, variant in VARIANTS.items() if variant.finetuned]
    add = parser.add_argument
    add("--profile", default="demo", help="one of notebooks/profiles/ (default: demo)")
    add("--variant", default="entityclip", choices=trained, metavar="NAME",
        help=f"one of {', '.join(trained)}")  # fmt: skip
    add("--seed", type=int, help="instead of the profile's")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="override a setting, e.g. finetuning.epochs=3")  # fmt: skip
    add("--no-measure", dest="measure", action="store_false", help="only train")
    add("--force", action="store_true", help="train and measure anew")
    return parser


if __name__ == "__main__":
    sys.exit(main())
