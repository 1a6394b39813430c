"""Damaged files for every reader: what is made, how it is broken, and what may come of it.

A reader takes a file that is whole; `broken` breaks its bytes in the ways disks, editors, servers
and people do. Whatever the damage, the reader gives a value or raises one of its own exceptions in
one line, and the files stay as they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from entityclip import config, results
from entityclip.checkpoints import CheckpointError, read_meta, read_tensors, write_checkpoint
from entityclip.config import ProfileError, load_profile, parse_settings
from entityclip.datasets.manifest import MANIFEST, ManifestError, load_manifest
from entityclip.datasets.pair import ImageError, Pair, decode
from entityclip.datasets.picture_checks import JournalError, check_pictures, read_journal
from entityclip.datasets.prepare import prepare
from entityclip.datasets.prepared import PreparedError, use_prepared
from entityclip.datasets.registry import DATASETS, LOADERS, load_pairs
from entityclip.explanations.answers import Broken, Unusable, read_completion
from entityclip.explanations.cache import CacheError, ExplanationCache
from entityclip.explanations.extraction import explain
from entityclip.explanations.joining import read_authors
from entityclip.explanations.llm import KnowledgeBase
from entityclip.models.clip import BackboneError, create_backbone
from entityclip.results import ResultsError, append_rows, read_log, read_rows
from entityclip.search.embedding import Vectors, VectorsError
from entityclip.search.vector_cache import VectorCache
from entityclip.training.run_folder import read_last, read_record
from tests.datasets.test_own_files import FORMS
from tests.fixtures import layouts
from tests.fixtures.pictures import photo
from tests.test_results import row

LONGEST_S = 10.0  # for one damaged file of some kilobytes

_ODD = [
    *(b"null", b"true", b"NaN", b"-1", b"1e999", b"0", b"9" * 400, b'""', b"[]", b"{}", b"[null]"),
    *(b'"' + b"x" * 5000 + b'"', b"[" * 3000, b"{" * 50, b'"\\ud800"', b'"../../../etc/passwd"'),
    *(
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\x00",
        b"\r\n",
        b"\n",
        b"\x1b[31m",
        b'"',
        b",",
    ),
    *(
        b"\xed\xa0\x80",
        b"&a [*a]",
        b"!!python/object:os.system {}",
        b"2026-13-45",
        b"'",
        b";",
        b"\t",
    ),
]
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null')


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with one to three faults."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        size = len(content)
        at = draw(st.integers(0, size))
        end = min(size, at + draw(st.integers(1, 40)))
        kind = draw(
            st.sampled_from(["value", "value", "cut", "lose", "twice", "odd", "flip", "zero"])
        )
        values = list(_VALUE.finditer(content)) if kind == "value" and size < 200_000 else []
        if values:
            value = values[draw(st.integers(0, len(values) - 1))]
            content = (
                content[: value.start()] + draw(st.sampled_from(_ODD)) + content[value.end() :]
            )
        elif kind == "cut":
            content = content[:at]
        elif kind == "lose":
            content = content[:at] + content[end:]
        elif kind == "twice":
            content = content[:end] + content[at:]
        elif kind == "flip" and at < size:
            content = (
                content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
            )
        elif kind == "zero":
            content = content[:at] + bytes(end - at) + content[end:]
        else:
            content = content[:at] + draw(st.sampled_from(_ODD)) + content[at:]
    return content


@dataclass(frozen=True)
class Reader:
    """How a kind of file is made and read, and how it may be refused."""

    make: Callable[[Path], Path]  # in an empty folder: the whole file that is to be broken
    read: Callable[[Path], Any]
    refusals: tuple[type[Exception], ...]  # these very types
    sealed: bool = False  # whether what is accepted must be what was written
    refuses: bool = True  # else what is damaged is passed over


def campaign(name: str, folder: Path, *, inputs: int, number: int = 0) -> Counter:
    """Break a reader's file `inputs` times; how many were accepted and refused.

    Raises AssertionError, with the damaged bytes, for a foreign exception, a message of more than
    one line, a file that reading changed, and a hang.
    """
    kind, counts = READERS[name], Counter()
    work = folder / "whole"
    work.mkdir(parents=True)
    target = kind.make(work)
    whole, original = target.read_bytes(), kind.read(target)
    place = target.relative_to(work)

    @seed(number)
    @settings(
        max_examples=inputs, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(broken(whole))
    def once(content: bytes) -> None:
        here = folder / "damaged"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(work, here)
        path = here / place
        path.write_bytes(content)
        before, start = _files(here), time.monotonic()
        value, refusal = _outcome(kind, path)
        if refusal is None:
            assert not kind.sealed or content == whole or repr(value) == repr(original), (
                f"{name}: another value, without a word"
            )
        else:
            assert type(refusal) in kind.refusals, f"{name}: {refusal!r} is none of its own"
            assert len(str(refusal).splitlines()) == 1, f"{name}: {refusal}"
        counts["accepted" if refusal is None else "refused"] += 1
        assert time.monotonic() - start < LONGEST_S, f"{name}: a hang"
        after = _files(here)
        assert after == before, f"{name}: reading wrote"
        counts["inputs"] += 1

    once()
    return counts


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _outcome(kind: Reader, path: Path) -> tuple[Any, Exception | None]:
    try:
        return kind.read(path), None
    except kind.refusals as refusal:
        return None, refusal


# ---------------------------------------------------------------------------------- of results


def _rows(folder: Path) -> Path:
    append_rows(folder / "a.jsonl", [row(), row(metric="R@5", value=90), row(seed=1)])
    return folder / "a.jsonl"


def _shipped_rows(folder: Path) -> Path:
    lines = results.pack([row(), row(metric="R@5", value=90)])
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "a.jsonl"


def _log(folder: Path) -> Path:
    steps = [{"loss": 3.1, "vtc": 1.0, "step": n, "epoch": 1, "lr": 1e-5} for n in range(1, 5)]
    steps += [{"epoch": 1, "step": 4, "val_loss": 3.0}, {"step": 5, "broken": {"a": "x"}}]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps))
    return folder / "log.jsonl"


# --------------------------------------------------------------------------- of settings and runs


def _profile(folder: Path) -> Path:
    return Path(shutil.copy(config.PROFILES / "smoke.yaml", folder))


def _read_profile(path: Path) -> Any:
    kept, config.PROFILES = config.PROFILES, path.parent
    try:
        return load_profile("smoke")
    finally:
        config.PROFILES = kept


def _assignment(folder: Path) -> Path:
    (folder / "set").write_text("finetuning.epochs=3")
    return folder / "set"


def _checkpoint(folder: Path) -> Path:
    meta = {"identity": {"backbone": "newsroom-tiny"}, "step": 3, "elapsed": 1.5,
            "best": {"epoch": 1, "val_loss": float("inf")}, "groups": [{"lr": 0.1}]}  # fmt: skip
    tensors = {
        "model.x": torch.arange(12.0).view(3, 4),
        "rng.cpu": torch.zeros(9, dtype=torch.uint8),
    }
    write_checkpoint(folder / "last.safetensors", tensors, meta)
    return folder / "last.safetensors"


def _record(folder: Path) -> Path:
    record = {"identity": {}, "steps": 6, "epoch": 1, "val_loss": 2.5, "wall_time_s": 1.0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder / "run.json"


def _beside_weights(name: str, content: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file(create_backbone("newsroom-tiny").clip.state_dict(), folder / "w.safetensors")
        (folder / name).write_text(json.dumps(content))
        return folder / name

    return make


def _backbone_of(path: Path) -> Any:
    return create_backbone("newsroom-tiny", str(path.parent / "w.safetensors")).preprocessing


_PREPROCESSING = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": 64}

# ----------------------------------------------------------------------------- of data and pictures


def _layout(build: Callable[..., Any], name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        build(folder)
        return folder / name

    return make


def _loaded(dataset: str, split: str, levels: int = 0) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        table, report = LOADERS[dataset](path.parents[levels], split)
        return [(pair.id, pair.caption) for pair in table], report

    return read


def _annotation(dataset: str) -> Callable[[Path], Path]:
    """A layout's largest file of texts that its loader reads."""

    def is_read(path: Path) -> bool:
        content = path.read_bytes()
        before = _loads(dataset)(path)
        path.write_bytes(b"{")
        try:
            return _loads(dataset)(path) != before
        except ValueError:
            return True
        finally:
            path.write_bytes(content)

    def make(folder: Path) -> Path:
        layouts.BUILDERS[dataset](folder)
        texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".txt")]
        texts.sort(key=lambda path: (-path.stat().st_size, str(path)))
        return next(path for path in texts if is_read(path))

    return make


