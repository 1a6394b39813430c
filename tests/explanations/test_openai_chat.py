"""`OpenAIChat` against a server that misbehaves in every way we know of."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import zlib

import pytest

pytest.importorskip("openai", reason="needs the extra `llm`")

from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.explanations import (
    ExplanationCache,
    LLMError,
    OpenAIChat,
    Sampling,
    explain,
    neutralise,
    refuse_keys,
)
from tests.fake_llm_server import FakeServer, answer

PAIRS = newsroom_pairs("train", 160)
KEY = "sk-test-0123456789"


def chat(*urls: str, **options) -> OpenAIChat:
    defaults = {"timeout_s": 0.6, "patience_s": 20.0, "backoff_s": 0.02, "concurrency": 16}
    return OpenAIChat("fake", list(urls), **(defaults | options))


def assert_complete(pairs, rows, path):
    assert [row.id for row in rows] == [pair.id for pair in pairs]
    assert [row.text for row in rows] == [answer(neutralise(pair.caption)) for pair in pairs]
    assert not any(row.checks for row in rows)
    lines = path.read_bytes().splitlines()
    assert len(lines) == len({line[9:41] for line in lines}) == len({p.caption for p in pairs})


def test_every_fault_ends_in_one_row_a_caption_in_order(tmp_path):
    kinds = ("slow", "429", "500", "truncated", "empty", "close", "hang", None, None, None)

    def faults(caption: str, asked: int) -> str | None:
        number = zlib.crc32(caption.encode())
        kind = kinds[(number + asked) % len(kinds)] if asked < 3 else None
        return kind if kind != "hang" or number % 4 == 0 else "slow"

    with FakeServer(faults=faults) as server:
        rows = explain(PAIRS, chat(server.url), tmp_path / "c.jsonl", progress=False)
        assert_complete(PAIRS, rows, tmp_path / "c.jsonl")
        assert set(server.answered.values()) == {1}  # nothing asked again after success
        assert max(server.asked.values()) > 1
        asked = server.asked.total()
        again = explain(PAIRS, chat(server.url), tmp_path / "c.jsonl", progress=False)
        assert again == rows
        assert server.asked.total() == asked


def test_concurrency_is_bounded_and_used(tmp_path):
    with FakeServer(delay_s=0.02) as server:
        explain(PAIRS, chat(server.url, concurrency=5), tmp_path / "c.jsonl", progress=False)
        assert server.most_in_flight == 5


def test_a_server_that_dies_midway_and_comes_back(tmp_path):
    with FakeServer(delay_s=0.02) as server:

        def restart() -> None:
            while server.answered.total() < 40:
                time.sleep(0.005)
            server.stop()
            time.sleep(0.4)
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        rows = explain(PAIRS, chat(server.url), tmp_path / "c.jsonl", progress=False)
        thread.join()
        assert_complete(PAIRS, rows, tmp_path / "c.jsonl")


def test_a_server_that_stays_away_keeps_what_was_answered(tmp_path):
    path = tmp_path / "c.jsonl"
    with FakeServer(delay_s=0.02) as server:

        def die() -> None:
            while server.answered.total() < 40:
                time.sleep(0.005)
            server.stop()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(LLMError, match=r"no server answered for 1 s .*run again to go on"):
            explain(PAIRS, chat(server.url, patience_s=1.0), path, progress=False)
        thread.join()
        kept = len(path.read_bytes().splitlines())
        assert 0 < kept < len(PAIRS)
        answered = set(server.answered)
        server.start()
        rows = explain(PAIRS, chat(server.url), path, progress=False)
        assert_complete(PAIRS, rows, path)
        # only answers that were on their way when it died may be asked again
        twice = [caption for caption in answered if server.answered[caption] > 1]
        assert len(twice) <= 16


def test_two_replicas_share_the_work_and_one_may_be_dead(tmp_path):
    with FakeServer() as one, FakeServer() as two:
        rows = explain(PAIRS, chat(one.url, two.url), tmp_path / "a.jsonl", progress=False)
        assert_complete(PAIRS, rows, tmp_path / "a.jsonl")
        counts = (one.asked.total(), two.asked.total())
        assert min(counts) >= len({p.caption for p in PAIRS}) // 2
        two.stop()
        rows = explain(PAIRS, chat(one.url, two.url), tmp_path / "b.jsonl", progress=False)
        assert_complete(PAIRS, rows, tmp_path / "b.jsonl")


def test_one_refused_caption_is_marked_and_asked_again_next_time(tmp_path):
    bad = neutralise(PAIRS[3].caption)
    with FakeServer(faults=lambda caption, asked: "400" if caption == bad else None) as server:
        rows = explain(PAIRS, chat(server.url), tmp_path / "c.jsonl", progress=False)
        assert [row.id for row in rows if row.checks] == [PAIRS[3].id]
        assert (rows[3].text, rows[3].checks, rows[3].finish_reason) == (
            "",
            ("no_answer",),
            "error",
        )
        server.faults = lambda caption, asked: None
        rows = explain(PAIRS, chat(server.url), tmp_path / "c.jsonl", progress=False)
        assert_complete(PAIRS, rows, tmp_path / "c.jsonl")


def test_one_caption_that_never_gets_an_answer_does_not_stop_the_others(tmp_path):
    bad = neutralise(PAIRS[3].caption)
    with FakeServer(
        delay_s=0.05, faults=lambda caption, asked: "500" if caption == bad else None
    ) as server:
        llm = chat(server.url, patience_s=0.3, concurrency=4)
        rows = explain(PAIRS, llm, tmp_path / "c.jsonl", progress=False)
    assert [row.id for row in rows if row.checks == ("no_answer",)] == [PAIRS[3].id]


@pytest.mark.parametrize(
    ("fault", "match"), [("401", "OPENAI_API_KEY"), ("400", "50 prompts in a row")]
)
def test_a_wrong_set_up_stops_at_once_and_tells_no_secret(
    fault, match, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        FakeServer(faults=lambda caption, asked: fault) as server,
        pytest.raises(LLMError, match=match) as caught,
    ):
        explain(PAIRS, chat(server.url), tmp_path / "c.jsonl", progress=False)
    shown, error = str(caught.value), caught.value
    while error := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        shown += str(error)
    assert KEY not in shown
    assert PAIRS[0].caption not in shown


def test_no_key_and_no_caption_in_the_logs(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faults = {0: "500", 1: "429", 2: "truncated", 3: "hang"}
    caplog.set_level(logging.DEBUG)
    with FakeServer(faults=lambda caption, asked: faults.get(asked)) as server:
        explain(PAIRS[:8], chat(server.url), tmp_path / "c.jsonl")
        assert KEY in server.headers[0]  # the server has it
    captured = capsys.readouterr()
    shown = caplog.text + captured.out + captured.err + (tmp_path / "c.jsonl").read_text()
    assert "openai" in caplog.text  # the loggers were listening
    assert KEY not in shown
    assert not any(pair.caption in shown for pair in PAIRS[:8])


def test_retry_after_is_honoured(tmp_path):
    times = []

    def faults(caption: str, asked: int) -> str | None:
        times.append(time.monotonic())
        return "429" if asked == 0 else None

    with FakeServer(faults=faults) as server:
        explain(PAIRS[:1], chat(server.url, backoff_s=0.001), tmp_path / "c.jsonl", progress=False)
    assert times[1] - times[0] >= 0.05  # the header says so


def test_a_failed_check_is_retried_once_under_another_seed(tmp_path):
    bad = neutralise(PAIRS[0].caption)

    def faults(caption: str, asked: int) -> str | None:
        return {0: "length", 1: "refuse"}.get(asked) if caption == bad else None

    with FakeServer(faults=faults) as server:
        rows = explain(PAIRS[:4], chat(server.url), tmp_path / "c.jsonl", progress=False)
        seeds = [b["seed"] for b in server.bodies if bad in b["messages"][0]["content"]]
    assert (rows[0].attempts, rows[0].checks) == (2, ("cut",))  # the better of two bad ones
    assert len(set(seeds)) == len(seeds) == 2
    assert [row.attempts for row in rows[1:]] == [1, 1, 1]


def test_inside_a_running_event_loop_as_in_jupyter(tmp_path):
    with FakeServer() as server:

        async def cell():
            return explain(PAIRS[:5], chat(server.url), tmp_path / "c.jsonl", progress=False)

        assert len(asyncio.run(cell())) == 5


def test_closing_early_stops_the_work():
    with FakeServer(delay_s=0.02) as server:
        answers = chat(server.url).complete(
            [f"<caption>\n{n}\n</caption>" for n in range(500)], Sampling()
        )
        next(answers)
        answers.close()
        time.sleep(0.1)  # what was sent before may still be on its way through the server
        asked = server.asked.total()
        time.sleep(0.2)
        assert server.asked.total() == asked < 500
        assert not [t for t in threading.enumerate() if t.name == "openai-chat"]


def test_batches_hold_every_answer_once_and_all_that_are_there():
    prompts = [f"<caption>\n{n}\n</caption>" for n in range(60)]
    with FakeServer() as server:
        llm = chat(server.url)
        batches = llm.complete_in_batches(prompts, Sampling())
        first = next(batches)
        while server.answered.total() < 60:
            time.sleep(0.005)
        time.sleep(0.2)  # the rest gathers meanwhile
        rest = list(batches)
        assert len(rest) == 1
        singles = dict(llm.complete(prompts, Sampling()))
    assert all([first, *rest])
    assert sorted(index for batch in [first, *rest] for index, _ in batch) == list(range(60))
    assert dict(answer for batch in [first, *rest] for answer in batch) == singles


def test_the_request_says_nothing_of_this_machine():
    with FakeServer() as server:
        list(chat(server.url).complete(["<caption>\na\n</caption>"], Sampling()))
    assert "stainless" not in server.headers[0].lower()


def test_the_request_has_one_user_message_and_the_sampling(tmp_path):
    sampling = Sampling(temperature=0.3, top_p=0.8, max_tokens=200, seed=7)
    with FakeServer() as server:
        explain(PAIRS[:1], chat(server.url), tmp_path / "c.jsonl", sampling=sampling)
        body = server.bodies[0]
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["model"] == "fake"
    assert {k: body[k] for k in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.3,
        "top_p": 0.8,
        "max_tokens": 200,
        "seed": 7,
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {"api_key": "abc"},
        {"settings": {"openai_api_key": "abc"}},
        {"model": KEY},
        {"base_url": "https://me:secret@host/v1"},
        {"base_url": "https://host/v1?api_key=abc"},
        {"note": "Bearer abcdef"},
    ],
)
def test_a_key_in_a_parameter_is_refused_without_repeating_it(parameters):
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        refuse_keys(parameters)
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_harmless_parameters_pass():
    refuse_keys({"base_url": "http://localhost:8000/v1", "model": "mistralai/x", "seed": 1})
    refuse_keys({"monkey": "abc", "api_key": "", "max_tokens": "128", "keyword": "flags"})


def test_the_constructor_takes_no_key():
    with pytest.raises(ValueError, match="environment"):
        OpenAIChat("fake", "http://localhost/v1", api_key=KEY)
    with pytest.raises(ValueError, match="seems to hold a key"):
        OpenAIChat("fake", "http://u:p@localhost/v1")
    with pytest.raises(ValueError, match="http://"):
        OpenAIChat("fake", "localhost:8000")


def test_a_second_extraction_beside_the_first_adds_no_row_twice(tmp_path):
    path = tmp_path / "c.jsonl"
    with FakeServer(delay_s=0.01) as server, ExplanationCache(path) as one:
        threads = [
            threading.Thread(
                target=explain, args=(PAIRS, chat(server.url), cache), kwargs={"progress": False}
            )
            for cache in (one, path)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == len({line[9:41] for line in lines}) == len({p.caption for p in PAIRS})
