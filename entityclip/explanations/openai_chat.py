"""Any OpenAI-compatible chat server: vLLM, llama.cpp, OpenAI itself; one or several replicas."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import queue
import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from entityclip.explanations.llm import Completion, LLMError, Sampling

_MAX_RETRY_AFTER_S = 300.0


class Passing(Exception):
    """A failure that may pass: worth another attempt, after `retry_after` seconds if given."""

    def __init__(self, what: str, retry_after: float | None = None):
        super().__init__(what)
        self.retry_after = retry_after


def read_completion(content: bytes) -> Completion:
    """The body of an answer with status 200. Raises Passing if it is no chat completion."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, LookupError, TypeError):
        raise Passing("an answer that is no chat completion") from None
    if not isinstance(text, str | None):
        raise Passing("an answer whose content is no text")
    return Completion(text or "", str(reason or "stop"), str(body.get("model", "")))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number or an HTTP date; None if absent or neither."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


_KEY_LIKE = re.compile(r"^(?:sk|key|hf|gsk|xai|nvapi)[-_]\w[\w-]{10,}$|^Bearer\s", re.IGNORECASE)


_KEY_NAME = re.compile(r"(?:^|_)(?:api_?key|key|secret|password|access_token|auth)$", re.IGNORECASE)


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


_CONFIGURATION = {  # answers that repeating cannot change and that no caption is to blame for
    401: "it wants a key: set OPENAI_API_KEY in the environment",
    403: "the key in OPENAI_API_KEY may not use this model",
    404: "it knows no such model or path: base_url usually ends in /v1",
}


# What the client tells of this machine: no server needs it, and it is 9 of 17 headers, each of
# which is copied and encoded several times a request.
_ABOUT_THIS_MACHINE = tuple(
    f"X-Stainless-{name}"
    for name in ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
)


_ABOUT_THIS_REQUEST = ("x-stainless-retry-count", "x-stainless-read-timeout")


_REFUSED_IN_A_ROW = 50  # then it is not the captions


