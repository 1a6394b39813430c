"""`explain`: from captions to explanations, resumable, each distinct caption asked once."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from entityclip.datasets.pair import Pair
from entityclip.explanations.cache import (
    Explanation,
    ExplanationCache,
    Source,
    cache_keys,
    text_sha,
)
from entityclip.explanations.checks import check_counts, failed_checks
from entityclip.explanations.knowledge import KnowledgeBase
from entityclip.explanations.llm import (
    DEFAULT_PROMPT,
    LLM,
    Completion,
    LLMError,
    OffersBatches,
    Prompt,
    Sampling,
)

log = logging.getLogger(__name__)


# Captions between two rounds of retries. A kill loses at most this round's answers that failed a
# check; larger rounds lose more, smaller ones wait more often for their slowest answer.
ROUND = 10_000


def explain(
    pairs: Sequence[Pair],
    llm: LLM,
    cache: ExplanationCache | str | Path,
    *,
    sampling: Sampling | None = None,
    prompt: Prompt = DEFAULT_PROMPT,
    reuse: Sequence[Source] = (),
    progress: bool = True,
) -> list[Explanation]:
    """An explanation for each pair, in the pairs' order.

    Only what `cache` lacks is asked, equal captions once, and every answer is in the cache before
    the next is waited for: after an interrupt, call again and it goes on. An answer that fails a
    check is asked for once more under another seed (unless the temperature is 0); if that fails
    too, the one with fewer failures is kept and marked in `Explanation.checks`.

    Args:
        pairs: what to explain; captions may repeat.
        llm: who is asked, e.g. `OpenAIChat` or `KnowledgeBase`.
        cache: a cache or its path.
        sampling: ``Sampling()`` if None.
        prompt: one of `PROMPTS` or your own.
        reuse: other sources (e.g. an imported file) whose rows also do, in order of preference.
        progress: show a progress bar.

    A pair without a caption is not asked: "skipped". A caption that gets no answer although others
    do comes as "error". Both are empty, marked, counted in a warning, and not cached.

    Raises LLMError when the model cannot be used at all, CacheError for a damaged cache and OSError
    for a full disk; whatever was answered by then is in the cache.
    """
    job = _Job(llm, prompt, sampling or Sampling())
    with ExitStack() as stack:
        if not isinstance(cache, ExplanationCache):
            cache = stack.enter_context(ExplanationCache(cache))
        captions = [pair.caption for pair in pairs]
        keys = cache_keys(captions, job.source)
        others = [cache_keys(captions, source) for source in reuse]
        stored = [
            next((k for k in choice if k in cache), choice[0])
            for choice in zip(keys, *others, strict=True)
        ]
        wanted = {
            key: pair
            for key, pair in zip(reversed(stored), reversed(pairs), strict=True)
            if pair.caption.strip() and key not in cache
        }
        log.info("%d pairs: %d captions to ask", len(pairs), len(wanted))
        errors = _ask_all(job, dict(reversed(wanted.items())), cache, progress)
        rows = []
        for key, pair in zip(stored, pairs, strict=True):
            row = errors.get(key) or (cache.read(key) if pair.caption.strip() else None)
            rows.append(replace(row, id=pair.id) if row else job.skipped(pair))
    _report(rows)
    return rows


def shard(pairs: Sequence[Pair], index: int, count: int) -> list[Pair]:
    """The pairs that worker `index` of `count` explains: a caption always has the same worker.

    Give each worker its own cache and join these with `merge_caches`. Raises ValueError for an
    index that is not from 0 to count - 1.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}; the index goes from 0 to {count - 1}")

    def number(caption: str) -> int:
        raw = caption.encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(raw, digest_size=8).digest())

    return [pair for pair in pairs if number(pair.caption) % count == index]


