"""N24News: 60,000 New York Times pictures with captions, from 24 sections (Wang et al., LREC 2022).

Below the root::

    news/nytimes_{train,dev,test}.json          a list of articles' pictures
    imgs/{image_id}.jpg
    news/CapDsc_mistral_{train,dev,test}.json   optional: {"{image_id}.jpg": explanation}
"""

from __future__ import annotations

from pathlib import Path

from entityclip.datasets.reading import json_rows, known, need, optional
from entityclip.datasets.table import PairBuilder, PairTable, Report

SPLITS = ("train", "val", "test")
_FILE_NAMES = {"train": "train", "val": "dev", "test": "test"}
_LAYOUT = "expected below the root: news/nytimes_{train,dev,test}.json and imgs/{image_id}.jpg"


def n24news_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0
) -> tuple[PairTable, Report]:
    """The usable pairs of a split in the file's order, and a report of what was left out.

    Ids are the image ids, groups the article ids, sections N24News' own. `limit` takes a subset
    that depends on `seed` only. Without the explanations' file every explanation is None.

    Raises FileNotFoundError for a missing root, file or picture folder, and ValueError naming the
    file, the row (counted from 0) and the field for malformed content.
    """
    known("n24news", split, SPLITS)
    file = _FILE_NAMES[split]
    path = need(root, f"news/nytimes_{file}.json", "imgs", layout=_LAYOUT)
    builder = PairBuilder(root)
    for row in json_rows(path):
        image_id = row.name("image_id")
        group, section = row.label("article_id"), row.label("section", kinds=(str,))
        image, caption = f"imgs/{image_id}.jpg", row.text("caption")
        builder.add(image_id, image, caption, group=group, section=section, where=row)
    explanations = optional(root, f"news/CapDsc_mistral_{file}.json")
    builder.explain(explanations, file_name, lambda _, image: file_name(image))
    return builder.finish(f"n24news {split}", limit=limit, seed=seed)


def file_name(key: str) -> str:
    """A key without the folders of the authors' machine that some releases put before it."""
    return key.replace("\\", "/").rsplit("/", 1)[-1]
