"""`entityclip.embed`: open_clip's own vectors, each picture once, and no file that crashes it."""

import copy
import json
import os
import re
import time

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import entityclip
from entityclip.__main__ import main as command_line
from entityclip.checkpoints import read_meta, read_tensors, write_checkpoint
from entityclip.console import Part
from entityclip.datasets import load_pairs
from entityclip.models.clip import Backbone, BackboneError
from entityclip.models.encoder import load_encoder
from entityclip.search import embedding
from entityclip.search.embedding import Vectors, VectorsError
from entityclip.search.vector_cache import fingerprint
from tests import NARROW
from tests.fixtures.pictures import BROKEN, bomb, save
from tests.processes import start

TEXTS = ["A goal in Lima", "", "Zoë Müller in 東京 ☕"]


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    """The tiny backbone's weights as plain open_clip's file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(backbone.clip.state_dict(), path)
    return path


def main(arguments):
    return command_line(["embed", *arguments])


def pictures(folder, n):
    for number in range(n):
        save(folder / f"{number:02d}.jpg", number, (40 + 7 * number, 36))
    return folder


def embed(backbone, *arguments, **options):
    return embedding.embed(backbone, *arguments, progress=False, device="cpu", **options)


@torch.inference_mode()
def test_vectors_are_plain_open_clips(weights, tmp_path):
    folder = pictures(tmp_path / "in", 7)
    Image.effect_noise((64, 64), 90).save(folder / "grey.png")
    clip, _, preprocess = open_clip.create_model_and_transforms(
        "newsroom-tiny", pretrained=str(weights)
    )
    tokenizer = open_clip.get_tokenizer("newsroom-tiny")
    files = sorted(folder.iterdir())
    images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in files])
    expected = clip.eval().encode_image(images, normalize=True)
    texts = clip.encode_text(tokenizer(TEXTS), normalize=True)
    found = entityclip.embed(
        weights, folder, TEXTS, model="newsroom-tiny", batch_size=3, progress=False, device="cpu"
    )
    assert found.images.ids == [path.name for path in files]
    assert found.texts.ids == ["0", "1", "2"]
    assert found.images.values.dtype == np.float32
    np.testing.assert_allclose(found.images.values, expected, atol=2e-6)
    np.testing.assert_allclose(found.texts.values, texts, atol=2e-6)


def test_our_checkpoint_tells_its_model(backbone, tmp_path):
    path = tmp_path / "run" / "best.safetensors"
    tensors = {f"model.backbone.{name}": x for name, x in backbone.state_dict().items()}
    write_checkpoint(path, tensors, {"identity": {"backbone": "newsroom-tiny", "image_size": 64}})
    for given in (path.parent, path):
        assert fingerprint(load_encoder(given)) == fingerprint(backbone)
    with pytest.raises(BackboneError, match="holds weights of newsroom-tiny, not of ViT-B-32"):
        load_encoder(path.parent, "ViT-B-32")


def test_what_is_no_checkpoint_is_a_named_error(weights, tmp_path):
    with pytest.raises(BackboneError, match="does not say which model its weights are of"):
        load_encoder(weights)
    with pytest.raises(BackboneError, match="is no file or folder here; for weights by tag"):
        load_encoder("openai")
    with pytest.raises(BackboneError, match=r"no checkpoint at .*best\.safetensors"):
        load_encoder(tmp_path)


# -------------------------------------------------------------------------------- what lies about


def test_a_folder_of_odd_files_is_indexed_with_a_report(backbone, tmp_path):
    folder = tmp_path / "in"
    names = ["plain.jpg", "Zoë in 東京 ☕.JPG", "deep/er/a b%20#.jpeg", "-rf.png"]
    for number, name in enumerate(names):
        save(folder / name, number)
    (folder / "copy of plain.jpg").write_bytes((folder / "plain.jpg").read_bytes())
    for number, (content, _) in enumerate(BROKEN.values()):
        (folder / f"broken {number}.jpg").write_bytes(content)
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no picture")
    (folder / "Thumbs.db").write_bytes(b"\0" * 99)
    os.mkfifo(folder / "pipe.jpg")
    save(tmp_path / "secret.jpg", 9)
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "none.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "album").symlink_to(folder / "deep", target_is_directory=True)
    save(folder / os.fsdecode(b"latin \xe9.jpg"), 8)
    found = embed(backbone, folder, cache=tmp_path / "cache")
    assert set(found.images.ids) == {*names, "copy of plain.jpg", "latin \\xe9.jpg"}
    report = json.loads(found.report.as_json())
    assert report["duplicates"] == {"plain.jpg": "copy of plain.jpg"}
    assert set(report["unreadable"]) == {
        *(f"broken {n}.jpg" for n in range(len(BROKEN))),
        *("bomb.png", "empty.jpg", "pipe.jpg", "dangling.jpg"),
    }
    assert re.search(BROKEN["bomb"][1], report["unreadable"]["bomb.png"])
    assert report["unreadable"]["pipe.jpg"] == "not a regular file"
    assert report["left_out"] == {
        "no pictures": ["Thumbs.db", "notes.txt"],
        "links, which are not followed": ["album", "link.jpg", "loop.jpg"],
    }
    assert report["embedded"] == 5
    assert "1 duplicates of others: plain.jpg = copy of plain.jpg" in str(found.report)
    for ending in (".parquet", ".npy"):
        saved = Vectors.load(found.images.save(tmp_path / f"out{ending}"))
        assert saved.ids == found.images.ids
        np.testing.assert_array_equal(saved.values, found.images.values)


# ---------------------------------------------------------------------------- once, and resumably


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each forward pass encodes; `encoded.stop_after` calls it is interrupted."""

    class Calls(list):
        stop_after = None

    calls, encode = Calls(), Backbone.encode_image

    def counting(self, images):
        if calls.stop_after is not None and len(calls) >= calls.stop_after:
            raise KeyboardInterrupt
        calls.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Backbone, "encode_image", counting)
    return calls


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_interrupted_and_resumed_each_picture_is_embedded_once(
    stop_after, backbone, encoded, tmp_path
):
    folder, options = pictures(tmp_path / "in", 11), {"batch_size": 2}
    (folder / "twice.jpg").write_bytes((folder / "03.jpg").read_bytes())
    whole = embed(backbone, folder, **options)
    assert sum(encoded) == 11
    encoded.clear()
    encoded.stop_after = stop_after
    options["cache"] = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, folder, **options)
    encoded.stop_after = None
    resumed = embed(backbone, folder, **options)
    assert sum(encoded) == 11
    assert resumed.report.embedded == 11 - 2 * stop_after
    assert resumed.images.ids == whole.images.ids
    np.testing.assert_allclose(resumed.images.values, whole.images.values, atol=1e-6)
    np.testing.assert_array_equal(resumed.images.values[3], resumed.images.values[-1])


