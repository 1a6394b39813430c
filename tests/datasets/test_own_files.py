"""Every form that a folder of one's own may have: the pairs, and the weights, of its CSV form."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from entityclip.__main__ import main
from entityclip.config import REPOSITORY
from entityclip.datasets import load_pairs
from entityclip.datasets.sources import own_columns
from tests.fixtures.pictures import save

README = (REPOSITORY / "entityclip" / "README.md").read_text()
SPLITS = ["train"] * 14 + ["val"] * 5 + ["test"] * 5
ROWS = [
    (f"p{n:02}.jpg", f"caption {n} of Ghana, “quoted”", split) for n, split in enumerate(SPLITS)
]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))


def pictures(root: Path) -> dict[str, bytes]:
    root.mkdir(parents=True, exist_ok=True)
    for number, (name, *_) in enumerate(ROWS):
        save(root / name, number)
    return {name: (root / name).read_bytes() for name, *_ in ROWS}


def table(path: Path, columns=("image", "caption", "split"), delimiter=",", rows=ROWS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([columns, *rows])


def as_csv(root):
    pictures(root)
    table(root / "captions.csv")


def as_tsv(root):
    pictures(root)
    table(root / "captions.tsv", ("File_Name", " Title", "SPLIT"), "\t")


def as_semicolons(root):
    pictures(root)
    rows = [(f"{root}/{name}", *rest, "x") for name, *rest in ROWS]  # absolute, inside the root
    table(root / "list of mine.csv", ("filepath", "caption", "split", "mine"), ";", rows)


def as_jsonl(root):
    pictures(root)
    rows = ({"file_name": f".\\{n}", "text": c, "split": s, "more": {}} for n, c, s in ROWS)
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_imagefolder(root):
    data = pictures(root)
    for split, folder in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows = [(name, caption) for name, caption, of in ROWS if of == split]
        table(root / folder / "metadata.csv", ("file_name", "text"), rows=rows)
        for name, _ in rows:
            (root / name).unlink()
            (root / folder / name).write_bytes(data[name])


def _parquet(root, image, kind):
    columns = {"image": pa.array(image, kind), "text": [c for _, c, _ in ROWS],
               "split": [s for *_, s in ROWS]}  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), root / "captions.parquet")


def as_parquet_of_paths(root):
    pictures(root)
    _parquet(root, [name for name, *_ in ROWS], pa.string())


def as_parquet_of_bytes(root):
    data = pictures(root)
    shutil.rmtree(root)
    _parquet(root, [data[name] for name, *_ in ROWS], pa.binary())


def as_parquet_of_structs(root):
    data = pictures(root)
    shutil.rmtree(root)
    for split in ("train", "validation", "test"):
        rows = [row for row in ROWS if row[2] == own_columns.SPLIT_NAMES[split]]
        image = [{"bytes": data[name], "path": name} for name, *_ in rows]
        (root / "data").mkdir(parents=True, exist_ok=True)
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        found = pa.table({"image": pa.array(image, kind), "text": [c for _, c, _ in rows]})
        pa.parquet.write_table(found, root / "data" / f"{split}-00000-of-00001.parquet")


def as_webdataset(root):
    data = pictures(root)
    shutil.rmtree(root)
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as tar:
            for number, (name, caption, split) in enumerate(ROWS[shard * 12 : shard * 12 + 12]):
                parts = {"jpg": data[name], "json": json.dumps({"split": split}).encode()}
                if number % 2:
                    parts["txt"] = caption.encode()
                else:
                    parts["json"] = json.dumps({"caption": caption, "split": split}).encode()
                for kind, content in parts.items():
                    member = tarfile.TarInfo(f"{name[:3]}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def as_saved_datasets(root):
    data = pictures(root)
    shutil.rmtree(root)
    found = {}
    for split in ("train", "validation", "test"):
        rows = [row for row in ROWS if row[2] == own_columns.SPLIT_NAMES[split]]
        columns = {"image": [{"bytes": data[n], "path": n} for n, *_ in rows],
                   "text": [c for _, c, _ in rows]}  # fmt: skip
        features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
        found[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(found).save_to_disk(root)


def as_texts_beside(root):
    data = pictures(root)
    shutil.rmtree(root)
    for name, caption, split in ROWS:
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / split / name).write_bytes(data[name])
        (root / split / f"{name[:3]}.txt").write_text(caption)


# README's table names each
FORMS = {
    "`captions.csv`": as_csv,
    "`captions.tsv`": as_tsv,
    "a table with `;`": as_semicolons,
    "`metadata.jsonl`": as_jsonl,
    "an imagefolder": as_imagefolder,
    "Parquet of paths": as_parquet_of_paths,
    "Parquet of bytes": as_parquet_of_bytes,
    "Parquet of datasets": as_parquet_of_structs,
    "WebDataset": as_webdataset,
    "a saved data set": as_saved_datasets,
    "texts beside pictures": as_texts_beside,
}


def test_readme_lists_the_forms():
    section = README[README.index("## Your own pictures and captions") :]
    section = section[: section.index("\n## ", 3)]
    assert re.findall(r"^\| ([^|]+?) \| ", section, re.MULTILINE)[1:] == list(FORMS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one epoch on a form comes to, by (form, its root)."""

    def train(make, root: Path, home: Path, monkeypatch):
        monkeypatch.setenv("ENTITYCLIP_RUNS", str(home))
        make(root)
        words = ["--data", str(root), "--backbone", "newsroom-tiny", "--from-scratch", "--set"]
        words += ["finetuning.epochs=1", "finetuning.batch_size=7", "finetuning.workers=0"]
        assert main(["train", *words]) == 0
        (weights,) = home.glob("own/*/checkpoints/clip-*/best.safetensors")
        return load_file(weights)

    return train


