"""Any OpenAI-compatible chat server: vLLM, llama.cpp, OpenAI itself; one or several replicas."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import queue
import random
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from entityclip.explanations.llm import Completion, LLMError, Sampling, need

_KEY_LIKE = re.compile(r"^(?:sk|key|hf|gsk|xai|nvapi)[-_]\w[\w-]{10,}$|^Bearer\s", re.IGNORECASE)
_KEY_NAME = re.compile(r"(?:^|_)(?:api_?key|key|secret|password|access_token|auth)$", re.IGNORECASE)
_CONFIGURATION = {  # answers that repeating cannot change and that no caption is to blame for
    401: "it wants a key: set OPENAI_API_KEY in the environment",
    403: "the key in OPENAI_API_KEY may not use this model",
    404: "it knows no such model or path: base_url usually ends in /v1",
}
_REFUSED_IN_A_ROW = 50  # then it is not the captions
_LONGEST_PAUSE_S, _LONGEST_RETRY_AFTER_S = 60.0, 300.0
# What the client tells of this machine and request: no server needs it, and it is 9 of 17 headers,
# each of which is copied and encoded several times a request.
_UNSENT = (
    *("X-Stainless-Lang", "X-Stainless-Package-Version", "X-Stainless-OS", "X-Stainless-Arch"),
    *("X-Stainless-Runtime", "X-Stainless-Runtime-Version", "X-Stainless-Async"),
    *("x-stainless-retry-count", "x-stainless-read-timeout"),
)


def refuse_keys(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if a notebook's or profile's parameters hold an API key.

    Parameters are stored in notebooks and run records. The message names the parameter, never its
    value.
    """
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            refuse_keys(value)
        elif isinstance(value, str) and value.strip():
            login = "://" in value and (urlsplit(value).password or "key=" in value.lower())
            if _KEY_NAME.search(name) or _KEY_LIKE.match(value.strip()) or login:
                raise ValueError(
                    f"parameter {name!r} seems to hold a key; parameters are saved with the "
                    "notebook. Clear it, and set OPENAI_API_KEY in the environment instead"
                )


class OpenAIChat:
    """Asks OpenAI-compatible servers, many prompts at once; works inside a running event loop too.

    The key comes from ``OPENAI_API_KEY`` only; servers without keys need none. Neither it nor any
    caption is logged or put into an error's message.

    Args:
        model: as the server names it.
        base_url: one or several, e.g. ``http://localhost:8000/v1``; prompts go round, and a failed
            one goes to the next server. None: ``OPENAI_BASE_URL``, else OpenAI's own.
        concurrency: prompts in flight, over all servers.
        timeout_s: seconds until an answer counts as lost and is asked for again.
        patience_s: seconds for which a prompt is tried again after 408, 409, 429, 5xx, broken
            answers and lost connections, with exponential back-off or as Retry-After says. Let it
            outlast a restart of the server.
        backoff_s: the first pause in seconds; it doubles, with jitter, up to 60 s.

    When a prompt's patience is over it comes as "error" if others were answered meanwhile, else the
    server is down and LLMError is raised; likewise for 50 refused prompts (400, 413, 422) in a row,
    and at once for 401, 403, 404.
    """

    def __init__(
        self,
        model: str,
        base_url: str | Sequence[str] | None = None,
        *,
        concurrency: int = 64,
        timeout_s: float = 120.0,
        patience_s: float = 600.0,
        backoff_s: float = 0.5,
        api_key: None = None,
    ):
        if api_key is not None:
            raise ValueError("give no key: set OPENAI_API_KEY in the environment")
        urls = [base_url] if isinstance(base_url, str) or base_url is None else list(base_url)
        refuse_keys({"model": model})
        for url in urls:
            refuse_keys({"base_url": url})
            if url is not None and urlsplit(url).scheme not in ("http", "https"):
                raise ValueError(f"base_url {url!r} must start with http:// or https://")
        if not urls or concurrency < 1:
            raise ValueError("give at least one base_url and a concurrency of at least 1")
        if min(timeout_s, patience_s, backoff_s) <= 0:
            raise ValueError("timeout_s, patience_s and backoff_s are seconds above 0")
        need("openai", "aiohttp")
        self.model, self.urls, self.concurrency = model, urls, concurrency
        self.timeout_s, self.patience_s, self.backoff_s = timeout_s, patience_s, backoff_s

    def complete(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """See `LLM.complete`; as they finish."""
        with contextlib.closing(self.complete_in_batches(prompts, sampling)) as batches:
            for batch in batches:
                yield from batch

    def complete_in_batches(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Generator[list[tuple[int, Completion]], None, None]:
        """`complete`, with what is there at once in one list, to be stored at once."""
        answers: queue.SimpleQueue[tuple[int, Completion] | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._work(prompts, sampling, answers))

        def run() -> None:  # in a thread of its own: Jupyter's loop is already running
            loop.run_until_complete(asyncio.wait([work]))
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            answers.put(None)

        thread = threading.Thread(target=run, name="openai-chat", daemon=True)
        thread.start()
        collections = gc.get_threshold()
        # an answer leaves hundreds of objects; looking for cycles so often takes 30 % of the CPU
        gc.set_threshold(100_000, *collections[1:])
        try:
            while batch := _at_hand(answers):
                yield batch
            work.result()  # raises what stopped it
        finally:
            gc.set_threshold(*collections)
            with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
                loop.call_soon_threadsafe(work.cancel)
            thread.join()

    async def _work(
        self, prompts: Sequence[str], sampling: Sampling, answers: queue.SimpleQueue
    ) -> None:
        servers, todo = _Servers(self), iter(enumerate(prompts))

        async def worker() -> None:
            for index, prompt in todo:
                answers.put((index, await servers.complete(index, prompt, sampling)))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(prompts))):
                    group.create_task(worker())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await servers.close()


