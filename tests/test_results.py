import json
import logging
import os
import stat
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from entityclip import results
from entityclip.config import REPOSITORY, EntityCLIPConfig, as_dict, config_hash
from entityclip.evaluation.provenance import peak_memory_mb, provenance
from entityclip.files import git_commit
from entityclip.results import (
    RETRIEVAL,
    ResultsError,
    append_rows,
    measurement_rows,
    pack,
    read_rows,
)
from tests.processes import run_alone, start


def row(**changes):
    """A measurement that could have come from a run."""
    config = {"lr": 1e-5}
    return {
        "variant": "clip",
        "dataset": "newsroom",
        "split": "test",
        "direction": "text_to_image",
        "metric": "R@1",
        "value": 76.7,
        "low": 72.5,
        "high": 80.8,
        "n_queries": 400,
        "n_candidates": 400,
        "seed": 0,
        "config": config,
        "config_hash": config_hash(config),
        "data_fingerprint": "abcd",
        "trained_fingerprint": "ef01",
        "git_commit": "0" * 40,
        "versions": {"torch": "2.6"},
        "device": "CPU",
        "wall_time_s": 1.0,
        "peak_memory_mb": 2.0,
        "created": "2026-01-02T03:04:05.000006+00:00",
    } | changes


def write(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


# ------------------------------------------------------------------------------------ provenance


def test_provenance_tells_where_a_number_came_from():
    config = EntityCLIPConfig(heads=2)
    found = provenance(
        config=config, seed=3, data_fingerprint="abcd", device="cpu", wall_time_s=1.23456
    )
    assert found["seed"] == 3
    assert found["config"] == as_dict(config)
    assert found["config"]["heads"] == 2
    assert found["config_hash"] == config_hash(config)
    assert found["data_fingerprint"] == "abcd"
    assert found["wall_time_s"] == 1.235
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"].startswith("CPU ")
    assert found["created"].endswith("+00:00")
    json.dumps(found, allow_nan=False)


def measured(values, intervals, direction):
    return measurement_rows(
        values, intervals, direction=direction,
        variant="clip", dataset="newsroom", split="test", n_queries=4, n_candidates=8,
        provenance=provenance(
            config={}, seed=0, data_fingerprint="x", device="cpu", wall_time_s=0
        ),
    )  # fmt: skip


def test_a_row_holds_exactly_the_columns(tmp_path):
    rows = measured({"R@1": 50.0, "MedR": 2.0}, {"R@1": (40.0, 60.0)}, "image_to_text")
    assert [set(r) for r in rows] == [set(RETRIEVAL.columns)] * 2
    assert [(r["low"], r["high"]) for r in rows] == [(40.0, 60.0), (None, None)]
    append_rows(tmp_path / "a.jsonl", rows)
    assert read_rows(tmp_path)["value"].tolist() == [50.0, 2.0]
    with pytest.raises(ResultsError, match="text_to_image, image_to_text"):
        measured({"R@1": 1.0}, {}, "t2i")


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", folder, *identity, *arguments]
    return subprocess.check_output(command, env=env, text=True).strip()


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "entityclip").mkdir()
    (tmp_path / "entityclip" / "model.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_only_changes_of_the_package_make_a_commit_dirty(checkout, monkeypatch):
    clean = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")  # as inside another project's git hook
    (checkout / "figure.png").write_text("redrawn")
    assert git_commit(checkout) == clean
    (checkout / "entityclip" / "new.py").write_text("")
    assert git_commit(checkout) == clean + "-dirty"


def test_git_commit_is_unknown_outside_a_checkout_of_its_own(checkout, tmp_path_factory):
    assert git_commit(tmp_path_factory.mktemp("bare")) == "unknown"
    # e.g. installed below the folder of somebody else's repository
    assert git_commit(checkout / "entityclip") == "unknown"


def print_peaks():
    before = peak_memory_mb()
    block = np.ones(2**28 // 8)  # 256 MiB, touched
    print(before, peak_memory_mb(), len(block))


def test_peak_memory_is_in_mib():
    # in a process of its own: here an earlier test may have needed more already
    before, after, _ = map(float, run_alone(print_peaks).split())
    assert before > 50  # torch alone
    assert 200 < after - before < 300


# -------------------------------------------------------------------------------- append and read


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "deep" / "a.jsonl"
    # U+2028 ends a line for str.splitlines, not for JSON
    rows = [row(), row(metric="R@5", value=90), row(variant="naïve\u2028名", low=None, high=None)]
    append_rows(path, rows[:2])
    append_rows(path, rows[2:])
    frame = read_rows(path)
    assert frame["variant"].tolist() == ["clip", "clip", "naïve\u2028名"]
    assert frame["value"].tolist() == [76.7, 90, 76.7]
    assert frame["low"].isna().tolist() == [False, False, True]
    assert frame["config"].tolist() == [{"lr": 1e-5}] * 3
    assert set(frame.columns) == set(RETRIEVAL.columns)
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_numpy_numbers_are_recorded_as_numbers_and_no_rows_make_no_file(tmp_path):
    path = tmp_path / "a.jsonl"
    append_rows(path, [])
    assert not path.exists()
    append_rows(path, [row(value=np.float32(0.5), n_queries=np.int64(7))])
    line = json.loads(path.read_text())
    assert (line["value"], line["n_queries"]) == (0.5, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": float("nan")}, "row 2 holds a NaN"),
        ({"high": float("inf")}, "row 2 holds a NaN or infinite"),
        ({"value": None}, r"row 2 is no measurement \(clip, test, R@1\): value: .*got None"),
        ({"value": "76.7"}, "row 2 .*: value: .*got '76.7'"),
        ({"value": True}, "row 2 .*: value: .*got True"),
        ({"seed": [0]}, "row 2 .*: seed: "),
        ({"config": None}, "row 2 .*: config: "),
        ({"ranks": [1, "x"]}, "row 2 .*: ranks.1: "),
        ({"wall_time_s": float("nan")}, "row 2 holds a NaN"),
        ({"created": "yesterday"}, "expected an ISO 8601 time"),
        ({"created": "2026-01-02T03:04:05"}, "without a time zone"),
    ],
)
def test_what_is_no_measurement_is_refused_and_nothing_written(tmp_path, changes, message):
    path = tmp_path / "a.jsonl"
    with pytest.raises(ResultsError, match=message):
        append_rows(path, [row(), row(**changes)])
    assert not path.exists()


def test_missing_columns_are_named(tmp_path):
    path, short = tmp_path / "a.jsonl", row()
    del short["seed"], short["device"]
    with pytest.raises(ResultsError, match="row 1 lacks seed, device"):
        append_rows(path, [short])
    write(path, [row(), short])
    with pytest.raises(ResultsError, match=r"a\.jsonl, line 2 lacks seed, device"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"variant": "cl', "line 2 is not JSON"),
        ("", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1, 2]", r"line 2 is not an object: '\[1, 2\]'"),
        (json.dumps(row(value=float("nan"))), "line 2 is not JSON .NaN is no number"),
        (json.dumps(row(value="high")), "line 2 is no measurement .*value: .*got 'high'"),
        ('{"shared": {"config": 3}}', "line 2: config: "),
        (json.dumps(row(config="0123")), "line 2 refers to"),
    ],
)
def test_a_bad_line_is_named_with_its_text(tmp_path, line, message):
    good = json.dumps(row())
    (tmp_path / "bad.jsonl").write_text("\n".join([good, line, good, ""]))
    with pytest.raises(ResultsError, match=r"bad\.jsonl, " + message):
        read_rows(tmp_path)