@pytest.fixture(scope="module")
def reference(trained, tmp_path_factory):
    home = tmp_path_factory.mktemp("csv")
    with pytest.MonkeyPatch.context() as patch:
        return trained(as_csv, home / "photos", home / "runs", patch)


@pytest.mark.parametrize("form", list(FORMS))
def test_a_form_has_the_pairs_of_the_csv_and_trains_to_its_weights(
    form, trained, reference, tmp_path, monkeypatch
):
    root = tmp_path / "photos"
    weights = trained(FORMS[form], root, tmp_path / "runs", monkeypatch)
    as_csv(tmp_path / "csv")
    for split in ("train", "val", "test"):
        found, expected = (load_pairs("folder", split, root=r) for r in (root, tmp_path / "csv"))
        assert [p.caption for p in found] == [p.caption for p in expected]
        images = [[p.load_image().tobytes() for p in pairs] for pairs in (found, expected)]
        assert images[0] == images[1]
        if form != "Parquet of bytes":  # which have no names
            assert [p.image.name for p in found] == [p.image.name for p in expected]
    assert weights.keys() == reference.keys()
    assert all(weights[name].equal(reference[name]) for name in weights)


def test_archives_are_unpacked_once_for_each_state_and_nothing_of_the_users_changes(tmp_path):
    root = tmp_path / "photos"
    as_webdataset(root)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    first = load_pairs("folder", "train", root=root)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    (folder,) = (tmp_path / "runs" / "data" / "unpacked").iterdir()
    stamp = first[0].image.stat().st_mtime_ns
    assert load_pairs("folder", "train", root=root)[0].image.stat().st_mtime_ns == stamp
    (folder / "rows.jsonl").unlink()  # as after a kill: begun, not ended
    (folder / "left.jpg").touch()
    assert list(load_pairs("folder", "train", root=root)) == list(first)
    assert not (folder / "left.jpg").exists()


@pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl"])
@pytest.mark.parametrize("cut", [0, 100, 700])
def test_a_damaged_archive_is_named(kind, cut, tmp_path):
    make = {"tar": as_webdataset, "parquet": as_parquet_of_bytes, "jsonl": as_jsonl}[kind]
    make(tmp_path / "photos")
    path = sorted((tmp_path / "photos").glob(f"*.{kind}"))[0]
    path.write_bytes(path.read_bytes()[:cut] + b"\xff{" * bool(cut))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_pairs("folder", "train", root=tmp_path / "photos")
    assert "photos" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_member_that_leads_out_is_refused(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as tar:
        for name in ("../../evil.jpg", "../../evil.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(ValueError, match="is no plain path"):
        load_pairs("folder", "all", root=root)
    assert not [*tmp_path.glob("**/evil*")]


def test_a_hub_id_is_asked_of_datasets(tmp_path, monkeypatch):
    as_saved_datasets(tmp_path / "photos")
    saved = datasets.load_from_disk(str(tmp_path / "photos"))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or saved)
    pairs = load_pairs("folder", "train", root=Path("hf://me/photos"))
    assert asked == ["me/photos"]
    assert [p.caption for p in pairs] == [c for _, c, s in ROWS if s == "train"]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: 1 / 0)
    with pytest.raises(ValueError, match="cannot be read by datasets: division"):
        load_pairs("folder", "train", root=Path("hf://me/photos"))
