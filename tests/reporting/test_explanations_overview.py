"""The checks' table and figure, what a context cuts, the sample, and the rehearsed kill."""

import pytest

from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.explanations import CHECKS, ExplanationCache, KnowledgeBase, Sampling, explain
from entityclip.explanations.checks import checks_table, cut_table, smollm_sample
from entityclip.explanations.extraction import explain_until_killed
from entityclip.reporting.charts import plot_checks


def test_checks_table_counts_each_check_and_any():
    table = checks_table({"good": [(), ()], "bad": [("cut",), ("cut", "copied"), (), ("empty",)]})
    assert list(table.index) == [*CHECKS, "any"]
    assert table["good"].eq(0).all()
    assert table["bad"].to_dict() == {
        **dict.fromkeys(CHECKS, 0.0),
        **{"cut": 50.0, "copied": 25.0, "empty": 25.0, "any": 75.0},
    }
    assert table.loc["cut", "meaning"] == CHECKS["cut"]


def test_a_set_without_rows_is_refused():
    with pytest.raises(ValueError, match="no explanations in none"):
        checks_table({"some": [()], "none": []})


def test_the_figure_shows_the_tables_numbers():
    table = checks_table({"good": [()], "bad": [("cut",), ()]})
    (axis,) = plot_checks(table).axes
    for line in axis.get_lines():
        assert list(line.get_xdata()) == list(table[line.get_label()])
        assert list(line.get_ydata()) == list(axis.get_yticks())  # first check on top
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        c.replace("_", " ") for c in table.index
    ]


def test_cut_table_by_hand():
    (ten, twenty) = cut_table({"text": [5, 15, 20]}, [10, 20]).to_dict("records")
    assert ten == {
        **{"text": "text", "limit": 10, "median": 15, "longest": 20},
        **{"texts cut (%)": 66.7, "tokens lost (%)": 37.5},
    }
    assert twenty["texts cut (%)"] == 0
    assert twenty["tokens lost (%)"] == 0


def test_the_recorded_sample_is_whole_and_shows_failures_and_successes():
    sample = smollm_sample()
    assert len(sample) == len({row.caption for row in sample}) == 48
    assert {row.finish_reason for row in sample} <= {"stop", "length"}
    assert all(("cut" in row.checks) == (row.finish_reason == "length") for row in sample)
    assert 0 < sum(bool(row.checks) for row in sample) < len(sample)


def test_a_slowed_model_answers_as_before():
    slow = Slowed(KnowledgeBase(), 0.0)
    prompts = [pair.caption for pair in newsroom_pairs("train", 3)]
    assert slow.model == KnowledgeBase.model
    expected = list(KnowledgeBase().complete(prompts, Sampling()))
    assert list(slow.complete(prompts, Sampling())) == expected


def test_a_killed_extraction_leaves_whole_rows_and_is_finished_by_the_next_call(tmp_path):
    pairs = newsroom_pairs("train", 120)
    path = tmp_path / "cache.jsonl"
    left = explain_until_killed(pairs, path, rows=20)
    assert 20 <= left < 120
    with ExplanationCache(path) as cache:
        assert len(cache) == left
    rows = explain(pairs, KnowledgeBase(), path, progress=False)
    whole = explain(pairs, KnowledgeBase(), tmp_path / "whole.jsonl", progress=False)
    assert [(r.id, r.text) for r in rows] == [(r.id, r.text) for r in whole]
    assert path.read_bytes().count(b"\n") == len({pair.caption for pair in pairs})


def test_an_extraction_that_ends_before_its_kill_says_so(tmp_path):
    pairs = newsroom_pairs("train", 2)
    with pytest.raises(RuntimeError, match=r"wrote 2 rows, not 3, .*ask for fewer rows"):
        explain_until_killed(pairs, tmp_path / "cache.jsonl", rows=3, llm=KnowledgeBase())
