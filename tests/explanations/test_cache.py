"""The cache: append-only, mended, shared by processes, killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from entityclip.console import Part
from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.explanations import (
    CacheError,
    ExplanationCache,
    KnowledgeBase,
    Sampling,
    Source,
    StubLLM,
    explain,
    merge_caches,
    shard,
)
from entityclip.explanations.cache import cache_keys, encode_row
from entityclip.explanations.extraction import explain_until_killed

PAIRS = newsroom_pairs("train", 60)
SOURCE = Source("newsroom-knowledge-2-all-0.25", "entities-v1", Sampling())
KEYS = cache_keys([pair.caption for pair in PAIRS], SOURCE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.jsonl"


def filled(path, pairs=PAIRS):
    return explain(pairs, KnowledgeBase(), path, progress=False)


def lines(path):
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def assert_as_uninterrupted(path, pairs):
    """Finish what was killed: as in one go, each caption's row once."""
    whole = path.with_name("whole.jsonl")
    answers = [[(row.id, row.text) for row in filled(at, pairs)] for at in (path, whole)]
    assert answers[0] == answers[1]
    rows = [[json.loads(line) for line in lines(at)] for at in (path, whole)]
    texts = [[(row["key"], row["id"], row["text"]) for row in written] for written in rows]
    assert texts[0] == texts[1]
    assert len({row["key"] for row in rows[0]}) == len(rows[0])


def test_keys_tell_all_that_matters_apart():
    others = ({"model": "x"}, {"prompt_version": "x"}, {"sampling": Sampling(seed=1)})
    sources = [SOURCE, *(SOURCE._replace(**o) for o in (*others, {"sampling": None}))]
    keys = [key for source in sources for key in cache_keys(["a", "b", "a\udc80"], source)]
    assert len(set(keys)) == len(keys) == 15
    assert {len(key) for key in keys} == {16}
    assert cache_keys(["a"], SOURCE) == cache_keys(["a"], Source(*SOURCE))


def test_rows_come_back_as_they_were_each_after_its_key_at_a_fixed_place(path):
    rows = filled(path)
    with ExplanationCache(path) as cache:
        assert list(cache.rows()) == list(zip(KEYS, rows, strict=True))
        assert cache.read(b"\0" * 16) is None
    assert [json.loads(line)["key"] for line in lines(path)] == [key.hex() for key in KEYS]
    assert [line[9:41].decode() for line in lines(path)] == [key.hex() for key in KEYS]


@pytest.mark.parametrize("cut", [1, 5, 60, 200])
def test_a_torn_last_line_is_moved_aside_and_only_its_caption_asked_again(path, cut):
    rows = filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    asked = []

    class Counting(KnowledgeBase):
        def complete(self, prompts, sampling):
            asked.extend(prompts)
            return super().complete(prompts, sampling)

    again = explain(PAIRS, Counting(), path, progress=False)
    assert [row.text for row in again] == [row.text for row in rows]
    assert len(lines(path)) == len(PAIRS)
    torn = path.with_name("cache.jsonl.torn")
    if cut == 1:  # only the newline was missing
        assert not asked
        assert not torn.exists()
    else:
        assert len(asked) == 1
        assert whole.endswith(torn.read_bytes()[:-1] + whole[-cut:])


def test_a_line_torn_by_another_process_while_open(path):
    filled(path, PAIRS[:3])
    with ExplanationCache(path) as cache:
        with path.open("ab") as file:
            file.write(b'{"key": "00')
        cache.refresh()
        assert len(cache) == 3
        filled(path, PAIRS[:5])
        cache.refresh()
        assert cache.missing(KEYS) == KEYS[5:]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda line: b"\0" * len(line), r"cache\.jsonl, line 2 starts with no key"),
        (lambda line: b"not JSON", r"line 2 starts with no key.*restore that line"),
        (lambda line: line[:9] + b"z" * 32 + line[41:], r"line 2 starts with no key of 32"),
        (lambda line: line.replace(b'"text": "', b'"text": "x'), r"line 2 holds another text"),
        (
            lambda line: line.replace(b'"attempts"', b'"tries"'),
            r"line 2 is no explanation \(attempts: Field required",
        ),
        (lambda line: line.replace(b'"seed": 0', b'"seed": -1'), r"line 2 .*sampling: seed is -1"),
        (lambda line: line.replace(b'"id": ', b'"id": x'), r"line 2 is no expl.*JSON"),
        (
            lambda line: line.replace(b'"checks": []', b'"checks": 1'),
            r"line 2 is no expl.*checks: .*got 1",
        ),
    ],
)
def test_a_damaged_line_is_named(path, damage, match):
    filled(path)
    content = lines(path)
    content[1] = damage(content[1])
    path.write_bytes(b"\n".join(content) + b"\n")
    with pytest.raises(CacheError, match=match):
        filled(path)


