"""Any OpenAI-compatible chat server: vLLM, llama.cpp, OpenAI itself; one or several replicas."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import os
import queue
import random
import re
import ssl
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from entityclip.explanations.answers import Broken, Unusable, read_completion, told_reason
from entityclip.explanations.llm import Completion, LLMError, Sampling, need

_KEY_LIKE = re.compile(r"^(?:sk|key|hf|gsk|xai|nvapi)[-_]\w[\w-]{10,}$|^Bearer\s", re.IGNORECASE)
_KEY_NAME = re.compile(r"(?:^|_)(?:api_?key|key|secret|password|access_token|auth)$", re.IGNORECASE)
_CONFIGURATION = {  # answers that repeating cannot change and that no caption is to blame for
    401: "it wants a key: set OPENAI_API_KEY in the environment",
    403: "the key in OPENAI_API_KEY may not use this model",
    404: "it knows no such model or path: base_url usually ends in /v1",
}
_REFUSED_IN_A_ROW = 50  # then it is not the captions
_LONGEST_PAUSE_S = 60.0
_LARGEST_ANSWER = 1 << 20  # bytes; an explanation has some hundred
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
        patience_s: seconds for which a prompt is tried again after 408, 409, 425, 429, 5xx, broken
            answers and lost connections, with exponential back-off or as Retry-After says, but no
            longer. Let it outlast a restart of the server.
        backoff_s: the first pause in seconds; it doubles, with jitter, up to 60 s.

    When a prompt's patience is over it comes as "error" if others were answered meanwhile, else the
    server is down and LLMError is raised. A prompt that is refused (400, 413, 422, …), or whose
    answer holds none and never will, is not asked again and comes as "error" at once, with the
    reason; after 50 of them in a row LLMError is raised, and at once for 401, 403, 404 and a
    certificate that does not hold.
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


class _Servers:
    """The servers of one `complete`, and what its workers know of each other."""

    def __init__(self, chat: OpenAIChat):
        import httpx2  # the openai client's own
        import openai

        self._chat, self._openai, self._response = chat, openai, httpx2.Response
        self._last_answer, self._refused = time.monotonic(), 0  # refused: since the last answer
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if not (self._key.isascii() and self._key.isprintable()):
            raise LLMError("OPENAI_API_KEY holds what no key does, e.g. a line end; set it anew")
        self._clients = [
            openai.AsyncOpenAI(
                base_url=url,
                api_key=self._key or "none",
                max_retries=0,  # complete's task
                timeout=None,  # _ask's task
                http_client=_client(),
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
        began, broken = time.monotonic(), 0
        for attempt in itertools.count():
            client = self._clients[(index + attempt) % len(self._clients)]
            try:
                return await self._ask(client, prompt, sampling)
            except Unusable as error:
                return self._given_up(str(error))
            except Broken as error:
                failure = error
            broken += failure.attempts is not None
            if failure.attempts is not None and broken >= failure.attempts:
                return self._given_up(str(failure))
            left = began + self._chat.patience_s - time.monotonic()
            if left <= 0:
                break
            longest = min(self._chat.backoff_s * 2.0 ** min(attempt, 99), _LONGEST_PAUSE_S)
            pause = random.uniform(0, longest)
            if failure.retry_after is not None:  # jitter on top: all the workers were told the same
                pause = failure.retry_after + pause / 10
            await asyncio.sleep(min(pause, left))
        if self._last_answer < began:
            raise LLMError(
                f"{self._chat.model}: no server answered for {self._chat.patience_s:g} s (last: "
                f"{failure}); what was answered is kept, run again to go on"
            )
        return Completion("", "error", self._chat.model, str(failure))

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
        except TimeoutError:
            raise Broken(f"no answer within {self._chat.timeout_s:g} s") from None
        except self._openai.APIStatusError as error:
            raise self._refusal(error.response, prompt) from None
        except Unusable:
            raise
        # whatever a library of the transport raises for what a server may send
        except Exception as error:
            raise self._lost(error) from None
        try:
            completion = read_completion(response.content)
        except Broken as error:
            reason = self._reason(str(error), response.content, prompt)
            raise Broken(reason, attempts=error.attempts) from None
        self._last_answer, self._refused = time.monotonic(), 0
        return completion

    def _refusal(self, response: Any, prompt: str) -> Exception:
        status = response.status_code
        reason = self._reason(f"HTTP {status}", response.content, prompt)
        if status in (408, 409, 425, 429) or status >= 500:
            return Broken(reason, retry_after=_retry_after(response.headers))
        if status in _CONFIGURATION:
            return LLMError(f"{self._chat.model}: {reason}; {_CONFIGURATION[status]}")
        return Unusable(reason)

    def _reason(self, problem: str, body: bytes, prompt: str) -> str:
        told = told_reason(body, f"{prompt} {self._key}")
        return f"{problem}: {told}" if told else problem

    def _lost(self, error: BaseException) -> Exception:
        """What a connection's failure means. Libraries put what was sent into their messages."""
        while (cause := error.__cause__ or error.__context__) is not None:
            error = cause  # the first that went wrong; aiohttp's own TLS errors hold no reason
        if isinstance(error, ssl.SSLCertVerificationError):
            return LLMError(
                f"{self._chat.model}: TLS: the server's certificate does not hold "
                f"({getattr(error, 'verify_message', 'unverified')}); name its authority's file "
                "in SSL_CERT_FILE"
            )
        if isinstance(error, ssl.SSLError):
            return Broken(f"TLS: {error.reason}")
        told = error.strerror if isinstance(error, OSError) else None
        return Broken(f"{type(error).__name__}: {told}" if told else type(error).__name__)

    def _given_up(self, note: str) -> Completion:
        """A prompt that gets no answer. Raises LLMError if none before it got one for long."""
        self._refused += 1
        if self._refused >= _REFUSED_IN_A_ROW:
            raise LLMError(
                f"{self._chat.model}: {note}, for {self._refused} prompts in a row; does the "
                "server know this model and take temperature, top_p, max_tokens and seed?"
            )
        return Completion("", "error", self._chat.model, note)


