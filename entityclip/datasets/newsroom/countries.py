"""Real countries and their true flags (civil flags where the state flag adds a coat of arms).

Colours and constructions follow the flags' laws as far as they fix them; every flag is drawn at
ratio 3:2. Left out: flags with arms or pictures, and those which another one here resembles.
"""

from __future__ import annotations

from dataclasses import dataclass

from entityclip.datasets.newsroom.flags import (
    Bands,
    Canton,
    Crescent,
    Cross,
    Diagonal,
    Disc,
    Field,
    Flag,
    Hoist,
    Layer,
    Quarters,
    Saltire,
    Slope,
    Stars,
    Wheel,
)

_W, _K = "white FFFFFF", "black 000000"


@dataclass(frozen=True)
class Country:
    """A country, by the names news give it, and its flag."""

    name: str  # as used within a sentence, "the Netherlands"
    demonym: str
    capital: str
    flag: Flag


def _country(name: str, demonym: str, capital: str, *layers: Layer) -> Country:
    return Country(name, demonym, capital, Flag(layers))


def _pales(*colours: str) -> Bands:
    return Bands(colours, vertical=True)


def _fesses(*colours: str) -> Bands:
    return Bands(colours)


def _stripes(first: str, second: str, count: int) -> Bands:
    return Bands(((first, second) * count)[:count])


def _fifty(width: float, height: float) -> tuple[tuple[float, ...], ...]:
    places = [(x, y) for y in range(1, 10) for x in range(1, 12) if (x + y) % 2 == 0]
    return tuple((x * width / 12, y * height / 10, 0.031) for x, y in places)


