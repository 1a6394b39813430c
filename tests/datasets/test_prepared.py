"""A copy for each root and options, and none that does not hold what is asked for is read."""

import json
import shutil
import time

import numpy as np
import pytest

from entityclip.config import load_profile
from entityclip.console import Refused, guarded
from entityclip.datasets import __main__, load_pairs
from entityclip.datasets.picture_checks import check_pictures
from entityclip.datasets.prepare import PrepareOptions, prepare
from entityclip.datasets.prepared import (
    PreparedError,
    TarPicture,
    data_folder,
    find_copy,
    originals,
    use_prepared,
)
from entityclip.experiments import preflight
from entityclip.experiments.experiment import Experiment
from tests import processes
from tests.fixtures.pictures import photo


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def own_folder(root, seed, pictures=12, ending="jpg"):
    """Pictures called as those of every other folder, with a caption each, for each of 3 splits."""
    root.mkdir(parents=True, exist_ok=True)
    rows = ["image,caption,explanation,split"]
    for number in range(pictures):
        photo(100 * seed + number).save(root / f"{number:02d}.{ending}")
        split = ("train", "train", "val", "test")[number % 4]
        rows.append(f"{number:02d}.{ending},picture {number} of {seed},it shows {number},{split}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    return root


def run(*arguments):
    return guarded(__main__.main, [str(argument) for argument in arguments])


def own_profile(root, **more):
    settings = {"dataset": "folder", "data_root": str(root), "test_splits": ["test"], **more}
    return load_profile("smoke", settings=settings)


def made(capsys, root, *more):
    """The folder that prepare names."""
    capsys.readouterr()
    assert run("prepare", "folder", "--root", root, "--quiet", *more) == 0
    return capsys.readouterr().out.strip().rpartition("--set prepared=")[2]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_pictures(pairs, root):
    """Whether the pairs show the originals below a root."""
    originals = load_pairs("folder", "all", root=root)
    shown = {pair.id: np.asarray(pair.load_image(), float) for pair in originals}
    return all(np.abs(np.asarray(p.load_image(), float) - shown[p.id]).mean() < 6 for p in pairs)


@pytest.mark.parametrize("out", [(), ("--out", "copies")])
def test_two_folders_prepared_one_after_the_other_are_two_copies(
    out, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    roots = [own_folder(tmp_path / name, seed) for seed, name in enumerate(("one", "other"))]
    one = made(capsys, roots[0], *out)
    before = contents(tmp_path / one)
    other = made(capsys, roots[1], *out)
    assert one != other
    assert contents(tmp_path / one) == before
    for root, copy, wrong in ((roots[0], one, other), (roots[1], other, one)):
        for split, count in (("train", 6), ("val", 3), ("test", 3)):
            pairs = load_pairs("folder", split, root=root, prepared=copy)
            assert len(pairs) == count
            assert same_pictures(pairs, root)
        with pytest.raises(
            PreparedError, match=r"holds no picture of these 6 pictures below .*6 ma"
        ):
            load_pairs("folder", "train", root=root, prepared=wrong)
    assert made(capsys, roots[0], *out) == one
    assert contents(tmp_path / one) == before
    assert made(capsys, roots[0], "--quality", 80, *out) not in (one, other)
    assert made(capsys, roots[0], "--splits", "val", *out) not in (one, other)
    assert contents(tmp_path / one) == before


def test_a_training_is_refused_the_wrong_copy_before_its_first_step(tmp_path, capsys):
    root, other = own_folder(tmp_path / "my photos", 1), own_folder(tmp_path / "other", 2, 7)
    wrong = made(capsys, other)

    def refusal(**more):
        experiment = Experiment(own_profile(root, **more), progress=False)
        with pytest.raises(Refused) as caught:
            preflight.refuse_impossible(experiment, ["test"])
        return str(caught.value)

    said = refusal(prepared=wrong)
    assert said == (
        f"{wrong} holds no picture of these 3 pictures below {root} (2 never prepared, e.g. "
        f"07.jpg; 1 made from other files than lie there now, e.g. 03.jpg); it was made from "
        f"{other}; `entityclip data prepare folder --root '{root}'` makes one that does"
    )
    assert "no finished copy of" in refusal(prepared="auto")
    assert f"prepare folder --root '{root}'` makes one" in refusal(prepared="auto")


def test_a_copy_that_lacks_a_few_is_refused_with_the_numbers(tmp_path, capsys):
    root = own_folder(tmp_path / "root", 1)
    copy = made(capsys, root)
    own_folder(root, 1, 16)
    match = (
        r"holds 6 of these 8 pictures below .* \(2 never prepared, e\.g\. 12\.jpg\); it was made"
    )
    with pytest.raises(PreparedError, match=match):
        load_pairs("folder", "train", root=root, prepared=copy)
    assert len(load_pairs("folder", "train", root=root, prepared=made(capsys, root))) == 8
    photo(7).save(root / "00.jpg", quality=30)
    with pytest.raises(PreparedError, match=r"7 of these 8 .*1 made from other files .* 00\.jpg\)"):
        load_pairs("folder", "train", root=root, prepared=copy)


def test_a_picture_that_was_broken_stays_a_counted_skip(tmp_path, capsys, caplog):
    root = own_folder(tmp_path / "root", 1)
    (root / "01.jpg").write_bytes(b"no picture")
    copy = made(capsys, root, "--max-broken", 0.2)
    assert len(load_pairs("folder", "train", root=root, prepared=copy)) == 5
    assert "1 pairs without a prepared picture left out (01.jpg: Unid" in caplog.text


def test_files_of_equal_names_and_sizes_are_told_apart_by_their_bytes(tmp_path, capsys):
    one, other = (own_folder(tmp_path / str(seed), seed, ending="bmp") for seed in (1, 2))
    copy = made(capsys, one)
    with pytest.raises(
        PreparedError, match=r"holds no picture of these 6 .*6 made from other file"
    ):
        load_pairs("folder", "train", root=other, prepared=copy)
    moved = tmp_path / "elsewhere"
    shutil.move(one, moved)
    pairs = load_pairs("folder", "train", root=moved, prepared=copy)
    assert same_pictures(pairs, moved)


def as_before(copy, place):
    """A copy as earlier versions made them: named by nothing, without its root and originals."""
    shutil.move(copy, place)
    manifest = json.loads((place / "prepared.json").read_text())
    del manifest["root"]
    for shard in manifest["shards"]:
        side_file = place / shard["name"].replace(".tar", ".json")
        index = json.loads(side_file.read_text())
        del index["originals"]
        side_file.write_text(json.dumps(index))
        del shard["index"]
        index["pictures"] = [row[:3] for row in index["pictures"]]
        side_file.write_text(json.dumps(index))
    (place / "prepared.json").write_text(json.dumps(manifest))
    options = json.loads((place / "options.json").read_text())
    del options["root"]
    (place / "options.json").write_text(json.dumps(options))


@pytest.mark.parametrize("out", [False, True])
def test_a_copy_of_an_earlier_version_is_used_for_its_data_alone(out, tmp_path, runs, capsys):
    root, other = own_folder(tmp_path / "root", 1), own_folder(tmp_path / "other", 2)
    old = (tmp_path / "out" if out else runs / "data" / "folder") / "prepared"
    old.parent.mkdir(parents=True)
    more = ("--out", tmp_path / "out") if out else ()
    as_before(made(capsys, root, *more), old)
    before = contents(old)
    assert made(capsys, root, *more) == str(old)
    assert made(capsys, root, "--splits", "val", *more) == str(old)
    assert made(capsys, other, *more) != str(old)
    assert made(capsys, root, "--side", 100, *more) != str(old)
    assert contents(old) == before
    assert same_pictures(load_pairs("folder", "train", root=root, prepared=old), root)
    with pytest.raises(PreparedError, match="made from a folder that it does not name"):
        load_pairs("folder", "train", root=other, prepared=old)


def test_auto_is_the_one_copy_of_the_root_and_else_pictures_are_the_originals(tmp_path, capsys):
    root, other = own_folder(tmp_path / "root", 1), own_folder(tmp_path / "other", 2)
    copy = made(capsys, root)
    made(capsys, other)
    for prepared, read in (("auto", True), (copy, True), (None, False)):
        profile = own_profile(root, prepared=prepared)
        assert preflight.data_problems(profile.settings) == []
        pairs = Experiment(profile, progress=False).pairs("train")
        assert isinstance(pairs[0].image, TarPicture) == read
    assert find_copy("folder", root, "auto") == data_folder("folder", root) / copy.split("/")[-1]
    made(capsys, root, "--side", 100)
    with pytest.raises(PreparedError, match=r"2 copies of .*; set `prepared` to one"):
        find_copy("folder", root, "auto")
    (problem,) = preflight.data_problems(own_profile(root, prepared="auto").settings)
    assert problem.startswith("settings.prepared: 2 copies of")


def test_prepare_itself_refuses_a_folder_of_another_root(tmp_path):
    one, other = (own_folder(tmp_path / str(seed), seed) for seed in (1, 2))
    tables = [load_pairs("folder", "all", root=root) for root in (one, other)]
    prepare("folder", tables[:1], tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    with pytest.raises(PreparedError, match=rf"out was prepared from {one}; choose another folder"):
        prepare("folder", tables[1:], tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == before


def prepare_all(root, out):
    table = load_pairs("folder", "all", root=root)
    options = PrepareOptions(shard_pictures=3, lossless=True)
    prepare("folder", [table], out, options, workers=1, progress=False)


def test_a_killed_prepare_goes_on_and_ends_with_the_same_bytes(tmp_path):
    root, out = own_folder(tmp_path / "root", 1, pictures=30), tmp_path / "out"
    photo(0, (600, 400)).save(root / "00.jpg")
    for number in range(1, 30):
        shutil.copy(root / "00.jpg", root / f"{number:02d}.jpg")
    process = processes.start(prepare_all, root, out, log=str(tmp_path / "log"))
    end = time.monotonic() + 60
    while not list(out.glob("folder-*.json")) and time.monotonic() < end:
        time.sleep(0.001)
    process.kill()
    process.join()
    written = {path: path.stat().st_mtime_ns for path in out.glob("folder-*.json")}
    assert 0 < len(written) < 10
    assert not (out / "prepared.json").exists()
    prepare_all(root, out)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    prepare_all(root, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert len(use_prepared(load_pairs("folder", "all", root=root), out)) == 30


def test_pictures_inside_archives_are_prepared_and_checked_too(tmp_path):
    root, out = own_folder(tmp_path / "root", 1), tmp_path / "out"
    table = load_pairs("folder", "all", root=root)
    prepare("folder", [table], tmp_path / "tars", progress=False)
    archived = use_prepared(table, tmp_path / "tars")
    prepare("folder", [archived], out, PrepareOptions(side=60), progress=False)
    pairs = use_prepared(archived, out)
    assert [pair.load_image().size for pair in pairs] == [(80, 60)] * 12
    with pytest.raises(PreparedError, match="12 made from other files than lie there now"):
        use_prepared(table, out)
    found = check_pictures(originals(archived), tmp_path / "journal", progress=False)
    assert (len(found.names), found.broken) == (12, {})
    assert len({row.tobytes() for row in found.sums}) == 12