def _loads(dataset: str) -> Callable[[Path], Any]:
    """Every split's pairs that can be loaded from the layout around a file."""

    def read(path: Path) -> Any:
        root = next(p for p in path.parents if p.name in ("whole", "damaged"))
        found = {}
        for split in DATASETS[dataset]:
            with contextlib.suppress(FileNotFoundError):
                table, report = LOADERS[dataset](root, split)
                found[split] = [(pair.id, pair.caption, pair.explanation) for pair in table], report
        return found

    return read


def _prepared(name: str) -> Callable[[Path], Path]:
    """A prepared copy's file, by its ending."""

    def make(folder: Path) -> Path:
        layouts.whole_n24news(folder / "root", train=5)
        table, _ = LOADERS["n24news"](folder / "root", "train")
        prepare("n24news", [table], folder / "copy", workers=1, progress=False)
        return next((folder / "copy").glob(name))

    return make


def _journal(folder: Path) -> Path:
    """What `verify` keeps of four pictures."""
    paths = {f"{number}.png": folder / f"{number}.png" for number in range(4)}
    for number, path in enumerate(paths.values()):
        photo(number, (24, 18)).save(path)
    check_pictures(paths, folder / "pictures.jsonl", workers=1, progress=False)
    return folder / "pictures.jsonl"