@dataclass
class _Progress:
    """What the workers of one `complete` know of each other."""

    last_answer: float = field(default_factory=time.monotonic)
    refused: int = 0  # since the last answer


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
        self.model, self._urls, self._concurrency = model, urls, concurrency
        self._timeout_s, self._patience_s, self._backoff_s = timeout_s, patience_s, backoff_s
        openai, _ = _library()
        self._options = {
            "headers": dict.fromkeys(_ABOUT_THIS_REQUEST, openai.omit),
            "idempotency_key": "unused",  # else it draws one from the system for each request
        }

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
        """`complete`, with all that is there at once in a list.

        For a caller who stores answers: one write, and one change of threads, for each list instead
        of each answer.
        """
        answers: queue.SimpleQueue[tuple[int, Completion] | BaseException | None] = (
            queue.SimpleQueue()
        )
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._work(prompts, sampling, answers))

        def run() -> None:  # in a thread of its own: Jupyter's loop is already running
            try:
                loop.run_until_complete(work)
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                answers.put(error)
            finally:
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
        finally:
            gc.set_threshold(*collections)
            with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
                loop.call_soon_threadsafe(work.cancel)
            thread.join()

    async def _work(
        self, prompts: Sequence[str], sampling: Sampling, answers: queue.SimpleQueue
    ) -> None:
        todo, progress = iter(enumerate(prompts)), _Progress()
        clients = [self._client(url) for url in self._urls]

        async def worker() -> None:
            for index, prompt in todo:
                completion = await self._ask(clients, index, prompt, sampling, progress)
                answers.put((index, completion))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(prompts))):
                    group.create_task(worker())
        except* LLMError as failures:
            raise _first(failures) from None
        finally:
            for client in clients:
                await client.close()

    def _client(self, url: str | None) -> Any:
        openai, _ = _library()
        return openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=0,  # tenacity's task
            timeout=None,  # _request's task
            http_client=openai.DefaultAioHttpClient(timeout=None),  # half the CPU of the default
            default_headers=dict.fromkeys(_ABOUT_THIS_MACHINE, openai.omit),
        )

    async def _ask(
        self,
        clients: Sequence[Any],
        index: int,
        prompt: str,
        sampling: Sampling,
        progress: _Progress,
    ) -> Completion:
        began = time.monotonic()
        try:
            return await self._request(clients[index % len(clients)], prompt, sampling, progress)
        except Passing as error:
            first = (
                error  # rare, so only now tenacity's loop: it would take its CPU of every prompt
            )
        try:
            async for attempt in self._attempts(began):
                with attempt:
                    number = attempt.retry_state.attempt_number - 1
                    if number == 0:
                        raise first
                    client = clients[(index + number) % len(clients)]
                    completion = await self._request(client, prompt, sampling, progress)
        except Passing as error:
            if progress.last_answer < began:
                raise LLMError(
                    f"{self.model}: no server answered for {self._patience_s:.0f} s (last: "
                    f"{error}); what was answered is kept, run again to go on"
                ) from None
            return Completion("", "error", self.model)
        return completion

    def _attempts(self, began: float) -> Any:
        """Attempts to loop over until `patience_s` after `began`, with pauses between them."""
        _, tenacity = _library()
        pause = tenacity.wait_random_exponential(multiplier=self._backoff_s, max=60)

        def wait(state: Any) -> float:
            after = state.outcome.exception().retry_after
            # jitter on top: all the workers were told the same
            return pause(state) if after is None else after + pause(state) / 10

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Passing),
            stop=lambda state: time.monotonic() - began >= self._patience_s,
            wait=wait,
            reraise=True,
        )

    async def _request(
        self, client: Any, prompt: str, sampling: Sampling, progress: _Progress
    ) -> Completion:
        import httpx2  # the openai client's own

        openai, _ = _library()
        try:
            async with asyncio.timeout(self._timeout_s):
                # post: chat.completions.create takes 1.5 times the CPU to check its own types
                response = await client.post(
                    "/chat/completions",
                    body={
                        "model": self.model,
                        "messages": [{"role": "user", "content": prompt}],
                        "temperature": sampling.temperature,
                        "top_p": sampling.top_p,
                        "max_tokens": sampling.max_tokens,
                        "seed": sampling.seed,
                    },
                    cast_to=httpx2.Response,
                    options=self._options,
                )
            completion = read_completion(response.content)
        except TimeoutError:
            raise Passing(f"no answer within {self._timeout_s:g} s") from None
        except openai.APIStatusError as error:
            return self._refusal(error.status_code, error.response.headers, progress)
        except openai.APIConnectionError as error:  # also its own timeout
            raise Passing(type(error).__name__) from None
        progress.last_answer, progress.refused = time.monotonic(), 0
        return completion

    def _refusal(self, status: int, headers: Mapping[str, str], progress: _Progress) -> Completion:
        # the body is left alone: servers repeat the prompt in it
        if status in (408, 409, 429) or status >= 500:
            raise Passing(f"HTTP {status}", retry_after(headers))
        if status in _CONFIGURATION:
            raise LLMError(f"{self.model}: HTTP {status}; {_CONFIGURATION[status]}")
        progress.refused += 1
        if progress.refused >= _REFUSED_IN_A_ROW:
            raise LLMError(
                f"{self.model}: HTTP {status} for {progress.refused} prompts in a row; does the "
                "server know this model and take temperature, top_p, max_tokens and seed?"
            )
        return Completion("", "error", self.model)


def _at_hand(answers: queue.SimpleQueue) -> list[tuple[int, Completion]]:
    """Wait for an answer and take those behind it; none are left if the list is empty."""
    batch = []
    while not batch or not answers.empty():
        answer = answers.get()
        if answer is None or isinstance(answer, BaseException):
            if batch:
                answers.put(answer)  # for the next call
            elif answer is not None:
                raise answer
            break
        batch.append(answer)
    return batch


def _first(failures: BaseExceptionGroup) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _library() -> tuple[Any, Any]:
    try:
        import aiohttp  # noqa: F401 - what DefaultAioHttpClient needs
        import openai
        import tenacity
    except ImportError as error:
        raise LLMError(f"{error.name} is not installed: pip install 'entityclip[llm]'") from error
    return openai, tenacity
