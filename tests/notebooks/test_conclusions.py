"""What notebooks conclude ("What the demo showed") is what the shipped figures' rows carry."""

import nbformat
import pytest

from entityclip.config import REPOSITORY
from entityclip.reporting.style import read_table
from tests.test_readme import apart

CONCLUDED = (
    *("04_retrieval", "05_ablation_mmae", "06_ablation_gi_itm"),
    *("12_controls_and_search", "13_settings_and_cost"),
)


def lies(row):
    """-1, 0, 1: below 0, not told from 0, above."""
    return int(row["low"] > 0) - int(row["high"] < 0)


@pytest.mark.parametrize("name", CONCLUDED)
def test_a_chapter_says_what_was_seen(name):
    cells = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4).cells
    assert sum(cell.source.startswith("## What the demo showed") for cell in cells) == 1


def test_retrieval():
    found = apart("differences")
    assert lies(found.loc["test", "entityclip", "clip"]) == 0
    gain = found.loc["test_alias", "entityclip", "clip"]
    assert lies(gain) == 1
    assert not gain["survives"]
    pairs = [("entityclip", "clip"), ("bridge", "clip"), ("name-views", "bridge")]
    points = [round(found.loc[("test_alias", *pair), "value"]) for pair in pairs]
    assert points == [1, 6, 8]


def test_ablation_of_mmae():
    found = apart("ablation_mmae_differences").droplevel("second")
    told = {name for name, row in found.loc["test"].iterrows() if lies(row)}
    assert told == {"lambda-1.0"}
    assert round(found.loc[("test", "lambda-1.0"), "value"]) == -2
    aliases = found.loc["test_alias"]
    assert not aliases["survives"].any()
    for name in ("no-explanation-experts", "experts-1", "experts-2"):
        assert lies(aliases.loc[name]) == -1
        assert round(aliases.loc[name, "value"]) == -1
    for name in ("no-text-experts", "padding-attended", "separate-experts"):
        assert lies(aliases.loc[name]) == 0
    leak = read_table(REPOSITORY / "figures" / "leak.csv")
    leak = leak[(leak["variant"] == "entityclip") & (leak["direction"] == "text_to_image")]
    agree = leak.set_index("reads")["value"]
    assert agree["same wrong"] > 80 > 10 > agree["two different wrong"]


def test_ablation_of_gi_itm():
    found = apart("ablation_gi_itm_differences").droplevel("second")
    assert {name for name, row in found.loc["test"].iterrows() if lies(row)} == set()
    told = {name for name, row in found.loc["test_alias"].iterrows() if lies(row)}
    assert told == {"eta-1.0"}
    more = found.loc[("test_alias", "eta-1.0")]
    assert lies(more) == 1
    assert not more["survives"]
    right = read_table(REPOSITORY / "figures" / "matching.csv").set_index(["variant", "reads"])
    for reads, low, high in (("matched", 0, 20), ("wrong text", 90, 100)):
        assert low <= right.loc[("entityclip", reads), "value"] <= high
    assert (right.loc["uniform-negatives", "value"] > 80).all()


def test_search_and_sources():
    chosen = read_table(REPOSITORY / "figures" / "search.csv").iloc[0]
    assert chosen["variant"] == "name-views"
    mixes = apart("mixes_differences").loc["test"]
    assert not any(lies(row) for _, row in mixes.iterrows())
