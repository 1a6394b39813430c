"""N24News: 60,000 New York Times pictures with captions from 24 sections (Wang et al., LREC 2022).

Expected below the root::

    news/nytimes_{train,dev,test}.json          a list of articles' pictures
    imgs/{image_id}.jpg
    news/CapDsc_mistral_{train,dev,test}.json   optional: {"{image_id}.jpg": explanation}
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entityclip.datasets.pair import Pair

SPLITS = ("train", "val", "test")
_FILE_NAMES = {"train": "train", "val": "dev", "test": "test"}
_LAYOUT = "expected below the root: news/nytimes_{train,dev,test}.json and imgs/{image_id}.jpg"
_log = logging.getLogger(__name__)


@dataclass
class Report:
    """What a load read, and what it left out."""

    rows: int = 0
    empty_captions: int = 0  # left out
    missing_pictures: int = 0  # left out
    repeated_ids: int = 0  # left out after the first
    without_explanation: int = 0  # kept

    def __str__(self) -> str:
        return (
            f"{self.rows} rows; left out {self.empty_captions} with an empty caption, "
            f"{self.missing_pictures} without their picture, {self.repeated_ids} repeated; "
            f"{self.without_explanation} kept without an explanation"
        )


def n24news_pairs(
    root: Path, split: str, *, limit: int | None = None, seed: int = 0
) -> tuple[list[Pair], Report]:
    """The usable pairs of a split in the file's order, and a report of what was left out.

    Ids are the image ids, groups the article ids, sections N24News' own. `limit` takes a subset
    that depends on `seed` only. Without the explanations' file every explanation is None.

    Raises FileNotFoundError for a missing root, file or picture folder, and ValueError naming the
    file, the row (counted from 0) and the field for malformed content.
    """
    if split not in SPLITS:
        raise ValueError(f"n24news has no split {split!r}; there are {', '.join(SPLITS)}")
    news, pictures = root / "news", root / "imgs"
    path = news / f"nytimes_{_FILE_NAMES[split]}.json"
    for needed in (root, path, pictures):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} does not exist; {_LAYOUT}")
    rows = _read(path, list)
    explanations = _explanations(news / f"CapDsc_mistral_{_FILE_NAMES[split]}.json")
    present = {entry.name for entry in os.scandir(pictures)}  # one listing, not a stat a row
    report, pairs, seen = Report(rows=len(rows)), [], set()
    for number, row in enumerate(rows):
        pair = _pair(row, f"{path}, row {number}", pictures, explanations)
        if not pair.caption:
            report.empty_captions += 1
        elif pair.image.name not in present:
            report.missing_pictures += 1
        elif pair.id in seen:
            report.repeated_ids += 1
        else:
            seen.add(pair.id)
            report.without_explanation += pair.explanation is None
            pairs.append(pair)
    level = logging.INFO if len(pairs) == len(rows) else logging.WARNING
    _log.log(level, "n24news %s: %s", split, report)
    if limit is not None and limit < len(pairs):
        chosen = np.random.default_rng(seed).permutation(len(pairs))[:limit]
        pairs = [pairs[row] for row in sorted(chosen)]
    return pairs, report


def _pair(row: Any, where: str, pictures: Path, explanations: dict[str, str]) -> Pair:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")
    name = str(_field(row, "image_id", where, (str, int)))
    article = _field(row, "article_id", where, (str, int, type(None)))
    return Pair(
        id=name,
        image=pictures / f"{name}.jpg",
        caption=(_field(row, "caption", where, (str, type(None))) or "").strip(),
        explanation=explanations.get(f"{name}.jpg"),
        group=None if article is None else str(article),
        section=_field(row, "section", where, (str, type(None))),
    )


def _field(row: dict[str, Any], field: str, where: str, kinds: tuple[type, ...]) -> Any:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        got = type(value).__name__ if field in row else "nothing"
        raise ValueError(f"{where}: field {field!r} must be {wanted}, got {got}")
    return value


def _explanations(path: Path) -> dict[str, str]:
    """Explanations by picture file name; empty ones count as missing."""
    if not path.exists():
        return {}
    texts = {}
    for key, value in _read(path, dict).items():
        if not isinstance(value, str):
            got = type(value).__name__
            raise ValueError(f"{path}, key {key!r}: an explanation must be str, got {got}")
        if value.strip():
            # some releases prefix the file name with a folder of the authors' machine
            texts[key.replace("\\", "/").rsplit("/", 1)[-1]] = value.strip()
    return texts


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, got {type(content).__name__}")
    return content
