"""Captions a model generated for pictures, as a pair's second text.

ITR clusters a text with what a captioning model says of the picture. In the drawn newsroom the
generic caption of what is seen stands in for it; a data set in files brings ``generated.json``
below its root, an object of pair id → caption.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from entityclip.datasets.newsroom import NewsroomPicture, generated_caption
from entityclip.datasets.record import Pair

FILE = "generated.json"


def with_generated(pairs: Sequence[Pair], root: Path | None = None) -> list[Pair]:
    """The pairs with a generated caption in place of each explanation.

    Raises FileNotFoundError where pairs lie in files and `root` has no ``generated.json``, and
    ValueError for one that is no JSON object or lacks a pair's caption.
    """
    if all(isinstance(pair.image, NewsroomPicture) for pair in pairs):
        return [replace(pair, explanation=generated_caption(pair)) for pair in pairs]
    if root is None:
        raise ValueError(f"generated captions are read from {FILE}: set the pairs' `data_root`")
    path = Path(root) / FILE
    texts = _read(path)
    lacking = [pair.id for pair in pairs if not texts.get(pair.id)]
    if lacking:
        raise ValueError(
            f"{path}: {len(lacking)} of {len(pairs)} pairs have no caption, the first is "
            f"{lacking[0]!r}; generate them or leave the task cluster_generated out"
        )
    return [replace(pair, explanation=texts[pair.id]) for pair in pairs]


def _read(path: Path) -> dict[str, str]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no {path}: write an object of pair id → caption there, made by a captioning model, "
            "or leave the task cluster_generated out"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); write an object of pair id → caption"
        ) from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{path} must hold an object of pair id → caption")
    return texts
