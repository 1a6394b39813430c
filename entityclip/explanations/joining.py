"""Which explanations training reads: those the data set brings, or those an extraction left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from entityclip.datasets.pair import Pair
from entityclip.datasets.reading import iter_entries
from entityclip.datasets.sources.goodnews import image_id_of
from entityclip.datasets.sources.n24news import file_name
from entityclip.datasets.sources.visualnews import from_source
from entityclip.datasets.table import PairTable
from entityclip.explanations.answers import clean_answer, has_markup
from entityclip.explanations.cache import Explanation, ExplanationCache, Source, cache_keys
from entityclip.explanations.checks import failed_checks
from entityclip.explanations.extraction import explain, told_notes
from entityclip.explanations.llm import DEFAULT_PROMPT, KnowledgeBase, Sampling
from entityclip.files import atomic_write_bytes, atomic_write_text

Layout = Literal["n24news", "goodnews", "visualnews"]
Policy = Literal["use", "drop", "caption"]
OWN, KNOWLEDGE_BASE = "own", "knowledge-base"
MISSING = "missing"  # the mark, beside the checks' names, of a pair that the file does not explain
# how the authors' files call a picture, by its path
_NAMES = {"n24news": file_name, "goodnews": image_id_of, "visualnews": from_source}


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
    names = _picture_names(pairs, layout)
    source = Source(model, "authors", None)
    keys = cache_keys((pair.caption for pair in pairs), source)
    fresh: dict[bytes, Explanation] = {}
    conflicting = 0
    for key, name, pair in zip(keys, names, pairs, strict=True):
        if not (text := texts.get(name)):
            continue
        if (stored := fresh.get(key) or cache.read(key)) is None:
            fresh[key] = _judged(pair, text, source)
        else:
            conflicting += stored.text != text
    added = cache.append(list(fresh.items()))
    found = [texts[name] for name in names if name in texts]
    return ImportReport(
        source,
        added=added,
        already_there=sum(map(bool, found)) - added,
        conflicting=conflicting,
        empty=found.count(""),
        no_pair=len(texts.keys() - set(names)),
        no_text=len(names) - len(found),
    )


def export_authors(
    pairs: Sequence[Pair], explanations: Sequence[Explanation], path: str | Path, *, layout: Layout
) -> int:
    """Write explanations in the authors' layout, keyed by picture; how many.

    Pairs with an empty text are left out: loaders take a missing text for what it is. Raises
    ValueError for explanations that are not these pairs' and for two pairs with one picture name.
    """
    _same_pairs(pairs, explanations)
    texts: dict[str, str] = {}
    for name, row in zip(_picture_names(pairs, layout), explanations, strict=True):
        if name in texts:
            raise ValueError(f"pair {row.id!r}: the picture name {name!r} recurs in {layout}")
        texts[name] = row.text
    kept = {name: text for name, text in texts.items() if text}
    atomic_write_text(path, json.dumps(kept, ensure_ascii=False, indent=0) + "\n")
    return len(kept)


def _picture_name(path: str, layout: str) -> str:
    if layout not in _NAMES:
        raise ValueError(f"layout {layout!r}; there are {', '.join(_NAMES)}")
    return _NAMES[layout](path)


def _picture_names(pairs: Sequence[Pair], layout: str) -> list[str]:
    """The keys of the pairs' pictures in the authors' file."""
    return [
        _picture_name(p.image.as_posix() if isinstance(p.image, Path) else f"{p.id}.jpg", layout)
        for p in pairs
    ]


def read_authors(path: str | Path, layout: Layout) -> dict[str, str]:
    """An explanations file of the authors: the picture's name → text, as `clean_answer` leaves it.

    Raises FileNotFoundError, and ValueError naming the file and the key for malformed content.
    """
    texts: dict[str, str] = {}
    for key, text in iter_entries(Path(path)):
        where = f"{path}, key {key!r}"
        if not isinstance(text, str):
            raise ValueError(f"{where}: an explanation must be str, got {type(text).__name__}")
        text = clean_answer(text)
        if texts.setdefault(_picture_name(key, layout), text) != text:
            raise ValueError(f"{where}: another key names the same picture with another text")
    return texts


def to_frame(explanations: Sequence[Explanation]) -> pd.DataFrame:
    """One row an explanation; the sampling in columns of its own, empty where not known."""
    columns = [field.name for field in (*fields(Explanation), *fields(Sampling))]
    columns.remove("sampling")
    rows = [
        {**vars(row), "checks": list(row.checks), **(vars(row.sampling) if row.sampling else {})}
        for row in explanations
    ]
    return pd.DataFrame(rows, columns=columns).astype({"max_tokens": "Int64", "seed": "Int64"})


def export_parquet(explanations: Sequence[Explanation], path: str | Path) -> None:
    """Write `to_frame` as Parquet. Raises ImportError without pyarrow."""
    atomic_write_bytes(path, to_frame(explanations).to_parquet(engine="pyarrow", index=False))


@dataclass(frozen=True)
class PolicyReport:
    """What a policy did to a split."""

    policy: Policy
    pairs: int  # before
    kept: int  # with their explanation, whether it passed or not
    dropped: int  # pairs left out
    captions: int  # pairs whose caption stands in for their explanation
    checks: dict[str, int]  # failures by name, also "missing"; a row may have several
    notes: str = ""  # why there were no answers

    def __str__(self) -> str:
        failed = ", ".join(f"{name} {n}" for name, n in self.checks.items()) or "none"
        return (
            f"policy {self.policy!r} on {self.pairs} pairs: {self.kept} keep their explanation, "
            f"{self.captions} take their caption, {self.dropped} dropped; failed checks: {failed}"
            f"{self.notes}"
        )


def apply_policy(
    pairs: Sequence[Pair], explanations: Sequence[Explanation], policy: Policy = "use"
) -> tuple[list[Pair], PolicyReport]:
    """The pairs with their explanations, and what was done about those that failed a check.

    "use" trains on failed texts too, and leaves out pairs that are not explained, as the paper's
    authors do with their files; an empty answer is replaced by the caption. "drop" leaves out all
    that failed, so that training sees fewer pairs, and other ones for each model's texts: compare
    variants under one and the same file. "caption" keeps every pair, and the caption stands in,
    which gives the experts nothing new to attend to.

    Raises ValueError for an unknown policy and for explanations that are not these pairs'.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"explanation policy {policy!r}; there are {', '.join(get_args(Policy))}")
    _same_pairs(pairs, explanations)
    explanations = [_marked(row) for row in explanations]
    result, captions = [], 0
    for pair, row in zip(pairs, explanations, strict=True):
        if (row.checks and policy == "drop") or (policy == "use" and MISSING in row.checks):
            continue
        fallback = bool(row.checks) and (policy == "caption" or not row.text)
        captions += fallback
        result.append(replace(pair, explanation=pair.caption if fallback else row.text))
    counts = dict(Counter(name for row in explanations for name in row.checks))
    kept, dropped = len(result) - captions, len(pairs) - len(result)
    notes = told_notes(explanations)
    return result, PolicyReport(policy, len(pairs), kept, dropped, captions, counts, notes)


