"""The flags of the drawn newsroom: true, alike in words and drawing, and told apart when small."""

import colorsys
import itertools
from unittest.mock import patch

import numpy as np
import pytest

from entityclip.datasets.newsroom import countries as flags
from entityclip.datasets.newsroom.canvas import Canvas
from entityclip.datasets.newsroom.countries import COUNTRIES

BY_NAME = {country.name: country for country in COUNTRIES}


def pixels(country, width=180):
    return np.asarray(country.flag.draw(width))


def test_there_are_enough_countries_and_no_name_stands_for_two():
    assert len(COUNTRIES) >= 44
    names = [n for c in COUNTRIES for n in (c.name, c.demonym, c.capital, c.city)]
    assert len(set(names)) == len(names)
    words = [{*name.removeprefix("the ").split()} for name in names]
    for country in range(len(COUNTRIES)):  # else an alias would be told by the country's own name
        name, demonym, capital, city = words[4 * country : 4 * country + 4]
        assert not (name | demonym) & (capital | city)


def test_no_two_flags_look_alike_at_the_size_they_have_in_a_small_picture():
    tiles = np.stack([pixels(country, 26) for country in COUNTRIES]).astype(float)
    for (i, a), (j, b) in itertools.combinations(enumerate(tiles), 2):
        distance = np.sqrt(((a - b) ** 2).mean())
        assert distance > 38, (COUNTRIES[i].name, COUNTRIES[j].name, distance)


def colours_of(country):
    """All "word RRGGBB" colours a flag is drawn in."""
    used = set()

    class Noted(Canvas):
        def ink(self, colour):
            used.add(colour)
            return super().ink(colour)

    with patch.object(flags, "Canvas", Noted):
        country.flag.draw(60)
    return used - {"FFFFFF", "000000"}  # a crescent's mask


def rgb_of(colour):
    return list(bytes.fromhex(colour[-6:]))


@pytest.mark.parametrize("country", COUNTRIES, ids=lambda country: country.name)
def test_the_drawing_has_the_colours_that_the_words_name(country):
    told = country.flag.words()
    image = pixels(country, 360).reshape(-1, 3)
    for colour in colours_of(country):
        assert colour[:-7] in told
        assert (image == rgb_of(colour)).all(1).mean() > 0.001, colour


def test_colour_words_are_true_of_their_rgb():
    hues = {"red": (340, 14), "orange": (15, 45), "yellow": (44, 64), "green": (90, 170),
            "turquoise": (171, 195), "light blue": (190, 215), "blue": (195, 250),
            "maroon": (325, 345)}  # fmt: skip
    for colour in set().union(*(colours_of(country) for country in COUNTRIES)):
        name = colour[:-7]
        hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in rgb_of(colour)))
        if name == "white":
            assert lightness > 0.95, colour
        elif name == "black":
            assert lightness < 0.05, colour
        else:
            low, high = hues[name]
            assert saturation > 0.2, colour
            assert (hue * 360 - low) % 360 <= (high - low) % 360, colour
            assert name != "light blue" or lightness > 0.4, colour


def blobs(mask):
    """How many separate patches of at least three pixels a mask has."""
    left, count = set(zip(*np.nonzero(mask), strict=True)), 0
    while left:
        patch, todo = 0, [left.pop()]
        while todo:
            y, x = todo.pop()
            patch += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        count += patch >= 3
    return count


@pytest.mark.parametrize(
    ("name", "rgb", "part", "count"),
    [
        ("China", (255, 255, 0), (1.0, 1.0), 5),
        ("the United States", (255, 255, 255), (0.39, 0.53), 50),
        ("Ghana", (0, 0, 0), (1.0, 1.0), 1),
        ("Turkey", (255, 255, 255), (1.0, 1.0), 2),
    ],
)
def test_stars_are_drawn_as_often_as_they_are_counted(name, rgb, part, count):
    image = pixels(BY_NAME[name], 480)
    width, height = round(480 * part[0]), round(320 * part[1])
    mask = (np.abs(image[:height, :width].astype(int) - rgb) < 90).all(2)
    assert blobs(mask) == count


def test_known_flags_have_the_right_colours_in_the_right_places():
    def colour(name, x, y):
        image = pixels(BY_NAME[name], 300)
        return image[round(y * 199), round(x * 299)].tobytes().hex().upper()

    assert [colour("Germany", 0.5, y) for y in (0.1, 0.5, 0.9)] == ["000000", "DD0000", "FFCC00"]
    assert [colour("France", x, 0.5) for x in (0.1, 0.5, 0.9)] == ["000091", "FFFFFF", "E1000F"]
    assert [colour("Japan", x, 0.5) for x in (0.1, 0.5, 0.9)] == ["FFFFFF", "BC002D", "FFFFFF"]
    assert [colour("Sweden", x, 0.2) for x in (0.1, 0.375, 0.9)] == ["006AA7", "FECC02", "006AA7"]
    assert [colour("Chile", 0.05, y) for y in (0.1, 0.9)] == ["0039A6", "D52B1E"]
    assert [colour("Jamaica", x, y) for x, y in ((0.5, 0.1), (0.1, 0.5))] == ["009B3A", "000000"]
    # the Union Flag turns: red is below the diagonal at the hoist and above it at the fly
    union = [(0.08, 0.11), (0.92, 0.89), (0.08, 0.03), (0.92, 0.97)]
    seen = [colour("the United Kingdom", x, y) for x, y in union]
    assert seen == ["C8102E", "C8102E", "FFFFFF", "FFFFFF"]


def test_words_follow_the_drawing():
    words = {country.name: country.flag.words() for country in COUNTRIES}
    assert words["Ghana"] == "red, yellow and green horizontal bands with a black star"
    assert words["Norway"] == "a red field with a white-edged blue Nordic cross"
    assert words["Colombia"] == "wide yellow, blue and red horizontal bands"
    assert words["Greece"].startswith("nine blue and white stripes with a blue canton holding")
    assert len(set(words.values())) == len(words)
