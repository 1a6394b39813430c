"""Real countries and their true flags (civil flags where the state flag adds a coat of arms).

Colours and constructions follow the flags' laws as far as they fix them; every flag is drawn at
ratio 3:2. Left out: flags with arms or pictures, and those which another one here resembles.
"""

from __future__ import annotations

from dataclasses import dataclass

from entityclip.datasets.newsroom.flags import (
    Flag,
    Layer,
    canton,
    crescent,
    cross,
    diagonal,
    disc,
    fesses,
    field,
    hoist,
    pales,
    quarters,
    saltire,
    slope,
    stars,
    stripes,
    wheel,
)  # fmt: skip

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


def _fifty(width: float, height: float) -> tuple[tuple[float, ...], ...]:
    places = [(x, y) for y in range(1, 10) for x in range(1, 12) if (x + y) % 2 == 0]
    return tuple((x * width / 12, y * height / 10, 0.031) for x, y in places)


COUNTRIES: tuple[Country, ...] = (
    # vertical bands
    _country("France", "French", "Paris", pales("blue 000091", _W, "red E1000F")),
    _country("Italy", "Italian", "Rome", pales("green 008C45", "white F4F5F0", "red CD212A")),
    _country("Belgium", "Belgian", "Brussels", pales(_K, "yellow FDDA24", "red EF3340")),
    _country("Ireland", "Irish", "Dublin", pales("green 169B62", _W, "orange FF883E")),
    _country("Nigeria", "Nigerian", "Abuja", pales("green 008751", _W, "green 008751")),
    _country("Peru", "Peruvian", "Lima", pales("red D91023", _W, "red D91023")),
    _country("Cameroon", "Cameroonian", "Yaounde",
        pales("green 007A5E", "red CE1126", "yellow FCD116"),
        stars("yellow FCD116", (0.75, 0.5, 0.17))),
    _country("Senegal", "Senegalese", "Dakar", pales("green 00853F", "yellow FDEF42", "red E31B23"),
        stars("green 00853F", (0.75, 0.5, 0.17))),
    _country("Algeria", "Algerian", "Algiers", pales("green 006233", _W),
        crescent("red D21034", (0.75, 0.5, 0.25), (0.815, 0.5, 0.2), (0.87, 0.5, 0.125, -90))),
    # horizontal bands
    _country("Germany", "German", "Berlin", fesses(_K, "red DD0000", "yellow FFCC00")),
    _country("Austria", "Austrian", "Vienna", fesses("red C8102E", _W, "red C8102E")),
    _country("the Netherlands", "Dutch", "Amsterdam", fesses("red AE1C28", _W, "blue 21468B")),
    _country("Bulgaria", "Bulgarian", "Sofia", fesses(_W, "green 00966E", "red D62612")),
    _country("Estonia", "Estonian", "Tallinn", fesses("blue 0072CE", _K, _W)),
    _country("Ukraine", "Ukrainian", "Kyiv", fesses("blue 0057B7", "yellow FFD700")),
    _country("Poland", "Polish", "Warsaw", fesses(_W, "red DC143C")),
    _country("Indonesia", "Indonesian", "Jakarta", fesses("red E70011", _W)),
    _country("Armenia", "Armenian", "Yerevan",
        fesses("red D90012", "blue 0033A0", "orange F2A800")),
    _country("Gabon", "Gabonese", "Libreville",
        fesses("green 009E60", "yellow FCD116", "blue 3A75C4")),
    _country("Colombia", "Colombian", "Bogota",
        fesses("yellow FCD116", "blue 003893", "red CE1126", weights=(2, 1, 1))),
    _country("Botswana", "Botswanan", "Gaborone",
        fesses("light blue 75AADB", _W, _K, _W, "light blue 75AADB", weights=(9, 1, 4, 1, 9))),
    _country("Thailand", "Thai", "Bangkok",
        fesses("red A51931", _W, "blue 2D2A4A", _W, "red A51931", weights=(1, 1, 2, 1, 1))),
    _country("Costa Rica", "Costa Rican", "San Jose",
        fesses("blue 002B7F", _W, "red CE1126", _W, "blue 002B7F", weights=(1, 1, 2, 1, 1))),
    # horizontal bands with a charge
    _country("Ghana", "Ghanaian", "Accra", fesses("red CE1126", "yellow FCD116", "green 006B3F"),
        stars(_K, (0.75, 0.5, 0.17))),
    _country("India", "Indian", "New Delhi", fesses("orange FF671F", _W, "green 046A38"),
        wheel("blue 06038D", 0.145, 24)),
    # a field with a charge
    _country("Japan", "Japanese", "Tokyo", field(_W), disc("red BC002D", 0.75, 0.3)),
    _country("Bangladesh", "Bangladeshi", "Dhaka", field("green 006A4E"),
        disc("red F42A41", 0.675, 0.32)),
    _country("Somalia", "Somali", "Mogadishu", field("light blue 4189DD"),
        stars(_W, (0.75, 0.52, 0.27))),
    _country("Morocco", "Moroccan", "Rabat", field("red C1272D"),
        stars("green 006233", (0.75, 0.52, 0.28), outline=True)),
    _country("China", "Chinese", "Beijing", field("red EE1C25"), stars("yellow FFFF00",
        (0.25, 0.25, 0.15), (0.5, 0.1, 0.05, -121), (0.6, 0.2, 0.05, -98), (0.6, 0.35, 0.05, -74),
        (0.5, 0.45, 0.05, -51))),
    _country("Turkey", "Turkish", "Ankara", field("red E30A17"),
        crescent(_W, (0.531, 0.5, 0.25), (0.594, 0.5, 0.2), (0.854, 0.5, 0.125, -90))),
    _country("Pakistan", "Pakistani", "Islamabad", field("green 01411C"), hoist(_W, 0.375),
        crescent(_W, (0.9375, 0.5, 0.3), (1.0, 0.445, 0.27), (1.06, 0.385, 0.1, 45))),
    _country("Qatar", "Qatari", "Doha", field("maroon 8A1538"), hoist(_W, 0.42, teeth=9)),
    # crosses
    _country("Switzerland", "Swiss", "Bern", field("red DA291C"), cross(_W, 0.1875, arm=0.3125)),
    _country("Denmark", "Danish", "Copenhagen", field("red C8102E"), cross(_W, 0.143, 0.568)),
    _country("Sweden", "Swedish", "Stockholm", field("blue 006AA7"),
        cross("yellow FECC02", 0.2, 0.5625)),
    _country("Finland", "Finnish", "Helsinki", field(_W), cross("blue 002F6C", 0.273, 0.542)),
    _country("Norway", "Norwegian", "Oslo", field("red BA0C2F"),
        cross("blue 00205B", 0.125, 0.545, _W, 0.0625)),
    _country("Iceland", "Icelandic", "Reykjavik", field("blue 02529C"),
        cross("red DC1E35", 0.111, 0.54, _W, 0.0556)),
    _country("Jamaica", "Jamaican", "Kingston", field("green 009B3A"),
        saltire("yellow FED100", 0.19, _K)),
    _country("the United Kingdom", "British", "London", field("blue 012169"),
        saltire(_W, 0.2, pinwheel="red C8102E"),
        cross("red C8102E", 0.2, edge=_W, edge_width=0.067)),
    # cantons, stripes and what stands at the hoist
    _country("the United States", "American", "Washington", stripes("red B31942", _W, 13),
        canton("blue 0A3161", 0.6, 7 / 13, stars(_W, *_fifty(0.6, 7 / 13)))),
    _country("Greece", "Greek", "Athens", stripes("blue 0D5EAF", _W, 9),
        canton("blue 0D5EAF", 5 / 9, 5 / 9, cross(_W, 0.2), own_units=True)),
    _country("Chile", "Chilean", "Santiago", fesses(_W, "red D52B1E"),
        canton("blue 0039A6", 0.5, 0.5, stars(_W, (0.25, 0.26, 0.14)))),
    _country("Cuba", "Cuban", "Havana", stripes("blue 002A8F", _W, 5),
        hoist("red CB1515", 0.866, "triangle"), stars(_W, (0.29, 0.5, 0.17))),
    _country("Czechia", "Czech", "Prague", fesses(_W, "red D7141A"),
        hoist("blue 11457E", 0.75, "triangle")),
    _country("the Bahamas", "Bahamian", "Nassau",
        fesses("turquoise 00778B", "yellow FFC72C", "turquoise 00778B"),
        hoist(_K, 0.866, "triangle")),
    _country("the United Arab Emirates", "Emirati", "Abu Dhabi", fesses("green 00732F", _W, _K),
        hoist("red FF0000", 0.375)),
    _country("Panama", "Panamanian", "Panama City", quarters(_W, "red DA121A", "blue 072357", _W),
        stars("blue 072357", (0.375, 0.26, 0.13)), stars("red DA121A", (1.125, 0.76, 0.13))),
    _country("Tanzania", "Tanzanian", "Dodoma", slope("green 1EB53A", "light blue 00A3DD"),
        diagonal(_K, "yellow FCD116", 0.26, 0.06)),
)  # fmt: skip
