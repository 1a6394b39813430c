"""What is often wrong with a model's explanation, one check each, found without another model.

The checks look at words only: they find answers that cannot be right, not those that are wrong.
"""

from __future__ import annotations

import calendar
import json
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from statistics import median
from typing import NamedTuple

import pandas as pd

from entityclip.datasets.newsroom.wording import named_countries
from entityclip.explanations.answers import ENDED, STOPPED, has_markup
from entityclip.explanations.llm import (
    DEFAULT_PROMPT,
    Prompt,
    neutralise,
    unescaped,
)

# name -> what it means; a row lists the names of those it failed
CHECKS = {
    "empty": "no text, or no letter in it",
    "refusal": "the model declines or speaks of itself as a model",
    "prompt_echo": "eight words in a row of the prompt's own wording, or its delimiters",
    "opener": "starts by speaking of the caption or of the task, e.g. 'The caption is', 'A:'",
    "repetition": "a run of five words comes three times, or repeats make up 30 % of the text",
    "cut": "stopped by the token limit or a filter (reason not known: no sentence's end)",
    "copied": "80 % or more of its words stand in runs of three copied from the caption",
    "no_entity": "mentions none of the names in the caption",
    "markup": "holds thinking (raise max_tokens or switch it off), or chat tokens amid the text",
}
_ECHO_WORDS, _RUN, _COPY_RUN = 8, 5, 3
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_REFUSAL = re.compile(
    r"\b(?:as an? (?:ai|artificial|(?:large )?language model)"
    r"|i(?:'m| am) (?:sorry|afraid|unable|not able|just an? (?:ai|language))"
    r"|i (?:can(?:not|'t| not)|do not|don't) (?:provide|help|assist|identify|answer|comply"
    r"|have (?:any |enough |specific |sufficient )?(?:information|context|access))"
    r"|i apologi[sz]e)\b"
)
_OPENER = re.compile(
    r"(?:sure|certainly|of course|okay|ok)\s*[,!.:]"
    r"|here(?:'s| is| are)\b"
    r"|(?:the|this|that|given|provided|your) (?:\w+ ){0,2}"
    r"(?:caption|photo|photograph|image|picture|text|sentence|explanation|description)\b"
    r"|(?:in|based on|according to) (?:the|this) (?:\w+ )?(?:caption|image|picture|photo)\b"
    r"|(?:the|this|an?) (?:news )?headline (?:that|which|is|says|reads|mentions)\b"
    # whose turn it is: "A:", "Answer 1:"
    r"|(?:a|q|caption|explanation|description|answer|output|response|assistant) ?\d* ?:"
    # "In a news story, the caption reads", "The people and places named in the caption are"
    r"|(?:\S+\s+){1,14}?(?:the|this|that|your) (?:news )?caption\b"
    # the prompt's list
    r"|(?:the )?people, places?,"
)
_ENDS = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
# capitalised, yet no names: days, months, titles, and what sentences start with
_COMMON = frozenset(
    calendar.day_name[:]
    + calendar.month_name[1:]
    + _WORD.findall(
        "A An The This That These Those He She It They We You His Her Its Their Our My In On At By "
        "For From With Of To As And Or But After Before During While When Where Who What How Why "
        "One Two Three New Mr Mrs Ms Dr Sir Lady President Prime Minister Left Right Above Below "
        "Top Bottom There Here All Some Many More Most"
    )
)


def entity_words(caption: str) -> set[str]:
    """The caption's words that look like (parts of) names, in lower case.

    A word counts if it is capitalised and neither a common opener, a title, a day nor a month. The
    first word of the caption counts only if no later word does, or if a name goes on after it.
    """
    words = _WORD.findall(caption)
    names = [  # their places
        place
        for place, word in enumerate(words)
        if word[0].isupper() and len(word) > 1 and word.capitalize() not in _COMMON
    ]
    if names[:1] == [0] and len(names) > 1 and names[1] > 1:
        del names[0]
    return {words[n].lower().replace("’", "'").removesuffix("'s") for n in names}


def failed_checks(text: str, caption: str, prompt: Prompt, finish_reason: str) -> tuple[str, ...]:
    """The names, in the order of `CHECKS`, of the checks that an explanation fails.

    An empty text fails only "empty". "cut" goes by the `finish_reason` or, where that does not say
    whether the model came to its end ("unknown" of imported texts), by the text's.
    """
    markup, reason = has_markup(text), finish_reason.lower()
    text, caption = _as_trained(text), _as_trained(caption)
    lowered = text.lower().replace("’", "'")
    words = _WORD.findall(lowered)
    if not any(any(map(str.isalpha, word)) for word in words):
        return ("empty",)
    failed = {
        "refusal": bool(_REFUSAL.search(lowered)),
        "prompt_echo": "<caption>" in lowered
        or not _prompt_runs(prompt.template).isdisjoint(_runs(words, _ECHO_WORDS)),
        "opener": bool(_OPENER.match(lowered.lstrip(" \t\n\"'“”*#-"))),
        "repetition": _repeats(words),
        "cut": reason in STOPPED or (reason not in ENDED and not _ENDS.search(text.rstrip())),
        "copied": _copied(words, caption) >= 0.8,
        "no_entity": not _mentions(words, text, caption),
        "markup": markup,
    }
    return tuple(name for name in CHECKS if failed.get(name))


