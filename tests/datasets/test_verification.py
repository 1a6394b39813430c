"""``entityclip data verify``: whole again once mended; pictures that splits share by content."""

import json

import pytest
from PIL import ImageEnhance

from entityclip.console import guarded
from entityclip.datasets import __main__
from tests.fixtures import layouts
from tests.fixtures.pictures import photo


def verify(root, out, *more, dataset="folder"):
    command = ["verify", dataset, "--root", str(root), "--quiet", *more]
    status = guarded(__main__.main, [*command, *(("--out", str(out)) if out else ())])
    return status, json.loads((out / "verify.json").read_text()) if out else None


@pytest.fixture
def root(tmp_path):
    """A folder of one's own: eight pictures, of train and test."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(8):
        photo(number).save(root / f"{number}.jpg")
    write_rows(root, [f"{number}.jpg,caption {number},{split_of(number)}" for number in range(8)])
    return root


def split_of(number):
    return "train" if number < 5 else "test"


def write_rows(root, rows):
    (root / "captions.csv").write_text("\n".join(["image,caption,split", *rows]) + "\n")


def test_ones_own_folder_needs_not_every_split(root, tmp_path):
    status, result = verify(root, tmp_path / "out")
    assert (status, result["problems"], result["pictures"]) == (0, [], 8)
    assert "val holds no usable pair: 0 rows" in "\n".join(result["notes"])
    status, result = verify(root, tmp_path / "out", "--splits", "val")
    assert status == 1  # it was asked for


def test_a_mended_picture_makes_it_whole_whatever_its_bytes(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert verify(root, out)[0] == 0
    (root / "6.jpg").write_bytes(b"torn")
    status, result = verify(root, out)
    assert (status, list(result["broken"]), result["known"]) == (1, ["6.jpg"], 7)
    photo(60).save(root / "6.jpg")
    status, result = verify(root, out)
    assert (status, result["problems"], result["broken"], result["known"]) == (0, [], {}, 7)
    assert "1 pictures are others now, and whole: 6.jpg" in result["notes"]
    capsys.readouterr()
    status, result = verify(root, out)
    assert (status, result["known"]) == (0, 8)
    assert {row["status"] for row in result["checksums"]} == {"same"}
    assert "(8 of them earlier, and unchanged: --again decodes all anew)" in capsys.readouterr().out
    assert verify(root, out, "--again")[1]["known"] == 0


def test_a_mended_table_makes_it_whole(root, tmp_path):
    out, good = tmp_path / "out", (root / "captions.csv").read_text()
    (root / "captions.csv").write_text(good + "8.jpg,lost,test\n")
    status, result = verify(root, out)
    assert status == 1
    (problem,) = (text for text in result["problems"] if "8.jpg" in text)
    assert problem.startswith("train, val, test, all: ")  # once for all of them
    (root / "captions.csv").write_text(good)
    assert verify(root, out)[0] == 0
    (root / "captions.csv").write_text(good.replace("caption 3", "a better one"))
    status, result = verify(root, out)
    assert status == 0
    assert "captions.csv is not the file that was first verified" in result["notes"]
    assert verify(root, out)[1]["checksums"][0]["status"] == "same"


def test_a_public_sets_table_once_at_fault_is_whole_once_mended_or_accepted(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    layouts.n24news(root)
    table = root / "news" / "nytimes_test.json"
    good = table.read_text()
    table.write_text(good[:-20])
    assert verify(root, out, dataset="n24news")[0] == 1
    table.write_text(good)
    assert verify(root, out, dataset="n24news")[0] == 0
    table.write_text(good + "\n")
    for _ in range(2):  # another table is another data set
        status, result = verify(root, out, dataset="n24news")
        assert status == 1
        assert "or run verify with --accept if the change is meant" in result["problems"][0]
    assert verify(root, out, "--accept", dataset="n24news")[0] == 0
    assert verify(root, out, dataset="n24news")[0] == 0


def test_pictures_that_splits_share_by_content_are_named(root, tmp_path, capsys):
    (root / "5.jpg").write_bytes((root / "0.jpg").read_bytes())
    changed = ImageEnhance.Brightness(photo(1).resize((120, 90))).enhance(1.1)
    changed.save(root / "6.png", quality=60)
    rows = [f"{number}.jpg,caption {number},{split_of(number)}" for number in range(6)]
    write_rows(root, [*rows, "2.jpg,again,test", "6.png,a copy,test", "7.jpg,another,test"])
    status, result = verify(root, tmp_path / "out")
    assert status == 0
    found = {leak["picture"]: leak for leak in result["leaks"]}
    assert {name: (leak["other"], leak["how"]) for name, leak in found.items()} == {
        "2.jpg": ("2.jpg", "the same file"),
        "5.jpg": ("0.jpg", "the same bytes"),
        "6.png": ("1.jpg", "nearly the same"),
    }
    assert {(leak["first"], leak["second"]) for leak in found.values()} == {("train", "test")}
    assert (
        "1 pictures of test are nearly the same as pictures of train under other names "
        "(e.g. 6.png = 1.jpg)" in result["notes"]
    )
    printed = capsys.readouterr().out
    assert "Pictures that splits share, 3 in all" in printed
    # as well from the journal
    assert verify(root, tmp_path / "out")[1]["leaks"] == result["leaks"]


def test_two_roots_verified_one_after_the_other_do_not_meet(root, tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    other = tmp_path / "other"
    other.mkdir()
    photo(70).save(other / "0.jpg")
    write_rows(other, ["0.jpg,mine,train"])
    for _ in range(2):
        assert verify(root, None)[0] == verify(other, None)[0] == 0
    found = sorted((tmp_path / "runs" / "data").glob("folder-*/verify.json"))
    pictures = sorted(json.loads(path.read_text())["pictures"] for path in found)
    assert pictures == [1, 8]


def test_checksums_that_an_earlier_version_recorded_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    root, old = tmp_path / "root", tmp_path / "runs" / "data" / "n24news"
    layouts.n24news(root)
    assert verify(root, old, dataset="n24news")[0] == 0
    (root / "news" / "nytimes_test.json").write_text("[]")
    assert verify(root, None, dataset="n24news")[0] == 1
    (new,) = (tmp_path / "runs" / "data").glob("n24news-*/verify.json")
    assert "is not the file that was first verified" in new.read_text()