def test_only_new_content_and_new_weights_are_embedded(
    weights, backbone, encoded, tmp_path, monkeypatch
):
    folder, cache = pictures(tmp_path / "in", 3), tmp_path / "cache"
    first = embed(backbone, folder, cache=cache).images.values
    encoded.clear()
    with monkeypatch.context() as patch:  # unchanged files are not even read again
        patch.setattr(embedding, "read_picture", lambda picture: pytest.fail(f"read {picture}"))
        np.testing.assert_array_equal(embed(backbone, folder, cache=cache).images.values, first)
    assert encoded == []
    (folder / "00.jpg").rename(folder / "moved.jpg")
    save(folder / "01.jpg", 77)
    second = embed(backbone, folder, cache=cache).images
    assert sum(encoded) == 1
    by_id = dict(zip(second.ids, second.values, strict=True))
    np.testing.assert_array_equal(by_id["moved.jpg"], first[0])
    assert not np.allclose(by_id["01.jpg"], first[1], atol=1e-4)
    other = load_encoder(weights, "newsroom-tiny")
    with torch.no_grad():
        other.clip.visual.proj.mul_(-1)
    encoded.clear()
    embed(other, folder, cache=cache)
    assert sum(encoded) == 3


@pytest.mark.parametrize(
    "damage", ["cut", "keys", "one key", "types", "width", "nan", "half", "none of ours"]
)
def test_a_damaged_chunk_is_told_and_embedded_anew(damage, backbone, encoded, tmp_path, caplog):
    folder, cache = pictures(tmp_path / "in", 2), tmp_path / "cache"
    whole = embed(backbone, folder, cache=cache).images.values
    (chunk,) = cache.rglob("*.safetensors")
    meta, vectors = read_meta(chunk), read_tensors(chunk)["vectors"].clone()
    content = chunk.read_bytes()
    chunk.unlink()
    tensors = {
        "width": vectors[:, 1:], "nan": vectors * float("nan"), "half": vectors.half(),
    }.get(damage, vectors)  # fmt: skip
    changed = {
        "keys": {"signatures": {}}, "one key": meta | {"keys": meta["keys"][:1]},
        "types": meta | {"keys": [1, 2]}, "none of ours": {},
    }.get(damage, meta)  # fmt: skip
    write_checkpoint(chunk, {"vectors": tensors.contiguous()}, changed)
    if damage == "cut":
        chunk.write_bytes(content[:40])
    encoded.clear()
    np.testing.assert_array_equal(embed(backbone, folder, cache=cache).images.values, whole)
    assert sum(encoded) == 2
    assert f"{chunk}" in caplog.text
    assert "embedded anew" in caplog.text


