"""Shipped rows: what they repeat is written once, and read as if it stood in every row."""

import json

import pandas as pd
import pytest

from entityclip.config import REPOSITORY
from entityclip.results import ResultsError, append_rows, pack, read_rows
from tests.test_results import row

ROWS = sorted((REPOSITORY / "figures" / "rows").rglob("*.jsonl"))


def write(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def plain(tmp_path):
    """A file of whole rows, as a run writes it."""
    measured = [row(metric=metric, seed=seed) for seed in range(3) for metric in ("R@1", "R@5")]
    append_rows(tmp_path / "plain.jsonl", measured)
    return tmp_path / "plain.jsonl"


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_packed_rows_are_read_as_the_whole_ones(plain, tmp_path):
    packed = tmp_path / "packed.jsonl"
    write(packed, pack(records(plain)))
    pd.testing.assert_frame_equal(read_rows(packed), read_rows(plain))
    assert packed.read_text().count('"lr"') == 1 < plain.read_text().count('"lr"')


def test_deleting_a_packed_row_loses_that_row_alone(plain, tmp_path):
    packed = tmp_path / "packed.jsonl"
    head, _, *rest = pack(records(plain))
    write(packed, [head, *rest])
    whole = read_rows(plain)
    kept = whole.drop(whole[(whole["seed"] == 0) & (whole["metric"] == "R@1")].index)
    pd.testing.assert_frame_equal(read_rows(packed), kept.reset_index(drop=True))


def test_a_row_whose_configuration_was_lost_is_named(plain, tmp_path):
    packed = tmp_path / "packed.jsonl"
    write(packed, pack(records(plain))[1:])
    with pytest.raises(ResultsError, match=r"line 1 refers to .*first line no longer holds"):
        read_rows(packed)


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_shipped_files_are_packed_and_whole(path):
    head, *rows = records(path)
    held = {name: set(values) for name, values in head["shared"].items()}
    assert {name: {row[name] for row in rows} - {None} for name in held} == held
    assert all(row["config"] == row["config_hash"] for row in rows)
