"""What a reader sees first is true: numbers from files, links to files, commands that exist."""

from __future__ import annotations

import re

import pytest

from benchmarks import readme, readme_findings
from benchmarks.readme import MAP, PARTS, filled
from entityclip.config import REPOSITORY, load_profile
from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.datasets.newsroom.wording import name_counts
from entityclip.reporting.style import read_table
from entityclip.results import find_rows
from entityclip.variants import TABLES

README, FINDINGS, PACKAGE = (path.read_text(encoding="utf-8") for path in PARTS)


def test_measured_parts_are_those_of_the_figures(committed_figures, monkeypatch):
    own = {path: filled(path) for path in PARTS}
    for module in (readme, readme_findings):
        monkeypatch.setattr(module, "FIGURES", committed_figures)
    for path, text in zip(PARTS, (README, FINDINGS, PACKAGE), strict=True):
        assert text in (own[path], filled(path)), "run python -m benchmarks.readme"


def test_the_front_page_is_one_that_people_read():
    assert len(README.splitlines()) <= 170


def at(name):
    """A table's text to image rows by split and variant."""
    table = read_table(REPOSITORY / "figures" / f"{name}.csv")
    return table[table["direction"] == "text_to_image"].set_index(["split", "variant"])


def apart(name):
    """A table's differences, text to image, by split, first and second."""
    table = read_table(REPOSITORY / "figures" / f"{name}.csv")
    table = table[table["direction"] == "text_to_image"]
    assert set(table["metric"]) == {"MRR"}
    return table.set_index(["split", "first", "second"])


def test_the_one_sentence_is_what_the_differences_say():
    found = apart("differences")
    assert found.loc[("test", "entityclip", "clip"), "low"] <= 0
    assert found.loc[("test", "entityclip", "clip"), "high"] >= 0
    for pair in (("entityclip", "clip"), ("bridge", "clip"), ("bridge", "entityclip"),
                 ("name-views", "bridge")):  # fmt: skip
        assert found.loc[("test_alias", *pair), "low"] > 0, pair
        assert found.loc[("test_alias", *pair), "seeds"] >= 2
    for pair in (("bridge", "entityclip"), ("name-views", "bridge")):
        assert found.loc[("test_rare", *pair), "low"] > 0, pair
    assert found.loc[("test_alias", "name-views-context", "name-views"), "low"] <= 0
    small, large = (
        found.loc[("test_alias", *pair), "value"]
        for pair in (("entityclip", "clip"), ("bridge", "entityclip"))
    )
    assert small < large / 2  # "by far less"
    assert large < found.loc[("test_alias", "name-views", "bridge"), "value"]
    # a headline difference is known to 2.5 points and better
    several = found[found["seeds"] > 1]
    assert (several["high"] - several["low"]).max() / 2 <= 2.5


def test_how_often_names_are_told_is_what_training_captions_hold():
    held = name_counts([pair.caption for pair in newsroom_pairs("train", 3000)])
    said = f"{min(held['common'])} to {max(held['common'])}"
    for text in (README, FINDINGS):
        assert said in text, said
    assert {min(held["rare"]), max(held["rare"])} == {1, 3}  # "one to three"


def test_unseen_names_lie_on_the_floor_for_everybody():
    """The alarm: whoever finds them has read what it must not."""
    found = at("retrieval")
    floor = found.loc[("test_unseen", "scene-only"), "R@10"]
    trained = found.loc["test_unseen"].drop(["scene-only", "names-cut"])
    assert len(trained) >= 8
    assert (trained["R@10_low"] <= floor).all()
    for table in ("views", "controls"):
        assert (at(table).loc["test_unseen", "R@10_low"] <= floor).all()


def test_refuters_fall_as_they_should():
    found = at("views").loc["test_alias"]
    bridge, clip, best = (found.loc[name] for name in ("bridge", "clip", "name-views-context"))
    assert tuple(TABLES["views"][-5:]) == (
        "word-views", "other-views", "caption-views", "shuffled-context", "caption-context"
    )  # fmt: skip
    assert found.loc["other-views", "R@10_high"] < bridge["R@10_low"]
    own = found.loc["caption-views"]
    assert own["R@10_low"] < bridge["R@10_high"]
    assert own["R@10_high"] > bridge["R@10_low"]
    words = found.loc["word-views"]
    assert bridge["R@10"] < words["R@10"] < (bridge["R@10"] + best["R@10"]) / 2
    for name in ("shuffled-context", "caption-context"):
        assert found.loc[name, "R@10_low"] <= clip["R@10_high"], name
    cost = read_table(REPOSITORY / "figures" / "costs.csv").set_index("variant")["GFLOPs a pair"]
    assert cost["name-views-context"] <= 1.02 * cost["bridge"]  # "at the bridge's cost"