def test_a_weight_changed_by_a_millionth_is_another_model(backbone, encoded, tmp_path):
    folder, cache = pictures(tmp_path / "in", 2), tmp_path / "cache"
    embed(backbone, folder, cache=cache)
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.clip.visual.proj[0, 0] += 1e-6
    encoded.clear()
    embed(other, folder, cache=cache)
    assert sum(encoded) == 2


def embed_in_a_process(weights, folder, cache, out):
    open_clip.add_model_config(NARROW)
    found = entityclip.embed(
        weights, folder, model="newsroom-tiny", cache=cache, batch_size=1, progress=False
    )
    found.images.save(out)


def test_killed_and_started_again_it_writes_the_same_bytes(weights, tmp_path):
    folder = pictures(tmp_path / "in", 24)

    def begin(name, cache):
        arguments = weights, folder, tmp_path / cache, tmp_path / name
        return start(embed_in_a_process, *arguments, log=str(tmp_path / "output"))

    whole = begin("whole.npy", "one")
    whole.join()
    killed = begin("again.npy", "two")
    while killed.is_alive() and len(list((tmp_path / "two").rglob("*.safetensors"))) < 5:
        time.sleep(0.001)
    killed.kill()
    killed.join()
    assert not (tmp_path / "again.npy").exists(), (tmp_path / "output").read_text()
    again = begin("again.npy", "two")
    again.join()
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not [path for path in tmp_path.rglob("*.partial")]


# ------------------------------------------------------------------------------ what can be given


def test_a_split_gives_pictures_and_captions_under_the_pairs_ids(backbone, tmp_path):
    pairs = load_pairs("newsroom", "test", limit=5, image_size=64)
    found = embed(backbone, pairs, pairs, cache=tmp_path)
    assert found.images.ids == found.texts.ids == [pair.id for pair in pairs]
    with torch.inference_mode():
        image = backbone.preprocess(pairs[2].load_image())[None]
        expected = F.normalize(backbone.encode_image(image), dim=-1)[0]
    np.testing.assert_allclose(found.images.values[2], expected, atol=2e-6)
    assert embed(backbone, pairs, pairs, cache=tmp_path).report.embedded == 0