@dataclass(frozen=True)
class _Job:
    llm: LLM
    prompt: Prompt
    sampling: Sampling

    @property
    def source(self) -> Source:
        return Source(self.llm.model, self.prompt.version, self.sampling)

    def row(self, pair: Pair, completion: Completion, attempts: int) -> Explanation:
        # a lone surrogate, which JSON allows in an answer, cannot be written as UTF-8
        text = completion.text.strip().encode("utf-8", "replace").decode()
        reason = completion.finish_reason
        checks = ("no_answer",) if reason == "error" else None
        return Explanation(
            id=pair.id,
            text=text,
            model=self.llm.model,
            prompt_version=self.prompt.version,
            sampling=self.sampling if attempts == 1 else self.sampling.again(),
            finish_reason=reason,
            text_sha=text_sha(text),
            checks=checks or failed_checks(text, pair.caption, self.prompt, reason),
            attempts=attempts,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def skipped(self, pair: Pair) -> Explanation:
        row = self.row(pair, Completion("", "skipped", self.llm.model), 1)
        return replace(row, checks=("no_caption",))


def _ask_all(
    job: _Job, wanted: dict[bytes, Pair], cache: ExplanationCache, progress: bool
) -> dict[bytes, Explanation]:
    """Ask for every key and append the answers; returns the rows of those that got none."""
    errors: dict[bytes, Explanation] = {}
    todo = list(wanted)
    with tqdm(total=len(todo), desc="explain", unit="caption", disable=not progress) as bar:
        for start in range(0, len(todo), ROUND):
            cache.refresh()  # another process may have answered some
            keys = cache.missing(todo[start : start + ROUND])
            bar.update(len(todo[start : start + ROUND]) - len(keys))
            errors |= _round(job, {key: wanted[key] for key in keys}, cache, bar.update)
    return errors


def _round(
    job: _Job, wanted: dict[bytes, Pair], cache: ExplanationCache, advance: Callable[[int], object]
) -> dict[bytes, Explanation]:
    errors, again = {}, {}
    for rows in _ask(job, wanted, attempts=1):
        done = []
        for key, row in rows:
            if row.finish_reason == "error":
                errors[key] = row
            elif row.ok or job.sampling.temperature == 0:
                done.append((key, row))
            else:
                again[key] = row
        cache.append(done)
        advance(sum(key not in again for key, _ in rows))
    for rows in _ask(job, {key: wanted[key] for key in again}, attempts=2):
        cache.append([(key, _better(again[key], second)) for key, second in rows])
        advance(len(rows))
    return errors


def _better(first: Explanation, second: Explanation) -> Explanation:
    """The one of two answers that is kept: the second only if it fails fewer checks."""
    if second.finish_reason != "error" and len(second.checks) < len(first.checks):
        return second
    return replace(first, attempts=2)


def _ask(
    job: _Job, wanted: dict[bytes, Pair], attempts: int
) -> Iterator[list[tuple[bytes, Explanation]]]:
    """Ask for all that is wanted; as many rows at once as the back-end has at hand."""
    keys, pairs = list(wanted), list(wanted.values())
    sampling = job.sampling if attempts == 1 else job.sampling.again()
    prompts = [job.prompt.render(pair.caption) for pair in pairs]
    due = set(range(len(keys)))
    if not due:
        return
    with closing(_batches(job.llm, prompts, sampling)) as batches:
        for batch in batches:
            rows = []
            for index, completion in batch:
                if index not in due:
                    raise LLMError(f"{job.llm.model} answered position {index} twice or unasked")
                due.remove(index)
                rows.append((keys[index], job.row(pairs[index], completion, attempts)))
            yield rows
    if due:
        raise LLMError(f"{job.llm.model} left {len(due)} of {len(keys)} prompts unanswered")


def _batches(
    llm: LLM, prompts: list[str], sampling: Sampling
) -> Generator[list[tuple[int, Completion]], None, None]:
    if isinstance(llm, OffersBatches):
        yield from llm.complete_in_batches(prompts, sampling)
    else:
        with closing(llm.complete(prompts, sampling)) as answers:  # type: ignore[type-var]
            for answer in answers:
                yield [answer]


def _report(rows: list[Explanation]) -> None:
    counts = {name: n for name, n in check_counts(row.checks for row in rows).items() if n}
    level = logging.WARNING if counts.get("failed") else logging.INFO
    log.log(level, "explanations: %s", ", ".join(f"{name} {n}" for name, n in counts.items()))


PER = 100_000  # captions


def cost_table(
    replicas: Iterable[int],
    *,
    tokens_per_s: float,
    price_per_hour: float,
    tokens_per_caption: float = 90,
    retried: float = 0.0,
) -> pd.DataFrame:
    """Captions a second, hours and price per 100,000 distinct captions, one row a replica count.

    ::

        captions/s = replicas · tokens_per_s / (tokens_per_caption · (1 + retried))
        hours      = 100,000 / captions/s / 3600
        price      = hours · replicas · price_per_hour

    So replicas shorten the wait and leave the price as it is.

    Args:
        replicas: how many servers.
        tokens_per_s: generated tokens a second of one replica at full load: measure yours, e.g.
            with ``vllm bench serve``, since it depends on GPU, model, precision and concurrency.
        price_per_hour: of one replica, in any currency; the table is in the same.
        tokens_per_caption: of an answer, on average; two to three sentences are 60 to 120.
        retried: the share of captions asked again because a check failed, 0 to 1.

    Raises ValueError for values that are not positive.
    """
    if min(tokens_per_s, tokens_per_caption) <= 0 or price_per_hour < 0 or not 0 <= retried <= 1:
        raise ValueError("tokens must be above 0, the price at least 0, `retried` from 0 to 1")
    rows = []
    for count in replicas:
        if count < 1:
            raise ValueError(f"replicas is {count}; it must be at least 1")
        rate = count * tokens_per_s / (tokens_per_caption * (1 + retried))
        hours = PER / rate / 3600
        price = hours * count * price_per_hour
        rows.append((count, count * tokens_per_s, rate, hours, price))
    columns = ["replicas", "tokens_per_s", "captions_per_s", "hours_per_100k", "price_per_100k"]
    return pd.DataFrame(rows, columns=columns)


class Slowed:
    """Another model, but `delay_s` seconds an answer, as if a real one had to think."""

    def __init__(self, llm: LLM, delay_s: float) -> None:
        self.model, self._llm, self._delay_s = llm.model, llm, delay_s

    def complete(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """See `LLM.complete`; one at a time."""
        for answer in self._llm.complete(prompts, sampling):
            time.sleep(self._delay_s)
            yield answer


def explain_until_killed(
    pairs: Sequence[Pair],
    cache: str | Path,
    *,
    rows: int,
    llm: LLM | None = None,
    timeout_s: float = 120.0,
) -> int:
    """Explain `pairs` in another process and SIGKILL it once `cache` holds `rows` whole lines.

    `llm` (the knowledge base at 10 ms an answer if None) is pickled. Returns how many whole lines
    the process left, which may be more. Raises RuntimeError if it ended or took `timeout_s` seconds
    before there were as many.
    """
    path = Path(cache)
    # spawn: a fork of a notebook's kernel would inherit its sockets and threads
    process = multiprocessing.get_context("spawn").Process(
        target=explain,
        args=(list(pairs), llm or Slowed(KnowledgeBase(), 0.01), path),
        kwargs={"progress": False},
    )
    process.start()
    deadline = time.monotonic() + timeout_s
    try:
        while _lines(path) < rows:
            if not process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the extraction wrote {_lines(path)} rows, not {rows}, before it "
                    + ("took too long" if process.is_alive() else "ended; ask for fewer rows")
                )
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()
    return _lines(path)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
