"""``entityclip embed`` and ``entityclip export``: their options, and what they print.

What imports torch is imported late: help need not wait for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from entityclip.config import runs_folder
from entityclip.console import Refused, add_part
from entityclip.datasets import DATASETS, load_pairs
from entityclip.files import atomic_write_text, unwritable

TAKEN = "a run's, an exported or a Hugging Face model's folder, a .safetensors file"


def embed(argv: Sequence[str] | None = None) -> int:
    """``entityclip embed``; 0: done. Raises what is wrong with the input, Refused at once."""
    parser = _embed_parser()
    options = parser.parse_args(argv)
    if not (options.images or options.dataset or options.texts):
        parser.error("nothing to embed: give --images, --dataset or --texts")
    if options.dataset and (options.images or options.texts):
        parser.error("a --dataset brings its own pictures and captions")
    if options.out.suffix not in (".parquet", ".npy"):
        parser.error(f"--out {options.out}: name it .parquet or .npy")
    for folder, advice in ((options.cache, "set ENTITYCLIP_RUNS or --cache"),
                           (options.out.parent, "give another --out")):  # fmt: skip
        if reason := unwritable(folder):
            raise Refused(f"{reason}: {advice}")
    from entityclip.search import embedding, sources

    images, texts, blank = options.images, None, []
    if options.dataset:
        images = texts = load_pairs(
            options.dataset, options.split, limit=options.limit, root=options.root,
            image_size=options.image_size,
        )  # fmt: skip
    elif options.texts:
        texts, blank = sources.read_lines(options.texts)
    found = embedding.embed(
        options.checkpoint, images, texts, model=options.model, cache=options.cache,
        batch_size=options.batch_size, workers=options.workers, progress=not options.quiet,
        part=options.shard,
    )  # fmt: skip
    if options.shard:
        print(f"part {options.shard}, {found.report}\nkept in {options.cache}; when all parts are "
              f"done, the same command without --shard writes {options.out}")  # fmt: skip
        return 0
    for number in blank:
        found.report.left_out.add("blank lines", f"line {number}")
    empty = [n for n in ("images", "texts") if (one := getattr(found, n)) is not None and not one]
    if empty:
        raise ValueError(f"no vector of {' and '.join(empty)}, nothing was written: {found.report}")
    written, out = [], options.out
    if found.images is not None:
        written.append(found.images.save(out))
    if found.texts is not None:  # beside the pictures' file, where there is one
        written.append(found.texts.save(out.with_stem(f"{out.stem}.texts") if written else out))
    report = out.with_suffix(".report.json")
    atomic_write_text(report, found.report.as_json())
    print(found.report)
    print("written to " + ", ".join(map(str, [*written, report])))
    return 0


def _embed_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="entityclip embed",
        description="Pictures come from a folder, a CSV or Parquet file, or a data set's "
        "split; texts from the split's captions or a file of lines. Stop it and start it again: it "
        "goes on where it was. What was left out stands in FILE.report.json.",
    )
    add = parser.add_argument
    add("checkpoint", help=f"{TAKEN}, hf-hub:NAME, or a tag of open_clip")
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
    add_part(parser)
    return parser


def export(argv: Sequence[str] | None = None) -> int:
    """``entityclip export``; 0: the model was written. Raises why it was not."""
    parser = argparse.ArgumentParser(
        prog="entityclip export",
        description="Write a model's two towers as a plain CLIP with a model card: for open_clip "
        "(local-dir:) or for transformers (CLIPModel.from_pretrained), the same features.",
    )
    add = parser.add_argument
    add("checkpoint", help=f"{TAKEN}, or hf-hub:NAME")
    add("folder", type=Path, help="where the model is written")
    add("--format", choices=["open_clip", "transformers"], default="open_clip")
    add("--push", metavar="REPO", help="also upload it to this repository of the Hugging Face hub, "
        "private if new, by HF_TOKEN or your login (never tried against the real hub)"
    )  # fmt: skip
    add("--backbone", help="open_clip's name, where the checkpoint has none")
    add("--image-size", type=int, help="pixels, where it isn't the backbone's")
    add("--rows", type=Path, nargs="+", help="JSONL files of result rows")
    given = parser.parse_args(argv)
    from entityclip.search import export as exporting

    files = exporting.export(
        given.checkpoint, given.folder, form=given.format,
        backbone=given.backbone, image_size=given.image_size, rows=given.rows,
    )  # fmt: skip
    print(f"wrote {', '.join(path.name for path in files)} to {given.folder}")
    if given.push:
        print(f"pushed to {exporting.push(files, given.push)}")
    return 0
