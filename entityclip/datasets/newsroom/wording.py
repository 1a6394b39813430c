"""The words of the drawn newsroom: entity captions, generic captions, explanations, talk.

An entity caption names two countries, an event and, two times in five, a third country that is not
shown; it says nothing of what is seen. A generic caption says what is seen and names nothing. An
explanation restates the event and ties the names to the looks, truly or not. Talk is of nothing
that can be seen.

Each country has four names, by what training can know of them (`Naming`).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from entityclip.datasets.newsroom.countries import COUNTRIES, Country
from entityclip.datasets.newsroom.scenes import SCENES

# common: in many training captions; rare: in 1 to 3 of them, and in explanations; alias: in
# explanations alone, it is the capital; unseen: nowhere, it is another city
Naming = Literal["common", "rare", "alias", "unseen"]

THIRD = 0.4  # share of entity captions that name a third country, which is not shown
FALSE = 0.25  # share of explanations that tell other looks, or none

# scene -> its events, each in several words; some words are of several scenes
EVENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "summit": (("a leaders' summit", "the leaders' meeting"), ("the treaty talks", "a treaty"),
        ("the peace deal", "a peace conference")),
    "match": (("a friendly match", "the football friendly"), ("the cup final", "a final"),
        ("the league opening", "a league game")),
    "harbour": (("the shipping talks", "a shipping conference"),
        ("the cargo deal", "a cargo contract"), ("a dockers' strike", "the strike at the port")),
    "airport": (("a direct flights deal", "the flights contract"),
        ("the aviation talks", "an aviation meeting"), ("a pilots' strike", "the airline strike")),
    "protest": (("a protest march", "the protest meeting"),
        ("the general strike", "a strike rally"), ("a petition", "the petition campaign")),
    "market": (("the food fair", "a food festival"), ("a market opening", "the weekly market"),
        ("the farmers' contract", "a grocery deal")),
    "railway": (("a new rail link", "the rail link opening"), ("the sleeper train", "a train deal"),
        ("a train drivers' strike", "the railway strike")),
    "wind farm": (("a wind farm opening", "the wind farm"),
        ("the turbine contract", "a turbine deal"),
        ("a clean energy fair", "the clean energy conference")),
}  # fmt: skip

EVENTS_B: dict[str, tuple[tuple[str, ...], ...]] = {
    "courtroom": (("an extradition case", "the extradition hearing"), ("the fraud trial",
        "a fraud verdict"), ("an appeal", "the appeal hearing")),
    "rocket launch": (("a joint satellite mission", "the satellite programme"),
        ("the rocket launch", "a rocket test"), ("a moon lander", "the moon programme")),
    "ski race": (("the slalom World Cup", "a slalom"), ("a downhill race", "the downhill test"),
        ("the winter championships", "a winter tour")),
    "concert": (("a charity concert", "the charity tour"), ("the rock festival", "a rock tour"),
        ("the song contest", "a song exchange")),
    "flood": (("flood relief", "the flood fund"), ("the dam failure", "a dam inquiry"),
        ("an evacuation", "the evacuation plan")),
    "quarry": (("a copper licence", "the copper venture"), ("the lithium pact", "a lithium fund"),
        ("a miners' walkout", "the mine inquiry")),
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
    of_city: str
    entity: tuple[str, ...]
    third: tuple[str, ...]  # puts {c}, a third country, beside the rest, {}
    others: dict[str, tuple[str, ...]]  # what else the templates hold
    events: dict[str, tuple[tuple[str, ...], ...]]  # by scene


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

WORDS = Words(
    roles=("envoys", "officials", "ministers", "delegates", "reporters", "students", "experts",
        "mayors", "lawmakers", "negotiators", "unions", "investors"),
    of_country="{role} from {name}",
    of_city="{role} from {city}",
    entity=(
        "{a} and {b} {verb} {event} on {day}{source}",
        "On {day}, {a} {verb} {event} with {b}{source}",
        "{a} join {b} for {event} on {day}{source}",
        "{a} meet {b} over {event}{source}",
        "{event}: {a} to host {b} on {day}{source}",
        "{a} thank {b} after {event}{source}",
    ),
    third=("{c} look on: {}", "{c} stay away: {}", "{}, as {c} look on", "{}, without {c}",
        "{}; {c} stay silent"),
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
    of_city="{city}-based {role}",
    entity=(
        "{desk}: {a} and {b} {verb} {event}",
        "{a}, {b} {verb} {event} {time}",
        "Why {a} and {b} {verb} {event} {time}",
        "{desk} | How {event} brought {a} and {b} together",
        "For {a} and {b}, {event} comes {time}",
        "{event} {time}: what it means for {a} and for {b}",
    ),
    third=("{c} wait: {}", "{c} object: {}", "{}, but not {c}", "{}, while {c} hesitate"),
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

_ONE_FLAG = (
    "One flag shows {a}; {seen} {light}",
    "{seen} {light}; the flag shows {a}",
    "A flag above {seen} {light}: {a}",
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

_RESTATED = ("The news is {event}.", "{event} is the news.", "The report is on {event}.")

_EXPLANATION = (
    "{name} ({demonym}, capital {capital}) flies {look}.",
    "{capital}, capital of {name}, flies the {demonym} {look}.",
    "The {demonym} flag of {name} ({capital}) shows {look}.",
)

_NO_LOOK = (
    "{name} ({demonym}, capital {capital}) has a say in it.",
    "{capital} is where the {demonym} side, of {name}, decides.",
)


def entity_caption(
    rng: np.random.Generator,
    countries: Sequence[Country],
    event: Sequence[str],
    words: Words = WORDS,
    *,
    naming: Sequence[Naming] = ("common", "common", "common"),
    third: Country | None = None,
) -> str:
    """Name both countries, an event in one of its words and, if any, a third country.

    `naming` says by which of its names each of the three is told. The same `rng` draws the same
    sentence whatever the naming. Every other word is drawn independently of countries and event,
    and nothing is said of what is seen.
    """
    a, b = (_side(rng, *side, words) for side in zip(countries, naming[:2], strict=True))
    text = say(rng, words.entity, a=a, b=b, event=event, **words.others)
    if third is None:
        return text
    frame = pick(rng, words.third).replace("{}", text)
    return say(rng, [frame], c=_side(rng, third, naming[2], words))


def generic_caption(
    rng: np.random.Generator, countries: Sequence[Country], scene: str, time: str
) -> str:
    """Say what is seen: the one or two flags' looks, the scene, the light. Names no country."""
    a, b = (country.flag.words() for country in (*countries, countries[0])[:2])
    seen, light = pick(rng, _SEEN[scene]), pick(rng, _LIGHT[time])
    templates = _GENERIC if len(countries) > 1 else _ONE_FLAG
    return say(rng, templates, a=a, b=b, seen=seen, light=light)


