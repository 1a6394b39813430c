"""Your own pictures and captions: every mistake in the CSV is named by row and column."""

import pytest
import torch
from safetensors.torch import save_file

from entityclip.config import load_profile
from entityclip.datasets import LOADERS, load_pairs
from entityclip.datasets.reading import csv_rows
from entityclip.experiments.experiment import Experiment
from tests.fixtures.pictures import save

GOOD = "image,caption\na.jpg,One\nb.jpg,Two\n"


def folder(root, content=GOOD, pictures=("a.jpg", "b.jpg"), name="captions.csv"):
    for number, picture in enumerate(pictures):
        save(root / picture, number)
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


WRONG = [
    ("", "must name the columns image, caption once each, and lacks image, caption: got nothing"),
    ("image,image,caption\na,b,c\n", "names a column twice"),
    ("image:caption\na.jpg:One\n", r"captions\.csv: the first line .* lacks image, caption: go"),
    ("image,captions\na.jpg,One\n", "is 'captions' it[?] Then name it caption"),
    ("image,caption\na.jpg,One,two\n", r"row 2: 3 fields for 2 columns; is a comma not quoted"),
    (GOOD + "c.jpg,Three\nd.jpg,Four\n",
     r"row 4: field 'image' is 'c\.jpg', and there is no such picture .*\(1 more such rows: 5\)"),
    ("image,caption\n../a.jpg,One\n", r"row 2: field 'image' is '\.\./a\.jpg', which is no plain"),
    ("image,caption\n/etc/passwd,One\n", "row 2: field 'image' is '/etc/passwd', which is no plai"),
    ("image,caption,id\na.jpg,One,x\nb.jpg,Two,x\n",
     r"row 3: field 'id' is 'x', which row 2 has already"),
    ("image,caption,id\na.jpg,One,\n", "row 2: field 'id' is empty"),
    ("image,caption,split\na.jpg,One,training\n", "row 2: field 'split' is 'training', none of"),
    ("image,caption\na.jpg,Köln\n".encode("latin-1"),
     r"not UTF-8 in row 2, column 'caption' \(byte 0xf6\); .*save it as CSV UTF-8"),
    ("image,caption\na.jpg,One\n".encode("utf-16"), "not UTF-8 but UTF-16"),
    ("image,caption\np\\a.jpg,One\n", r"row 2: field 'image' is 'p/a\.jpg', and there is no such "),
    (GOOD + 'a.jpg,"never closed', "a quote opens in row 4, column 'caption' and is never closed"),
    (GOOD + 'a.jpg,"never closed\n\na.jpg,x\n', "opens in row 4, column 'caption' and is never"),
    (GOOD + 'a.jpg,"never closed\na.jpg,"x"\n', "follows a closing quote in row 4, column 'capt"),
    ('\ufeff' + GOOD + 'a.jpg,"Big" day\n', "closing quote in row 4, column 'caption'; put the wh"),
    (GOOD + '"a.jpg" ,One\n', "more text follows a closing quote in row 4, column 'image'"),
    (GOOD + 'a.jpg,"He said \\"no\\" twice"\n', "row 4, column .caption.; .*each quote inside tw"),
    ('image,"caption\na.jpg,One\n', "a quote opens in row 1, column 1 and is never closed"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_mistake_is_named_by_row_and_column(content, message, tmp_path):
    root = folder(tmp_path, content)
    with pytest.raises(ValueError, match=message) as raised:
        load_pairs("folder", "all", root=root)
    assert "fetch" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("extra", ["caption_2", "images", "splits", "captions", "Image", ""])
def test_a_column_of_ones_own_is_passed_over(extra, tmp_path):
    root = folder(tmp_path, f"{extra},image,caption,group\nuno,a.jpg,One,g\n")
    (pair,) = load_pairs("folder", "all", root=root)
    assert (pair.id, pair.caption, pair.group) == ("a.jpg", "One", "g")


def test_what_is_passed_over_and_may_be_a_mistake_is_noted(tmp_path):
    root = folder(tmp_path, "image,caption,explanaton\na.jpg,One,x\n\nb.jpg,Two,y\n\n")
    pairs, report = LOADERS["folder"](root, "all")
    assert len(pairs) == report.rows == 2
    assert report.notes == ["captions.csv: column 'explanaton' is ignored; is it 'explanation'?",
                            "captions.csv: 2 blank lines passed over"]  # fmt: skip
    assert str(report).endswith("; " + "; ".join(report.notes))


def test_a_split_without_a_row_is_said(tmp_path):
    root = folder(tmp_path, "image,caption,split\na.jpg,One,train\n")
    with pytest.raises(ValueError, match="no usable pair: 0 rows: none of the file is of this spl"):
        load_pairs("folder", "test", root=root)


def test_rows_count_as_a_spreadsheet_shows_them_past_line_breaks_in_cells(tmp_path):
    content = b'image,caption\na.jpg,"One\nand more"\nb.jpg,\xff\n'
    with pytest.raises(ValueError, match="row 3, column 'caption'"):
        list(csv_rows(folder(tmp_path, content) / "captions.csv", ("image",), first=2))


def test_the_only_table_may_have_another_name_and_of_several_one_must_be_named(tmp_path):
    root = folder(tmp_path, name="Captions final.csv")
    assert len(load_pairs("folder", "all", root=root)) == 2
    folder(tmp_path, name="others.csv")
    with pytest.raises(ValueError, match=r"has Captions final\.csv, others\.csv; name the one"):
        load_pairs("folder", "all", root=root)
    folder(tmp_path, name="captions.csv")
    assert len(load_pairs("folder", "all", root=root)) == 2
    folder(tmp_path, name="metadata.csv")
    with pytest.raises(ValueError, match=r"has captions\.csv, metadata\.csv; which is meant"):
        load_pairs("folder", "all", root=root)


def test_a_picture_behind_a_link_out_of_the_folder_is_left_out_and_counted(tmp_path, caplog):
    save(tmp_path / "elsewhere.jpg", 3)
    root = folder(tmp_path / "root", pictures=("a.jpg",))
    (root / "b.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert [pair.id for pair in load_pairs("folder", "all", root=root)] == ["a.jpg"]
    assert "1 whose picture is a link out of the root" in caplog.text


def test_without_ids_and_splits_the_pictures_name_decides(tmp_path):
    names = [f"{n}.jpg" for n in range(60)]
    rows = "".join(f"{name},First of {name}\n{name},Second\n" for name in names)
    root = folder(tmp_path, f"image,caption\n{rows}", names)
    splits = {name: load_pairs("folder", name, root=root) for name in ("train", "val", "test")}
    assert [pair.id for pair in load_pairs("folder", "all", root=root)][:3] == [
        "0.jpg", "0.jpg#2", "1.jpg",
    ]  # fmt: skip
    pictures = [{pair.image for pair in pairs} for pairs in splits.values()]
    assert sum(map(len, splits.values())) == 120
    assert len(set.union(*pictures)) == sum(map(len, pictures)) == 60
    assert 36 <= len(pictures[0]) <= 58
    # a file that grows moves no picture to another split
    folder(tmp_path, f"image,caption\nnew.jpg,Another\n{rows}", ["new.jpg"])
    for name, before in splits.items():
        after = {pair.id for pair in load_pairs("folder", name, root=root)} - {"new.jpg"}
        assert after == {pair.id for pair in before}


def test_a_profile_trains_on_the_folder(tmp_path, backbone, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    torch.manual_seed(1)
    rows = ["image,caption,explanation,split"]
    for number in range(12):
        split = ("train", "train", "val", "test")[number % 4]
        rows.append(f"{number}.jpg,Caption {number},Shows {number},{split}")
    root = folder(tmp_path / "root", "\n".join(rows), [f"{number}.jpg" for number in range(12)])
    start = tmp_path / "start.safetensors"
    save_file(backbone.clip.state_dict(), start)
    settings = {
        "dataset": "folder", "data_root": str(root), "pretrained": str(start), "pretraining": None,
        "test_splits": ["test"], "explanation_source": "own",
        "finetuning": {"epochs": 1, "batch_size": 3, "warmup_steps": 0},
    }  # fmt: skip
    experiment = Experiment(load_profile("smoke", settings=settings), progress=False)
    assert [len(experiment.pairs(split)) for split in ("train", "val", "test")] == [6, 3, 3]
    assert experiment.finetune("entityclip").joinpath("best.safetensors").is_file()
