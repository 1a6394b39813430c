"""The rehearsal in small: archives with all their quirks, and a few notebooks of the chain."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from entityclip.datasets.pair import ImageError
from entityclip.datasets.registry import LOADERS
from entityclip.explanations.joining import read_authors
from tests.rehearsal import cells
from tests.rehearsal.__main__ import SETTINGS, rehearse
from tests.rehearsal.archives import SECTIONS, draw_archives

PAIRS = 60


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return draw_archives(tmp_path_factory.mktemp("drawn"), pairs=PAIRS)


def load(roots, name, split):
    return LOADERS[name](roots[name], split)


@pytest.mark.parametrize("name", ["n24news", "visualnews", "goodnews"])
def test_an_archive_loads_less_what_its_quirks_take(roots, name):
    parts = {split: load(roots, name, split) for split in ("train", "val", "test")}
    assert [len(pairs) for pairs, _ in parts.values()] == [41, 5, 11]  # of 42, 6, 12: one missing
    assert all(pair.explanation for pairs, _ in parts.values() for pair in pairs)
    groups = [pair.group for pair in parts["train"][0]]
    assert (None in groups) == (name == "visualnews")
    if name != "visualnews":
        assert 2 * len({*groups}) == len(groups) + 1  # articles of two pictures, one lost
    report = str(parts["train"][1])
    assert "1 without their picture, 1 repeated" in report
    assert (
        f"{ {'n24news': 2, 'visualnews': 1, 'goodnews': 0}[name] } with an empty caption" in report
    )


def test_explanations_lie_under_paths_of_other_machines(roots):
    told = json.loads((roots["n24news"] / "news" / "CapDsc_mistral_train.json").read_text())
    assert {key.rpartition("\\")[0] or key.rpartition("/")[0] for key in told} == {
        "", "C:\\data", "/home/someone/data/N24News/imgs",
    }  # fmt: skip
    beside = roots["visualnews"] / "origin" / "CapDsc_mistral_test.json"
    assert all(key.startswith("/home/someone/") for key in json.loads(beside.read_text()))
    assert len(read_authors(beside, "visualnews")) == 12
    derived = json.loads((roots["goodnews"] / "new_goodnews_capim_val.json").read_text())
    assert all("\r\n" in row["captioning"] for row in derived)


def test_pictures_have_the_sizes_and_the_oddities_of_news_pictures(roots):
    seen, sizes = set(), []
    for path in (roots["n24news"] / "imgs").iterdir():
        with Image.open(path) as picture:
            sizes.append(max(picture.size))
            seen |= {picture.mode, picture.format}
            seen |= {"turned"} if picture.getexif().get(0x0112) == 6 else set()
            seen |= {"progressive"} if "progressive" in picture.info else set()
    assert min(sizes) >= 600
    assert {"L", "CMYK", "RGB", "JPEG", "PNG", "turned", "progressive"} <= seen


def test_larger_archives_have_every_section_and_a_broken_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.rehearsal.archives._DRAWN", 32)  # no need to see anything
    roots = draw_archives(tmp_path, pairs=240)
    assert {pair.section for pair in load(roots, "n24news", "test")[0]} == {*SECTIONS}
    for name in ("n24news", "visualnews"):
        broken = []
        for pair in load(roots, name, "train")[0]:
            try:
                pair.load_image()
            except ImageError:
                broken.append(pair.id)
        assert len(broken) == 1
    assert (roots["goodnews"] / "broken_images.txt").read_text().count(".jpg\n") == 1


def test_the_same_archives_have_the_same_bytes_and_are_not_drawn_twice(roots, tmp_path):
    again = draw_archives(tmp_path, pairs=PAIRS)
    for name, root in roots.items():
        files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
        assert files == sorted(
            p.relative_to(again[name]) for p in again[name].rglob("*") if p.is_file()
        )
        assert all((root / f).read_bytes() == (again[name] / f).read_bytes() for f in files)
    cache = "llm_explanations.jsonl"
    beside = next(iter(roots.values())).parent
    assert (beside / cache).read_bytes() == (tmp_path / cache).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    draw_archives(tmp_path, pairs=PAIRS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_chain_runs_where_an_archive_is_missing(roots, tmp_path, capfd):
    """Notebooks that train, cross domains and draw; the rest is `make rehearsal`'s."""
    there = {**roots, "visualnews": tmp_path / "away"}
    small = {
        "main_seeds": [42],
        "mixes": [],
        "backbones": [],
        "train_tables": False,
        "bootstrap": 20,
    }
    only = ["03_train", "07_generalization", "10_tables_and_figures"]
    assert rehearse(there, tmp_path, only, **small) == 0
    said = capfd.readouterr().out
    assert f"visualnews is left out: {there['visualnews']} is no folder" in said
    table = pd.read_csv(tmp_path / "paper" / "figures" / "cross_domain.csv", comment="#")
    one_way = table[table["direction"] == "text_to_image"]
    pairs = one_way.groupby("trained_on")["dataset"].agg(set).to_dict()
    both = {"n24news", "goodnews"}
    assert pairs == {"none": both, "n24news": both, "goodnews": both}
    assert (tmp_path / "n24news" / "figures" / "section_confusion.png").exists()
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"n24news", "goodnews", "paper", "data"}


def test_cells_that_are_lacking_are_counted(tmp_path, capsys):
    wanted = cells.Expected(2, ("R@1", "low"))
    assert cells._line("n24news", "retrieval", wanted, tmp_path) == 4
    (tmp_path / "retrieval.csv").write_text("# how\nR@1,low\n1,2\n3,\n")
    assert cells._line("n24news", "retrieval", wanted, tmp_path) == 1
    assert "<--" in capsys.readouterr().out
    (tmp_path / "retrieval.csv").write_text("R@1,low\n1,2\n3,4\n")
    assert cells._line("n24news", "retrieval", wanted, tmp_path) == 0
    asked = cells.expected(SETTINGS, splits=2, domains=3, sections=24)
    assert asked["retrieval"].rows == 7 * 2 * 2
    assert asked["cross_domain"].rows == 3 * 2 * 3
    assert asked["backbones"].rows == 6 * 2 * 2
