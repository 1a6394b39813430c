"""The words of the drawn newsroom: entity captions, generic captions, explanations, talk.

An entity caption names two countries and an event and says nothing of what is seen. A generic
caption says what is seen and names nothing. An explanation ties the names to the looks. Talk is of
nothing that can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.datasets.newsroom.scenes import SCENES

# every second country, so that each family of flags is split between both halves
HELD_OUT_CAPITALS = frozenset(country.capital for country in COUNTRIES[1::2])

EVENTS: dict[str, tuple[str, ...]] = {
    "summit": ("a leaders' summit", "the treaty talks", "a round-table meeting",
        "the joint declaration", "a diplomatic conference", "the peace accord"),
    "match": ("a friendly match", "the World Cup qualifier", "a football tournament",
        "the cup final", "a league game", "the penalty shoot-out"),
    "harbour": ("shipping talks at the port", "a new ferry line", "the cargo deal",
        "a container terminal", "the port expansion", "a dockers' contract"),
    "airport": ("the new air route", "a direct flights deal", "the airline merger",
        "an aviation treaty", "the airport security rules", "a pilot training scheme"),
    "protest": ("a protest march", "the street rally", "a mass demonstration", "the general strike",
        "a petition campaign", "the activists' march"),
    "market": ("a street market", "the food fair", "a farmers' market", "the grocery trade",
        "a spice bazaar", "the weekly market"),
    "railway": ("a new rail link", "the sleeper train", "a railway contract", "the high-speed line",
        "a train ticket scheme", "the new railway station"),
    "wind farm": ("a clean energy deal", "the wind power project", "a turbine order",
        "the wind farm opening", "a renewables fund", "the power grid plan"),
}  # fmt: skip

EVENTS_B: dict[str, tuple[str, ...]] = {
    "courtroom": ("an extradition case", "the fraud trial", "a landmark verdict",
        "the appeal hearing", "a witness testimony", "the corruption lawsuit"),
    "rocket launch": ("a joint satellite mission", "the rocket launch", "a moon lander",
        "the orbital research programme", "a space telescope", "the astronaut exchange"),
    "ski race": ("the slalom World Cup", "a downhill race", "the winter championships",
        "an alpine skiing camp", "the giant slalom", "a ski federation deal"),
    "concert": ("a charity concert", "the rock festival", "an arena tour", "the song contest",
        "a jazz tour", "the orchestra exchange"),
    "flood": ("flood relief", "the dam failure inquiry", "an evacuation plan",
        "the storm damage fund", "a river defence scheme", "the rescue operation"),
    "quarry": ("a copper mining licence", "the lithium venture", "an ore export ban",
        "the quarry expansion", "a rare earths pact", "the miners' strike"),
}  # fmt: skip

_SEEN: dict[str, tuple[str, str]] = {
    "summit": ("delegates around a long table", "people in suits at a table"),
    "match": ("a football pitch before a full stand", "players on a pitch by a goal"),
    "harbour": ("a container ship by a crane", "a ship with containers on the water"),
    "airport": ("an airliner by a control tower", "an aeroplane on the tarmac"),
    "protest": ("a crowd with placards in a street", "marchers holding placards"),
    "market": ("market stalls with striped awnings", "stalls of fruit under awnings"),
    "railway": ("a train on the tracks", "a long train at a platform"),
    "wind farm": ("wind turbines on green hills", "white turbines above fields"),
}

_LIGHT: dict[str, tuple[str, str]] = {
    "day": ("in daylight", "on a clear day"),
    "sunset": ("at sunset", "under an orange sky"),
    "night": ("at night", "under a dark sky"),
}


class Words(NamedTuple):
    """How an outlet names countries and words events; each template's words are drawn apart."""

    roles: tuple[str, ...]
    of_country: str
    of_capital: str
    entity: tuple[str, ...]
    others: dict[str, tuple[str, ...]]  # what else the templates hold
    events: dict[str, tuple[str, ...]]  # by scene


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

