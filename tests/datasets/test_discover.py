"""Which data sets lie below a folder, and the section notebook 00 gives each of them."""

from __future__ import annotations

import json

import nbformat
import pandas as pd
import pytest
from IPython.display import Image, Markdown

from entityclip.config import REPOSITORY
from entityclip.datasets.care import shared_rows, summarise
from entityclip.datasets.manifest import find_datasets, load_manifest
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


def run_cells(code, first, last, **parameters):
    """What the cells show: the first two, whose parameters are set, and those from first to last.

    In this process, whose imports a kernel of its own would have to repeat.
    """
    starts = [next(n for n, source in enumerate(code) if text in source) for text in (first, last)]
    shown = []
    names = {"display": shown.append}
    exec(code[0], names)
    names |= parameters
    for source in [code[1], *code[starts[0] : starts[1] + 1]]:
        exec(source, names)
    return shown


@pytest.mark.usefixtures("figure_style")
def test_notebook_00_grows_a_section_per_data_set_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    layouts.n24news(tmp_path / "data" / "nyt")
    layouts.karpathy(tmp_path / "data" / "flickr")
    # a picture that cannot be read is counted, and no sample
    (tmp_path / "data" / "nyt" / "imgs" / "img-1.jpg").write_bytes(b"")
    cells = nbformat.read(REPOSITORY / "notebooks" / NOTEBOOK, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    settings = {**TINY, "data_root": str(tmp_path / "data")}
    shown = run_cells(code, "find_datasets", "shared_rows(parts", settings=settings)
    headings = [x.data.splitlines()[0] for x in shown if isinstance(x, Markdown)]
    assert headings == ["### N24News", "### Flickr30K, Karpathy's splits"]
    assert sum(isinstance(x, Image) for x in shown) == 4  # samples and histograms of each
    tables = [x for x in shown if isinstance(x, pd.DataFrame)]
    assert [table.loc["pairs"].tolist() for table in tables] == [[12, 6, 6], [80, 20, 20]]
    assert tables[0].loc["pictures_broken"].iloc[0] == 1
    told = capsys.readouterr().out
    assert "downloaded data sets found: n24news, flickr30k" in told
    written = {path.name for path in (tmp_path / "runs" / "smoke" / "figures").glob("data_*")}
    assert {"data_n24news.csv", "data_n24news.png", "data_flickr30k.csv"} <= written