def test_controls_and_methods_are_as_told():
    """The sentences of figures/README.md on them, by MRR, text to image."""
    controls, methods = apart("controls_differences"), apart("methods_differences")
    for name in ("shuffled-explanations", "random-explanations", "caption-as-explanation"):
        lost = controls.loc[("test_alias", name, "entityclip")]
        if name == "shuffled-explanations":
            assert lost["low"] < 0 < lost["high"]  # "could not be told from nothing"
            continue
        assert lost["high"] < 0
        assert lost["value"] < controls.loc[("test_alias", "clip", "entityclip"), "value"]
    crossed = controls.loc[("test_alias", "crossed", "entityclip")]
    bridge = controls.loc[("test_alias", "bridge", "entityclip")]
    assert crossed["low"] > bridge["high"]
    crossed = controls.loc[("test_rare", "crossed", "entityclip")]
    assert crossed["high"] < controls.loc[("test_rare", "bridge", "entityclip"), "low"]
    best = "name-views-context"
    for split in ("test_rare", "test_alias"):
        assert methods.loc[(split, "alias-swaps", best), "low"] > 0
        assert methods.loc[(split, "other-swaps", best), "high"] < 0
    assert methods.loc[("test", "alias-swaps", best), "high"] < 0
    for split in ("test", "test_rare", "test_alias"):
        for name in ("masked-negatives", "random-masked"):
            found = methods.loc[(split, name, best)]
            assert found["low"] <= 0 <= found["high"]
        assert methods.loc[(split, "frozen-image", best), "high"] < 0
        frozen = methods.loc[(split, "frozen-text", best), "value"]
        assert frozen < methods.loc[(split, "clip", best), "value"]
    views = apart("views_differences")
    assert views.loc[("test_rare", "name-views", best), "low"] > 0
    asked = apart("afterwards_differences")
    for name in ("clip", best):
        between = asked.loc[("test_alias", f"wise-ft-{name}", best), "value"]
        whole = asked.loc[("test_alias", name, best), "value"] if name == "clip" else 0
        assert between < whole + 0.1
    for split in ("test", "test_rare", "test_alias"):
        assert asked.loc[(split, f"expanded-{best}", best), "low"] > 0
        assert asked.loc[(split, f"expanded-shuffled-{best}", best), "high"] < -10


def test_seeds_are_as_the_limits_tell_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))  # shipped rows alone
    rows = find_rows(load_profile("demo"), "retrieval")
    assert rows["device"].nunique() == 1
    drawn = rows.groupby("data_fingerprint")["seed"].unique().map(sorted)
    assert all(set(seeds) <= {0, 1, 2} or set(seeds) <= {3, 4} for seeds in drawn)
    seeds = rows.groupby("variant")["seed"].nunique()
    trained = [name for name in TABLES["main"] if name != "zero-shot"]
    assert set(seeds[trained]) == {5}
    others = seeds.drop([*trained, "zero-shot"])
    assert set(others) <= {2, 3}
    assert set(others[others < 3].index) <= set(TABLES["afterwards"])


def test_what_explanations_must_tell():
    """The sentences on the sources of explanations, aliases, by MRR, text to image."""
    found = apart("explanation_sources_differences").loc["test_alias"].droplevel("second")
    for source in ("25 % false", "none false", "50 % false", "names only"):
        assert found.loc[f"{source}: Name views + context", "low"] > 10
    most = max(
        found.loc[f"{n} false: Name views + context", "low"] for n in ("25 %", "none", "50 %")
    )
    assert found.loc["names only: Name views + context", "high"] > most
    named = "looks only: Name views + context", "looks only: EntityCLIP", "names only: EntityCLIP"
    for name in named:
        assert found.loc[name, "low"] <= 0 <= found.loc[name, "high"]


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