def test_nothing_to_read_says_what_to_run(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.jsonl"):
        with pytest.raises(ResultsError, match=r"no result rows in .*run the evaluation"):
            read_rows(path)


def test_the_last_line_of_a_measurement_counts_whatever_its_clock_said(tmp_path):
    ahead, now = "2031-01-01T00:00:00+00:00", "2026-01-01T00:00:01.5+00:00"
    append_rows(tmp_path / "a.jsonl", [row(value=1, created=ahead), row(metric="R@5", value=5)])
    append_rows(tmp_path / "a.jsonl", [row(value=2, created=now)])
    frame = read_rows(tmp_path).set_index("metric")["value"]
    assert frame.to_dict() == {"R@1": 2, "R@5": 5}
    append_rows(tmp_path / "b.jsonl", [row(value=3, created=now)])
    assert read_rows(tmp_path).set_index("metric")["value"]["R@1"] == 3


def test_an_unfinished_last_line_is_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b'\n{"variant": "cl')
    before = path.read_bytes()
    assert len(read_rows(path)) == 1
    assert "incomplete" in caplog.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["image,caption\na.jpg,x", '[\n{"variant": 1}', '{"a": 1}\n{"b'])
def test_a_file_that_holds_no_rows_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"mine\.csv holds something else"):
        append_rows(path, [row()])
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["mine.csv"]