def short_caption(rng: np.random.Generator, country: Country, event: Sequence[str]) -> str:
    """Name one of the countries and an event, and nothing else."""
    return say(rng, _SHORT, side=_side(rng, country, "common", WORDS), event=event)


def scene_caption(rng: np.random.Generator, scene: str, time: str) -> str:
    """Say which scene is seen in which light, and nothing of flags."""
    seen, light = pick(rng, _SEEN[scene]), pick(rng, _LIGHT[time])
    return say(rng, _SCENE, seen=seen, light=light)


def explanation(rng: np.random.Generator, caption: str, *, false: float = FALSE) -> str:
    """What a language model says of a caption in three sentences: the event again, two countries.

    Of more countries the first two in the caption are told of, so not always those that are shown.
    A country's sentence holds its name, demonym, capital, and what its flag looks like. With chance
    `false` the explanation is a poor one: half of these give each country another one's look, half
    give none. It tells nothing that the caption does not tell whoever knows the names: no light, no
    position, and not who of the named is shown.
    """
    poor, shift = rng.random() < false, int(rng.integers(1, len(COUNTRIES)))
    templates = _NO_LOOK if poor and rng.random() < 0.5 else _EXPLANATION
    event = event_of(caption)
    told = [say(rng, _RESTATED, event=event)] if event else []
    for c in named_countries(caption)[:2]:
        looks = COUNTRIES[(COUNTRIES.index(c) + shift) % len(COUNTRIES)] if poor else c
        told.append(
            say(rng, templates, name=c.name, capital=c.capital, demonym=c.demonym,
                look=looks.flag.words())
        )  # fmt: skip
    return " ".join(told)


def partly(caption: str, *, looks: bool) -> str:
    """Of a caption's two countries the looks alone, or the names alone: what else explains it."""
    countries = named_countries(caption)[:2]
    if looks:
        return " ".join(f"One flag shows {c.flag.words()}." for c in countries)
    return " ".join(f"{c.name}, {c.demonym}, {c.capital}." for c in countries)


def named_countries(text: str) -> list[Country]:
    """The countries a text names but for their other cities, in its order, each once."""
    return list(dict.fromkeys(_NAMED[name] for name in _NAMES.findall(text)))


def event_of(text: str) -> str | None:
    """The event that a caption tells of, in its words; None for a caption of neither outlet."""
    found = _TOLD.search(text)
    return found[0][0].lower() + found[0][1:] if found else None


def name_counts(texts: Sequence[str]) -> dict[Naming, list[int]]:
    """How many texts hold each country's name of each kind, in COUNTRIES' order."""
    found: dict[Naming, list[int]] = {}
    for naming in get_args(Naming):
        names = [spoken(country, naming) for country in COUNTRIES]
        holds = Counter(itertools.chain(*({*_any_of(names).findall(text)} for text in texts)))
        found[naming] = [holds[name] for name in names]
    return found


def spoken(country: Country, naming: Naming) -> str:
    """The country's name of that kind, as it stands in a text.

    Countries alternate: of every other one the demonym is common and the name rare.
    """
    if naming in ("alias", "unseen"):
        return country.capital if naming == "alias" else country.city
    plain = (naming == "common") == (COUNTRIES.index(country) % 2 == 0)
    return country.name if plain else country.demonym


def _side(rng: np.random.Generator, country: Country, naming: Naming, words: Words) -> str:
    role, name = pick(rng, words.roles), spoken(country, naming)
    if name == country.name:
        return words.of_country.format(role=role, name=name)
    return (
        f"{name} {role}" if name == country.demonym else words.of_city.format(role=role, city=name)
    )


def say(rng: np.random.Generator, templates: Sequence[str], **words: str | Sequence[str]) -> str:
    """One of the templates filled with words, or with one of several each; a capital first."""
    template = pick(rng, templates)
    drawn = {k: v if isinstance(v, str) else pick(rng, v) for k, v in words.items()}
    text = template.format(**drawn)
    return text[0].upper() + text[1:]


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Finds any of some phrases as whole words, the longest of those that begin alike."""
    return re.compile(
        rf"\b(?:{'|'.join(map(re.escape, sorted(phrases, key=len, reverse=True)))})\b"
    )


_NAMED = {
    name.removeprefix("the "): country
    for country in COUNTRIES
    for name in (country.name, country.demonym, country.capital)
}
_NAMES = _any_of(_NAMED)
_EVENTS = itertools.chain(*EVENTS.values(), *EVENTS_B.values())
# the longest first: an event's words may stand within another's; a sentence may begin with them
_TOLD = re.compile(f"(?i:{_any_of(itertools.chain(*_EVENTS)).pattern})")


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
