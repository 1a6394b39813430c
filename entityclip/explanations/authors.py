"""Explanations to and from files: the papers' authors' JSON, Parquet, data frames.

The authors' files are one JSON object, picture name → text. The names by layout: N24News
``{image_id}.jpg``; GoodNews ``{article_id}_{ix}`` (also with ``.jpg``); VisualNews a path on their
machine, of which the part from the source's name on counts, ``guardian/images/0319/958.jpg``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from entityclip.datasets.record import Pair
from entityclip.explanations.cache import (
    Explanation,
    ExplanationCache,
    Source,
    cache_keys,
    text_sha,
)
from entityclip.explanations.checks import failed_checks
from entityclip.explanations.prompts import DEFAULT_PROMPT
from entityclip.files import atomic_write_bytes, atomic_write_text

Layout = Literal["n24news", "goodnews", "visualnews"]
_VISUALNEWS = re.compile(r"(?:^|/)((?:guardian|bbc|usa_today|washington_post)/images/.*)$")


@dataclass(frozen=True)
class ImportReport:
    """What an import took and what it left out, in rows."""

    source: Source  # for `explain(reuse=[…])`
    added: int
    already_there: int  # an explanation of this caption was in the cache or came earlier: kept
    conflicting: int  # of these: with another text, as the authors explain equal captions anew
    empty: int  # left out
    no_pair: int  # texts for pictures that are not among the pairs; left out
    no_text: int  # pairs that the file lacks

    def __str__(self) -> str:
        return (
            f"{self.added} added, {self.already_there} there already ({self.conflicting} with "
            f"another text), left out: {self.empty} empty, {self.no_pair} of other pictures; "
            f"{self.no_text} pairs have none"
        )


def import_authors(
    path: str | Path,
    pairs: Sequence[Pair],
    cache: ExplanationCache,
    *,
    layout: Layout,
    model: str = "authors-mistral",
) -> ImportReport:
    """Put an explanations file of the authors into `cache`, checked, as rows of `model`.

    The cache holds one text a caption, so of several pictures with one caption the first pair's
    text stays; the loaders of the data sets give each picture its own. The prompt and the sampling
    are not known: prompt version "authors", sampling None, finish_reason "unknown".

    Raises FileNotFoundError, and ValueError naming the file and the key for malformed content.
    """
    texts = read_authors(path, layout)
    names = [picture_name(pair, layout) for pair in pairs]
    source = Source(model, "authors", None)
    keys = cache_keys((pair.caption for pair in pairs), source)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    fresh: dict[bytes, Explanation] = {}
    there = conflicting = empty = 0
    for key, name, pair in zip(keys, names, pairs, strict=True):
        text = texts.get(name)
        if not text:
            empty += text is not None
            continue
        if (stored := fresh.get(key) or cache.read(key)) is not None:
            there += 1
            conflicting += stored.text != text
            continue
        checks = failed_checks(text, pair.caption, DEFAULT_PROMPT, "unknown")
        origin = (*source, "unknown", text_sha(text), checks, 1, now)
        fresh[key] = Explanation(pair.id, text, *origin)
    added = cache.append(list(fresh.items()))
    no_text = sum(name not in texts for name in names)
    no_pair = len(texts.keys() - set(names))
    there += len(fresh) - added
    return ImportReport(source, added, there, conflicting, empty, no_pair, no_text)


def export_authors(
    pairs: Sequence[Pair], explanations: Sequence[Explanation], path: str | Path, *, layout: Layout
) -> int:
    """Write explanations in the authors' layout, keyed by picture; how many.

    Pairs with an empty text are left out: loaders take a missing text for what it is. Raises
    ValueError for explanations that are not these pairs' and for two pairs with one picture name.
    """
    if [pair.id for pair in pairs] != [row.id for row in explanations]:
        raise ValueError("pairs and explanations must have the same ids in the same order")
    texts: dict[str, str] = {}
    for pair, row in zip(pairs, explanations, strict=True):
        name = picture_name(pair, layout)
        if name in texts:
            raise ValueError(f"pair {pair.id!r}: the picture name {name!r} recurs in {layout}")
        texts[name] = row.text
    kept = {name: text for name, text in texts.items() if text}
    atomic_write_text(path, json.dumps(kept, ensure_ascii=False, indent=0) + "\n")
    return len(kept)


def picture_name(pair: Pair, layout: Layout) -> str:
    """The key of a pair's picture in the authors' file."""
    path = pair.image.as_posix() if isinstance(pair.image, Path) else f"{pair.id}.jpg"
    return _name(path, layout, f"pair {pair.id!r}")


def _name(path: str, layout: Layout, where: str) -> str:
    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r}; there are {', '.join(get_args(Layout))}")
    path = path.replace("\\", "/")
    if layout == "visualnews":
        match = _VISUALNEWS.search(path)
        if not match:
            raise ValueError(
                f"{where}: {path!r} has no part such as guardian/images/…; is it VisualNews?"
            )
        return match.group(1)
    name = path.rsplit("/", 1)[-1]
    return name if layout == "n24news" else name.removesuffix(".jpg")


def read_authors(path: str | Path, layout: Layout) -> dict[str, str]:
    """An explanations file of the authors: `picture_name` → text, stripped.

    Raises FileNotFoundError, and ValueError naming the file and the key for malformed content.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, picture name → text")
    texts: dict[str, str] = {}
    for key, text in content.items():
        where = f"{path}, key {key!r}"
        if not isinstance(text, str):
            raise ValueError(f"{where}: an explanation must be str, got {type(text).__name__}")
        name = _name(key, layout, where)
        if texts.setdefault(name, text.strip()) != text.strip():
            raise ValueError(f"{where}: another key names the same picture with another text")
    return texts


def to_frame(explanations: Sequence[Explanation]) -> pd.DataFrame:
    """One row an explanation; the sampling in columns of its own, empty where not known."""
    nothing = dict.fromkeys(("temperature", "top_p", "max_tokens", "seed"))
    rows = []
    for row in explanations:
        sampling = asdict(row.sampling) if row.sampling else nothing
        rows.append({**vars(replace(row, sampling=None)), **sampling, "checks": list(row.checks)})
    columns = [c for c in Explanation.__annotations__ if c != "sampling"]
    frame = pd.DataFrame(rows, columns=[*columns, *nothing])
    return frame.astype({"max_tokens": "Int64", "seed": "Int64"})


def export_parquet(explanations: Sequence[Explanation], path: str | Path) -> None:
    """Write `to_frame` as Parquet. Raises ImportError without pyarrow (the extra ``llm``)."""
    try:
        import pyarrow  # noqa: F401 - pandas' writer
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'entityclip[llm]'") from error
    buffer = io.BytesIO()
    to_frame(explanations).to_parquet(buffer, engine="pyarrow", index=False)
    atomic_write_bytes(path, buffer.getvalue())
