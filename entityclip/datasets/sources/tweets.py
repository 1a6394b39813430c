"""Two sets of tweets with a picture each.

Text-image relationship (Vempala and Preoţiuc-Pietro, ACL 2019), for which ITR's authors take the
first 3,576 rows as training split. Expected below the root::

    data.csv          tweet_id,tweet,text_is_represented,image_adds; escape character \\
    T{tweet_id}.jpg   there or in images/

Twitter100k (Hu et al., IEEE Transactions on Multimedia 2018). Expected below the root::

    text.txt          one line a pair
    images/{n}.jpg    n counts lines from 0 or 1

As ITR's authors do, a tweet loses the short link at its end, and Twitter100k's are cut at 140
characters.
"""

from __future__ import annotations

import re
from pathlib import Path

from entityclip.datasets.reading import Row, csv_rows, known, need, text_lines
from entityclip.datasets.table import PairBuilder, PairTable, Report

RELATION_SPLITS = ("train", "test")
RELATION_TRAIN_ROWS = 3576
TWITTER100K_SPLITS = ("all",)
_LONGEST = 140  # characters of a text of Twitter100k
# at the end: t.co/… with or without its scheme, or what an ellipsis left of it
_SHORT_LINK = re.compile(
    r"(?:^|\s+)(?:(?:https?://)?t\.co/\S*|https?(?::(?:/(?:/(?:t(?:\.(?:co?)?)?)?)?)?)?…)\s*$",
    re.IGNORECASE,
)
_COLUMNS = ("tweet_id", "tweet", "text_is_represented", "image_adds")
_RELATION_LAYOUT = "expected below the root: data.csv and T{tweet_id}.jpg, there or in images/"
_TWITTER100K_LAYOUT = "expected below the root: text.txt and images/{n}.jpg"


def relation_pairs(
    root: Path,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    train_rows: int = RELATION_TRAIN_ROWS,
) -> tuple[PairTable, Report]:
    """The labelled tweets of a split: the file's first `train_rows` rows, or the others.

    Ids are the tweet ids. Sections are the combined class 2 · text_is_represented + image_adds, as
    ``"0"`` to ``"3"``; `relation_labels` takes it apart. Rows count before anything is left out, so
    that a missing picture moves no other row to another split.

    Raises FileNotFoundError and ValueError as `n24news_pairs` does.
    """
    known("tweets", split, RELATION_SPLITS)
    path = need(root, "data.csv", layout=_RELATION_LAYOUT)
    base = "images/" if (root / "images").is_dir() else ""
    builder = PairBuilder(root)
    rows = csv_rows(path, _COLUMNS, escapechar="\\", fetched=True, note=builder.notes.append)
    for number, row in enumerate(rows):
        tweet_id = row.name("tweet_id")
        labels = [_bit(row, name) for name in _COLUMNS[2:]]
        if (number < train_rows) == (split == "train"):
            image, section = f"{base}T{tweet_id}.jpg", str(2 * labels[0] + labels[1])
            tweet = without_link(row.text("tweet"))
            builder.add(tweet_id, image, tweet, section=section, where=row)
    return builder.finish(f"tweets {split}", limit=limit, seed=seed)


def without_link(tweet: str) -> str:
    """The tweet without the short link at its end, whole or cut by an ellipsis: its picture's."""
    return _SHORT_LINK.sub("", tweet)


def relation_labels(section: str) -> tuple[int, int]:
    """(text_is_represented, image_adds), each 0 or 1, of a pair's section."""
    return divmod(int(section), 2)


def twitter100k_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0, first: int | None = None
) -> tuple[PairTable, Report]:
    """Every line of ``text.txt`` with its picture; ids are the pictures' numbers.

    `first` is the number of the first line's picture, 0 or 1; None finds it out from which of
    ``0.jpg`` and ``{number of lines}.jpg`` exists. Raises ValueError where that leaves it open, and
    FileNotFoundError and ValueError as `n24news_pairs` does.
    """
    known("twitter100k", split, TWITTER100K_SPLITS)
    path = need(root, "text.txt", "images", layout=_TWITTER100K_LAYOUT)
    lines = text_lines(path)
    if first is None:
        zero, last = ((root / "images" / f"{n}.jpg").is_file() for n in (0, len(lines)))
        if zero == last:
            both = "both 0.jpg and" if zero else "neither 0.jpg nor"
            raise ValueError(
                f"{root / 'images'} has {both} {len(lines)}.jpg for {len(lines)} lines: pass "
                "first=0 or first=1 to say which picture belongs to the first line"
            )
        first = 0 if zero else 1
    builder = PairBuilder(root)
    for number, line in enumerate(lines):
        name = str(number + first)
        text, where = without_link(line.strip())[:_LONGEST], f"{path}, line {number + 1}"
        builder.add(name, f"images/{name}.jpg", text, where=where)
    return builder.finish("twitter100k", limit=limit, seed=seed)


def _bit(row: Row, field: str) -> int:
    value = row.text(field)
    if value not in ("0", "1"):
        row.fail(field, f"must be 0 or 1, got {value[:40]!r}")
    return int(value)
