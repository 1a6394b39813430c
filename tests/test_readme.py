"""What a reader sees first is true: numbers from files, links to files, commands that exist."""

from __future__ import annotations

import re

import pytest

from benchmarks import readme, readme_findings
from benchmarks.readme import MAP, PARTS, filled
from entityclip.config import REPOSITORY, load_profile
from entityclip.reporting.style import read_table
from entityclip.results import find_rows
from entityclip.variants import TABLES, VARIANT_LABELS, label

README, FINDINGS, PACKAGE = (path.read_text(encoding="utf-8") for path in PARTS)


def test_measured_parts_are_those_of_the_figures(committed_figures, monkeypatch):
    own = {path: filled(path) for path in PARTS}
    for module in (readme, readme_findings):
        monkeypatch.setattr(module, "FIGURES", committed_figures)
    for path, text in zip(PARTS, (README, FINDINGS, PACKAGE), strict=True):
        assert text in (own[path], filled(path)), "run python -m benchmarks.readme"


def test_the_front_page_is_one_that_people_read():
    assert len(README.splitlines()) <= 170


def test_name_views_and_context_help_and_their_refuters_fail():
    """What README says of them, by rows."""
    table = read_table(REPOSITORY / "figures" / "views.csv")
    at = table[table["direction"] == "text_to_image"].set_index(["split", "variant"])
    best = at.loc["test_longtail", "name-views-context"]
    assert best["seeds"] >= 3
    for name in set(table["variant"]) - {"name-views", "name-views-context"}:
        assert at.loc[("test_longtail", name), "R@1_high"] < best["R@1_low"], name
    refuters = TABLES["views"][-5:]
    assert refuters[0] == "word-views"
    assert refuters[-1] == "caption-context"
    bridge = at.loc["test_longtail", "bridge"]
    assert bridge["R@1_high"] < at.loc[("test_longtail", "word-views"), "R@1_low"]  # leaves half
    for name in refuters[1:]:
        assert at.loc[("test_longtail", name), "R@1_low"] < bridge["R@1_high"], name  # nothing
    own = at.loc["test", "name-views-context"]
    for name in ("word-views", "other-views", "shuffled-context", "caption-context"):
        assert at.loc[("test", name), "R@1"] < own["R@1"], name
    cost = read_table(REPOSITORY / "figures" / "costs.csv").set_index("variant")["GFLOPs a pair"]
    assert cost["name-views-context"] <= 1.02 * cost["bridge"]  # "at the bridge's cost"
    apart = read_table(REPOSITORY / "figures" / "views_differences.csv")
    apart = apart[(apart["first"] == "name-views-context") & (apart["split"] == "test_longtail")]
    assert (apart["low"] > 0).all()
    assert len(apart) == 2


def test_rows_from_another_processor_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))  # shipped rows alone
    rows = find_rows(load_profile("demo"), "retrieval")
    by_device = rows.groupby("device")["variant"].unique().map(set)
    most = by_device.map(len).idxmax()
    others = set().union(*by_device.drop(most))
    line = re.search(r"^- (“.*) were trained later, on another processor", FINDINGS, re.MULTILINE)[
        1
    ]
    assert {label(name, VARIANT_LABELS) for name in others} == {*re.findall("“(.*?)”", line)}


def test_every_link_and_picture_leads_to_a_file():
    for path, text in zip(PARTS, (README, FINDINGS, PACKAGE), strict=True):
        targets = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[\w-]+)?\)", text)
        assert targets
        assert [t for t in targets if not (path.parent / t).exists()] == []


def test_links_into_a_page_lead_to_a_heading_of_it():
    for path, anchor in re.findall(r"\]\(([\w/]+\.md)#([\w-]+)\)", README):
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


def test_the_house_names_every_file():
    """Room by room; files that only start or list a room apart."""
    rooms = re.findall(r"^\| (ground|`\w+/`) \| .* \| (`.*) \|$", PACKAGE, re.MULTILINE)
    package, seen = REPOSITORY / "entityclip", set()
    for room, files in rooms:
        folder = package if room == "ground" else package / room.strip("`/")
        told = re.findall(r"`(\w+)`", files)
        there = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
        assert set(told) == there, room
        seen.add(folder)
    assert seen == {package, *(path.parent for path in package.glob("*/__init__.py"))}


def test_every_notebook_is_on_the_map():
    assert {p.stem for p in (REPOSITORY / "notebooks").glob("*.ipynb")} == set(MAP)


def test_every_file_that_the_map_promises_is_there():
    for makes, _ in MAP.values():
        for name in re.findall(r"`([\w.]+)`", makes):
            file = name if "." in name else f"{name}.png"
            assert (REPOSITORY / "figures" / file).exists(), file


def test_every_source_file_that_a_text_names_is_there():
    texts = [*PARTS, *(REPOSITORY / "notebooks").glob("*.ipynb")]
    named = {
        n for p in texts for n in re.findall(r"\b(?:entityclip|tests)/[\w/]+\.py", p.read_text())
    }
    assert "entityclip/variants.py" in named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("command", sorted(set(re.findall(r"make ([a-z][a-z-]+)", README))))
def test_every_make_target_exists(command):
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_the_python_example_runs():
    """With the small backbone in place of the one that would be downloaded."""
    code = re.search(r"## In Python\n\n```python\n(.*?)```", PACKAGE, re.DOTALL)[1]
    small = code.replace('"ViT-B-32-quickgelu", "openai"', '"newsroom-tiny"')
    small = small.replace("image_size=224", "image_size=64").replace("limit=512", "limit=8")
    assert small != code
    names: dict = {}
    exec(small, names)  # our own README
    assert {"loss", "vtc", "vtc_moe", "itm"} <= set(names["losses"])
