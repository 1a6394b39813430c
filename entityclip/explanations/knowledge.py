"""A language model's stand-in for the drawn newsroom: it answers from the table of countries."""

from __future__ import annotations

import re

from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.explanations.llm import PROMPTS, StubLLM

# the form that named the country -> a sentence that repeats it, in the newsroom's own words
_SENTENCES = {
    "name": "The flag of {name}, capital {capital}, shows {look}.",
    "demonym": "The {demonym} flag shows {look}; {capital} is the capital of {name}.",
    "capital": "{capital} is the capital of {name}; its flag shows {look}.",
}


def _forms() -> dict[str, tuple[str, Country]]:
    forms: dict[str, tuple[str, Country]] = {}
    for kind in _SENTENCES:  # where a capital is called like its country, the name wins
        for country in COUNTRIES:
            forms.setdefault(getattr(country, kind).removeprefix("the "), (kind, country))
    return forms


_FORMS = _forms()
_NAMED = re.compile(
    rf"\b(?:{'|'.join(re.escape(form) for form in sorted(_FORMS, key=len, reverse=True))})\b"
)


def known_countries(text: str) -> list[tuple[str, Country]]:
    """The countries a text names, in its order, each once, with "name", "demonym" or "capital"."""
    found: dict[str, tuple[str, Country]] = {}
    for match in _NAMED.finditer(text):
        kind, country = _FORMS[match.group()]
        found.setdefault(country.name, (kind, country))
    return list(found.values())


class KnowledgeBase(StubLLM):
    """Answers from the newsroom's table: each named country's name, capital and flag.

    Deterministic, true, offline, some 10,000 captions a second, or one in `delay_s` seconds;
    sampling makes no difference. A caption without a country of the table gets an empty answer,
    which the checks mark.
    """

    model = "newsroom-knowledge-1"  # raise the number with any change to the answers

    def __init__(self, *, delay_s: float = 0.0):
        super().__init__(_answer, model=self.model, delay_s=delay_s)


def _answer(prompt: str, seed: int) -> str:
    captions = (template.caption_of(prompt) for template in PROMPTS.values())
    text = next((caption for caption in captions if caption is not None), prompt)
    facts = [
        _SENTENCES[kind].format(**vars(country), look=country.flag.words())
        for kind, country in known_countries(text)
    ]
    return " ".join(fact[0].upper() + fact[1:] for fact in facts)