def test_paths_names_and_pictures_in_memory(backbone, tmp_path):
    path = save(tmp_path / "a.jpg", 1)
    drawn = Image.open(path).convert("RGB")
    by_path, by_name, in_memory = (
        embed(backbone, images).images for images in ([path], {"x": str(path)}, [drawn])
    )
    assert (by_path.ids, by_name.ids, in_memory.ids) == ([str(path)], ["x"], ["0"])
    np.testing.assert_array_equal(by_path.values, by_name.values)
    np.testing.assert_array_equal(by_path.values, in_memory.values)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_paths(kind, backbone, tmp_path):
    save(tmp_path / "pics" / "Zoë.jpg", 1)
    rows = pd.DataFrame({"image": ["pics/Zoë.jpg", "pics/none.jpg"], "id": ["z", "n"], "x": [1, 2]})
    table = tmp_path / f"paths.{kind}"
    write = {"csv": pd.DataFrame.to_csv, "parquet": pd.DataFrame.to_parquet}[kind]
    write(rows, table, index=False)
    found = embed(backbone, table)
    assert found.images.ids == ["z"]
    assert found.report.unreadable == {"n": "no such file"}
    write(rows.rename(columns={"image": "picture"}), table, index=False)
    with pytest.raises(ValueError, match=rf"paths\.{kind}.* '?image"):
        embed(backbone, table)


def test_parquet_with_the_files_bytes_as_data_sets_have_it(backbone, tmp_path):
    content = save(tmp_path / "a.jpg", 1).read_bytes()
    rows = [{"bytes": content, "path": "a.jpg"}, {"bytes": content, "path": None}]
    pd.DataFrame({"image": rows}).to_parquet(tmp_path / "hf.parquet")
    pd.DataFrame({"image": [content]}).to_parquet(tmp_path / "plain.parquet")
    plain = embed(backbone, [tmp_path / "a.jpg"]).images.values[0]
    for table, ids in (("hf", ["a.jpg", "2"]), ("plain", ["1"])):
        found = embed(backbone, tmp_path / f"{table}.parquet")
        assert found.images.ids == ids
        np.testing.assert_array_equal(found.images.values[0], plain)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (["a.jpg", None, None], r"t\.parquet, row 2: image is null"),
        ([{"bytes": b"", "path": None}], r"t\.parquet, row 1: image is null"),
        ([1, 2], "column image holds int64; paths or bytes"),
        ([["a.jpg"]], "column image holds list<"),
    ],
)
def test_parquet_of_something_else_is_named(column, says, backbone, tmp_path):
    pd.DataFrame({"image": column}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=says):
        embed(backbone, tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"t\.parquet is not readable Parquet"):
        embed(backbone, tmp_path / "t.parquet")


def test_a_folder_that_may_not_be_read_is_told(backbone, tmp_path, monkeypatch):
    pictures(tmp_path / "open", 1)
    pictures(tmp_path / "closed", 1)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = embed(backbone, tmp_path)
    assert found.images.ids == ["open/00.jpg"]
    assert "1 folders that may not be read, left out: closed (Permission denied)" in str(
        found.report
    )


def test_texts_that_the_model_cuts_are_counted(backbone):
    long = "goal " * 200
    found = embed(backbone, texts={"a": long, "b": "short", "c": long})
    assert found.report.cut == ["a", "c"]
    assert "2 texts longer than the model reads, cut: a; c" in str(found.report)


def test_nothing_to_embed(backbone, tmp_path):
    found = embed(backbone, tmp_path)
    assert found.images.values.shape == (0, backbone.width)
    assert found.texts is None
    with pytest.raises(ValueError, match="nothing to embed"):
        embed(backbone)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"images": "/none"}, "/none does not exist"),
        ({"images": __file__}, "is no folder, and no table"),
        ({"images": ["a.jpg", "a.jpg"]}, "stands twice"),
        ({"images": [7]}, "7 is no picture"),
        ({"texts": "a goal"}, "texts is one string"),
        ({"texts": [2019, "x"]}, "text 0: 2019 is no text"),
        ({"texts": {"a": None}}, "text a: None is no text"),
        ({"texts": pd.Series(["a", float("nan")])}, "text 1: nan is no text"),
        ({"texts": pd.DataFrame({"caption": ["a"]})}, "texts is a table; give one of its columns"),
        ({"texts": ["a goal"], "workers": 0}, "workers 0: each must be >= 1"),
    ],
)
def test_wrong_arguments_are_named_errors(given, says, backbone):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        embed(backbone, **given)


def test_a_failed_save_leaves_the_last_good_file(tmp_path, monkeypatch):
    good = Vectors(["a"], np.full((1, 4), 0.5, np.float32))
    path = good.save(tmp_path / "v.npy")

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="disk full"):
        Vectors(["b"], np.zeros((1, 4), np.float32)).save(path)
    assert Vectors.load(path).values.sum() == 2
    with pytest.raises(ValueError, match=r"out\.csv: name it \.parquet or \.npy"):
        good.save(tmp_path / "out.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.ids.json", "v.npy"]