def _marked(row: Explanation) -> Explanation:
    """The row, marked if its text holds what is no answer: older rows were not checked for it."""
    if "markup" in row.checks or not has_markup(row.text):
        return row
    return replace(row, checks=(*row.checks, "markup"))


def check_pairs(pairs: Sequence[Pair], policy: Policy = "use") -> tuple[list[Pair], PolicyReport]:
    """`apply_policy` for pairs that bring their explanations, e.g. from the authors' files.

    The checks run here; how the model stopped is not known, so "cut" goes by the text's end.
    """
    source = Source(OWN, OWN, None)
    rows = [
        _judged(pair, pair.explanation, source) if pair.explanation else _not_explained(pair)
        for pair in pairs
    ]
    return apply_policy(pairs, rows, policy)


def _explained(pairs: Sequence[Pair]) -> tuple[Sequence[Pair], PolicyReport]:
    """The pairs that have an explanation, whatever it says: a table stays a table.

    Where none has one, all stay: a model that reads no explanation trains on them.
    """
    if isinstance(pairs, PairTable):  # without making a million pairs
        there = pairs.columns["explanation"].codes[pairs.rows] >= 0
        left = replace(pairs, rows=pairs.rows[there])
    else:
        left = [pair for pair in pairs if pair.explanation]
    kept, lacking = len(left), len(pairs) - len(left)
    texts = [pair.explanation for pair in left] if not isinstance(left, PairTable) else ()
    if isinstance(left, PairTable):
        texts = map(left.columns["explanation"].__getitem__, left.rows)
    counts = {MISSING: lacking, "markup": sum(map(has_markup, texts))}
    checks = {name: n for name, n in counts.items() if n}
    left = left if kept else pairs
    return left, PolicyReport("use", len(pairs), kept, len(pairs) - len(left), 0, checks)


