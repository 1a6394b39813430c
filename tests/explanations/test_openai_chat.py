"""`OpenAIChat` against a server that misbehaves in every way we know of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
import time
import traceback
import zlib
from dataclasses import replace

import pytest

pytest.importorskip("openai", reason="needs the extra `llm`")

from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.explanations import (
    ExplanationCache,
    LLMError,
    OpenAIChat,
    Sampling,
    apply_policy,
    explain,
    neutralise,
    refuse_keys,
)
from tests.fake_llm_server import FakeServer, answer

PAIRS = newsroom_pairs("train", 160)
DISTINCT = len({pair.caption for pair in PAIRS})
BAD = neutralise(PAIRS[3].caption)
PROMPTS = [f"<caption>\n{n}\n</caption>" for n in range(500)]
KEY = "sk-test-0123456789"


def chat(*urls: str, **options) -> OpenAIChat:
    defaults = {"timeout_s": 0.6, "patience_s": 20.0, "backoff_s": 0.02, "concurrency": 16}
    return OpenAIChat("fake", list(urls), **(defaults | options))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.jsonl"


def ask(path, *servers: FakeServer, pairs=PAIRS, **options):
    urls = [server.url for server in servers]
    return explain(pairs, chat(*urls, **options), path, progress=False)


def assert_complete(rows, path):
    expected = [(pair.id, answer(neutralise(pair.caption)), ()) for pair in PAIRS]
    assert [(row.id, row.text, row.checks) for row in rows] == expected
    assert_one_row_a_caption(path)


def assert_one_row_a_caption(path):
    lines = path.read_bytes().splitlines()
    assert len(lines) == len({line[9:41] for line in lines}) == DISTINCT


def after(server: FakeServer, answers: int, do) -> threading.Thread:
    """Do something in a thread once the server has given so many answers."""

    def wait() -> None:
        while server.answered.total() < answers:
            time.sleep(0.005)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_every_fault_ends_in_one_row_a_caption_in_order(path):
    kinds = ("slow", "429", "500", "truncated", "empty", "close", "hang", None, None, None)

    def faults(caption: str, asked: int) -> str | None:
        number = zlib.crc32(caption.encode())
        kind = kinds[(number + asked) % len(kinds)] if asked < 3 else None
        return kind if kind != "hang" or number % 4 == 0 else "slow"

    with FakeServer(faults=faults) as server:
        rows = ask(path, server)
        assert_complete(rows, path)
        assert set(server.answered.values()) == {1}  # nothing asked again after success
        assert max(server.asked.values()) > 1
        asked = server.asked.total()
        assert ask(path, server) == rows
        assert server.asked.total() == asked


def test_concurrency_is_bounded_and_used(path):
    with FakeServer(delay_s=0.02) as server:
        ask(path, server, concurrency=5)
        assert server.most_in_flight == 5


def test_a_server_that_dies_midway_and_comes_back(path):
    with FakeServer(delay_s=0.02) as server:
        thread = after(server, 40, lambda: (server.stop(), time.sleep(0.4), server.start()))
        rows = ask(path, server)
        thread.join()
        assert_complete(rows, path)


def test_a_server_that_stays_away_keeps_what_was_answered(path):
    with FakeServer(delay_s=0.02) as server:
        thread = after(server, 40, server.stop)
        with pytest.raises(LLMError, match=r"no server answered for 1 s .*run again to go on"):
            ask(path, server, patience_s=1.0)
        thread.join()
        assert 0 < len(path.read_bytes().splitlines()) < DISTINCT
        answered = set(server.answered)
        server.start()
        assert_complete(ask(path, server), path)
        # only answers that were on their way when it died may be asked again
        assert sum(server.answered[caption] > 1 for caption in answered) <= 16


def test_two_replicas_share_the_work_and_one_may_be_dead(path, tmp_path):
    with FakeServer() as one, FakeServer() as two:
        assert_complete(ask(path, one, two), path)
        assert min(one.asked.total(), two.asked.total()) >= DISTINCT // 2
        two.stop()
        other = tmp_path / "other.jsonl"
        assert_complete(ask(other, one, two), other)


def bad(fault: str | None):
    """Faults of a server that has one for one caption only."""
    return lambda caption, asked: fault if caption == BAD else None


def test_one_refused_caption_is_marked_and_asked_again_next_time(path):
    with FakeServer(faults=bad("400")) as server:
        rows = ask(path, server)
        assert [row.id for row in rows if row.checks] == [PAIRS[3].id]
        assert (rows[3].text, *rows[3].checks, rows[3].finish_reason) == ("", "no_answer", "error")
        server.faults = bad(None)
        assert_complete(ask(path, server), path)


def test_one_caption_that_never_gets_an_answer_does_not_stop_the_others(path):
    with FakeServer(delay_s=0.05, faults=bad("500")) as server:
        rows = ask(path, server, patience_s=0.3, concurrency=4)
    assert [row.id for row in rows if row.checks == ("no_answer",)] == [PAIRS[3].id]


@pytest.mark.parametrize(
    ("fault", "match"), [("401", "OPENAI_API_KEY"), ("400", "50 prompts in a row")]
)
def test_a_wrong_set_up_stops_at_once_and_tells_no_secret(fault, match, path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = FakeServer(faults=lambda caption, asked: fault)
    with server, pytest.raises(LLMError, match=match) as caught:
        ask(path, server)
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown
    assert PAIRS[0].caption not in shown


def test_no_key_and_no_caption_in_the_logs(path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faults = {0: "500", 1: "429", 2: "truncated", 3: "hang"}
    caplog.set_level(logging.DEBUG)
    with FakeServer(faults=lambda caption, asked: faults.get(asked)) as server:
        explain(PAIRS[:8], chat(server.url), path)
        assert KEY in server.headers[0]  # the server has it
    captured = capsys.readouterr()
    shown = caplog.text + captured.out + captured.err + path.read_text()
    assert "openai" in caplog.text  # the loggers were listening
    assert KEY not in shown
    assert not any(pair.caption in shown for pair in PAIRS[:8])


def test_retry_after_is_honoured(path):
    times = []
    faults = ["429", None]
    with FakeServer(faults=lambda _, n: times.append(time.monotonic()) or faults[n]) as server:
        ask(path, server, pairs=PAIRS[:1], backoff_s=0.001)
    assert times[1] - times[0] >= 0.05  # the header says so


@pytest.mark.parametrize("second", ["refuse", "length"])
def test_a_failed_check_is_retried_once_under_another_seed(second, path):
    faults = {(BAD, 0): "length", (BAD, 1): second}
    with FakeServer(faults=lambda *asked: faults.get(asked)) as server:
        rows = ask(path, server, pairs=PAIRS[:4])
        seeds = [b["seed"] for b in server.bodies if BAD in b["messages"][0]["content"]]
    # the better of two bad ones, of equals the first
    assert (rows[3].attempts, rows[3].checks, rows[3].sampling) == (2, ("cut",), Sampling())
    assert len(set(seeds)) == len(seeds) == 2
    assert [row.attempts for row in rows[:3]] == [1, 1, 1]


def test_inside_a_running_event_loop_as_in_jupyter(path):
    with FakeServer() as server:

        async def cell():
            return ask(path, server, pairs=PAIRS[:5])

        assert len(asyncio.run(cell())) == 5


def test_closing_early_stops_the_work():
    with FakeServer(delay_s=0.02) as server:
        answers = chat(server.url).complete(PROMPTS, Sampling())
        next(answers)
        answers.close()
        time.sleep(0.1)  # what was sent before may still be on its way through the server
        asked = server.asked.total()
        time.sleep(0.2)
        assert server.asked.total() == asked < 500
        assert not [t for t in threading.enumerate() if t.name == "openai-chat"]


def test_batches_hold_every_answer_once_and_all_that_are_there():
    with FakeServer() as server:
        llm = chat(server.url)
        batches = llm.complete_in_batches(PROMPTS[:60], Sampling())
        first = next(batches)
        after(server, 60, lambda: time.sleep(0.2)).join()  # the rest gathers meanwhile
        (rest,) = batches
        singles = dict(llm.complete(PROMPTS[:60], Sampling()))
    assert first
    assert len(first) + len(rest) == len(singles) == 60
    assert dict(first + rest) == singles


def test_the_request_has_one_user_message_and_the_sampling_and_nothing_of_this_machine():
    sampling = {"temperature": 0.3, "top_p": 0.8, "max_tokens": 200, "seed": 7}
    with FakeServer() as server:
        list(chat(server.url).complete(PROMPTS[:1], Sampling(**sampling)))
    messages = [{"role": "user", "content": PROMPTS[0]}]
    assert server.bodies == [{"model": "fake", "messages": messages, **sampling}]
    assert "stainless" not in server.headers[0].lower()


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


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("http://localhost/v1", {"api_key": KEY}, "environment"),
        ("http://u:p@localhost/v1", {}, "seems to hold a key"),
        ("localhost:8000", {}, "http://"),
        ("http://localhost/v1", {"concurrency": 0}, "concurrency of at least 1"),
        ("http://localhost/v1", {"timeout_s": 0}, "seconds above 0"),
    ],
)
def test_the_constructor_takes_no_key_and_nothing_odd(url, options, match):
    with pytest.raises(ValueError, match=match):
        OpenAIChat("fake", url, **options)


def test_a_second_extraction_beside_the_first_adds_no_row_twice(path):
    with FakeServer(delay_s=0.01) as server, ExplanationCache(path) as one:
        threads = [threading.Thread(target=ask, args=(at, server)) for at in (one, path)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_one_row_a_caption(path)


class RawServer:
    """Answers each request with the next of some bytes, the last one for ever, then closes."""

    def __init__(self, *replies: bytes):
        self.replies, self.asked = list(replies), 0

    def __enter__(self) -> RawServer:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._socket.accept()[0]
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self.request = connection.recv(1 << 16)
            while (
                self.request[:1] == b"P"
                and b'"seed"' not in self.request
                and (more := connection.recv(1 << 16))
            ):
                self.request += more
            self.asked += 1
            reply = self.replies[min(self.asked, len(self.replies)) - 1]
            connection.sendall(reply.replace(b"ECHO", self.request))


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def said(content) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


GOOD = http(said(answer(BAD)))
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "broken",
    [
        b"nonsense ECHO\r\n\r\n",
        b"HTTP/1.1 999999 ECHO\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}",
        CHUNKED + b"zz\r\nECHO\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nECHO",
        http(b"[" * 100_000),
        http(b"\xff\xfe"),
        http(b"not gzip", "200 OK", "Content-Encoding: gzip"),
        http(said("x"))[:-9],
        b"HTTP/1.1 302 Found\r\nLocation: http://[ECHO\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_whatever_breaks_in_the_transport_is_asked_again_or_ends_in_our_error(broken, path):
    with RawServer(broken, GOOD) as server:
        (row,) = explain(PAIRS[3:4], chat(server.url), path, progress=False)
        assert (row.text, server.asked) == (answer(BAD), 2)
    with RawServer(broken) as server, pytest.raises(LLMError, match="no server answered") as caught:
        list(chat(server.url, patience_s=0.1).complete(PROMPTS[:1], Sampling()))
    shown = "".join(traceback.format_exception(caught.value))
    assert "<caption>" not in shown
    assert "Bearer" not in shown


def test_a_lone_surrogate_in_an_answer_is_no_end(path):
    with RawServer(http(rb'{"choices": [{"message": {"content": "Nairobi \ud800."}}]}')) as server:
        (row,) = explain(PAIRS[3:4], chat(server.url), path, progress=False)
    assert row.text == "Nairobi ?."


@pytest.mark.parametrize(
    "reply",
    [
        http(said("x" * (3 << 20))),
        http(zlib.compress(said("x" * (9 << 20))), "200 OK", "Content-Encoding: deflate"),
    ],
)
def test_the_size_of_an_answer_is_bounded(reply, path):
    with RawServer(reply) as server:
        (row,) = explain(PAIRS[3:4], chat(server.url), path, progress=False)
    assert (row.note, server.asked) == ("an answer of more than 1 MB", 1)
    with RawServer(http(b"too long\n" * (1 << 20), "400 Bad")) as server:
        assert ask(path, server, pairs=PAIRS[3:4])[0].note == "HTTP 400: too long"


def test_a_retry_after_beyond_the_patience_is_not_waited_for():
    reply = http(b"{}", "429 Too Many", "Retry-After: 300")
    began = time.monotonic()
    with RawServer(reply) as server, pytest.raises(LLMError, match=r"last: HTTP 429"):
        list(chat(server.url, patience_s=0.3).complete(PROMPTS[:1], Sampling()))
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("body", [b'{"choices": []}', b'{"error": "busy"}', b'{"x": 1}'])
def test_an_odd_body_is_asked_for_three_times_only(body, path):
    with RawServer(http(body)) as server:
        (row,) = explain(PAIRS[3:4], chat(server.url), path, progress=False)
    assert (row.checks, server.asked) == (("no_answer",), 3)
    assert row.note.startswith("an ")


def test_why_captions_were_refused_stands_in_rows_and_the_warning(path, caplog):
    body = json.dumps({"error": {"message": f"max_tokens unsupported. {BAD}\nmore"}}).encode()
    pairs = [PAIRS[3], replace(PAIRS[3], id="again")]
    with RawServer(http(body, "400 Bad")) as server:
        rows = explain(pairs, chat(server.url), path, progress=False)
    assert [row.note for row in rows] == ["HTTP 400: max_tokens unsupported. …"] * 2
    assert server.asked == 1
    assert caplog.text.count("a caption has no answer: HTTP 400: max_tokens unsupported") == 1
    assert "2 x HTTP 400" in caplog.text
    _, report = apply_policy(pairs, rows, "caption")
    assert "HTTP 400: max_tokens unsupported" in str(report)


def test_tls_is_told_as_tls():
    with RawServer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        llm = chat(server.url.replace("http:", "https:"), patience_s=0.1)
        with pytest.raises(LLMError, match=r"last: TLS: [A-Z_]+\)"):
            list(llm.complete(PROMPTS[:1], Sampling()))


def test_a_certificate_that_does_not_hold_ends_it_at_once(monkeypatch):
    async def refuse(*_: object, **__: object):
        raise ConnectionError(KEY) from ssl.SSLCertVerificationError(1, "certificate verify failed")

    monkeypatch.setattr("aiohttp.TCPConnector.connect", refuse)
    with pytest.raises(LLMError, match=r"TLS: the server's certificate .*SSL_CERT_FILE") as caught:
        list(chat("https://127.0.0.1:9/v1").complete(PROMPTS[:1], Sampling()))
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_key_with_a_line_end_is_named_and_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with pytest.raises(LLMError, match="OPENAI_API_KEY holds") as caught:
        list(chat("http://127.0.0.1:9/v1").complete(PROMPTS[:1], Sampling()))
    assert KEY not in "".join(traceback.format_exception(caught.value))
