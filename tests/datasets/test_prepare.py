"""A prepared copy: plain tars, resumable, the same bytes, never mistaken for another."""

import json
import os
import re
import tarfile

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform

from entityclip import files
from entityclip.config import load_profile
from entityclip.console import Part
from entityclip.datasets import load_pairs
from entityclip.datasets import prepare as prepare_module
from entityclip.datasets.pair import ImageError, data_fingerprint
from entityclip.datasets.prepare import PrepareOptions, prepare
from entityclip.datasets.prepared import PreparedError, TarPicture
from entityclip.experiments.chapters import Domain, domain_experiment
from entityclip.experiments.experiment import Experiment
from tests.fixtures import layouts
from tests.fixtures.pictures import save


@pytest.fixture
def table(tmp_path):
    root = tmp_path / "root"
    layouts.n24news(root)
    for picture in sorted((root / "imgs").iterdir())[:6]:
        save(picture, len(picture.name), (400, 300))
    return load_pairs("n24news", "train", root=root)


def make(table, out, max_broken=0.01, part=None, **options):
    options = PrepareOptions(**{"shard_pictures": 5, **options})
    how = {"max_broken": max_broken, "progress": False, "part": part}
    return prepare("n24news", [table], out, options, **how)


def load(table, out):
    return load_pairs("n24news", "train", root=table.root, prepared=out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_plain_tars_in_webdatasets_layout(table, tmp_path):
    manifest = make(table, tmp_path / "out")
    assert manifest["pictures"] == 12
    assert [shard["name"] for shard in manifest["shards"]] == [
        f"n24news-{number:06d}.tar" for number in range(3)
    ]
    names, seen = [], set()
    for shard in manifest["shards"]:
        with tarfile.open(tmp_path / "out" / shard["name"]) as tar:
            names += tar.getnames()
            for name in tar.getnames()[1::2]:
                about = json.load(tar.extractfile(name))
                seen.add((about["picture"], about["width"], about["height"]))
    assert names == [f"{n:09d}.{ending}" for n in range(12) for ending in ("jpg", "json")]
    assert {name for name, _, _ in seen} == {f"imgs/{pair.image.name}" for pair in table}
    assert {(w, h) for _, w, h in seen} == {(400, 300), (48, 36)}


def test_pictures_come_back_resized_with_their_texts(table, tmp_path):
    make(table, tmp_path / "out", side=64)
    pairs = load(table, tmp_path / "out")
    assert [pair.id for pair in pairs] == [pair.id for pair in table]
    for pair, original in zip(pairs, table, strict=True):
        assert (pair.caption, pair.explanation) == (original.caption, original.explanation)
        large = original.load_image()
        small = pair.load_image()
        assert small.size == ((85, 64) if large.size == (400, 300) else large.size)
        expected = np.asarray(large.resize(small.size), float)
        assert np.abs(np.asarray(small, float) - expected).mean() < 6
    assert pairs[1:3] == [pairs[1], pairs[2]]
    assert data_fingerprint(pairs) != data_fingerprint(table)


def test_lossless_at_the_models_side_gives_open_clips_own_pixels(table, tmp_path):
    make(table, tmp_path / "out", side=32, lossless=True)
    pairs = load(table, tmp_path / "out")
    preprocess = image_transform(32, is_train=False)
    for pair, original in zip(pairs, table, strict=True):
        assert torch.equal(preprocess(pair.load_image()), preprocess(original.load_image()))


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(table, tmp_path, monkeypatch):
    whole = make(table, tmp_path / "whole")
    written = []
    write = files.atomic_write_bytes

    def stop(path, data):
        if path.name.endswith("000001.tar"):
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(prepare_module, "atomic_write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        make(table, tmp_path / "out")
    with pytest.raises(PreparedError, match=r"has no prepared\.json; run prepare"):
        load(table, tmp_path / "out")
    monkeypatch.setattr(
        prepare_module, "atomic_write_bytes",
        lambda path, data: (written.append(path.name), write(path, data)),
    )  # fmt: skip
    assert make(table, tmp_path / "out") == whole
    assert written == ["n24news-000001.tar", "n24news-000002.tar"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    make(table, tmp_path / "out")
    assert len(written) == 2  # nothing left to do


def contents_of_new(table, out):
    make(table, out)
    return contents(out)


def turned(path, at=2000):
    """One byte of a file is another."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_parts_side_by_side_come_to_the_same_bytes_as_one_run(table, tmp_path):
    expected = make(table, tmp_path / "whole")
    for part in (Part(2, 2), Part(1, 2)):
        assert make(table, tmp_path / "out", part=part) is None
        with pytest.raises(PreparedError, match=r"has no prepared\.json"):
            load(table, tmp_path / "out")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(made) == 3
    assert make(table, tmp_path / "out") == expected
    assert {path: path.stat().st_mtime_ns for path in made} == made  # none was made again
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    make(table, tmp_path / "some", part=Part(3, 3))
    assert make(table, tmp_path / "some") == expected  # what parts left is made


def test_a_changed_original_or_a_lost_shard_is_made_anew(table, tmp_path):
    first = make(table, tmp_path / "out")
    table[0].image.write_bytes(table[1].image.read_bytes())
    second = make(table, tmp_path / "out")
    assert first["fingerprint"] != second["fingerprint"]
    (tmp_path / "out" / "n24news-000002.tar").unlink()
    (tmp_path / "out" / "n24news-000001.json").write_text("{")
    turned(tmp_path / "out" / "n24news-000000.tar")
    assert make(table, tmp_path / "out") == second
    assert contents(tmp_path / "out") == contents_of_new(table, tmp_path / "new")


def test_other_options_are_refused_in_one_folder(table, tmp_path):
    first = make(table, tmp_path / "out")
    with pytest.raises(PreparedError, match=r"was prepared with .*choose another folder"):
        make(table, tmp_path / "out", quality=80)
    assert make(table, tmp_path / "other", quality=80)["fingerprint"] != first["fingerprint"]


def test_broken_pictures_are_left_out_and_listed_or_stop_it(table, tmp_path, caplog):
    table[4].image.write_bytes(b"no picture")
    with pytest.raises(PreparedError, match=r"1 of 12 pictures are broken, more than the share"):
        make(table, tmp_path / "out")
    manifest = make(table, tmp_path / "out", max_broken=0.1)
    assert list(manifest["broken"]) == [f"imgs/{table[4].image.name}"]
    pairs = load(table, tmp_path / "out")
    assert [pair.id for pair in pairs] == [p.id for n, p in enumerate(table) if n != 4]
    name = f"imgs/{table[4].image.name}"
    left_out = rf"1 pairs without a prepared picture left out \({name}: UnidentifiedImageError"
    assert re.search(left_out, caplog.text)
    assert [pair.id for pair in pairs[2:5]] == [table[n].id for n in (2, 3, 5)]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("prepared.json", lambda text: text[:50], r"prepared\.json is not JSON"),
        ("prepared.json", lambda text: "[]", "valid dictionary|an object"),
        ("prepared.json", lambda text: text.replace('"side": 256', '"side": 255'), "was changed"),
        ("prepared.json", lambda text: "{}", r"prepared\.json: options: Field required"),
        ("prepared.json", lambda text: text.replace('"bytes": ', '"bytes": "7'), r"is not JSON"),
        ("prepared.json", lambda text: re.sub(r'"bytes": \d+', '"bytes": "7"', text),
         r"prepared\.json: shards\.0\.bytes: Input should be a valid integer"),
        ("prepared.json", lambda text: text.replace('"n24news-0', '"../n24news-0'), "leads out of"),
        ("n24news-000001.json", lambda text: text[:-9], r"n24news-000001\.json is not JSON"),
        ("n24news-000001.json", lambda text: text.replace('"pictures"', '"x"'), "pictures: Field"),
        ("n24news-000001.json", lambda text: text.replace("[[", "[[7, "), r"pictures\.0"),
        ("n24news-000001.json", lambda text: re.sub(r"(imgs/[^\"]*\", )\d+", r"\g<1>-7", text),
         r"n24news-000001\.json: pictures\.0\.1: Input should be greater than or equal to 0"),
        ("n24news-000001.json", lambda text: re.sub(r"(imgs/[^\"]*\", )\d+", r"\g<1>7", text),
         r"n24news-000001\.json was changed or damaged; prepare again"),
        ("n24news-000001.json", None, r"n24news-000001\.json is missing; prepare again"),
        ("n24news-000001.tar", lambda text: "x", r"n24news-000001\.tar is missing or not"),
        ("n24news-000001.tar", None, r"n24news-000001\.tar is missing or not"),
    ],
)  # fmt: skip
def test_a_damaged_copy_is_named(file, change, message, table, tmp_path):
    first = make(table, tmp_path / "out")
    path = tmp_path / "out" / file
    if change:
        path.write_text(change(path.read_text(errors="replace")))
    else:
        path.unlink()
    with pytest.raises(PreparedError, match=message) as raised:
        load(table, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert make(table, tmp_path / "out") == first  # as it says, preparing again mends it
    assert len(load(table, tmp_path / "out")) == 12


def test_a_picture_whose_bytes_changed_is_not_served(table, tmp_path):
    out = tmp_path / "out"
    first = make(table, out)
    turned(out / "n24news-000000.tar")
    pairs = load(table, out)
    with pytest.raises(ImageError, match=r"n24news-000000\.tar: its bytes have changed since"):
        [pair.load_image() for pair in pairs]
    assert make(table, out) == first
    assert [pair.load_image() for pair in pairs]


def test_a_copy_of_before_is_compared_as_a_whole(table, tmp_path):
    out = tmp_path / "out"
    new = make(table, out)
    manifest = json.loads((out / "prepared.json").read_text())
    for shard in manifest["shards"]:
        del shard["index"]
        side_file = out / shard["name"].replace(".tar", ".json")
        index = json.loads(side_file.read_text())
        index["pictures"] = [row[:3] for row in index["pictures"]]
        side_file.write_text(json.dumps(index))
    (out / "prepared.json").write_text(json.dumps(manifest))
    pairs = load(table, out)
    assert [pair.load_image() for pair in pairs]
    assert pairs.fingerprint == new["fingerprint"]
    turned(out / "n24news-000001.tar")
    with pytest.raises(PreparedError, match=r"n24news-000001\.tar was changed or damaged"):
        load(table, out)
    assert make(table, out) == new


def test_tars_of_somebody_else_are_left_as_they_are(table, tmp_path):
    other = tmp_path / "out" / "n24news-000001.tar"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    with pytest.raises(PreparedError, match="tars that prepare did not write; choose another fold"):
        make(table, tmp_path / "out")
    assert contents(tmp_path / "out") == {other.name: b"mine"}


def test_what_may_not_be_read_is_tried_again_and_what_grows_is_said(
    table, tmp_path, monkeypatch, caplog
):
    closed, grows = table[4].image, table[5].image
    real_access, real_decode = os.access, prepare_module.decode

    def decode(path):
        if path == grows:
            path.write_bytes(path.read_bytes() + b"\0")
        elif path == closed:
            raise ImageError("may not be read: Permission denied")
        return real_decode(path)

    # chmod does not keep root out
    monkeypatch.setattr(os, "access", lambda path, *a: path != closed and real_access(path, *a))
    monkeypatch.setattr(prepare_module, "decode", decode)
    first = make(table, tmp_path / "out", max_broken=0.1)
    assert list(first["broken"].values()) == ["may not be read: Permission denied"]
    assert re.search(rf"1 pictures \(imgs/{grows.name}, …\) changed while they", caplog.text)
    monkeypatch.undo()
    assert make(table, tmp_path / "out")["broken"] == {}


def test_a_copy_of_other_data_is_refused(table, tmp_path):
    make(table, tmp_path / "out")
    layouts.goodnews(tmp_path / "other")
    with pytest.raises(PreparedError, match="holds no picture of these"):
        load_pairs("goodnews", "train", root=tmp_path / "other", prepared=tmp_path / "out")


@pytest.mark.parametrize("options", [{"side": 8}, {"quality": 0}, {"shard_pictures": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PrepareOptions(**options)


def test_a_profile_reads_the_copy_and_its_runs_are_others(table, tmp_path):
    out = tmp_path / "out"
    make(table, out, side=64)
    lying = {"dataset": "n24news", "data_root": str(table.root), "explanation_source": "own"}
    copied = {**lying, "prepared": str(out)}
    caption = {"explanation_policy": "caption"}  # keeps pairs that nothing explains
    plain, copied, plain_joined, joined = (
        Experiment(load_profile("smoke", settings=settings), progress=False)
        for settings in (lying, copied, lying | caption, copied | caption)
    )
    for experiment, alike, explained in ((copied, plain, False), (joined, plain_joined, True)):
        pairs = experiment.pairs("train")
        assert [pair.id for pair in pairs] == [pair.id for pair in alike.pairs("train")]
        assert all(isinstance(pair.image, TarPicture) for pair in pairs)
        assert experiment.fingerprint("train") != alike.fingerprint("train")
        data = experiment.dataset("train", explanations=explained)
        assert data.collate([data[0], data[1]]).images.shape[0] == 2
    # another domain lies elsewhere, and this copy is not of its pictures
    elsewhere = domain_experiment(copied, Domain("newsroom"))
    assert elsewhere.pairs("train")
    with pytest.raises(ValueError, match="no prepared copy"):
        Experiment(load_profile("smoke", settings={"prepared": str(out)})).pairs("train")