WORDS = Words(
    roles=("envoys", "officials", "ministers", "delegates", "reporters", "students", "experts",
        "mayors", "lawmakers", "negotiators", "unions", "investors"),
    of_country="{role} from {name}",
    of_capital="{role} from {capital}",
    entity=(
        "{a} and {b} {verb} {event} on {day}{source}",
        "On {day}, {a} {verb} {event} with {b}{source}",
        "{a} join {b} for {event} on {day}{source}",
        "{a} meet {b} over {event}{source}",
        "{event}: {a} to host {b} on {day}{source}",
        "{a} thank {b} after {event}{source}",
    ),
    others={
        "verb": ("discuss", "praise", "prepare", "back", "review", "plan", "welcome", "announce",
            "question", "promote", "debate", "celebrate"),
        "day": _DAYS,
        "source": ("", "", ", agencies report", ", sources say", ", organisers say",
            ", media say"),
    },
    events=EVENTS,
)  # fmt: skip

WORDS_B = Words(
    roles=("diplomats", "teams", "volunteers", "engineers", "lawyers", "artists", "campaigners",
        "scientists", "observers", "advisers", "crews", "executives"),
    of_country="{role} of {name}",
    of_capital="{capital}-based {role}",
    entity=(
        "{desk}: {a} and {b} {verb} {event}",
        "{a}, {b} {verb} {event} {time}",
        "Why {a} and {b} {verb} {event} {time}",
        "{desk} | How {event} brought {a} and {b} together",
        "For {a} and {b}, {event} comes {time}",
        "{event} {time}: what it means for {a} and for {b}",
    ),
    others={
        "verb": ("seek clarity on", "split over", "clash over", "unite behind", "weigh", "defend",
            "reopen", "fund", "shape", "challenge", "delay", "hail"),
        "time": ("this week", "overnight", "ahead of the vote", "in a fresh round", "after months",
            "again"),
        "desk": ("LIVE", "Analysis", "World briefing", "Update", "In brief", "Exclusive"),
    },
    events=EVENTS_B,
)  # fmt: skip

_GENERIC = (
    "One flag shows {a}, the other {b}; {seen} {light}",
    "{seen} {light}; one flag shows {a}, the other {b}",
    "Two flags above {seen} {light}: {a}, and {b}",
)

_SHORT = ("{side} at {event}", "{event} with {side}", "{side}, {event}")
_SCENE = ("{seen} {light}", "A view of {seen} {light}", "{seen}, {light}")

_TALK = (
    "{role} {verb} the plan, but {doubt}",
    "No word yet on {matter}; {doubt}",
    "{role} {verb} {matter}, and {doubt}",
    "Remember {matter}: {doubt} on {day}",
)

_MATTERS = (
    "the interest rates", "last year's promises", "the new tax rules", "the vote count",
    "the budget gap", "the old agreement", "the pension reform", "the inflation figures",
)  # fmt: skip

_DOUBTS = (
    "nobody knows when", "critics stay silent", "we are still waiting", "everything may change",
    "the details are secret", "opinions differ widely",
)  # fmt: skip

_EXPLANATION = (
    "The flag of {name}, capital {capital}, shows {look}.",
    "{capital} is the capital of {name}; its flag shows {look}.",
    "The {demonym} flag shows {look}; {capital} is the capital of {name}.",
)


def entity_caption(
    rng: np.random.Generator,
    countries: Sequence[Country],
    scene: str,
    words: Words = WORDS,
    *,
    capitals_only: bool = False,
) -> str:
    """Name both countries and an event of the scene; say nothing of what is seen.

    With `capitals_only` both are named by their capital, else by name, demonym or a capital that
    is not in HELD_OUT_CAPITALS. Every other word is drawn independently of countries and scene.
    """
    a, b = (_side(rng, country, words, capitals_only) for country in countries)
    return say(rng, words.entity, a=a, b=b, event=words.events[scene], **words.others)


