"""The words of the newsroom's style B: another outlet's captions for other scenes.

The rules are style A's: a caption names two countries and an event and says nothing of what is
seen, and a held-out capital never names a country. Explanations are style A's own, since who
explains a caption is not who wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entityclip.datasets.drawn.countries import Country
from entityclip.datasets.drawn.wording import HELD_OUT_CAPITALS, capitalised, pick

EVENTS_B: dict[str, tuple[str, ...]] = {
    "courtroom": (
        "an extradition case",
        "the fraud trial",
        "a landmark verdict",
        "the appeal hearing",
        "a witness testimony",
        "the corruption lawsuit",
    ),
    "rocket launch": (
        "a joint satellite mission",
        "the rocket launch",
        "a moon lander",
        "the orbital research programme",
        "a space telescope",
        "the astronaut exchange",
    ),
    "ski race": (
        "the slalom World Cup",
        "a downhill race",
        "the winter championships",
        "an alpine skiing camp",
        "the giant slalom",
        "a ski federation deal",
    ),
    "concert": (
        "a charity concert",
        "the rock festival",
        "an arena tour",
        "the song contest",
        "a jazz tour",
        "the orchestra exchange",
    ),
    "flood": (
        "flood relief",
        "the dam failure inquiry",
        "an evacuation plan",
        "the storm damage fund",
        "a river defence scheme",
        "the rescue operation",
    ),
    "quarry": (
        "a copper mining licence",
        "the lithium venture",
        "an ore export ban",
        "the quarry expansion",
        "a rare earths pact",
        "the miners' strike",
    ),
}

_ROLES = (
    *("diplomats", "teams", "volunteers", "engineers", "lawyers", "artists"),
    *("campaigners", "scientists", "observers", "advisers", "crews", "executives"),
)
_VERBS = (
    *("seek clarity on", "split over", "clash over", "unite behind", "weigh", "defend"),
    *("reopen", "fund", "shape", "challenge", "delay", "hail"),
)
_TIMES = (
    "this week",
    "overnight",
    "ahead of the vote",
    "in a fresh round",
    "after months",
    "again",
)
_DESKS = ("LIVE", "Analysis", "World briefing", "Update", "In brief", "Exclusive")
_ENTITY = (
    "{desk}: {a} and {b} {verb} {event}",
    "{a}, {b} {verb} {event} {time}",
    "Why {a} and {b} {verb} {event} {time}",
    "{desk} | How {event} brought {a} and {b} together",
    "For {a} and {b}, {event} comes {time}",
    "{event} {time}: what it means for {a} and for {b}",
)


def entity_caption_b(rng: np.random.Generator, countries: Sequence[Country], scene: str) -> str:
    """Name both countries and an event of the scene; say nothing of what is seen.

    A country is named by its name, its demonym or its capital, unless that is held out. Every other
    word is drawn independently of countries and scene.
    """
    a, b = (_side(rng, country) for country in countries)
    text = pick(rng, _ENTITY).format(
        a=a,
        b=b,
        event=pick(rng, EVENTS_B[scene]),
        verb=pick(rng, _VERBS),
        time=pick(rng, _TIMES),
        desk=pick(rng, _DESKS),
    )
    return capitalised(text)


def _side(rng: np.random.Generator, country: Country) -> str:
    role = pick(rng, _ROLES)
    forms = [f"{role} of {country.name}", f"{country.demonym} {role}"]
    if country.capital not in HELD_OUT_CAPITALS:
        forms.append(f"{country.capital}-based {role}")
    return pick(rng, forms)
