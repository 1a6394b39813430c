"""The data manifest, and ``entityclip data`` on miniature copies."""

import json
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from IPython.display import Image, Markdown

from entityclip.__main__ import main as entityclip_main
from entityclip.config import REPOSITORY
from entityclip.console import guarded
from entityclip.datasets import DATASETS, DRAWN, __main__
from entityclip.datasets.care import count_names, shared_rows, summarise, summary_table
from entityclip.datasets.manifest import (
    MANIFEST,
    ManifestError,
    expand,
    load_manifest,
    missing_files,
)
from tests.fixtures import layouts
from tests.fixtures.pictures import save


def run(*arguments):
    return guarded(__main__.main, [str(argument) for argument in arguments])


def verify(root, out, *more, dataset="n24news"):
    status = run("verify", dataset, "--root", root, "--out", out, "--quiet", *more)
    return status, json.loads((out / "verify.json").read_text())


# ------------------------------------------------------------------------------------- manifest


def test_the_manifest_knows_every_data_set_and_split():
    entries = load_manifest().datasets
    assert {name: set(entry.splits) for name, entry in entries.items()} == {
        name: set(splits) for name, splits in DATASETS.items()
    }
    for name, entry in entries.items():
        assert (entry.paper is None) == (name in DRAWN or name == "folder")


def n24news_changed(path, old, new):
    """The manifest, its entry of N24News changed, written to path."""
    before, mark, after = MANIFEST.read_text().partition("  n24news:")
    assert old in mark + after
    path.write_text(before + (mark + after).replace(old, new, 1))
    return path