UNIT = np.eye(3, 4, dtype=np.float32)


@pytest.mark.parametrize(
    ("ids", "values", "says"),
    [
        (["a", "a", "c"], UNIT, "id 'a' stands twice"),
        (["a", 2, "c"], UNIT, "1: Input should be a valid string"),
        (["a", "b"], UNIT, "2 ids for 3 vectors"),
        (["a", "b", "c"], UNIT[0], r"vectors are float32 \[4\], not float32 \[n, d\]"),
        (["a", "b", "c"], UNIT.astype(np.complex64), "vectors are complex64"),
        (["a", "b", "c"], UNIT * np.float32("nan"), r"vector 0 \('a'\) is not of length 1"),
        (["a", "b", "c"], UNIT * np.float32([[1], [1], [3]]), r"vector 2 \('c'\) is not of length"),
        ({"a": 1}, UNIT, "should be a valid (array|list)"),
    ],
)
def test_vectors_of_another_shape_are_refused_by_field(ids, values, says, tmp_path):
    np.save(tmp_path / "v.npy", values)
    (tmp_path / "v.ids.json").write_text(json.dumps(ids))
    with pytest.raises(VectorsError, match=says) as caught:
        Vectors.load(tmp_path / "v.npy")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"no vectors", b"PAR1", b"\x93NUMPY\x01\x00\xff\xff{"])
@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_files_that_hold_no_vectors_are_refused(content, ending, tmp_path):
    (tmp_path / "v.ids.json").write_text("[]")
    (tmp_path / f"v{ending}").write_bytes(content)
    with pytest.raises(VectorsError, match="is damaged or not of ours"):
        Vectors.load(tmp_path / f"v{ending}")


# ------------------------------------------------------------------------------------- the command


def test_the_command_embeds_resumes_and_reports(weights, tmp_path, capsys):
    folder, out = pictures(tmp_path / "in", 3), tmp_path / "out" / "photos.npy"
    (folder / "bad.jpg").write_bytes(b"no")
    arguments = [str(weights), "--model", "newsroom-tiny", "--images", str(folder), "--quiet"]
    arguments += ["--out", str(out), "--cache", str(tmp_path / "cache")]
    for new in (3, 0):
        assert main(arguments) == 0
        assert f"3 pictures and 0 texts, {new} embedded now" in capsys.readouterr().out
    assert Vectors.load(out).ids == ["00.jpg", "01.jpg", "02.jpg"]
    report = json.loads(out.with_suffix(".report.json").read_text())
    assert list(report["unreadable"]) == ["bad.jpg"]


def test_parts_side_by_side_come_to_the_same_bytes_as_one_run(weights, tmp_path, capsys):
    folder = pictures(tmp_path / "in", 23)
    for name, of in (("twice.jpg", "03.jpg"), ("again.jpg", "19.jpg")):  # in several parts
        (folder / name).write_bytes((folder / of).read_bytes())
    (folder / "bad.jpg").write_bytes(b"no")
    asked = [str(weights), "--model", "newsroom-tiny", "--images", str(folder), "--quiet"]
    asked += ["--batch-size", "4"]

    def run(name, cache, *more):
        out = tmp_path / name
        assert main([*asked, "--out", str(out), "--cache", str(tmp_path / cache), *more]) == 0
        report = out.with_suffix(".report.json")
        told = json.loads(report.read_text()) if report.exists() else None
        return out, told and {**told, "embedded": 0}

    whole, expected = run("whole.parquet", "one")
    for part in ("2/3", "3/3", "1/3"):
        out, told = run("joined.parquet", "two", "--shard", part)
        assert told is None
        assert not out.exists()
    said = capsys.readouterr().out
    assert "part 2/3, 8 pictures and 0 texts" in said
    assert "when all parts are done, the same command without --shard writes" in said
    joined, told = run("joined.parquet", "two")
    assert told == expected
    assert "25 pictures and 0 texts, 0 embedded now" in capsys.readouterr().out
    assert joined.read_bytes() == whole.read_bytes()
    run("some.parquet", "three", "--shard", "2/3")  # and what parts left is embedded
    assert run("some.parquet", "three")[0].read_bytes() == whole.read_bytes()