class _Passing(Exception):
    """A failure that may pass: worth another attempt, after `retry_after` seconds if given."""

    def __init__(self, what: str, retry_after: float | None = None):
        super().__init__(what)
        self.retry_after = retry_after


class _Servers:
    """The servers of one `complete`, and what its workers know of each other."""

    def __init__(self, chat: OpenAIChat):
        import httpx2  # the openai client's own
        import openai

        self._chat, self._openai, self._response = chat, openai, httpx2.Response
        self._last_answer, self._refused = time.monotonic(), 0  # refused: since the last answer
        self._clients = [
            openai.AsyncOpenAI(
                base_url=url,
                api_key=os.environ.get("OPENAI_API_KEY") or "none",
                max_retries=0,  # complete's task
                timeout=None,  # _ask's task
                http_client=openai.DefaultAioHttpClient(timeout=None),  # half the default's CPU
            )
            for url in chat.urls
        ]
        self._options = {
            "headers": dict.fromkeys(_UNSENT, openai.omit),
            "idempotency_key": "unused",  # else it draws one from the system for each request
        }

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def complete(self, index: int, prompt: str, sampling: Sampling) -> Completion:
        began = time.monotonic()
        for attempt in itertools.count():
            client = self._clients[(index + attempt) % len(self._clients)]
            try:
                return await self._ask(client, prompt, sampling)
            except _Passing as error:
                failure = error
            if time.monotonic() - began >= self._chat.patience_s:
                break
            longest = min(self._chat.backoff_s * 2.0 ** min(attempt, 99), _LONGEST_PAUSE_S)
            pause = random.uniform(0, longest)
            if failure.retry_after is not None:  # jitter on top: all the workers were told the same
                pause = failure.retry_after + pause / 10
            await asyncio.sleep(pause)
        if self._last_answer < began:
            raise LLMError(
                f"{self._chat.model}: no server answered for {self._chat.patience_s:.0f} s (last: "
                f"{failure}); what was answered is kept, run again to go on"
            )
        return Completion("", "error", self._chat.model)

    async def _ask(self, client: Any, prompt: str, sampling: Sampling) -> Completion:
        try:
            async with asyncio.timeout(self._chat.timeout_s):
                # post: chat.completions.create takes 1.5 times the CPU to check its own types
                response = await client.post(
                    "/chat/completions",
                    body={
                        "model": self._chat.model,
                        "messages": [{"role": "user", "content": prompt}],
                        **vars(sampling),
                    },
                    cast_to=self._response,
                    options=self._options,
                )
            completion = _read(response.content)
        except TimeoutError:
            raise _Passing(f"no answer within {self._chat.timeout_s:g} s") from None
        except self._openai.APIStatusError as error:
            return self._refusal(error.status_code, error.response.headers)
        except self._openai.APIConnectionError as error:  # also its own timeout
            raise _Passing(type(error).__name__) from None
        self._last_answer, self._refused = time.monotonic(), 0
        return completion

    def _refusal(self, status: int, headers: Mapping[str, str]) -> Completion:
        # the body is left alone: servers repeat the prompt in it
        if status in (408, 409, 429) or status >= 500:
            raise _Passing(f"HTTP {status}", _retry_after(headers))
        if status in _CONFIGURATION:
            raise LLMError(f"{self._chat.model}: HTTP {status}; {_CONFIGURATION[status]}")
        self._refused += 1
        if self._refused >= _REFUSED_IN_A_ROW:
            raise LLMError(
                f"{self._chat.model}: HTTP {status} for {self._refused} prompts in a row; does the "
                "server know this model and take temperature, top_p, max_tokens and seed?"
            )
        return Completion("", "error", self._chat.model)


def _read(content: bytes) -> Completion:
    """The body of an answer with status 200. Raises _Passing if it is no chat completion."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text, reason = choice["message"]["content"] or "", choice["finish_reason"] or "stop"
        return Completion(text.strip(), str(reason), str(body.get("model", "")))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Passing("an answer that is no chat completion") from None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or an HTTP date; None if absent or neither."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def _at_hand(answers: queue.SimpleQueue) -> list[tuple[int, Completion]]:
    """Wait for an answer and take those behind it; none are left if the list is empty."""
    batch = [answers.get()]
    while batch[-1] is not None and not answers.empty():
        batch.append(answers.get())
    if batch[-1] is None:
        answers.put(batch.pop())  # for the next call
    return batch
