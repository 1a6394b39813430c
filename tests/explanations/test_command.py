"""`entityclip explain`: what it asks, what it says, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from entityclip.console import guarded
from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.explanations import ExplanationCache, neutralise
from entityclip.explanations.__main__ import main

CAPTIONS = [pair.caption for pair in newsroom_pairs("train", 6)]
KNOWLEDGE = "--knowledge-base"


@pytest.fixture
def run(tmp_path, capsys):
    """`run(option, …)` → exit code, the last line printed, and all complaints."""

    def run(*arguments: str):
        known = ["--dataset", "newsroom", "--limit", "6", "--out", f"{tmp_path}/c"]
        code = guarded(main, [*known, *arguments])
        printed = capsys.readouterr()
        return code, printed.out.strip().split("\n")[-1], printed.err

    return run


def test_the_knowledge_base_explains_what_trains_and_goes_on(run, tmp_path):
    code, said, _ = run(KNOWLEDGE, "--split", "train")
    assert code == 0
    assert said == "6 pairs, 6 captions: 6 asked, 0 reused; marked: none; failed: 0"
    code, said, _ = run(KNOWLEDGE)
    assert said == "12 pairs, 12 captions: 6 asked, 6 reused; marked: none; failed: 0"
    with ExplanationCache(tmp_path / "c") as cache:
        assert len(cache) == 12


def test_parts_side_by_side_come_to_the_same_bytes_as_one_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    asked = ["--dataset", "newsroom", "--limit", "40", KNOWLEDGE, "--out"]
    assert main([*asked, str(tmp_path / "whole.jsonl")]) == 0
    out = str(tmp_path / "cache [1].jsonl")
    for part in ("3/3", "1/3"):
        assert main([*asked, out, "--shard", part]) == 0
    assert not (tmp_path / "cache [1].jsonl").exists()
    assert "part 1/3 is kept in" in capsys.readouterr().out
    assert main([*asked, out, "--shard", "2/3"]) == 0
    assert main([*asked, out]) == 0
    said = capsys.readouterr().out
    assert "80 rows of 3 parts joined" in said
    assert "80 captions: 0 asked, 80 reused" in said
    assert (tmp_path / "cache [1].jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # what a part left undone is asked by the call that joins them
    other = str(tmp_path / "other.jsonl")
    assert main([*asked, other, "--shard", "2/2"]) == 0
    assert main([*asked, other]) == 0
    with ExplanationCache(other) as cache:
        assert len(cache) == 80


@pytest.mark.parametrize("part", ["0/3", "4/3", "1/0", "x", "1", "-1/3", "1/3/3", ""])
def test_what_is_no_part_is_refused(part, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--dataset", "newsroom", KNOWLEDGE, "--out", "x", f"--shard={part}"])
    assert stop.value.code == 2
    assert f"{part!r} is no part such as 3/8, from 1/8 to 8/8" in capsys.readouterr().err


def test_a_server_is_asked_and_what_it_leaves_is_counted(run, tmp_path):
    pytest.importorskip("openai", reason="needs the extra `llm`")
    from tests.fake_llm_server import FakeServer

    cut, lost = map(neutralise, CAPTIONS[:2])
    faults = {cut: "length", lost: "400"}
    with FakeServer(delay_s=0.02, faults=lambda caption, asked: faults.get(caption)) as server:
        served = ("--server", server.url, "--model", "fake", "--split", "train")
        code, said, _ = run(*served, "--workers", "2")
        assert (code, server.most_in_flight) == (1, 2)
        assert said.startswith("6 pairs, 6 captions: 6 asked, 0 reused; marked: cut 1; failed: 1;")
        assert said.endswith("; no answer: 1 x HTTP 400")
        faults.clear()
        code, said, _ = run(*served)
        assert code == 0
        assert said == "6 pairs, 6 captions: 1 asked, 5 reused; marked: cut 1; failed: 0"
        (tmp_path / "mine.txt").write_text("Say who is in <caption>\n{caption}\n</caption>")
        code, said, _ = run(*served, "--prompt", f"{tmp_path}/mine.txt")
        assert "6 asked, 0 reused" in said
        assert server.bodies[-1]["messages"][0]["content"].startswith("Say who is in <caption>\n")
        server.faults = lambda caption, asked: "401"
        code, _, complaint = run(*served, "--prompt", "appearance-v1")
        assert code == 1
        assert "OPENAI_API_KEY" in complaint
    rows = map(json.loads, (tmp_path / "c").read_text().splitlines())
    versions = {row["prompt_version"] for row in rows}
    assert len(versions) == 2
    assert "entities-v1" in versions


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((KNOWLEDGE, "--split", "dev"), "newsroom has no split 'dev'"),
        ((KNOWLEDGE, "--dataset", "news"), "unknown dataset 'news'"),
        ((KNOWLEDGE, "--dataset", "twitter100k"), "no split 'train'; there are all"),
        ((KNOWLEDGE, "--dataset", "n24news"), "n24news needs the folder"),
        ((KNOWLEDGE, "--limit", "0"), "ask for at least one pair"),
        ((KNOWLEDGE, "--prompt", "/none.txt"), "none.txt"),
        ((KNOWLEDGE, "--prompt", __file__), "must hold {caption} exactly once"),
        (("--model", "/no/model"), "there is no model folder"),
        (("--model", "x", "--server", "http://me:secret@host/v1"), "seems to hold a key"),
        (("--model", "x", "--server", "localhost:8000"), "must start with http://"),
    ],
)
def test_what_cannot_start_says_why(arguments, complaint, run):
    code, _, said = run(*arguments)
    assert code == 2
    assert complaint in said
    assert "secret" not in said


def test_a_damaged_cache_is_named(run, tmp_path):
    (tmp_path / "c").write_text("not JSON\n")
    code, _, said = run(KNOWLEDGE)
    assert code == 1
    assert "line 1 starts with no key" in said


@pytest.mark.parametrize("who", [(), (KNOWLEDGE, "--model", "x")])
def test_one_model_must_be_named(who, run):
    with pytest.raises(SystemExit) as ended:
        run(*who)
    assert ended.value.code == 2


def test_help_loads_nothing_large():
    help_ = "import sys; sys.argv[1:] = ['-h']; import runpy, atexit\n"
    help_ += "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    help_ += "runpy.run_module('entityclip.explanations', run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", help_], capture_output=True, text=True)
    assert ran.returncode == 0
    assert ran.stdout.startswith("usage: entityclip explain")
    assert not {"torch", "pandas", "openai", "numpy"} & set(ran.stderr.split())