COUNTRIES: tuple[Country, ...] = (
    # vertical bands
    _country("France", "French", "Paris", _pales("blue 000091", _W, "red E1000F")),
    _country("Italy", "Italian", "Rome", _pales("green 008C45", "white F4F5F0", "red CD212A")),
    _country("Belgium", "Belgian", "Brussels", _pales(_K, "yellow FDDA24", "red EF3340")),
    _country("Ireland", "Irish", "Dublin", _pales("green 169B62", _W, "orange FF883E")),
    _country("Nigeria", "Nigerian", "Abuja", _pales("green 008751", _W, "green 008751")),
    _country("Peru", "Peruvian", "Lima", _pales("red D91023", _W, "red D91023")),
    _country(
        "Cameroon", "Cameroonian", "Yaounde",
        _pales("green 007A5E", "red CE1126", "yellow FCD116"),
        Stars("yellow FCD116", ((0.75, 0.5, 0.17),)),
    ),
    _country(
        "Senegal", "Senegalese", "Dakar",
        _pales("green 00853F", "yellow FDEF42", "red E31B23"),
        Stars("green 00853F", ((0.75, 0.5, 0.17),)),
    ),
    _country(
        "Algeria", "Algerian", "Algiers",
        _pales("green 006233", _W),
        Crescent("red D21034", (0.75, 0.5, 0.25), (0.815, 0.5, 0.2), (0.87, 0.5, 0.125, -90)),
    ),
    # horizontal bands
    _country("Germany", "German", "Berlin", _fesses(_K, "red DD0000", "yellow FFCC00")),
    _country("Austria", "Austrian", "Vienna", _fesses("red C8102E", _W, "red C8102E")),
    _country("the Netherlands", "Dutch", "Amsterdam", _fesses("red AE1C28", _W, "blue 21468B")),
    _country("Bulgaria", "Bulgarian", "Sofia", _fesses(_W, "green 00966E", "red D62612")),
    _country("Estonia", "Estonian", "Tallinn", _fesses("blue 0072CE", _K, _W)),
    _country("Ukraine", "Ukrainian", "Kyiv", _fesses("blue 0057B7", "yellow FFD700")),
    _country("Poland", "Polish", "Warsaw", _fesses(_W, "red DC143C")),
    _country("Indonesia", "Indonesian", "Jakarta", _fesses("red E70011", _W)),
    _country(
        "Armenia", "Armenian", "Yerevan",
        _fesses("red D90012", "blue 0033A0", "orange F2A800"),
    ),
    _country(
        "Gabon", "Gabonese", "Libreville",
        _fesses("green 009E60", "yellow FCD116", "blue 3A75C4"),
    ),
    _country(
        "Colombia", "Colombian", "Bogota",
        Bands(("yellow FCD116", "blue 003893", "red CE1126"), (2, 1, 1)),
    ),
    _country(
        "Botswana", "Botswanan", "Gaborone",
        Bands(("light blue 75AADB", _W, _K, _W, "light blue 75AADB"), (9, 1, 4, 1, 9)),
    ),
    _country(
        "Thailand", "Thai", "Bangkok",
        Bands(("red A51931", _W, "blue 2D2A4A", _W, "red A51931"), (1, 1, 2, 1, 1)),
    ),
    _country(
        "Costa Rica", "Costa Rican", "San Jose",
        Bands(("blue 002B7F", _W, "red CE1126", _W, "blue 002B7F"), (1, 1, 2, 1, 1)),
    ),
    # horizontal bands with a charge
    _country(
        "Ghana", "Ghanaian", "Accra",
        _fesses("red CE1126", "yellow FCD116", "green 006B3F"), Stars(_K, ((0.75, 0.5, 0.17),)),
    ),
    _country(
        "India", "Indian", "New Delhi",
        _fesses("orange FF671F", _W, "green 046A38"), Wheel("blue 06038D", 0.145, 24),
    ),
    # a field with a charge
    _country("Japan", "Japanese", "Tokyo", Field(_W), Disc("red BC002D", 0.75, 0.3)),
    _country(
        "Bangladesh", "Bangladeshi", "Dhaka",
        Field("green 006A4E"), Disc("red F42A41", 0.675, 0.32),
    ),
    _country(
        "Somalia", "Somali", "Mogadishu",
        Field("light blue 4189DD"), Stars(_W, ((0.75, 0.52, 0.27),)),
    ),
    _country(
        "Morocco", "Moroccan", "Rabat",
        Field("red C1272D"), Stars("green 006233", ((0.75, 0.52, 0.28),), outline=True),
    ),
    _country(
        "China", "Chinese", "Beijing",
        Field("red EE1C25"),
        Stars("yellow FFFF00", (
            (0.25, 0.25, 0.15), (0.5, 0.1, 0.05, -121), (0.6, 0.2, 0.05, -98),
            (0.6, 0.35, 0.05, -74), (0.5, 0.45, 0.05, -51),
        )),
    ),
    _country(
        "Turkey", "Turkish", "Ankara",
        Field("red E30A17"),
        Crescent(_W, (0.531, 0.5, 0.25), (0.594, 0.5, 0.2), (0.854, 0.5, 0.125, -90)),
    ),
    _country(
        "Pakistan", "Pakistani", "Islamabad",
        Field("green 01411C"), Hoist(_W, 0.375),
        Crescent(_W, (0.9375, 0.5, 0.3), (1.0, 0.445, 0.27), (1.06, 0.385, 0.1, 45)),
    ),
    _country("Qatar", "Qatari", "Doha", Field("maroon 8A1538"), Hoist(_W, 0.42, teeth=9)),
    # crosses
    _country("Switzerland", "Swiss", "Bern", Field("red DA291C"), Cross(_W, 0.1875, arm=0.3125)),
    _country("Denmark", "Danish", "Copenhagen", Field("red C8102E"), Cross(_W, 0.143, 0.568)),
    _country(
        "Sweden", "Swedish", "Stockholm",
        Field("blue 006AA7"), Cross("yellow FECC02", 0.2, 0.5625),
    ),
    _country("Finland", "Finnish", "Helsinki", Field(_W), Cross("blue 002F6C", 0.273, 0.542)),
    _country(
        "Norway", "Norwegian", "Oslo",
        Field("red BA0C2F"), Cross("blue 00205B", 0.125, 0.545, _W, 0.0625),
    ),
    _country(
        "Iceland", "Icelandic", "Reykjavik",
        Field("blue 02529C"), Cross("red DC1E35", 0.111, 0.54, _W, 0.0556),
    ),
    _country(
        "Jamaica", "Jamaican", "Kingston",
        Field("green 009B3A"), Saltire("yellow FED100", 0.19, _K),
    ),
    _country(
        "the United Kingdom", "British", "London",
        Field("blue 012169"), Saltire(_W, 0.2, pinwheel="red C8102E"),
        Cross("red C8102E", 0.2, edge=_W, edge_width=0.067),
    ),
    # cantons, stripes and what stands at the hoist
    _country(
        "the United States", "American", "Washington",
        _stripes("red B31942", _W, 13),
        Canton("blue 0A3161", 0.6, 7 / 13, Stars(_W, _fifty(0.6, 7 / 13))),
    ),
    _country(
        "Greece", "Greek", "Athens",
        _stripes("blue 0D5EAF", _W, 9), Canton("blue 0D5EAF", 5 / 9, 5 / 9, Cross(_W, 0.2)),
    ),
    _country(
        "Chile", "Chilean", "Santiago",
        _fesses(_W, "red D52B1E"),
        Canton("blue 0039A6", 0.5, 0.5, Stars(_W, ((0.25, 0.26, 0.14),))),
    ),
    _country(
        "Cuba", "Cuban", "Havana",
        _stripes("blue 002A8F", _W, 5), Hoist("red CB1515", 0.866, "triangle"),
        Stars(_W, ((0.29, 0.5, 0.17),)),
    ),
    _country(
        "Czechia", "Czech", "Prague",
        _fesses(_W, "red D7141A"), Hoist("blue 11457E", 0.75, "triangle"),
    ),
    _country(
        "the Bahamas", "Bahamian", "Nassau",
        _fesses("turquoise 00778B", "yellow FFC72C", "turquoise 00778B"),
        Hoist(_K, 0.866, "triangle"),
    ),
    _country(
        "the United Arab Emirates", "Emirati", "Abu Dhabi",
        _fesses("green 00732F", _W, _K), Hoist("red FF0000", 0.375),
    ),
    _country(
        "Panama", "Panamanian", "Panama City",
        Quarters((_W, "red DA121A", "blue 072357", _W)),
        Stars("blue 072357", ((0.375, 0.26, 0.13),)), Stars("red DA121A", ((1.125, 0.76, 0.13),)),
    ),
    _country(
        "Tanzania", "Tanzanian", "Dodoma",
        Slope("green 1EB53A", "light blue 00A3DD"),
        Diagonal(_K, "yellow FCD116", 0.26, 0.06),
    ),
)  # fmt: skip