def _from_prepared(path: Path) -> Any:
    table, _ = LOADERS["n24news"](path.parents[1] / "root", "train")
    pairs = use_prepared(table, path.parent)
    return [(pair.id, pair.load_image().tobytes()) for pair in pairs]


# ------------------------------------------------------------------------------- of explanations

_PAIRS = [Pair(str(n), Path("x.jpg"), f"Talks in Lima, Peru, day {n}.") for n in range(4)]


def _cache(folder: Path) -> Path:
    explain(_PAIRS, KnowledgeBase(), folder / "c.jsonl", progress=False)
    return folder / "c.jsonl"


def _cached(path: Path) -> Any:
    """What the cache tells of each pair; None where its row is gone, which is asked for anew."""
    with ExplanationCache(path, write=False) as cache:
        return [(key, row.text) for key, row in cache.rows()]


def _authors(folder: Path) -> Path:
    texts = {f"{n:03}.jpg": f"Explanation {n}." for n in range(9)}
    (folder / "a.json").write_text(json.dumps(texts))
    return folder / "a.json"


def _answer(folder: Path) -> Path:
    message = {"role": "assistant", "content": "Ada Torv wears a coat in Oslo."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    (folder / "a.json").write_text(json.dumps({"model": "m", "choices": [choice]}))
    return folder / "a.json"


# ---------------------------------------------------------------------------------- of vectors


def _vectors(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        written = name.replace(".ids.json", ".npy")
        Vectors(["a", "b", "c"], np.eye(3, 5, dtype=np.float32)).save(folder / written)
        return folder / name

    return make


def _chunk(folder: Path) -> Path:
    keys = ["a" * 32, "b" * 32]
    VectorCache(folder, 5).add(keys, np.eye(2, 5, dtype=np.float32), {"s": keys[0]})
    return folder / f"{keys[0]}.safetensors"


def _picture(ending: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 255, (24, 31, 4), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(folder / f"p.{ending}", **options)
        return folder / f"p.{ending}"

    return make


def _own(form: str, pattern: str) -> Reader:
    """A form of one's own data, its pictures read, too; archives are unpacked outside of it."""

    def make(folder: Path) -> Path:
        FORMS[form](folder)
        return sorted(folder.rglob(pattern))[0]

    def read(path: Path) -> Any:
        root = next(p for p in path.parents if p.name in ("whole", "damaged"))
        with mock.patch.dict(os.environ, ENTITYCLIP_RUNS=str(root.parent / "runs")):
            pairs = load_pairs("folder", "all", root=root)
        return [(pair.id, pair.caption) for pair in pairs]

    return Reader(make, read, (ValueError, FileNotFoundError))


READERS: dict[str, Reader] = {
    "own tar": _own("WebDataset", "*.tar"),
    "own parquet": _own("Parquet of bytes", "*.parquet"),
    "own datasets": _own("a saved data set", "*.arrow"),
    "own table with tabs": _own("`captions.tsv`", "*.tsv"),
    "own objects": _own("`metadata.jsonl`", "*.jsonl"),
    "result rows": Reader(_rows, read_rows, (ResultsError,)),
    "shipped rows": Reader(_shipped_rows, read_rows, (ResultsError,)),
    "training log": Reader(_log, read_log, (ResultsError,)),
    "profile": Reader(_profile, _read_profile, (ProfileError,)),
    "assignment": Reader(
        _assignment,
        lambda path: parse_settings([path.read_bytes().decode("utf-8", "replace")]),
        (ProfileError,),
    ),
    "checkpoint": Reader(_checkpoint, read_tensors, (CheckpointError,)),
    "checkpoint's metadata": Reader(_checkpoint, read_meta, (CheckpointError,)),
    "last checkpoint": Reader(
        _checkpoint, lambda path: read_last(path.parent), (CheckpointError,)
    ),
    "run's record": Reader(_record, lambda path: read_record(path.parent), (CheckpointError,)),
    "preprocessor config": Reader(
        _beside_weights("preprocessor_config.json", _PREPROCESSING), _backbone_of, (BackboneError,)
    ),
    "open_clip config": Reader(
        _beside_weights("open_clip_config.json", {"preprocess_cfg": {"mean": [0.5] * 3}}),
        _backbone_of, (BackboneError,),
    ),
    "manifest": Reader(
        lambda folder: Path(shutil.copy(MANIFEST, folder)), load_manifest, (ManifestError,)
    ),
    **{
        f"{dataset} texts": Reader(_annotation(dataset), _loads(dataset), (ValueError,))
        for dataset in LOADERS
    },
    **{
        f"prepared copy's {name}": Reader(
            _prepared(name), _from_prepared, (PreparedError, ImageError), sealed=True
        )
        for name in ("prepared.json", "*-000000.json", "*.tar")
    },
    "journal of pictures": Reader(
        _journal, lambda path: list(read_journal(path)), (JournalError,)
    ),
    "explanation cache": Reader(_cache, _cached, (CacheError,)),
    "authors' explanations": Reader(
        _authors, lambda path: read_authors(path, "n24news"), (ValueError,)
    ),
    "a server's answer": Reader(
        _answer, lambda path: read_completion(path.read_bytes()), (Broken, Unusable)
    ),
    "vectors (.npy)": Reader(_vectors("v.npy"), Vectors.load, (VectorsError,)),
    "ids of vectors": Reader(
        _vectors("v.ids.json"), lambda path: Vectors.load(path.with_name("v.npy")), (VectorsError,)
    ),
    "vectors (.parquet)": Reader(_vectors("v.parquet"), Vectors.load, (VectorsError,)),
    "vector cache": Reader(
        _chunk, lambda path: {*VectorCache(path.parent, 5).vectors}, (), refuses=False
    ),
    **{
        f"{ending} picture{' ' + mode if mode != 'RGB' else ''}": Reader(
            _picture(ending, mode), decode, (ImageError,)
        )
        for ending, mode in (
            ("jpg", "RGB"), ("png", "RGBA"), ("png", "P"), ("tif", "L"), ("gif", "P"),
            ("webp", "RGB"), ("bmp", "RGB"),
        )
    },
}  # fmt: skip
