"""Embed a collection: ``python -m entityclip.embed CHECKPOINT --images FOLDER --out FILE.parquet``.

Pictures come from a folder, a CSV or Parquet file of paths, or a data set's split; texts from the
split's captions or a file of lines. Stop it and start it again: it goes on where it was. What was
left out stands in FILE.report.json. Exits with 0, or 1 if something is wrong with the input, or 2
for a wrong command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from entityclip.config import runs_folder
from entityclip.datasets import DATASETS, load_pairs
from entityclip.files import atomic_write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.images or options.dataset or options.texts):
        parser.error("nothing to embed: give --images, --dataset or --texts")
    if options.dataset and (options.images or options.texts):
        parser.error("a --dataset brings its own pictures and captions")
    if options.out.suffix not in (".parquet", ".npy"):
        parser.error(f"--out {options.out}: name it .parquet or .npy")
    try:
        _run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    from entityclip.embedding import embed  # imports torch, which --help need not wait for

    images, texts = options.images, None
    if options.dataset:
        images = texts = load_pairs(
            options.dataset, options.split, limit=options.limit, root=options.root,
            image_size=options.image_size,
        )  # fmt: skip
    elif options.texts:
        lines = options.texts.read_text(encoding="utf-8-sig").splitlines()
        texts = [line for line in lines if line.strip()]
    found = embed(
        options.checkpoint, images, texts, model=options.model, cache=options.cache,
        batch_size=options.batch_size, workers=options.workers, progress=not options.quiet,
    )  # fmt: skip
    written = []
    if found.images is not None:
        written.append(found.images.save(options.out))
    if found.texts is not None:
        # beside the pictures' file, where there is one
        written.append(found.texts.save(options.out.with_stem(options.out.stem + ".texts")
                                        if written else options.out))  # fmt: skip
    report = options.out.with_suffix(".report.json")
    atomic_write_text(report, found.report.as_json())
    print(found.report)
    print("written to " + ", ".join(map(str, [*written, report])))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m entityclip.embed", description=__doc__.split("\n\n")[1]
    )
    add = parser.add_argument
    add("checkpoint", help="a run's folder, a .safetensors file, or a tag of open_clip")
    add("--model", help="open_clip's name of the model, where the checkpoint does not tell it")
    add("--images", help="a folder, or a .csv or .parquet with a column `image`")
    add("--texts", type=Path, help="a file of texts, one a line")
    add("--dataset", choices=list(DATASETS), help="embed a split: its pictures and captions")
    add("--split", default="test")
    add("--root", type=Path, help="the folder the data set lies in")
    add("--limit", type=int, help="of the split's pairs")
    add("--image-size", type=int, default=224, help="of a drawn data set's pictures")
    add("--out", type=Path, required=True, help="FILE.parquet, or FILE.npy with FILE.ids.json")
    add("--cache", type=Path, default=runs_folder() / "embeddings", help="default: runs/embeddings")
    add("--batch-size", type=int, default=64)
    add("--workers", type=int, default=4, help="threads that read and decode")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


class _Callable(ModuleType):
    """This module, which importing it puts at `entityclip.embed` in the function's place."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from entityclip.embedding import embed

        return embed(*arguments, **options)


if __name__ == "__main__":
    sys.exit(main())
sys.modules[__name__].__class__ = _Callable
