"""Training reads what an extraction left: caches, the authors' files, the knowledge base."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from entityclip import explanations as ex
from entityclip.config import load_profile
from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.datasets.pair import Pair
from entityclip.experiments.experiment import Experiment
from entityclip.explanations import KnowledgeBase, Sampling, StubLLM, explain, training_pairs
from entityclip.explanations.cache import Source, cache_keys
from entityclip.explanations.checks import entity_words

PAIRS = newsroom_pairs("train", 12)
CAPTION = "President Barack Obama meets Angela Merkel in Berlin on Monday"
TEXT = "Barack Obama is a tall man with grey hair. Angela Merkel wears a blazer."
GOOD = "{} stand beside a flag with bands."


def answer(prompt, seed):
    """A good answer, at the second attempt for every caption with an "a" before its third word."""
    caption = prompt.split("<caption>\n")[1].split("\n</caption>")[0]
    names = " and ".join(word for word in caption.split() if word[0].isupper())
    return GOOD.format(names) if seed > 1_000_000 or "a" not in caption[:9] else "The caption is."


def joined(pairs, source, policy="use", folder=".", **options):
    options = {"dataset": "newsroom", "split": "train", **options}
    return training_pairs(pairs, str(source), policy, folder=folder, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.jsonl"


def test_a_cache_is_joined_by_caption_also_after_retries(path):
    rows = explain(PAIRS, StubLLM(answer), path, sampling=Sampling(seed=3), progress=False)
    assert {row.attempts for row in rows} == {1, 2}
    pairs, report = joined(PAIRS, path)
    assert [pair.explanation for pair in pairs] == [row.text for row in rows]
    assert (report.pairs, report.kept, report.checks) == (12, 12, {})
    # another pair with the same caption finds it too
    again, _ = joined([replace(PAIRS[0], id="again")], path)
    assert again[0].explanation == rows[0].text


@pytest.mark.parametrize(
    ("policy", "counts"), [("use", (9, 0, 3)), ("caption", (9, 3, 0)), ("drop", (9, 0, 3))]
)
def test_missing_rows_are_counted_and_the_policy_applies(policy, counts, path):
    explain(PAIRS[:9], KnowledgeBase(), path, progress=False)
    pairs, report = joined(PAIRS, path, policy)
    assert (report.kept, report.captions, report.dropped) == counts
    assert len(pairs) == counts[0] + counts[1]
    assert report.checks == {"missing": 3}
    assert "missing 3" in str(report)
    assert all(pair.explanation == pair.caption for pair in pairs[9:])


def test_a_file_that_cannot_be_meant_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"explanation_source: .*cache\.jsonl; run `entity"):
        joined(PAIRS, path)
    explain(PAIRS[:6], KnowledgeBase(), path, progress=False)
    with pytest.raises(ValueError, match=r"none of the 6 val pairs of newsroom; extract this"):
        joined(PAIRS[6:], path, split="val")
    explain(PAIRS[:6], StubLLM(answer), path, progress=False)
    with pytest.raises(ValueError, match=r"of 2 sources.*newsroom-knowledge-2.*; stub, .*own"):
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


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))

    def make(**settings):
        settings = {"train_pairs": 8, "val_pairs": 4, **settings}
        return Experiment(load_profile("smoke", settings=settings), progress=False)

    return make


def test_the_knowledge_base_is_extracted_and_read_by_training(experiment, tmp_path):
    base, own = experiment(explanation_source="knowledge-base"), experiment()
    rows = explain(own.pairs("train"), KnowledgeBase(), tmp_path / "c.jsonl", progress=False)
    assert [pair.explanation for pair in base.pairs("train")] == [row.text for row in rows]
    assert (tmp_path / "smoke" / "explanations" / "knowledge.jsonl").exists()
    # no explanation is read in a test, so none is asked for
    assert base.pairs("test") == own.pairs("test")
    assert [p.caption for p in base.pairs("val")] == [p.caption for p in own.pairs("val")]


@pytest.mark.parametrize("kind", ["0", "0.5", "names", "looks"])
def test_other_knowledge_bases_are_spelt_and_kept_apart(kind, experiment):
    texts = {
        source: [p.explanation for p in experiment(explanation_source=source).pairs("train")]
        for source in ("knowledge-base", f"knowledge-base:{kind}", "knowledge-base")
    }
    assert len({*map(tuple, texts.values())}) == 2
    with pytest.raises(ValueError, match=r"explanation_source: 'knowledge-base:most'; write"):
        experiment(explanation_source="knowledge-base:most").pairs("train")


def test_a_cache_of_ones_own_is_read_through_the_profile(experiment, path, caplog):
    own = experiment()
    asked = [*own.pairs("train")[:7], *own.pairs("val")]
    rows = explain(asked, StubLLM(answer), path, progress=False)
    with caplog.at_level(logging.WARNING):
        pairs = experiment(explanation_source=str(path)).pairs("train")
    assert [pair.explanation for pair in pairs[:7]] == [row.text for row in rows[:7]]
    assert len(pairs) == 7
    assert "7 keep their explanation, 0 take their caption, 1 dropped" in caplog.text
    assert "missing 1" in caplog.text


@pytest.mark.parametrize(
    ("source", "named"),
    [("own", {}), ("knowledge-base", {"explanation_source": "knowledge-base"})],
)
def test_the_default_source_leaves_the_names_of_runs_as_they_were(source, named, experiment):
    identity = experiment(explanation_source=source).identity("entityclip")
    assert {name: identity[name] for name in identity if name == "explanation_source"} == named


@pytest.fixture
def marked(path):
    """Rows of five pairs: nothing for the first, a bad text for the second."""
    texts = {PAIRS[0].caption: "", PAIRS[1].caption: "The caption is nothing."}

    def answer(prompt, seed):
        found = [text for caption, text in texts.items() if caption in prompt]
        return found[0] if found else " ".join(entity_words(prompt))

    rows = explain(PAIRS[:5], StubLLM(answer), path, progress=False)
    assert [bool(row.checks) for row in rows] == [True, True, False, False, False]
    return rows


@pytest.mark.parametrize(
    ("policy", "explanations", "counts"),
    [
        # an empty one cannot be used
        ("use", {0: PAIRS[0].caption, 1: "The caption is nothing."}, (4, 1, 0)),
        ("drop", {}, (3, 0, 2)),
        ("caption", {0: PAIRS[0].caption, 1: PAIRS[1].caption}, (3, 2, 0)),
    ],
)
def test_policies(policy, explanations, counts, marked):
    pairs, report = ex.apply_policy(PAIRS[:5], marked, policy)
    expected = explanations | {n: marked[n].text for n in (2, 3, 4)}
    assert {pair.id: pair.explanation for pair in pairs} == {
        PAIRS[n].id: text for n, text in expected.items()
    }
    assert (report.kept, report.captions, report.dropped) == counts
    assert report.checks["opener"] == 1
    assert f"{counts[-1]} dropped" in str(report)
    with pytest.raises(ValueError, match="same ids"):
        ex.apply_policy(PAIRS[1:6], marked, policy)


def test_the_policy_is_a_setting_and_reaches_training_but_not_tests(experiment, monkeypatch):
    bad = replace(PAIRS[0], explanation="The caption is nothing.")
    own = [bad, *PAIRS[1:3]]
    monkeypatch.setattr("entityclip.experiments.splits.load_pairs", lambda *_, **options: own)
    stands_in = [replace(bad, explanation=bad.caption), *PAIRS[1:3]]
    assert experiment().settings.explanation_policy == "use"
    for policy, pairs in {"use": own, "drop": PAIRS[1:3], "caption": stands_in}.items():
        made = experiment(explanation_policy=policy, explanation_source="own")
        assert made.pairs("train") == made.pairs("val") == pairs
        assert made.pairs("test") == own


def test_pairs_that_bring_their_explanations_are_judged_too():
    broken = [replace(PAIRS[0], explanation=None), PAIRS[1]]
    assert [pair.id for pair in ex.check_pairs(broken, "drop")[0]] == [PAIRS[1].id]
    assert ex.check_pairs(broken, "caption")[0][0].explanation == PAIRS[0].caption
    assert ex.check_pairs(broken, "use")[0] == [PAIRS[1]]
    with pytest.raises(ValueError, match="there are use, drop, caption"):
        ex.check_pairs(PAIRS, "keep")


@pytest.mark.parametrize(
    ("layout", "image", "key"),
    [
        ("n24news", "imgs/abc.jpg", "abc.jpg"),
        ("n24news", "imgs/abc.jpg", "C:\\data\\imgs\\abc.jpg"),
        ("goodnews", "img/5a_0.jpg", "5a_0"),
        ("goodnews", "img/5a_0.jpg", "5a_0.jpg"),
        ("visualnews", "root/origin/bbc/images/0/9.jpg", "/home/someone/bbc/images/0/9.jpg"),
    ],
)
def test_authors_files_come_in_and_go_out(layout, image, key, tmp_path):
    others = [
        image.replace("9.jpg", f"{n}.jpg").replace("abc", f"ab{n}").replace("5a", f"5{n}")
        for n in (7, 8)
    ]
    captions = [CAPTION, "Envoys in Berlin", CAPTION]
    pairs = [
        Pair(str(n), Path(path), caption)
        for n, (path, caption) in enumerate(zip([image, *others], captions, strict=True))
    ]
    source = tmp_path / "authors.json"
    third_key = others[1] if layout == "visualnews" else Path(others[1]).name
    texts = {key: f" {TEXT}\n", "/x/bbc/images/1/1.jpg": "Other.", third_key: "Another."}
    source.write_text(json.dumps(texts))
    with ex.ExplanationCache(tmp_path / "c.jsonl") as cache:
        report = ex.import_authors(source, pairs, cache, layout=layout)
        assert (report.added, report.already_there, report.conflicting) == (1, 1, 1)
        assert (report.empty, report.no_pair, report.no_text) == (0, 1, 1)
        again = ex.import_authors(source, pairs, cache, layout=layout)
        assert (again.added, again.already_there) == (0, 2)
        llm = StubLLM(lambda prompt, seed: "Berlin has a tower.")
        rows = explain(pairs[:2], llm, cache, reuse=[report.source], progress=False)
    got = [(row.text, row.model, row.sampling, row.finish_reason) for row in rows]
    assert got[0] == (TEXT, "authors-mistral", None, "unknown")
    assert got[1] == ("Berlin has a tower.", "stub", Sampling(), "stop")
    out = tmp_path / "out.json"
    assert ex.export_authors(pairs[:2], rows, out, layout=layout) == 2
    assert list(json.loads(out.read_text()).values()) == [TEXT, "Berlin has a tower."]
    with ex.ExplanationCache(tmp_path / "second.jsonl") as cache:
        assert ex.import_authors(out, pairs[:2], cache, layout=layout).added == 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "must hold a JSON dict"),
        ("{", r"authors\.json"),
        ('{"a.jpg": 1}', r"authors\.json, key 'a\.jpg': an explanation must be str, got int"),
        ('{"x/a.jpg": "b", "y/a.jpg": "c"}', "same picture with another text"),
        ('{"a.jpg": "b", "a.jpg": "c"}', r"authors\.json: key 'a\.jpg' stands twice"),
        ('{"a.jpg": ' + "[" * 100_000, r"authors\.json is not JSON"),
    ],
)
def test_malformed_authors_files_are_named(content, match, tmp_path):
    (tmp_path / "authors.json").write_text(content)
    with pytest.raises(ValueError, match=match):
        joined(PAIRS, tmp_path / "authors.json", dataset="n24news")


def test_what_is_no_answer_in_a_file_of_the_authors_is_taken_off_or_marked(tmp_path):
    pairs = [replace(pair, image=Path(f"{n}.jpg")) for n, pair in enumerate(PAIRS[:4])]
    good = [pair.explanation for pair in pairs]
    lone = good[3].replace(" ", " \ud800", 1)
    texts = [good[0], f"<think>A flag.</think>{good[1]}", f"<think>{good[2]}", lone]
    path = tmp_path / "authors.json"
    path.write_text(json.dumps({f"{n}.jpg": text for n, text in enumerate(texts)}))
    got, report = joined(pairs, path, "drop", dataset="n24news")
    assert [pair.explanation for pair in got] == [*good[:2], good[3].replace(" ", " ?", 1)]
    assert report.checks == {"markup": 1}
    with ex.ExplanationCache(tmp_path / "c.jsonl") as cache:
        assert ex.import_authors(path, pairs, cache, layout="n24news").added == 4
        again = ex.import_authors(path, pairs, cache, layout="n24news")
        assert (again.already_there, again.conflicting) == (4, 0)


def test_thinking_is_never_trained_on_unmarked(path):
    thought = f"<think>Hm.</think>{TEXT}"
    pairs = [replace(PAIRS[0], explanation=thought), PAIRS[1]]
    for policy, kept in (("use", 2), ("drop", 1)):
        got, report = joined(pairs, "own", policy)
        assert len(got) == kept
        assert report.checks == ({"markup": 1} if policy == "use" else {"no_entity": 1})
    # a row of before there was such a check
    row = ex.Explanation.made_now(PAIRS[0].id, thought, Source("m", "p", Sampling()), "stop", ())
    with ex.ExplanationCache(path) as cache:
        cache.append([(cache_keys([PAIRS[0].caption], Source("m", "p", Sampling()))[0], row)])
    _, report = joined(PAIRS[:1], path, "use")
    assert report.checks == {"markup": 1}


def test_a_cache_that_cannot_be_written_is_read(path, monkeypatch):
    rows = explain(PAIRS[:3], KnowledgeBase(), path, progress=False)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    monkeypatch.setattr("entityclip.explanations.cache.open_to_append", None)  # root may write
    pairs, _ = joined(PAIRS[:3], path)
    path.parent.chmod(0o755)
    assert [pair.explanation for pair in pairs] == [row.text for row in rows]


def test_parquet_keeps_everything(marked, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra `llm`")
    rows = marked
    ex.export_parquet(rows, tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["id"].tolist() == [row.id for row in rows]
    assert frame["text"].tolist() == [row.text for row in rows]
    assert [tuple(checks) for checks in frame["checks"]] == [row.checks for row in rows]
    assert frame["seed"].tolist() == [row.sampling.seed for row in rows]
    assert ex.to_frame([replace(rows[0], sampling=None)])["seed"].isna().all()
