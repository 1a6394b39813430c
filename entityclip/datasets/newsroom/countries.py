"""Real countries and their true flags (civil flags where the state flag adds a coat of arms).

A flag is a list of layers, its base first, that gives both the drawing and the words for it.
Lengths are in flag heights, every flag is 1.5 wide, the origin is the upper corner at the hoist
(the pole). A colour is a word and its RGB, "red CE1126". Colours and constructions follow the
flags' laws as far as they fix them; left out are flags with arms and those that resemble another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from entityclip.datasets.newsroom.canvas import Canvas, join, star, word

RATIO = 1.5  # width over height of every tile
_SUPERSAMPLING = 6  # then shrunk by averaging, which is the antialiasing
_W, _K = "white FFFFFF", "black 000000"
_COUNTS = {1: "a", 2: "two", 5: "five", 9: "nine", 13: "thirteen", 50: "fifty"}


class Layer(NamedTuple):
    """A part of a flag: what it looks like, and how it is drawn above the parts before it."""

    words: str
    draw: Callable[[Canvas], None]


class Flag(NamedTuple):
    """A flag: its base and what is drawn upon it."""

    layers: tuple[Layer, ...]

    def words(self) -> str:
        """What it looks like, e.g. "red, yellow and green horizontal bands with a black star"."""
        base, *charges = [layer.words for layer in self.layers]
        return f"{base} with {join(charges)}" if charges else base

    def draw(self, width: int) -> Image.Image:
        """An antialiased RGB picture, `width` pixels wide and two thirds as high."""
        height = round(width / RATIO)
        fine = Image.new("RGB", (round(height * _SUPERSAMPLING * RATIO), height * _SUPERSAMPLING))
        canvas = Canvas(fine)
        for layer in self.layers:
            layer.draw(canvas)
        return fine.resize((width, height), Image.Resampling.BOX)


def pales(*colours: str) -> Layer:
    """Vertical bands of equal width, from the hoist on."""

    def draw(canvas: Canvas) -> None:
        width = RATIO / len(colours)
        for place, colour in enumerate(colours):
            canvas.box(place * width, 0, (place + 1) * width, 1, colour)

    return Layer(f"{join([word(colour) for colour in colours])} vertical bands", draw)


def fesses(*colours: str, weights: tuple[int, ...] = ()) -> Layer:
    """Horizontal bands from the top down; `weights` are their relative heights."""

    def draw(canvas: Canvas) -> None:
        heights, start = weights or (1,) * len(colours), 0.0
        for colour, height in zip(colours, heights, strict=True):
            end = start + height / sum(heights)
            canvas.box(0, start, RATIO, end, colour)
            start = end

    names = [word(colour) for colour in colours]
    thin = [weight < 0.4 * max(weights) for weight in weights]
    for row, weight in enumerate(weights):
        # beside thin bands the others need no word
        wide = not any(thin) and weight > min(weights)
        names[row] = ("thin " if thin[row] else "wide " if wide else "") + names[row]
    return Layer(f"{join(names)} horizontal bands", draw)


def stripes(first: str, second: str, count: int) -> Layer:
    """Horizontal bands of two colours by turns."""
    bands = fesses(*((first, second) * count)[:count])
    return Layer(f"{_COUNTS[count]} {word(first)} and {word(second)} stripes", bands.draw)


def field(colour: str) -> Layer:
    """One colour all over."""
    return Layer(f"a {word(colour)} field", lambda canvas: canvas.box(0, 0, RATIO, 1, colour))


def slope(upper: str, lower: str) -> Layer:
    """Two triangles parted by the diagonal that rises to the fly."""

    def draw(canvas: Canvas) -> None:
        canvas.polygon([(0, 0), (RATIO, 0), (0, 1)], upper)
        canvas.polygon([(RATIO, 1), (RATIO, 0), (0, 1)], lower)

    return Layer(f"{word(upper)} and {word(lower)} triangles", draw)


def diagonal(colour: str, edge: str, width: float, edge_width: float) -> Layer:
    """A bar that rises from corner to corner, edged on both sides."""

    def draw(canvas: Canvas) -> None:
        start, end = (-RATIO, 2.0), (2 * RATIO, -1.0)
        canvas.line(start, end, width + 2 * edge_width, edge)
        canvas.line(start, end, width, colour)

    return Layer(f"a {word(edge)}-edged {word(colour)} diagonal", draw)


def hoist(colour: str, reach: float, shape: str = "bar", teeth: int = 0) -> Layer:
    """A shape at the pole, `reach` wide: a bar, a triangle, or a bar with `teeth`."""
    corners = [(reach, 0.5)] if shape == "triangle" else [(reach, 0), (reach, 1)]
    if teeth:
        step = 1 / (2 * teeth)
        corners = [(reach + (0.2 if n % 2 else 0), n * step) for n in range(2 * teeth + 1)]
    words = f"a {'serrated ' if teeth else ''}{word(colour)} hoist {shape}"
    return Layer(words, lambda canvas: canvas.polygon([(0, 0), *corners, (0, 1)], colour))


def cross(
    colour: str,
    width: float,
    x: float | None = None,
    edge: str | None = None,
    edge_width: float = 0,
    arm: float = 9,
) -> Layer:
    """A cross with arms `width` wide; `x` moves it off the centre, `arm` cuts it short."""

    def draw(canvas: Canvas) -> None:
        centre = canvas.width / 2 if x is None else x
        for ink, wide in ((edge, width + 2 * edge_width), (colour, width)):
            half = wide / 2
            if ink:
                canvas.box(centre - arm, 0.5 - half, centre + arm, 0.5 + half, ink)
                canvas.box(centre - half, 0.5 - arm, centre + half, 0.5 + arm, ink)

    edged = f"{word(edge)}-edged " if edge else ""
    return Layer(f"a {edged}{word(colour)} {'Nordic ' if x else ''}cross", draw)


def saltire(
    colour: str, width: float, sides: str | None = None, pinwheel: str | None = None
) -> Layer:
    """A diagonal cross; `sides` fills the triangles at hoist and fly, above and below stay.

    `pinwheel` lays a third of the width along each arm, beside the diagonal (the Union Flag).
    """

    def draw(canvas: Canvas) -> None:
        for edge in (0, RATIO) if sides else ():
            canvas.polygon([(edge, 0), (RATIO / 2, 0.5), (edge, 1)], sides)
        canvas.line((-RATIO, -1), (2 * RATIO, 2), width, colour)
        canvas.line((-RATIO, 2), (2 * RATIO, -1), width, colour)
        third = width / 3
        shift = third / 2 / math.hypot(RATIO, 1)
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)) if pinwheel else ():
            # it lies below the diagonals at the hoist and above them at the fly
            x, y = RATIO / 2 + sy * shift, 0.5 - sx * RATIO * shift
            canvas.line((x, y), (x + sx * RATIO, y + sy), third, pinwheel)

    counterchanged = f"{word(pinwheel)} and " if pinwheel else ""
    between = f" between {word(sides)} sides" if sides else ""
    return Layer(f"a {counterchanged}{word(colour)} saltire{between}", draw)


def disc(colour: str, x: float, radius: float) -> Layer:
    """A filled circle."""
    return Layer(f"a {word(colour)} disc", lambda canvas: canvas.disc(x, 0.5, radius, colour))


def wheel(colour: str, radius: float, spokes: int) -> Layer:
    """A spoked wheel in the centre (India's, of 24 spokes)."""

    def draw(canvas: Canvas) -> None:
        x, r = RATIO / 2, radius
        canvas.ring(x, 0.5, r, r * 0.16, colour)
        canvas.disc(x, 0.5, r * 0.2, colour)
        for spoke in range(spokes):
            angle = 2 * math.pi * spoke / spokes
            end = (x + 0.95 * r * math.cos(angle), 0.5 + 0.95 * r * math.sin(angle))
            canvas.line((x, 0.5), end, r * 0.07, colour)

    return Layer(f"a {word(colour)} wheel", draw)


def stars(colour: str, *at: tuple[float, ...], outline: bool = False) -> Layer:
    """Stars at (x, y, radius) or (x, y, radius, turn clockwise in degrees).

    With `outline`, only the lines of a pentagram.
    """

    def draw(canvas: Canvas) -> None:
        for x, y, radius, *turn in at:
            corners = star(x, y, radius, *turn)
            if not outline:
                canvas.polygon(corners, colour)
                continue
            tips = corners[::2]
            for tip in range(5):
                canvas.line(tips[tip], tips[(tip + 2) % 5], radius * 0.17, colour)

    shape = f"star{' outline' if outline else ''}{'s' if len(at) > 1 else ''}"
    return Layer(f"{_COUNTS[len(at)]} {word(colour)} {shape}", draw)


def crescent(
    colour: str,
    outer: tuple[float, float, float],
    inner: tuple[float, float, float],
    at: tuple[float, ...],
) -> Layer:
    """A disc less a second one, given as (x, y, radius), and a star as `stars` takes it."""

    def draw(canvas: Canvas) -> None:
        cut = Canvas(Image.new("RGB", canvas.image.size))
        cut.disc(*outer, "FFFFFF")
        cut.disc(*inner, "000000")
        canvas.image.paste(canvas.ink(colour), mask=cut.image.convert("L"))
        stars(colour, at).draw(canvas)

    return Layer(f"a {word(colour)} crescent and star", draw)


def canton(
    colour: str, width: float, height: float, charge: Layer, *, own_units: bool = False
) -> Layer:
    """A rectangle in the upper corner at the hoist, holding a charge.

    The charge is measured in flag heights or, with `own_units`, in heights of the canton.
    """

    def draw(canvas: Canvas) -> None:
        x, y = round(width * canvas.scale), round(height * canvas.scale)
        part = Image.new("RGB", (x, y), canvas.ink(colour))
        inside = Canvas(part)
        if not own_units:
            inside.scale = canvas.scale
        charge.draw(inside)
        canvas.image.paste(part)

    return Layer(f"a {word(colour)} canton holding {charge.words}", draw)


@dataclass(frozen=True)
class Country:
    """A country, by the names news give it, and its flag."""

    name: str  # as used within a sentence, "the Netherlands"
    demonym: str
    capital: str
    city: str  # another one
    flag: Flag


def _country(name: str, demonym: str, capital: str, city: str, *layers: Layer) -> Country:
    return Country(name, demonym, capital, city, Flag(layers))


_FIFTY = [(x * 0.6 / 12, y * 7 / 13 / 10, 0.031)
          for y in range(1, 10) for x in range(1, 12) if (x + y) % 2 == 0]  # fmt: skip

COUNTRIES: tuple[Country, ...] = (
    # vertical bands
    _country("France", "French", "Paris", "Lyon", pales("blue 000091", _W, "red E1000F")),
    _country("Italy", "Italian", "Rome", "Milan",
        pales("green 008C45", "white F4F5F0", "red CD212A")),
    _country("Belgium", "Belgian", "Brussels", "Antwerp", pales(_K, "yellow FDDA24", "red EF3340")),
    _country("Ireland", "Irish", "Dublin", "Cork", pales("green 169B62", _W, "orange FF883E")),
    _country("Nigeria", "Nigerian", "Abuja", "Lagos", pales("green 008751", _W, "green 008751")),
    _country("Peru", "Peruvian", "Lima", "Arequipa", pales("red D91023", _W, "red D91023")),
    _country("Cameroon", "Cameroonian", "Yaounde", "Douala",
        pales("green 007A5E", "red CE1126", "yellow FCD116"),
        stars("yellow FCD116", (0.75, 0.5, 0.17))),
    _country("Senegal", "Senegalese", "Dakar", "Touba",
        pales("green 00853F", "yellow FDEF42", "red E31B23"),
        stars("green 00853F", (0.75, 0.5, 0.17))),
    _country("Algeria", "Algerian", "Algiers", "Oran", pales("green 006233", _W),
        crescent("red D21034", (0.75, 0.5, 0.25), (0.815, 0.5, 0.2), (0.87, 0.5, 0.125, -90))),
    # horizontal bands
    _country("Germany", "German", "Berlin", "Hamburg", fesses(_K, "red DD0000", "yellow FFCC00")),
    _country("Austria", "Austrian", "Vienna", "Graz", fesses("red C8102E", _W, "red C8102E")),
    _country("the Netherlands", "Dutch", "Amsterdam", "Rotterdam",
        fesses("red AE1C28", _W, "blue 21468B")),
    _country("Bulgaria", "Bulgarian", "Sofia", "Plovdiv", fesses(_W, "green 00966E", "red D62612")),
    _country("Estonia", "Estonian", "Tallinn", "Tartu", fesses("blue 0072CE", _K, _W)),
    _country("Ukraine", "Ukrainian", "Kyiv", "Kharkiv", fesses("blue 0057B7", "yellow FFD700")),
    _country("Poland", "Polish", "Warsaw", "Krakow", fesses(_W, "red DC143C")),
    _country("Indonesia", "Indonesian", "Jakarta", "Surabaya", fesses("red E70011", _W)),
    _country("Armenia", "Armenian", "Yerevan", "Gyumri",
        fesses("red D90012", "blue 0033A0", "orange F2A800")),
    _country("Gabon", "Gabonese", "Libreville", "Oyem",
        fesses("green 009E60", "yellow FCD116", "blue 3A75C4")),
    _country("Colombia", "Colombian", "Bogota", "Medellin",
        fesses("yellow FCD116", "blue 003893", "red CE1126", weights=(2, 1, 1))),
    _country("Botswana", "Botswanan", "Gaborone", "Maun",
        fesses("light blue 75AADB", _W, _K, _W, "light blue 75AADB", weights=(9, 1, 4, 1, 9))),
    _country("Thailand", "Thai", "Bangkok", "Phuket",
        fesses("red A51931", _W, "blue 2D2A4A", _W, "red A51931", weights=(1, 1, 2, 1, 1))),
    _country("Costa Rica", "Costa Rican", "San Jose", "Heredia",
        fesses("blue 002B7F", _W, "red CE1126", _W, "blue 002B7F", weights=(1, 1, 2, 1, 1))),
    # horizontal bands with a charge
    _country("Ghana", "Ghanaian", "Accra", "Kumasi",
        fesses("red CE1126", "yellow FCD116", "green 006B3F"),
        stars(_K, (0.75, 0.5, 0.17))),
    _country("India", "Indian", "New Delhi", "Mumbai", fesses("orange FF671F", _W, "green 046A38"),
        wheel("blue 06038D", 0.145, 24)),
    # a field with a charge
    _country("Japan", "Japanese", "Tokyo", "Osaka", field(_W), disc("red BC002D", 0.75, 0.3)),
    _country("Bangladesh", "Bangladeshi", "Dhaka", "Chittagong", field("green 006A4E"),
        disc("red F42A41", 0.675, 0.32)),
    _country("Somalia", "Somali", "Mogadishu", "Kismayo", field("light blue 4189DD"),
        stars(_W, (0.75, 0.52, 0.27))),
    _country("Morocco", "Moroccan", "Rabat", "Casablanca", field("red C1272D"),
        stars("green 006233", (0.75, 0.52, 0.28), outline=True)),
    _country("China", "Chinese", "Beijing", "Shanghai", field("red EE1C25"), stars("yellow FFFF00",
        (0.25, 0.25, 0.15), (0.5, 0.1, 0.05, -121), (0.6, 0.2, 0.05, -98), (0.6, 0.35, 0.05, -74),
        (0.5, 0.45, 0.05, -51))),
    _country("Turkey", "Turkish", "Ankara", "Istanbul", field("red E30A17"),
        crescent(_W, (0.531, 0.5, 0.25), (0.594, 0.5, 0.2), (0.854, 0.5, 0.125, -90))),
    _country("Pakistan", "Pakistani", "Islamabad", "Lahore",
        field("green 01411C"), hoist(_W, 0.375),
        crescent(_W, (0.9375, 0.5, 0.3), (1.0, 0.445, 0.27), (1.06, 0.385, 0.1, 45))),
    _country("Qatar", "Qatari", "Doha", "Dukhan", field("maroon 8A1538"), hoist(_W, 0.42, teeth=9)),
    # crosses
    _country("Switzerland", "Swiss", "Bern", "Zurich",
        field("red DA291C"), cross(_W, 0.1875, arm=0.3125)),
    _country("Denmark", "Danish", "Copenhagen", "Aarhus",
        field("red C8102E"), cross(_W, 0.143, 0.568)),
    _country("Sweden", "Swedish", "Stockholm", "Gothenburg", field("blue 006AA7"),
        cross("yellow FECC02", 0.2, 0.5625)),
    _country("Finland", "Finnish", "Helsinki", "Tampere",
        field(_W), cross("blue 002F6C", 0.273, 0.542)),
    _country("Norway", "Norwegian", "Oslo", "Bergen", field("red BA0C2F"),
        cross("blue 00205B", 0.125, 0.545, _W, 0.0625)),
    _country("Iceland", "Icelandic", "Reykjavik", "Akureyri", field("blue 02529C"),
        cross("red DC1E35", 0.111, 0.54, _W, 0.0556)),
    _country("Jamaica", "Jamaican", "Kingston", "Negril", field("green 009B3A"),
        saltire("yellow FED100", 0.19, _K)),
    _country("the United Kingdom", "British", "London", "Manchester", field("blue 012169"),
        saltire(_W, 0.2, pinwheel="red C8102E"),
        cross("red C8102E", 0.2, edge=_W, edge_width=0.067)),
    # cantons, stripes and what stands at the hoist
    _country("the United States", "American", "Washington", "Chicago",
        stripes("red B31942", _W, 13),
        canton("blue 0A3161", 0.6, 7 / 13, stars(_W, *_FIFTY))),
    _country("Greece", "Greek", "Athens", "Thessaloniki", stripes("blue 0D5EAF", _W, 9),
        canton("blue 0D5EAF", 5 / 9, 5 / 9, cross(_W, 0.2), own_units=True)),
    _country("Chile", "Chilean", "Santiago", "Valparaiso", fesses(_W, "red D52B1E"),
        canton("blue 0039A6", 0.5, 0.5, stars(_W, (0.25, 0.26, 0.14)))),
    _country("Cuba", "Cuban", "Havana", "Holguin", stripes("blue 002A8F", _W, 5),
        hoist("red CB1515", 0.866, "triangle"), stars(_W, (0.29, 0.5, 0.17))),
    _country("Czechia", "Czech", "Prague", "Brno", fesses(_W, "red D7141A"),
        hoist("blue 11457E", 0.75, "triangle")),
    _country("the Bahamas", "Bahamian", "Nassau", "Bimini",
        fesses("turquoise 00778B", "yellow FFC72C", "turquoise 00778B"),
        hoist(_K, 0.866, "triangle")),
    _country("the United Arab Emirates", "Emirati", "Abu Dhabi", "Dubai",
        fesses("green 00732F", _W, _K),
        hoist("red FF0000", 0.375)),
    _country("Laos", "Lao", "Vientiane", "Savannakhet",
        fesses("red CE1126", "blue 002868", "red CE1126", weights=(1, 2, 1)),
        disc(_W, 0.75, 0.2)),
    _country("Tanzania", "Tanzanian", "Dodoma", "Arusha",
        slope("green 1EB53A", "light blue 00A3DD"),
        diagonal(_K, "yellow FCD116", 0.26, 0.06)),
)  # fmt: skip