def _as_trained(text: str) -> str:
    """As CLIP's tokenizer reads it: entities as characters, one way to write an accent."""
    return unicodedata.normalize("NFC", unescaped(text))


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(length)), strict=False))


@lru_cache(maxsize=16)
def _prompt_runs(template: str) -> frozenset[tuple[str, ...]]:
    halves = template.lower().split("{caption}")
    return frozenset(run for half in halves for run in _runs(_WORD.findall(half), _ECHO_WORDS))


def _repeats(words: list[str]) -> bool:
    counts = Counter(_runs(words, _RUN))
    repeats = counts.total() - len(counts)
    return repeats > 0 and (max(counts.values()) >= 3 or repeats / counts.total() >= 0.3)


def _copied(words: list[str], caption: str) -> float:
    """The share of the text's words that stand in a run copied from the caption, 0 to 1."""
    source = _WORD.findall(neutralise(caption).lower().replace("’", "'"))
    length = min(_COPY_RUN, len(words))
    known, covered = set(_runs(source, length)), set()
    for start, run in enumerate(_runs(words, length)):
        if run in known:
            covered.update(range(start, start + length))
    return len(covered) / len(words)


def _mentions(words: list[str], text: str, caption: str) -> bool:
    """Whether a name is there, also as "Kenyan" or "Nairobi" for "Kenya"; True without names."""
    names = entity_words(caption)
    if not names or not names.isdisjoint(words):
        return True
    bare = {word.removesuffix("'s") for word in words}
    countries = ({country.name for country in named_countries(t)} for t in (text, caption))
    return bool(set.intersection(*countries)) or _begins(names, bare) or _begins(bare, names)


def _begins(shorts: set[str], longs: set[str]) -> bool:
    """Whether one of the first, of four letters or more, begins one of the second."""
    ordered = sorted(longs)
    return any(
        ordered[place].startswith(short)
        for short in shorts
        if len(short) >= 4 and (place := bisect_left(ordered, short)) < len(ordered)
    )


def check_counts(checks: Iterable[tuple[str, ...]]) -> dict[str, int]:
    """How many rows there are, how many failed any check, and how many each.

    >>> check_counts([("cut",), ()])["failed"]
    1
    """
    rows = list(checks)
    each = Counter(name for row in rows for name in row)
    counts = {"rows": len(rows), "failed": sum(bool(row) for row in rows)}
    return counts | {name: each[name] for name in CHECKS} | dict(each)


class SampleRow(NamedTuple):
    """A caption of the drawn newsroom and what a small real model made of it."""

    caption: str
    text: str
    finish_reason: str
    checks: tuple[str, ...]  # judged when read, so they follow changes to the checks


def smollm_sample() -> list[SampleRow]:
    """48 explanations as SmolLM2-135M-Instruct gave them, kept with the package.

    Weights: 4-bit GGUF (Q4_1), served by llama.cpp; prompt "entities-v1", temperature 0.7, top-p
    0.95, at most 96 tokens, after the one retry. Recorded in November 2026, not edited. The model
    is far too small for the task: its claims are often false, and its failures are the point.
    """
    lines = files("entityclip.explanations").joinpath("smollm2-135m.jsonl").read_text("utf-8")
    return [
        SampleRow(
            **row,
            checks=failed_checks(row["text"], row["caption"], DEFAULT_PROMPT, row["finish_reason"]),
        )
        for row in map(json.loads, lines.splitlines())
    ]


def checks_table(checks: Mapping[str, Sequence[tuple[str, ...]]]) -> pd.DataFrame:
    """A row a check: what it means, and the percentage of each set's rows that fail it.

    `checks` holds, by the name of the set, each row's failed checks. The last row, "any", is the
    percentage that fail at least one. Raises ValueError for an empty set.
    """
    empty = [name for name, rows in checks.items() if not rows]
    if empty:
        raise ValueError(f"no explanations in {', '.join(empty)}")
    table = pd.DataFrame({"meaning": {**CHECKS, "any": "fails at least one check"}})
    for name, rows in checks.items():
        counts = check_counts(rows)
        counts["any"] = counts["failed"]
        table[name] = [100 * counts[check] / len(rows) for check in table.index]
    return table.rename_axis("check")


def cut_table(lengths: Mapping[str, Sequence[int]], limits: Sequence[int]) -> pd.DataFrame:
    """How much of each kind of text an encoder that reads `limits` tokens would cut off.

    `lengths` holds, by kind, each text's tokens with start and end (`Backbone.lengths`). A row a
    kind and limit: median and longest text, the percentage of texts that are cut, and the
    percentage of all tokens that are lost.
    """
    rows = [
        {
            "text": kind,
            "limit": limit,
            "median": median(tokens),
            "longest": max(tokens),
            "texts cut (%)": 100 * sum(n > limit for n in tokens) / len(tokens),
            "tokens lost (%)": 100 * sum(max(0, n - limit) for n in tokens) / sum(tokens),
        }
        for kind, tokens in lengths.items()
        for limit in limits
    ]
    return pd.DataFrame(rows).round(1)