def test_append_leaves_out_what_another_has_written(path):
    with ExplanationCache(path) as one, ExplanationCache(path) as two:
        rows = list(zip(KEYS, filled(path), strict=True))
        assert one.append(rows) == two.append(rows) == 0
        fresh = (b"\1" * 16, rows[0][1])
        assert one.append([fresh, fresh]) == 1
        assert two.append([fresh]) == 0
    assert len(lines(path)) == len(PAIRS) + 1


def _extract(path, seed) -> None:
    pairs = newsroom_pairs("train", 300)
    random.Random(seed).shuffle(pairs)
    filled(path, pairs)


def test_four_processes_on_one_cache(path):
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        list(pool.map(_extract, [path] * 4, range(4)))
    assert len({line[9:41] for line in lines(path)}) == len(lines(path)) == 300


def test_a_full_disk_keeps_what_was_there(path, monkeypatch):
    filled(path, PAIRS[:10])
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:50]))
    with pytest.raises(OSError, match="is the disk full"):
        filled(path)
    monkeypatch.undo()
    assert path.read_bytes() == before


def _extract_slowly(pairs, path) -> None:
    explain(pairs, KnowledgeBase(delay_s=0.0005), path, progress=False)


def test_killed_twenty_times_it_ends_as_if_uninterrupted(path):
    random_, pairs = random.Random(0), newsroom_pairs("train", 2000)
    done = []
    while len(done) < 20:
        # by rows written, not by seconds: each kill falls into the work, on any machine
        goal = len(lines(path)) + random_.randrange(1, 90)
        # forked, not spawned: 20 imports of torch would take longer than all the rest
        process = get_context("fork").Process(target=_extract_slowly, args=(pairs, path))
        process.start()
        while process.is_alive() and len(lines(path)) < goal:
            time.sleep(random_.random() * 0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        done.append(len(lines(path)))
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] < 2000
    assert_as_uninterrupted(path, pairs)


def test_it_is_killed_once_there_are_so_many_rows_or_says_that_there_were_fewer(path):
    pairs = newsroom_pairs("train", 120)
    left = explain_until_killed(pairs, path, rows=20)
    assert 20 <= left < 120
    with ExplanationCache(path) as cache:
        assert len(cache) == left
    assert_as_uninterrupted(path, pairs)
    with pytest.raises(RuntimeError, match=r"wrote 120 rows, not 121, .*ask for fewer rows"):
        explain_until_killed(pairs, path, rows=121)


def test_shards_are_disjoint_complete_and_merge_into_the_same_bytes(tmp_path, path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # rows say when they were made
    pairs = [*PAIRS, replace(PAIRS[0], id="again")]
    parts = [shard(pairs, Part(index, 3)) for index in (1, 2, 3)]
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in pairs)
    assert all(parts)
    assert sum(PAIRS[0].caption in {pair.caption for pair in part} for part in parts) == 1
    files = [tmp_path / f"part{index}.jsonl" for index in range(3)]
    for file, part in zip(files, parts, strict=True):
        filled(file, part)
    distinct = len({pair.caption for pair in pairs})
    assert merge_caches(files, path) == {"added": distinct, "already_there": 0}
    assert merge_caches(files, path) == {"added": 0, "already_there": distinct}
    whole = tmp_path / "whole.jsonl"
    filled(whole, pairs)
    ordered = tmp_path / "ordered.jsonl"
    merge_caches(files[::-1], ordered, cache_keys((pair.caption for pair in pairs), SOURCE))
    assert ordered.read_bytes() == whole.read_bytes()
    # of the same name, but it would answer nothing: all is there
    rows = explain(pairs, StubLLM(lambda p, s: "", model=SOURCE.model), path, progress=False)
    assert [row.id for row in rows] == [pair.id for pair in pairs]
    assert all(row.text for row in rows)
    with pytest.raises(FileNotFoundError, match="has that shard run"):
        merge_caches([tmp_path / "none.jsonl"], path)


