"""N24News: 60,000 New York Times pictures with captions from 24 sections (Wang et al., LREC 2022).

Expected below the root::

    news/nytimes_{train,dev,test}.json          a list of articles' pictures
    imgs/{image_id}.jpg
    news/CapDsc_mistral_{train,dev,test}.json   optional: {"{image_id}.jpg": explanation}
"""

from __future__ import annotations

from pathlib import Path

from entityclip.datasets.reading import Row, inside, iter_rows, known, need, optional
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
    name = f"news/nytimes_{_FILE_NAMES[split]}.json"
    need(root, name, "imgs", layout=_LAYOUT)
    path = inside(root, root / name)
    builder = PairBuilder(root)
    for number, values in enumerate(iter_rows(path)):
        row = Row(values, path, number)
        image_id = row.name("image_id")
        builder.add(
            image_id,
            f"imgs/{image_id}.jpg",
            row.text("caption"),
            group=row.label("article_id"),
            section=row.label("section", kinds=(str,)),
            where=row,
        )
    builder.explain(
        optional(root, f"news/CapDsc_mistral_{_FILE_NAMES[split]}.json"),
        file_name,
        lambda _, image: file_name(image),
    )
    return builder.finish(f"n24news {split}", limit=limit, seed=seed)


def file_name(key: str) -> str:
    """A key without the folders of the authors' machine that some releases put before it."""
    return key.replace("\\", "/").rsplit("/", 1)[-1]