BOMB = "venue: [&a0 [x, x, x, x, x, x, x, x, x]" + "".join(
    f", &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
) + "]"  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: N24News", "title: 7", "n24news.title: Input should be a valid string"),
        ("title: N24News", "titel: N24News", "n24news.titel: there is no such field"),
        ("year: 2022", "year: twenty", "n24news.paper.year: Input should be a valid integer"),
        ("year: 2022", "year: 22", "n24news.paper.year: Input should be greater"),
        ("venue: LREC", "venue: [LREC]", "n24news.paper.venue"),
        ("page: https://github.com/billy", "page: ftp://x", "n24news.page: String should"),
        ('"imgs/*.jpg"', '"../imgs/*.jpg"', "n24news.layout.1.path.*no path below the root"),
        ('"imgs/*.jpg"', '"/imgs/*.jpg"', "no path below the root"),
        ("files: 3", "files: three", "n24news.layout.0.files"),
        ("required: false", "required: maybe", "n24news.layout.2.required"),
        ("train: {pairs: null}", "train: {pairs: -1}", "n24news.splits.train.pairs"),
        ("train: {pairs: null}", "train: {}", "n24news.splits.train.pairs: Field required"),
        ("  n24news:", "  newsroom:", "'newsroom' stands twice"),
        ("title: N24News", "title: [N24News", "expected ',' or ']'"),
        ("title: N24News", "title: !!python/object:os.system x", "could not determine a construct"),
        ("train: {pairs: null}", "train: !!timestamp x", "not YAML"),
        ("title: N24News", f"title: {'1' * 5000}", "not YAML"),
        ("venue: LREC", "venue: &a [*a]", "refers to itself"),
        ("venue: LREC", BOMB, "its aliases make it more than"),
        ('"imgs/*.jpg"', f'"{"{a,b}" * 40}"', "layout.1.path: .*more than 1000 patterns"),
    ],
)
def test_a_manifest_error_names_its_line(old, new, message, tmp_path):
    path = n24news_changed(tmp_path / "data_manifest.yaml", old, new)
    with pytest.raises(ManifestError, match=message) as raised:
        load_manifest(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    vague = ("not YAML", "required", "expected ','", "aliases make it")
    if not any(text in message for text in vague):
        line = int(str(raised.value).split("line ")[1].split(":")[0])
        assert new.split("{")[0].strip() in path.read_text().split("\n")[line - 1]


@pytest.mark.parametrize(
    "text", ["", "[]", "datasets: {}", "\ttab", "a: &x [*x]", "? {a: 1}\n: 2", "1: 2"]
)
def test_a_manifest_of_another_shape_is_refused(text, tmp_path):
    path = tmp_path / "data_manifest.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=r"data_manifest\.yaml"):
        load_manifest(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(tmp_path / "none.yaml")


def test_patterns_expand():
    assert expand("{,o/}{a,b}.json") == ["a.json", "b.json", "o/a.json", "o/b.json"]
    assert expand("{x,new_{a,b}}.json") == ["x.json", "new_a.json", "new_b.json"]


@pytest.mark.parametrize("name", layouts.BUILDERS)
def test_what_a_folder_lacks_is_told_by_the_layout(name, tmp_path):
    layouts.BUILDERS[name](tmp_path / "root")
    assert missing_files(name, tmp_path / "root") == []
    layout = load_manifest().datasets[name].layout
    (tmp_path / "empty").mkdir()
    required = [line.path for line in layout if line.required]
    assert missing_files(name, tmp_path / "empty") == required


@pytest.mark.parametrize(
    ("name", "options"), [("visualnews", {"origin": True}), ("goodnews", {"official": False})]
)
def test_either_release_of_a_layout_is_enough(name, options, tmp_path):
    layouts.BUILDERS[name](tmp_path, **options)
    assert missing_files(name, tmp_path) == []


# --------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize("dataset", sorted(set(layouts.BUILDERS) - {"tweets"}))
def test_a_whole_data_set_verifies(dataset, tmp_path, capsys):
    expected = layouts.BUILDERS[dataset](tmp_path / "root")
    status, result = verify(tmp_path / "root", tmp_path / "out", dataset=dataset)
    assert (status, result["problems"], result["broken"]) == (0, [], {})
    counts = {row["split"]: row["pairs"] for row in result["splits"]}
    assert counts == {name: len(rows) for name, rows in expected.items()}
    assert result["pictures"] == len({row[1] for rows in expected.values() for row in rows})
    assert {row["status"] for row in result["checksums"]} == {"recorded"}
    assert f"{dataset}: whole" in capsys.readouterr().out
    _, again = verify(tmp_path / "root", tmp_path / "out", dataset=dataset)
    assert {row["status"] for row in again["checksums"]} == {"same"}


def test_verify_finds_what_is_wrong(tmp_path, capsys):
    root, out = tmp_path / "root", tmp_path / "out"
    layouts.n24news(root)
    assert verify(root, out)[0] == 0
    (root / "imgs" / "img-1.jpg").write_bytes(b"no picture")
    (root / "news" / "nytimes_test.json").write_text("[{")
    rows = json.loads((root / "news" / "nytimes_train.json").read_text())
    layouts.write_json(root / "news" / "nytimes_dev.json", rows[:2])
    status, result = verify(root, out)
    assert status == 1
    assert list(result["broken"]) == ["imgs/img-1.jpg"]
    problems = "\n".join(result["problems"])
    assert "test: " in problems
    assert "nytimes_test.json is not JSON" in problems
    assert "1 of 12 pictures broken: imgs/img-1.jpg" in problems
    assert "news/nytimes_dev.json is not the file that was first verified" in problems
    assert any("train and val share 2 ids, 2 pictures" in note for note in result["notes"])
    assert "NOT whole" in capsys.readouterr().out
    # what was recorded first stays the standard
    assert any("first verified" in problem for problem in verify(root, out)[1]["problems"])


def test_verify_compares_with_the_manifest(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    layouts.n24news(root)
    old, new = "train: {pairs: null}", "train: {pairs: 12}"
    manifest = "--manifest", n24news_changed(tmp_path / "data_manifest.yaml", old, new)
    assert verify(root, out, *manifest)[0] == 0
    (root / "imgs" / "img-1.jpg").unlink()
    status, result = verify(root, out, *manifest, "--no-pictures")
    assert status == 1
    assert "train: 11 pairs, the manifest says 12" in result["problems"]
    (root / "news" / "nytimes_dev.json").unlink()
    problems = verify(root, out, "--no-pictures")[1]["problems"]
    assert problems == ["news/nytimes_{train,dev,test}.json: 2 files, expected 3"]
    layouts.tweets(tmp_path / "tweets")
    _, result = verify(tmp_path / "tweets", tmp_path / "out", dataset="tweets")
    assert "train: 24 rows, the manifest says 3576" in result["problems"]


def test_verify_says_what_is_missing_or_damaged(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    status, result = verify(root, out)
    assert status == 1
    assert "no split of n24news could be read" in "\n".join(result["problems"])
    assert "no file fits imgs/*.jpg" in "\n".join(result["problems"])
    (root / "imgs").symlink_to(tmp_path)
    problems = verify(root, out)[1]["problems"]
    assert any("is a link that leads out of" in problem for problem in problems)
    assert verify(tmp_path / "nowhere", out)[1]["problems"][0].startswith("root ")
    (out / "checksums.json").write_text('{"a": 3}')
    (problem,) = (text for text in verify(root, out)[1]["problems"] if "checksums.json" in text)
    assert re.search(r"checksums\.json: a: Input should be a valid string.*; mend it", problem)
    assert run("verify", "newsroom", "--out", out) == 0  # which has no files


@pytest.mark.parametrize("name", ["root", "imgs"])
def test_a_folder_that_may_not_be_listed_is_a_problem(name, tmp_path, monkeypatch, capsys):
    root, real = tmp_path / "root", os.scandir
    layouts.n24news(root)

    def refuse(path):  # chmod does not keep root out
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    status, result = verify(root, tmp_path / "out")
    assert status == 1
    closed = root if name == "root" else root / name
    assert f"{closed} may not be listed: Permission denied; make it readable" in result["problems"]
    assert run("prepare", "n24news", "--root", root, "--out", tmp_path / "out") == (name == "imgs")
    assert ("make it readable" in capsys.readouterr().err) == (name == "imgs")


def test_files_that_may_not_be_read_are_not_called_broken(tmp_path, monkeypatch, capsys):
    root, real = tmp_path / "root", Path.open
    layouts.n24news(root)
    (root / "imgs" / "img-2.jpg").write_bytes(b"")

    def refuse(path, *a, **k):
        if path.name in ("img-1.jpg", "nytimes_dev.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *a, **k)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("builtins.open", lambda path, *a: refuse(Path(path), *a))
    _, result = verify(root, tmp_path / "out")
    assert list(result["unreadable"]) == ["imgs/img-1.jpg"]
    assert list(result["broken"]) == ["imgs/img-2.jpg"]
    problems = "\n".join(result["problems"])
    assert "1 of 18 pictures not readable: imgs/img-1.jpg: may not be read: Perm" in problems
    assert "nytimes_dev.json may not be read: Permission denied" in problems
    assert "17 pictures decoded, 1 broken, 1 not readable" in capsys.readouterr().out
    assert not (tmp_path / "out" / "checksums.json").exists()


def test_equal_pictures_are_noted_within_and_across_splits(tmp_path):
    root = tmp_path / "root"
    layouts.n24news(root)
    for copy in ("img-2", "img-20"):  # of train, of val
        (root / "imgs" / f"{copy}.jpg").write_bytes((root / "imgs" / "img-1.jpg").read_bytes())
    status, result = verify(root, tmp_path / "out")
    assert status == 0
    assert result["notes"][-2:] == [
        "2 pictures repeat others byte for byte (e.g. imgs/img-1.jpg = imgs/img-2.jpg)",
        "1 pictures of val are the same bytes as pictures of train under other names "
        "(e.g. imgs/img-20.jpg = imgs/img-1.jpg)",
    ]


def test_escape_codes_reach_no_terminal(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\x1b[31m\u202ex"
    root = tmp_path / "root"
    save(root / f"{evil}.jpg", 1)
    save(root / "copy.jpg", 1)
    (root / f"broken{evil}.jpg").write_bytes(b"")
    (root / "captions.csv").write_text(
        f"image,caption,{evil}explanation\n{evil}.jpg,{evil},x\nbroken{evil}.jpg,a,x\ncopy.jpg,b,x\n"
    )
    for command in ("verify", "prepare", "summary"):
        more = ["--max-broken", 1] if command == "prepare" else []
        run(command, "folder", "--root", root, "--out", tmp_path / "out", "--quiet", *more)
    run("verify", "folder", "--root", root / evil, "--out", tmp_path / "out")
    shown = "".join(capsys.readouterr())
    assert "owned" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


# -------------------------------------------------------------------------- summary, prepare, use


@pytest.mark.usefixtures("figure_style")
def test_summary_counts_and_draws(tmp_path, capsys):
    layouts.n24news(tmp_path / "root")
    out = tmp_path / "out"
    arguments = ["data", "summary", "n24news", "--root", str(tmp_path / "root"), "--out", str(out)]
    assert entityclip_main(arguments) == 0
    assert {path.name for path in out.iterdir()} == {"summary.csv", "summary.png", "summary.svg"}
    assert pd.read_csv(out / "summary.csv")["split"].tolist() == ["train", "val", "test"]
    assert "N24News" in capsys.readouterr().out
    summaries = summarise("n24news", tmp_path / "root", pictures=4)
    table = summary_table(summaries).set_index("split")
    assert table.loc["train", "pairs"] == 12
    assert table.loc["train", "missing_pictures"] == 1
    assert table.loc["test", "width_median"] == 48
    assert len(summaries[0].samples) == 4  # of the pictures looked at


def test_summary_of_nothing_is_an_error(tmp_path, capsys):
    assert run("summary", "n24news", "--root", tmp_path, "--out", tmp_path / "out") == 1
    assert "no usable split of n24news" in capsys.readouterr().err


def test_shared_rows_are_found_but_not_where_splits_contain_one_another(tmp_path):
    layouts.visualnews(tmp_path)
    entry = load_manifest().datasets["visualnews"]
    assert shared_rows(summarise("visualnews", tmp_path), entry) == []
    path = tmp_path / "test.json"
    train = json.loads((tmp_path / "train.json").read_text())
    path.write_text(json.dumps([*json.loads(path.read_text()), train[1], train[2]]))
    [shared] = shared_rows(summarise("visualnews", tmp_path), entry)
    assert (shared.first, shared.second, shared.ids, shared.pictures) == ("train", "test", 2, 2)


def test_names_are_runs_of_capitalised_words():
    for caption, names in {
        "": 0,
        "Envoys met in Nairobi and Berlin.": 2,
        "Angela Merkel arrives": 1,
        "The Bank of England, London, in May": 3,
        "crowds at a port": 0,
        "President Zoë Müller in Ålesund": 2,
    }.items():
        assert count_names(caption) == names, caption


def test_prepare_writes_a_copy_that_loads(tmp_path, capsys):
    from entityclip.datasets import load_pairs

    root, out = tmp_path / "root", tmp_path / "out"
    layouts.visualnews(root)
    assert run("prepare", "visualnews", "--root", root, "--out", out, "--quiet") == 0
    assert "24 pictures in 1 shards" in capsys.readouterr().out
    (copy,) = out.glob("prepared-visualnews-*")
    pairs = load_pairs("visualnews", "test", root=root, prepared=copy)
    assert [pair.load_image().size for pair in pairs] == [(48, 36)] * 6


def test_a_wrong_command_line_is_said(tmp_path, capsys):
    assert run("verify", "n24news") == 2
    assert "give --root PATH" in capsys.readouterr().err
    assert run("verify", "n24news", "--root", tmp_path, "--splits", "dev") == 2
    assert "no split 'dev'; there are train, val, test" in capsys.readouterr().err
    assert run("prepare", "newsroom", "--out", tmp_path) == 1
    assert "nothing to prepare" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("verify", "nothing")
    capsys.readouterr()
    (tmp_path / "m.yaml").write_text("datasets: 3")
    assert run("verify", "newsroom", "--manifest", tmp_path / "m.yaml") == 1
    assert "line 1" in capsys.readouterr().err


@pytest.mark.usefixtures("figure_style")
def test_notebook_00_has_a_section_for_data_in_files(tmp_path, monkeypatch, capsys):
    """Its cells run in this process, whose imports a kernel of its own would have to repeat."""
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ENTITYCLIP_PROFILE", "smoke")
    layouts.n24news(tmp_path / "data")
    # a picture that cannot be read is counted, and no sample
    (tmp_path / "data" / "imgs" / "img-1.jpg").write_bytes(b"")
    cells = nbformat.read(REPOSITORY / "notebooks" / "00_setup_and_data.ipynb", as_version=4).cells
    imports, first, *code = [cell.source for cell in cells if cell.cell_type == "code"]
    start, end = (
        next(n for n, source in enumerate(code) if text in source)
        for text in ("LOADERS", "shared_rows(parts")
    )
    settings = {"dataset": "n24news", "data_root": str(tmp_path / "data")}
    settings |= {"pretraining": None, "pretrained": "none is read here"}
    shown = []
    names = {"display": shown.append}
    exec(imports, names)
    names["settings"] = settings
    for source in (first, *code[start : end + 1]):
        exec(source, names)
    headings = [x.data.splitlines()[0] for x in shown if isinstance(x, Markdown)]
    assert headings == ["### N24News"]
    assert sum(isinstance(x, Image) for x in shown) == 2  # samples and histograms
    (table,) = (x for x in shown if isinstance(x, pd.DataFrame))
    assert table.loc["pairs"].tolist() == [12, 6, 6]
    assert table.loc["pictures_broken"].iloc[0] == 1
    assert "downloaded data sets found: n24news" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "runs" / "smoke" / "figures").glob("data_*")}
    assert {"data_n24news.csv", "data_n24news.png"} <= written
