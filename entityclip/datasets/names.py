"""Names in captions: whom and what they call by name, found by capitals or by a recogniser.

By capitals (`capitalised_names`) nothing need be fetched: a name is a run of capitalised words
inside a sentence. A sentence's first word is capitalised anyway; it counts where these texts never
write it small. Days and months are no names. A recogniser is any token classification model of
transformers, a folder or a hub's name, such as one trained on CoNLL-2003 (`recognised_names`).
"""

from __future__ import annotations

import calendar
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from entityclip.config import CAPITALS
from entityclip.files import append, json_lines, locked, mend_tail

Names = tuple[str, ...]  # of a text, as it writes them, in its order

_WORD = re.compile(r"[^\W\d_](?:[\w'’.-]*\w)?|\d[\w.,:-]*|[.!?:;,…\"“”()\[\]—–|/]")
_OWNS = re.compile(r"['’]s$")
_STOP = frozenset('.!?:…"“”[]—–|')  # a capital after it may be a sentence's
_PARTICLES = frozenset(("al", "bin", "da", "de", "del", "der", "di", "ibn", "la", "van", "von"))
# with a dot that ends no sentence
_SHORT = frozenset(("dr", "gen", "gov", "jr", "mr", "mrs", "ms", "prof", "rep", "sen", "sr", "st"))
_CALENDAR = frozenset(
    name.casefold()
    for names in (calendar.day_name, calendar.day_abbr, calendar.month_name, calendar.month_abbr)
    for name in (*names, "Sept", "I")
)

log = logging.getLogger(__name__)


class NamesError(ValueError):
    """A file of found names is none of ours or is damaged, or a recogniser cannot be loaded."""


def find_names(
    texts: Sequence[str], by: str = CAPITALS, *, cache: Path | None = None
) -> list[Names]:
    """The names of each text, by capitals or by the recogniser that `by` names.

    What a recogniser found is kept in `cache`, a file of JSON lines, and not asked again. Raises
    NamesError for a model that cannot be loaded and for a file that is not of ours.
    """
    if by == CAPITALS:
        return capitalised_names(texts)
    keys = [_key(text, by) for text in texts]
    known = {} if cache is None else _read(cache)
    new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if new:
        log.info("%d texts are asked for names by %s", len(new), by)
        found = dict(zip(new, recognised_names(list(new.values()), by), strict=True))
        known |= found
        if cache is not None:
            _append(cache, found)
    return [known[key] for key in keys]


def capitalised_names(texts: Sequence[str]) -> list[Names]:
    """The runs of capitalised words of each text; all texts together say which words are names."""
    found = [[*_words(text)] for text in texts]
    small = {word for words in found for word, _ in words if word[0].islower()}

    def is_name(word: str, first: bool) -> bool:
        if not word[0].isupper() or _bare(word) in _CALENDAR:
            return False
        return not first or _bare(word) not in small

    return [_runs([(word, is_name(word, first)) for word, first in words]) for words in found]


def recognised_names(texts: Sequence[str], model: str, batch_size: int = 32) -> list[Names]:
    """The entities that a token classification model finds in each text.

    Raises NamesError, naming it, for what transformers cannot load from safetensors.
    """
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    try:
        network = AutoModelForTokenClassification.from_pretrained(model, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())
        raise NamesError(f"{model} cannot be loaded as a recogniser of names: {why}") from error
    ask = pipeline("token-classification", network, tokenizer=tokenizer,
                   aggregation_strategy="simple")  # fmt: skip
    found = ask(list(texts), batch_size=batch_size)
    return [
        tuple(text[one["start"] : one["end"]] for one in entities)
        for text, entities in zip(texts, found, strict=True)
    ]


def cut_names(text: str, names: Iterable[str]) -> str:
    """The text without these names: what is left says what happens, not to whom."""
    for name in sorted({*names}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?:['’]s)?(?!\w)", " ", text)
    return " ".join(text.split())


def rarest(queries: Sequence[Names], training: Sequence[Names]) -> NDArray[np.int64]:
    """How many training texts hold each query's rarest name: [N]; -1 for a query without names."""
    held = Counter(name for names in training for name in {*map(_bare, names)})
    return np.array([min((held[_bare(n)] for n in names), default=-1) for names in queries])


def _words(text: str) -> Iterable[tuple[str, bool]]:
    """A text's words and marks, and whether each may be capitalised for where it stands."""
    first, before = True, ""
    for found in _WORD.finditer(text):
        word = found[0]
        if word == "." and (len(before) == 1 or before.casefold() in _SHORT):
            continue  # of an initial or a title
        yield word, first
        first, before = word in _STOP or (first and not word[0].isalpha()), word


def _runs(words: Sequence[tuple[str, bool]]) -> Names:
    """Names that stand side by side, particles between them included, as one."""
    names: list[str] = []
    run: list[str] = []
    held: list[str] = []  # particles that belong to the run if a name follows
    for word, name in [*words, ("", False)]:
        if name:
            run += [*held, word] if run else [word]
            held = []
        elif run and word in _PARTICLES:
            held.append(word)
            continue
        if run and (not name or _OWNS.search(word)):
            names.append(_OWNS.sub("", " ".join(run)))
            run, held = [], []
    return tuple(names)


@cache
def _bare(name: str) -> str:
    """A name as counted: without case and without a possessive."""
    return _OWNS.sub("", name.casefold())


def _key(text: str, by: str) -> str:
    return hashlib.blake2b(f"{by}\0{text}".encode("utf-8", "replace"), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, Names]:
    if not path.exists():
        return {}
    found = {}
    for number, row in json_lines(path, NamesError):
        names = row.get("names") if isinstance(row, dict) else None
        if not isinstance(names, list) or not isinstance(row.get("key"), str):
            raise NamesError(f"{path}, line {number}: key and names are wanted, not {row!r:.80}")
        found[row["key"]] = tuple(map(str, names))
    return found


def _append(path: Path, found: dict[str, Names]) -> None:
    lines = (json.dumps({"key": key, "names": names}) + "\n" for key, names in found.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path) as descriptor:
        mend_tail(descriptor, path, lambda first: b'"names"' in first, NamesError)
        append(descriptor, "".join(lines).encode(), path)