def test_text_may_hold_any_character(path):
    text = 'Line\nend, quote " and \u2028, \u0085, emoji 😀, Nairobi'
    pair = PAIRS[0]
    rows = explain([pair], StubLLM(lambda p, s: text), path, progress=False)
    assert rows[0].text == text
    assert explain([pair], StubLLM(lambda p, s: "x"), path, progress=False) == rows
    lone = explain([pair], StubLLM(lambda p, s: "a\ud83d", model="2"), path, progress=False)
    assert lone[0].text == "a?"
    assert encode_row(b"\0" * 16, rows[0]).count(b"\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"image,caption\na.jpg,Oslo\nb.jpg,Ber",
        b'{"id": 1}\n{"id": 2',
        b'{"key": "value"}\n{"ke',
        b"\x89PNG\r\n\x1a\n" * 9,
        b"no line end",
        b'{"key": "' + b"z" * 32 + b'", ',
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_a_file_that_is_no_cache_is_refused_and_left_as_it_is(path, content, write):
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"cache\.jsonl, line 1 starts with no key.*is left as it"):
        ExplanationCache(path, write=write)
    assert [(file.name, file.read_bytes()) for file in path.parent.iterdir()] == [
        (path.name, content)
    ]


def test_a_foreign_line_amid_a_cache_keeps_its_torn_end_too(path):
    filled(path, PAIRS[:3])
    content = path.read_bytes() + b'a line\n{"key": "00'
    path.write_bytes(content)
    with pytest.raises(CacheError, match="line 4 starts with no key"):
        ExplanationCache(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("cut", "left"), [(0, 3), (1, 3), (5, 2), (250, 2)])
def test_reading_never_writes(path, cut, left, monkeypatch):
    filled(path, PAIRS[:3])
    path.write_bytes(path.read_bytes()[: -cut or None])
    before = path.read_bytes()
    for name in ("open_to_append", "lock", "mend_tail", "append"):
        monkeypatch.setattr(f"entityclip.explanations.cache.{name}", None)
    with ExplanationCache(path, write=False) as cache:
        assert len(list(cache.rows())) == len(cache) == left
        cache.refresh()
        assert len(cache) == left
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        ExplanationCache(path.with_name("none"), write=False)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("model", ["x"], "model: "),
        ("text", None, "text: "),
        ("checks", [["cut"]], r"checks\.0: "),
        ("attempts", "2", "attempts: "),
        ("sampling", {"seed": True}, r"sampling\.seed: "),
        ("id", 7, "id: "),
        ("created", 0, "created: "),
    ],
)
def test_a_field_of_another_type_is_named(path, field, value, match):
    filled(path, PAIRS[:2])
    content = [json.loads(line) for line in lines(path)]
    content[1][field] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(CacheError, match=rf"line 2 is no explanation \({match}"):
        filled(path, PAIRS[:2])


@pytest.mark.parametrize("text", [rb"a\ud800", b"[" * 50_000, b"\xff"])
def test_text_that_no_file_can_hold_is_named_by_line(path, text):
    filled(path, PAIRS[:2])
    path.write_bytes(path.read_bytes().replace(b'"text": "', b'"text": "' + text))
    with pytest.raises(CacheError, match="line 1 "):
        filled(path, PAIRS[:2])


def test_an_id_that_is_no_utf_8_is_kept_in_the_row_and_spelt_in_the_file(path):
    pair = replace(PAIRS[0], id="a\udc80")
    for _ in range(2):
        assert [row.id for row in filled(path, [pair])] == [pair.id]
