"""GoodNews: 466,000 New York Times pictures (Biten et al., CVPR 2019, arXiv 1904.01475).

The official release, or the files EntityCLIP's authors derived from it. Below the root::

    captioning_dataset.json, img_splits.json          official
    new_goodnews_capim_{train,val,test}.json          derived
    broken_images.txt                                 optional, one picture a line
    train_cap_individual/New_Corr_CapDsc_mistral_{train,val,test}.json     optional
    {images,resized,imgs}/{article_id}_{ix}.jpg       the first of these folders that exists
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entityclip.datasets.reading import (
    Row,
    first_of,
    inside,
    iter_entries,
    json_rows,
    known,
    optional,
    text_lines,
)
from entityclip.datasets.sources.n24news import SPLITS, file_name
from entityclip.datasets.table import PairBuilder, PairTable, Report

_LAYOUT = (
    "expected below the root: captioning_dataset.json with img_splits.json, or "
    "new_goodnews_capim_{train,val,test}.json; and pictures {article_id}_{ix}.jpg in images/, "
    "resized/ or imgs/"
)


def goodnews_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0
) -> tuple[PairTable, Report]:
    """The usable pairs of a split in the file's order, and a report of what was left out.

    Ids are ``{article_id}_{ix}``, groups the article ids (one has several pictures), sections
    None. Captions lose their ``\\r\\n`` (see `clean_caption`). Derived files are read where they
    exist, else the official ones. Explanations are joined by image id to either.

    Raises FileNotFoundError and ValueError as `n24news_pairs` does.
    """
    known("goodnews", split, SPLITS)
    derived = f"new_goodnews_capim_{split}.json"
    name = first_of(root, (derived, "captioning_dataset.json"), layout=_LAYOUT)
    folder = first_of(root, ("images", "resized", "imgs"), layout=_LAYOUT)
    listed = optional(root, "broken_images.txt")
    broken = {image_id_of(line.strip()) for line in text_lines(listed)} if listed else set()
    builder = PairBuilder(root)
    path = inside(root, root / name)
    rows = _derived(path) if name == derived else _official(root, path, split)
    for image_id, caption, row in rows:
        image, group = f"{folder}/{image_id}.jpg", image_id.rpartition("_")[0] or None
        text, unfit = clean_caption(caption), image_id in broken
        builder.add(image_id, image, text, group=group, where=row, broken=unfit)
    explanations = f"train_cap_individual/New_Corr_CapDsc_mistral_{split}.json"
    builder.explain(optional(root, explanations), image_id_of, lambda name, _: name)
    return builder.finish(f"goodnews {split}", limit=limit, seed=seed)


def clean_caption(caption: str) -> str:
    """A caption on one line: line breaks, real or written out as ``\\r\\n``, become one space."""
    return " ".join(caption.replace("\\r\\n", " ").split())


def image_id_of(key: str) -> str:
    """``/home/someone/5a0_3.jpg`` → ``5a0_3``: no folders, no ``.jpg``."""
    return file_name(key).removesuffix(".jpg")


def _derived(path: Path) -> Iterator[tuple[str, str, Row]]:
    """(image id, caption, row) of each row."""
    for row in json_rows(path):
        image_id = row.name("image_id").removesuffix(".jpg")
        yield image_id, row.text("captioning"), row


def _official(root: Path, path: Path, split: str) -> Iterator[tuple[str, str, Row]]:
    splits_path = inside(root, root / first_of(root, ("img_splits.json",), layout=_LAYOUT))
    chosen = set()
    for key, value in iter_entries(splits_path):
        if value not in SPLITS:
            raise ValueError(
                f"{splits_path}, key {key!r}: {value!r} is none of {', '.join(SPLITS)}"
            )
        if value == split:
            chosen.add(image_id_of(key))
    for number, (article, values) in enumerate(iter_entries(path)):
        row = Row(values, path, number)
        for ix, caption in _images(row).items():
            # checked as one name: it becomes a file's
            image_id = Row({"image": f"{article}_{ix}"}, path, number).name("image")
            if image_id in chosen:
                row_text = Row({f"images.{ix}": caption}, path, number).text(f"images.{ix}")
                yield image_id, row_text, row


def _images(row: Row) -> dict[str, Any]:
    images = row.values.get("images")
    if not isinstance(images, dict):
        got = type(images).__name__ if "images" in row.values else "nothing"
        row.fail("images", f"must be dict, got {got}")
    return images