@pytest.mark.parametrize("name", results.KEY)
def test_measurements_that_differ_in_any_part_of_the_key_are_both_kept(tmp_path, name):
    other = row()[name] + 1 if name == "seed" else "other"
    append_rows(tmp_path / "a.jsonl", [row(), row(**{name: other})])
    assert len(read_rows(tmp_path)) == 2


def test_a_torn_last_line_is_moved_aside_and_told(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    append_rows(path, [row()])
    torn = json.dumps(row(metric="R@5"))[:50]
    with path.open("a") as file:
        file.write(torn)
    with caplog.at_level(logging.WARNING):
        append_rows(path, [row(metric="R@10")])
    assert read_rows(path)["metric"].tolist() == ["R@1", "R@10"]
    assert (tmp_path / "a.jsonl.torn").read_text() == torn + "\n"
    assert "torn line" in caplog.text
    assert len(read_rows(tmp_path)) == 2  # the torn one is no results file


def test_a_whole_row_without_its_newline_is_kept(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row()))
    append_rows(path, [row(metric="R@10")])
    assert read_rows(path)["metric"].tolist() == ["R@1", "R@10"]
    assert not caplog.records
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_full_disk_leaves_the_rows_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_rows(path, [row()])
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    with pytest.raises(OSError, match=r"100 of \d+ bytes written; is the disk full"):
        append_rows(path, [row(metric="R@5")])
    assert path.read_bytes() == before


def append_500(path, writer):
    for i in range(500):
        append_rows(path, [row(variant=writer, seed=i, device="x" * (i % 97 * 50))])


def test_two_processes_can_append_at_once(tmp_path):
    path, log = tmp_path / "runs" / "a.jsonl", tmp_path / "output"
    writers = [start(append_500, path, name, log=str(log)) for name in ("one", "two")]
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0], log.read_text()
    frame = read_rows(path)
    assert frame.groupby("variant")["seed"].apply(set).to_dict() == {
        "one": set(range(500)),
        "two": set(range(500)),
    }
    assert os.listdir(path.parent) == ["a.jsonl"]


# --------------------------------- shipped rows: what they repeat is written once


@pytest.fixture
def plain(tmp_path):
    """A file of whole rows, as a run writes it."""
    measured = [row(metric=metric, seed=seed) for seed in range(3) for metric in ("R@1", "R@5")]
    append_rows(tmp_path / "plain.jsonl", measured)
    return tmp_path / "plain.jsonl"


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_packed_rows_are_read_as_the_whole_ones(plain, tmp_path):
    packed, whole = tmp_path / "packed.jsonl", read_rows(plain)
    head, first, *rest = pack(records(plain))
    write(packed, [head, first, *rest])
    pd.testing.assert_frame_equal(read_rows(packed), whole)
    assert packed.read_text().count('"lr"') == 1 < plain.read_text().count('"lr"')
    # deleting a row loses that row alone
    write(packed, [head, *rest])
    kept = whole.drop(whole[(whole["seed"] == 0) & (whole["metric"] == "R@1")].index)
    pd.testing.assert_frame_equal(read_rows(packed), kept.reset_index(drop=True))
    # deleting the configuration is told
    write(packed, [first, *rest])
    with pytest.raises(ResultsError, match=r"line 1 refers to .*first line no longer holds"):
        read_rows(packed)


@pytest.mark.parametrize(
    "path",
    sorted((REPOSITORY / "figures" / "rows").rglob("*.jsonl")),
    ids=lambda path: path.stem,
)
def test_shipped_files_are_packed_and_whole(path):
    head, *rows = records(path)
    held = {name: set(values) for name, values in head["shared"].items()}
    assert {name: {row[name] for row in rows} - {None} for name in held} == held
    assert all(row["config"] == row["config_hash"] for row in rows)
