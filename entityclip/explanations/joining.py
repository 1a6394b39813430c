"""Which explanations training reads: those the data set brings, or those an extraction left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from entityclip.datasets.record import Pair
from entityclip.explanations.authors import Layout, picture_name, read_authors
from entityclip.explanations.cache import (
    Explanation,
    ExplanationCache,
    Source,
    cache_keys,
    text_sha,
)
from entityclip.explanations.checks import failed_checks
from entityclip.explanations.extraction import explain
from entityclip.explanations.knowledge import KnowledgeBase
from entityclip.explanations.policy import Policy, PolicyReport, apply_policy, check_pairs
from entityclip.explanations.prompts import DEFAULT_PROMPT

OWN, KNOWLEDGE_BASE = "own", "knowledge-base"
MISSING = "missing"  # the mark, beside the checks' names, of a pair that the file does not explain


def training_pairs(
    pairs: Sequence[Pair],
    source: str = OWN,
    policy: Policy = "use",
    *,
    dataset: str,
    split: str,
    folder: str | Path,
) -> tuple[list[Pair], PolicyReport]:
    """The pairs with the explanations of `source`, under `policy`, and what that did.

    Args:
        pairs: of one split.
        source: "own", what the data set brings; "knowledge-base", extracted here into
            ``folder/knowledge.jsonl``; else the path of a cache as `explain` writes it or, if it
            ends in ``.json``, of a file in the authors' layout. ``{split}`` in it is replaced.
        policy: see `apply_policy`. A pair that the file does not explain counts as failed, under
            the name "missing": the caption stands in under "use" and "caption".
        dataset: whose layout a ``.json`` file has.
        split: which split these are.
        folder: where the knowledge base's cache lies.

    Raises FileNotFoundError for a file that is not there, ValueError (CacheError) for one that is
    malformed, holds several sources or explains none of the pairs.
    """
    if source == OWN:
        return check_pairs(pairs, policy)
    if source == KNOWLEDGE_BASE:
        rows = explain(pairs, KnowledgeBase(), Path(folder) / "knowledge.jsonl", progress=False)
        return apply_policy(pairs, rows, policy)
    path = Path(source.replace("{split}", split)).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"settings.explanation_source: there is no file {path.resolve()}; run the extraction "
            f"(notebook 01_explanations, or `explain`) first, or give {OWN!r} or {KNOWLEDGE_BASE!r}"
        )
    rows = _authors_rows(path, pairs, dataset) if path.suffix == ".json" else _rows(path, pairs)
    if all(row.checks == (MISSING,) for row in rows):
        raise ValueError(
            f"{path} explains none of the {len(pairs)} {split} pairs of {dataset}; extract this "
            "split into it too, or give a file a split with {split} in its name"
        )
    return apply_policy(pairs, rows, policy)


def _rows(path: Path, pairs: Sequence[Pair]) -> list[Explanation]:
    with ExplanationCache(path) as cache:
        source = _only_source(cache)
        keys = cache_keys([pair.caption for pair in pairs], source)
        found = [cache.read(key) for key in keys]
    return [
        _row(pair, row.text, source, row.finish_reason, row.checks) if row else _missing(pair)
        for pair, row in zip(pairs, found, strict=True)
    ]


def _only_source(cache: ExplanationCache) -> Source:
    """The one model, prompt and sampling whose rows a cache holds."""
    sources = set()
    for _, row in cache.rows():
        sampling = row.sampling
        if sampling and row.attempts == 2:
            sampling = sampling.before()  # rows are found under the first attempt's
        sources.add(Source(row.model, row.prompt_version, sampling))
    if len(sources) != 1:
        names = "; ".join(sorted(f"{s.model}, {s.prompt_version}, {s.sampling}" for s in sources))
        raise ValueError(
            f"{cache.path} holds explanations of {len(sources)} sources, so which ones to train on "
            f"is open: {names or 'none'}. Extract each into a cache of its own"
        )
    return sources.pop()


def _authors_rows(path: Path, pairs: Sequence[Pair], dataset: str) -> list[Explanation]:
    if dataset not in get_args(Layout):
        raise ValueError(
            f"{path}: {dataset} has no layout of the authors ({', '.join(get_args(Layout))} have); "
            "give a cache as `explain` writes it, *.jsonl"
        )
    texts = read_authors(path, dataset)
    source = Source(path.name, "authors", None)
    rows = []
    for pair in pairs:
        text = texts.get(picture_name(pair, dataset))
        if text is None:
            rows.append(_missing(pair))
        else:
            checks = failed_checks(text, pair.caption, DEFAULT_PROMPT, "unknown")
            rows.append(_row(pair, text, source, "unknown", checks))
    return rows


def _row(
    pair: Pair, text: str, source: Source, reason: str, checks: tuple[str, ...]
) -> Explanation:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Explanation(pair.id, text, *source, reason, text_sha(text), checks, 1, now)


def _missing(pair: Pair) -> Explanation:
    return _row(pair, "", Source("", "", None), MISSING, (MISSING,))
