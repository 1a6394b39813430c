"""Which data sets lie below a folder, and the section notebook 00 gives each of them."""

from __future__ import annotations

import json

import nbformat
import papermill
import pytest

from entityclip.config import REPOSITORY
from entityclip.datasets.discover import find_datasets
from entityclip.datasets.manifest import load_manifest
from entityclip.datasets.summary import shared_rows, summarise
from tests.fixtures import layouts
from tests.fixtures.layouts import BUILDERS

NOTEBOOK = "00_setup_and_data.ipynb"
TINY = {
    **{f"{split}_pairs": 8 for split in ("train", "val", "test")},
    "pretraining": {"pairs": 8, "eval_pairs": 8, "train": {"epochs": 1, "batch_size": 8}},
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_layout_is_known_for_what_it_is(name, tmp_path):
    BUILDERS[name](tmp_path / "somewhere")
    assert find_datasets(tmp_path / "somewhere") == {name: tmp_path / "somewhere"}
    assert find_datasets(str(tmp_path)) == {name: tmp_path / "somewhere"}


def test_each_release_of_a_layout_is_known(tmp_path):
    layouts.visualnews(tmp_path / "a", origin=True)
    layouts.goodnews(tmp_path / "b", official=False)
    assert find_datasets(tmp_path) == {"visualnews": tmp_path / "a", "goodnews": tmp_path / "b"}


def test_none_is_fine_and_a_lone_folder_of_pictures_is_none(tmp_path):
    assert find_datasets(None) == {}
    assert find_datasets(tmp_path) == {}
    layouts.n24news(tmp_path)
    (tmp_path / "news" / "nytimes_train.json").unlink()
    assert set(find_datasets(tmp_path)) == {"n24news"}  # fetched in parts: verify says so
    for split in ("dev", "test"):
        (tmp_path / "news" / f"nytimes_{split}.json").unlink()
    assert find_datasets(tmp_path) == {}


def test_a_missing_root_and_two_copies_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; set `data_root`"):
        find_datasets(tmp_path / "nowhere")
    for copy in ("one", "two"):
        layouts.tweets(tmp_path / copy)
    with pytest.raises(ValueError, match=r"one and .*two both hold tweets"):
        find_datasets(tmp_path)


def test_shared_rows_are_found_but_not_where_splits_contain_one_another(tmp_path):
    layouts.visualnews(tmp_path)
    entry = load_manifest().datasets["visualnews"]
    assert shared_rows(summarise("visualnews", tmp_path), entry) == []
    path = tmp_path / "test.json"
    train = json.loads((tmp_path / "train.json").read_text())
    path.write_text(json.dumps([*json.loads(path.read_text()), train[1], train[2]]))
    [shared] = shared_rows(summarise("visualnews", tmp_path), entry)
    assert (shared.first, shared.second, shared.ids, shared.pictures) == ("train", "test", 2, 2)


def test_notebook_00_grows_a_section_per_data_set_found(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    layouts.n24news(tmp_path / "data" / "nyt")
    layouts.karpathy(tmp_path / "data" / "flickr")
    # a picture that cannot be read is counted, and no sample
    (tmp_path / "data" / "nyt" / "imgs" / "img-1.jpg").write_bytes(b"")
    notebook = papermill.execute_notebook(
        REPOSITORY / "notebooks" / NOTEBOOK,
        tmp_path / NOTEBOOK,
        {"settings": {**TINY, "data_root": str(tmp_path / "data")}},
        cwd=REPOSITORY / "notebooks",
        progress_bar=False,
    )
    [cell] = [c for c in notebook.cells if "shared_rows(parts" in c.source]
    kinds = [kind for o in cell.outputs for kind in (o.get("data") or {"print": 0})]
    headings = [
        o.data["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})
    ]
    assert [text.splitlines()[0] for text in headings] == [
        "### N24News", "### Flickr30K, Karpathy's splits",
    ]  # fmt: skip
    assert sum(kind.startswith("image/") for kind in kinds) == 4  # samples and histograms of each
    tables = [o.data["text/plain"] for o in cell.outputs if "text/html" in o.get("data", {})]
    rows = [dict(line.split(maxsplit=1) for line in t.splitlines() if line.split()) for t in tables]
    assert [row["pairs"].split() for row in rows] == [["12", "6", "6"], ["80", "20", "20"]]
    assert rows[0]["pictures_broken"].split()[0] == "1"
    written = {path.name for path in (tmp_path / "runs" / "smoke" / "figures").glob("data_*")}
    assert {"data_n24news.csv", "data_n24news.png", "data_flickr30k.csv"} <= written
    nbformat.validate(notebook)