def training_pairs(
    pairs: Sequence[Pair],
    source: str = OWN,
    policy: Policy = "use",
    *,
    dataset: str,
    split: str,
    folder: str | Path,
) -> tuple[Sequence[Pair], PolicyReport]:
    """The pairs of one `split` with the explanations of `source`, and what `policy` did to them.

    `source` is "own", what the data set brings; "knowledge-base", extracted here into
    ``folder/knowledge.jsonl`` (see `knowledge_base` for others of its kind); else the path of a
    cache as `explain` writes it or, if it ends in ``.json``, of a file in the authors' layout for
    `dataset`. ``{split}`` in it is replaced. A pair that the file does not explain counts as
    failed, under the name "missing".

    Raises FileNotFoundError for a file that is not there, ValueError (CacheError) for one that is
    malformed, holds several sources or explains none of the pairs.
    """
    if source == OWN:
        return _explained(pairs) if policy == "use" else check_pairs(pairs, policy)
    if source.partition(":")[0] == KNOWLEDGE_BASE:
        llm, path = knowledge_base(source), Path(folder) / "knowledge.jsonl"
        rows = explain(pairs, llm, path, progress=False)
        return apply_policy(pairs, rows, policy)
    path = Path(source.replace("{split}", split)).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"settings.explanation_source: there is no file {path.resolve()}; run `entityclip "
            f"explain` first, or give {OWN!r} or {KNOWLEDGE_BASE!r}"
        )
    found = _authors(path, pairs, dataset) if path.suffix == ".json" else _cached(path, pairs)
    if not any(found):
        raise ValueError(
            f"{path} explains none of the {len(pairs)} {split} pairs of {dataset}; extract this "
            "split into it too, or give a file a split with {split} in its name"
        )
    rows = [
        _not_explained(pair) if row is None else replace(row, id=pair.id)
        for pair, row in zip(pairs, found, strict=True)
    ]
    return apply_policy(pairs, rows, policy)


def knowledge_base(source: str) -> KnowledgeBase:
    """The drawn newsroom's facts as `explanation_source` spells them.

    "knowledge-base"; with a share of false answers, "knowledge-base:0.5"; of their true ones the
    names or the looks alone, "knowledge-base:names". Raises ValueError for another spelling.
    """
    _, _, kind = source.partition(":")
    try:
        if kind in ("names", "looks"):
            return KnowledgeBase(content=kind)
        return KnowledgeBase(false=float(kind)) if kind else KnowledgeBase()
    except ValueError as error:
        raise ValueError(
            f"settings.explanation_source: {source!r}; write {KNOWLEDGE_BASE}, "
            f"{KNOWLEDGE_BASE}:0.5 (a share that is false), {KNOWLEDGE_BASE}:names or :looks"
        ) from error


def _cached(path: Path, pairs: Sequence[Pair]) -> list[Explanation | None]:
    """What a cache of one model, prompt and sampling holds for each pair."""
    sources = set()
    with ExplanationCache(path, write=False) as cache:
        for _, row in cache.rows():
            sampling = row.sampling
            if sampling and row.attempts == 2:
                sampling = sampling.before()  # rows are found under the first attempt's
            sources.add(Source(row.model, row.prompt_version, sampling))
        if len(sources) != 1:
            names = sorted(f"{s.model}, {s.prompt_version}, {s.sampling}" for s in sources)
            raise ValueError(
                f"{path} holds explanations of {len(sources)} sources, so which ones to train on "
                f"is open: {'; '.join(names) or 'none'}. Extract each into a cache of its own"
            )
        keys = cache_keys([pair.caption for pair in pairs], sources.pop())
        return [cache.read(key) for key in keys]


def _authors(path: Path, pairs: Sequence[Pair], dataset: str) -> list[Explanation | None]:
    if dataset not in _NAMES:
        raise ValueError(
            f"{path}: {dataset} has no layout of the authors ({', '.join(_NAMES)} have); "
            "give a cache as `entityclip explain` writes it, *.jsonl"
        )
    texts, source = read_authors(path, dataset), Source(path.name, "authors", None)
    return [
        _judged(pair, texts[name], source) if name in texts else None
        for pair, name in zip(pairs, _picture_names(pairs, dataset), strict=True)
    ]


def _judged(pair: Pair, text: str, source: Source) -> Explanation:
    """The row of a text whose prompt and end are not known."""
    text = clean_answer(text)
    checks = failed_checks(text, pair.caption, DEFAULT_PROMPT, "unknown")
    return Explanation.made_now(pair.id, text, source, "unknown", checks)


def _not_explained(pair: Pair) -> Explanation:
    return Explanation.made_now(pair.id, "", Source("", "", None), MISSING, (MISSING,))


def _same_pairs(pairs: Sequence[Pair], explanations: Sequence[Explanation]) -> None:
    if [pair.id for pair in pairs] != [row.id for row in explanations]:
        raise ValueError("pairs and explanations must have the same ids in the same order")
