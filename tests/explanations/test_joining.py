"""Training reads what an extraction left: caches, the authors' files, the knowledge base."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from entityclip.config import load_profile
from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.experiments.experiment import Experiment
from entityclip.explanations import KnowledgeBase, Sampling, StubLLM, explain, training_pairs

PAIRS = newsroom_pairs("train", 12)
GOOD = "{} stand beside a flag with bands."


def answer(prompt, seed):
    """A good answer, at the second attempt for every caption with an "a" before its third word."""
    caption = prompt.split("<caption>\n")[1].split("\n</caption>")[0]
    names = " and ".join(word for word in caption.split() if word[0].isupper())
    return GOOD.format(names) if seed > 1_000_000 or "a" not in caption[:9] else "The caption is."


def joined(pairs, source, policy="use", folder=".", **options):
    options = {"dataset": "newsroom", "split": "train", **options}
    return training_pairs(pairs, str(source), policy, folder=folder, **options)


def test_a_cache_is_joined_by_caption_also_after_retries(tmp_path):
    path = tmp_path / "cache.jsonl"
    rows = explain(PAIRS, StubLLM(answer), path, sampling=Sampling(seed=3), progress=False)
    assert {row.attempts for row in rows} == {1, 2}
    pairs, report = joined(PAIRS, path)
    assert [pair.explanation for pair in pairs] == [row.text for row in rows]
    assert (report.pairs, report.kept, report.checks) == (12, 12, {})
    # another pair with the same caption finds it too
    again, _ = joined([replace(PAIRS[0], id="again")], path)
    assert again[0].explanation == rows[0].text


@pytest.mark.parametrize(
    ("policy", "kept", "captions", "dropped"),
    [("use", 9, 3, 0), ("caption", 9, 3, 0), ("drop", 9, 0, 3)],
)
def test_missing_rows_are_counted_and_the_policy_applies(policy, kept, captions, dropped, tmp_path):
    path = tmp_path / "cache.jsonl"
    explain(PAIRS[:9], KnowledgeBase(), path, progress=False)
    pairs, report = joined(PAIRS, path, policy)
    assert (report.kept, report.captions, report.dropped) == (kept, captions, dropped)
    assert report.checks == {"missing": 3}
    assert "missing 3" in str(report)
    assert len(pairs) == 12 - dropped
    assert all(pair.explanation == pair.caption for pair in pairs[9:])


def test_a_file_that_cannot_be_meant_is_refused(tmp_path):
    path = tmp_path / "cache.jsonl"
    with pytest.raises(FileNotFoundError, match=r"explanation_source: .*cache\.jsonl; run `entity"):
        joined(PAIRS, path)
    explain(PAIRS[:6], KnowledgeBase(), path, progress=False)
    with pytest.raises(ValueError, match=r"none of the 6 val pairs of newsroom; extract this"):
        joined(PAIRS[6:], path, split="val")
    explain(PAIRS[:6], StubLLM(answer), path, progress=False)
    with pytest.raises(ValueError, match=r"of 2 sources.*newsroom-knowledge-1.*; stub, .*own"):
        joined(PAIRS, path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="newsroom has no layout of the authors"):
        joined(PAIRS, tmp_path / "x.json")


def test_a_file_of_the_authors_a_split(tmp_path):
    pairs = [replace(pair, image=Path(f"imgs/{n}.jpg")) for n, pair in enumerate(PAIRS)]
    texts = {f"{n}.jpg": pair.explanation for n, pair in enumerate(pairs[:11])}
    (tmp_path / "texts_val.json").write_text(json.dumps({**texts, "0.jpg": "The caption is."}))
    source = tmp_path / "texts_{split}.json"
    got, report = joined(pairs, source, "caption", dataset="n24news", split="val")
    assert got[0].explanation == pairs[0].caption
    assert [pair.explanation for pair in got[1:11]] == list(texts.values())[1:]
    assert report.checks == {"opener": 1, "no_entity": 1, "missing": 1}
    assert (report.kept, report.captions) == (10, 2)


def experiment(**settings):
    settings = {"train_pairs": 8, "val_pairs": 4, **settings}
    return Experiment(load_profile("smoke", settings=settings), progress=False)


def test_the_knowledge_base_is_extracted_and_read_by_training(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    base = experiment(explanation_source="knowledge-base")
    own = experiment()
    rows = explain(own.pairs("train"), KnowledgeBase(), tmp_path / "c.jsonl", progress=False)
    assert [pair.explanation for pair in base.pairs("train")] == [row.text for row in rows]
    assert (tmp_path / "smoke" / "explanations" / "knowledge.jsonl").exists()
    # no explanation is read in a test, so none is asked for
    assert base.pairs("test") == own.pairs("test")
    assert [p.caption for p in base.pairs("val")] == [p.caption for p in own.pairs("val")]


def test_a_cache_of_ones_own_is_read_through_the_profile(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    own, path = experiment(), tmp_path / "mine.jsonl"
    asked = [*own.pairs("train")[:7], *own.pairs("val")]
    rows = explain(asked, StubLLM(answer), path, progress=False)
    with caplog.at_level(logging.WARNING):
        pairs = experiment(explanation_source=str(path)).pairs("train")
    assert [pair.explanation for pair in pairs[:7]] == [row.text for row in rows[:7]]
    assert pairs[7].explanation == pairs[7].caption
    assert "7 keep their explanation, 1 take their caption" in caplog.text
    assert "missing 1" in caplog.text


def test_the_default_source_leaves_the_names_of_runs_as_they_were():
    own = experiment(explanation_source="own").identity("entityclip")
    assert "explanation_source" not in own
    other = experiment(explanation_source="knowledge-base").identity("entityclip")
    assert other["explanation_source"] == "knowledge-base"