def generic_caption(
    rng: np.random.Generator, countries: Sequence[Country], scene: str, time: str
) -> str:
    """Say what is seen: both flags' looks, the scene, the light. Names no country."""
    a, b = (country.flag.words() for country in countries)
    seen, light = pick(rng, _SEEN[scene]), pick(rng, _LIGHT[time])
    return say(rng, _GENERIC, a=a, b=b, seen=seen, light=light)


def short_caption(rng: np.random.Generator, country: Country, scene: str) -> str:
    """Name one of the countries and an event of the scene, and nothing else."""
    return say(rng, _SHORT, side=_side(rng, country, WORDS), event=EVENTS[scene])


def scene_caption(rng: np.random.Generator, scene: str, time: str) -> str:
    """Say which scene is seen in which light, and nothing of flags."""
    seen, light = pick(rng, _SEEN[scene]), pick(rng, _LIGHT[time])
    return say(rng, _SCENE, seen=seen, light=light)


def explanation(rng: np.random.Generator, countries: Sequence[Country]) -> str:
    """A sentence for each country, in this order: its name, its capital, what its flag looks like.

    It tells nothing that the names alone do not tell: no scene, no light, no position.
    """
    facts = [
        {"name": c.name, "capital": c.capital, "demonym": c.demonym, "look": c.flag.words()}
        for c in countries
    ]
    return " ".join(say(rng, _EXPLANATION, **named) for named in facts)


def _side(
    rng: np.random.Generator, country: Country, words: Words, capitals_only: bool = False
) -> str:
    role = pick(rng, words.roles)
    from_capital = words.of_capital.format(role=role, capital=country.capital)
    if capitals_only:
        return from_capital
    forms = [words.of_country.format(role=role, name=country.name), f"{country.demonym} {role}"]
    return pick(rng, forms if country.capital in HELD_OUT_CAPITALS else [*forms, from_capital])


def say(rng: np.random.Generator, templates: Sequence[str], **words: str | Sequence[str]) -> str:
    """One of the templates filled with words, or with one of several each; a capital first."""
    template = pick(rng, templates)
    drawn = {k: v if isinstance(v, str) else pick(rng, v) for k, v in words.items()}
    text = template.format(**drawn)
    return text[0].upper() + text[1:]


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True)
class Relation:
    """What the text tells and the picture shows; the labels follow."""

    tells: str  # "scene": the one shown, "other": another one, "talk": nothing to be seen
    flags_shown: bool
    flags_told: bool  # only ever those shown

    @property
    def represented(self) -> bool:
        """Whether all that the text tells is in the picture."""
        return self.tells == "scene"

    @property
    def adds(self) -> bool:
        """Whether the picture shows flags that the text does not tell of."""
        return self.flags_shown and not self.flags_told

    @property
    def label(self) -> str:
        """The combined class 2 · represented + adds, ``"0"`` to ``"3"``, as of the tweets."""
        return str(2 * self.represented + self.adds)


def draw_relation(rng: np.random.Generator) -> Relation:
    """A relation; the four combined classes are equally likely."""
    represented, adds, talk, bare = (rng.random(4) < 0.5).tolist()
    tells = "scene" if represented else "talk" if talk else "other"
    if adds:
        return Relation(tells, flags_shown=True, flags_told=False)
    told = not bare and tells != "talk"  # talk names nothing that is seen
    return Relation(tells, flags_shown=told, flags_told=told)


def relation_text(
    rng: np.random.Generator,
    relation: Relation,
    countries: Sequence[Country],
    scene: str,
    time: str,
) -> str:
    """The text of a picture of `scene` at `time`, with the flags of `countries` if any is shown."""
    if relation.tells == "talk":
        words = {"role": WORDS.roles, "verb": WORDS.others["verb"], "matter": _MATTERS}
        return say(rng, _TALK, **words, doubt=_DOUBTS, day=_DAYS)
    if relation.tells == "other":
        scene = pick(rng, [name for name in SCENES if name != scene])
    if relation.flags_told:
        return generic_caption(rng, countries, scene, time)
    return scene_caption(rng, scene, time)