def test_a_part_without_a_cache_is_refused(backbone):
    with pytest.raises(ValueError, match="part 1/2 needs a cache, where all parts meet"):
        embed(backbone, texts=["a"], part=Part(1, 2))


def test_the_command_embeds_a_split(weights, tmp_path, capsys):
    arguments = [str(weights), "--model", "newsroom-tiny", "--dataset", "newsroom", "--limit", "4"]
    arguments += ["--image-size", "64", "--out", str(tmp_path / "s.npy"), "--quiet"]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    images, texts = (Vectors.load(tmp_path / f"{name}.npy") for name in ("s", "s.texts"))
    assert images.ids == texts.ids
    assert "4 pictures and 4 texts" in capsys.readouterr().out


def test_a_file_of_texts_ends_lines_at_newlines_only(weights, tmp_path, capsys):
    lines = tmp_path / "t.txt"
    lines.write_bytes("\ufeffone\u2028still one\r\n\n  \ntwo\x0b\x85 too\nthree".encode())
    out = tmp_path / "t.npy"
    assert main([str(weights), "--model", "newsroom-tiny", "--texts", str(lines), "--quiet",
                 "--out", str(out), "--cache", str(tmp_path / "cache")]) == 0  # fmt: skip
    assert Vectors.load(out).ids == ["0", "1", "2"]
    assert "2 blank lines, left out: line 2; line 3" in capsys.readouterr().out


def test_nothing_embedded_leaves_the_old_file(weights, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no")
    (tmp_path / "x.npy").write_bytes(b"old")
    arguments = [str(weights), "--model", "newsroom-tiny", "--images", str(tmp_path / "in")]
    assert main([*arguments, "--out", str(tmp_path / "x.npy"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "error: no vector of images, nothing was written: 0 pictures" in error
    assert "bad.jpg" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == b"old"


@pytest.mark.parametrize("place", ["cache", "out"])
def test_folders_that_take_nothing_are_told_first(place, weights, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = {"cache": tmp_path / "cache", "out": tmp_path / "out"} | {
        place: tmp_path / "file" / "x"
    }
    arguments = [str(weights), "--images", "/none", "--cache", str(given["cache"])]
    assert main([*arguments, "--out", str(given["out"] / "v.npy")]) == 2
    error = capsys.readouterr().err
    assert "file is no folder: " in error
    assert ("ENTITYCLIP_RUNS" if place == "cache" else "--out") in error


def test_weights_that_are_not_finite_embed_nothing(backbone, tmp_path, capsys):
    state = {name: tensor.clone() for name, tensor in backbone.clip.state_dict().items()}
    state["visual.proj"] *= float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    pictures(tmp_path / "in", 1)
    arguments = [str(tmp_path / "nan.safetensors"), "--model", "newsroom-tiny", "--quiet"]
    arguments += ["--images", str(tmp_path / "in"), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "o.npy")]) == 1
    assert "visual.proj holds NaN or infinite numbers" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "o.npy").exists()
    broken = copy.deepcopy(backbone)
    broken.clip.visual.proj.data *= float("nan")
    with pytest.raises(ValueError, match=r"00\.jpg … 00\.jpg: the model gives NaN"):
        embed(broken, tmp_path / "in", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_command_says_what_is_wrong(weights, tmp_path, capsys):
    out = ["--out", str(tmp_path / "x.npy"), "--cache", str(tmp_path), "--quiet"]
    assert main([str(weights), "--images", str(tmp_path), *out]) == 1
    assert "does not say which model" in capsys.readouterr().err
    a_csv, both = ["--images", "a", "--out", "x.csv"], ["--images", "a", "--dataset", "newsroom"]
    for wrong in (out, a_csv, both + out):
        with pytest.raises(SystemExit) as stopped:
            main([str(weights), *wrong])
        assert stopped.value.code == 2
