"""The stream gives what json.loads gives, wherever a chunk ends, and says where it is wrong."""

import json

import pytest

from entityclip.datasets import reading
from entityclip.datasets.reading import iter_entries, iter_rows

ROWS = [
    {"a": "Zoë 東京 ☕ \u2028", "b": [1, 2.5, {"c": None}]},
    12,
    -3.25e10,
    'text with ] and } and \\ and "',
    [],
    {},
    True,
    None,
    1.5,
    [[["deep"]]],
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 16, 1000])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escape", [True, False])
def test_rows_and_entries_wherever_a_chunk_ends(chunk, indent, escape, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=escape), encoding="utf-8")
    assert list(iter_rows(path)) == ROWS
    named = {f"ключ {number}": row for number, row in enumerate(ROWS)}
    path.write_text(json.dumps(named, indent=indent, ensure_ascii=escape), encoding="utf-8")
    assert list(iter_entries(path)) == list(named.items())
    below = {"before": ROWS, "images": ROWS, "after": {"images": 3}}
    path.write_text(json.dumps(below, indent=indent, ensure_ascii=escape), encoding="utf-8")
    assert list(iter_rows(path, "images")) == ROWS


@pytest.mark.parametrize("text", ["[]", " [ ] \n", "\ufeff[]"])
def test_an_empty_list_has_no_rows(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert list(iter_rows(path)) == []


def test_a_cut_file_gives_its_whole_rows_first_and_names_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 8)
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2}, {"a": ')
    rows = iter_rows(path)
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match=r"a\.json is not JSON \(.*row 2\); fetch it again"):
        next(rows)


def test_an_unclosed_row_is_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 64)
    monkeypatch.setattr(reading, "_MAX_ROW", 1000)
    path = tmp_path / "a.json"
    path.write_text('[{"a": "' + "x" * 100_000)
    with pytest.raises(ValueError, match="no value ends within 1000 characters, row 0"):
        list(iter_rows(path))
