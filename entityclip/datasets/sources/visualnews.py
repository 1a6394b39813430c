"""VisualNews: 1.08 million news pictures of four papers (Liu et al., EMNLP 2021, arXiv 2010.03743).

Expected below the root, in the layout of EntityCLIP's authors or in the release's own::

    {train,val,test}.json or data.json       or   origin/{train,val,test}.json or data.json
    images/guardian/images/0319/958.jpg      or   origin/guardian/images/0319/958.jpg
    CapDsc_mistral_{split}.json              optional, beside the split's file
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from entityclip.datasets.reading import first_of, inside, json_rows, known, optional
from entityclip.datasets.table import PairBuilder, PairTable, Report

SPLITS = ("train", "val", "test", "all")
SOURCES = ("guardian", "bbc", "usa_today", "washington_post")

_LAYOUT = (
    "expected below the root: {train,val,test}.json (split `all`: data.json), there or in origin/, "
    "and pictures in images/{source}/… or origin/{source}/…"
)

_SOURCE = re.compile(rf".*(?:^|/)((?:{'|'.join(SOURCES)})/.*)", re.DOTALL)


def visualnews_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0
) -> tuple[PairTable, Report]:
    """The usable pairs of a split in the file's order, and a report of what was left out.

    Ids are the release's, groups None, sections the topics; split `all` is the release's
    ``data.json``. An explanation belongs to a picture whose path is equal from the source's name
    on. A million rows take about 10 s and are held in columns.

    Raises FileNotFoundError and ValueError as `n24news_pairs` does.
    """
    known("visualnews", split, SPLITS)
    file = "data.json" if split == "all" else f"{split}.json"
    name = first_of(root, (file, f"origin/{file}"), layout=_LAYOUT)
    base = first_of(root, ("images", "origin"), layout=_LAYOUT)
    path = inside(root, root / name)
    builder = PairBuilder(root)
    bases: dict[str, str] = {}  # the folder that holds each source's pictures
    for row in json_rows(path):
        image = row.path_below("image_path")
        source = image.partition("/")[0]
        if source not in bases:
            homes = (b for b in ("images", "origin") if os.path.isdir(root / b / source))
            bases[source] = next(homes, base)
        caption, topic = row.text("caption"), row.label("topic", kinds=(str,))
        builder.add(row.id("id"), f"{bases[source]}/{image}", caption, section=topic, where=row)
    folder = name.removesuffix(file)
    explanations = optional(root, f"{folder}CapDsc_mistral_{split}.json")
    builder.explain(explanations, from_source, lambda _, image: image.partition("/")[2])
    return builder.finish(f"visualnews {split}", limit=limit, seed=seed)


def from_source(key: str) -> str:
    """An explanation's key from the (last) source's name on; another key stays as it is."""
    key = key.replace("\\", "/")
    match = _SOURCE.fullmatch(key)
    return match[1] if match else key.removeprefix("./")