def _client() -> Any:
    """An HTTP client on aiohttp, half the CPU of the default, that reads answers up to a bound."""
    import httpx2
    import openai

    class Bounded(openai.DefaultAioHttpClient):
        async def send(self, request: Any, **options: Any) -> httpx2.Response:
            response = await super().send(request, **options | {"stream": True})
            length = response.headers.get("content-length", "")
            packed = "content-encoding" in response.headers
            if length.isdecimal() and int(length) <= _LARGEST_ANSWER and not packed:
                await response.aread()
                return response
            content = bytearray()
            try:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _LARGEST_ANSWER and response.is_error:
                        break  # its first line is enough
                    if len(content) > _LARGEST_ANSWER:
                        raise Unusable(f"an answer of more than {_LARGEST_ANSWER >> 20} MB")
            finally:
                await response.aclose()
            # another response: what is read is no longer encoded, and one header is of use
            wait = response.headers.get("retry-after")
            return httpx2.Response(
                response.status_code,
                headers={"retry-after": wait} if wait else None,
                content=bytes(content),
                request=request,
            )

    return Bounded(timeout=None)


def served_model(base_url: str) -> str:
    """The first model that an OpenAI-compatible server names. Raises LLMError where it tells none.

    The key comes from ``OPENAI_API_KEY`` only, as for `OpenAIChat`.
    """
    need("openai", "aiohttp")
    import openai

    refuse_keys({"base_url": base_url})
    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = openai.OpenAI(base_url=base_url, api_key=key, timeout=30, max_retries=1)
    try:
        names = [model.id for model in client.models.list().data]
    except Exception as error:  # the client's own, and what answers that are none of it raise
        raise LLMError(
            f"{base_url} does not say which models it serves ({type(error).__name__}); name one by "
            "--model"
        ) from None
    if not names or not isinstance(names[0], str):
        raise LLMError(f"{base_url} serves no model; name one by --model")
    return names[0]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or an HTTP date; None if absent or neither."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _at_hand(answers: queue.SimpleQueue) -> list[tuple[int, Completion]]:
    """Wait for an answer and take those behind it; none are left if the list is empty."""
    batch = [answers.get()]
    while batch[-1] is not None and not answers.empty():
        batch.append(answers.get())
    if batch[-1] is None:
        answers.put(batch.pop())  # for the next call
    return batch
