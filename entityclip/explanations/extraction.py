"""`explain`: from captions to explanations, resumable, each distinct caption asked once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from tqdm.auto import tqdm

from entityclip.datasets.record import Pair
from entityclip.explanations.cache import (
    Explanation,
    ExplanationCache,
    Source,
    cache_keys,
    text_sha,
)
from entityclip.explanations.checks import check_counts, failed_checks
from entityclip.explanations.llm import LLM, Completion, LLMError, OffersBatches, Sampling
from entityclip.explanations.prompts import DEFAULT_PROMPT, Prompt

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
