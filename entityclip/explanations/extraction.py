"""`explain`: from captions to explanations, resumable, each distinct caption asked once."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.console import Part, progress_bar
from entityclip.datasets.pair import Pair
from entityclip.explanations.answers import SPENT, STOPPED, clean_answer
from entityclip.explanations.cache import Explanation, ExplanationCache, Source, cache_keys
from entityclip.explanations.checks import check_counts, failed_checks
from entityclip.explanations.llm import (
    DEFAULT_PROMPT,
    LLM,
    Completion,
    KnowledgeBase,
    LLMError,
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

    `prompt` is one of `PROMPTS` or your own, `sampling` ``Sampling()`` unless given. `reuse` names
    other sources (e.g. an imported file) whose rows also do, in order of preference.

    A pair without a caption is not asked: "skipped". A caption that gets no answer although others
    do comes as "error". Both are empty, marked, counted in a warning, and not cached; why there is
    no answer stands in `Explanation.note` and, for the first of each kind, in a warning at once.

    Raises LLMError when the model cannot be used at all, CacheError for a damaged cache and OSError
    for a full disk; whatever was answered by then is in the cache.
    """
    with ExitStack() as stack:
        if not isinstance(cache, ExplanationCache):
            cache = stack.enter_context(ExplanationCache(cache))
        work = _Extraction(llm, prompt, sampling or Sampling(), cache)
        captions = [pair.caption for pair in pairs]
        keys = zip(*(cache_keys(captions, source) for source in (work.source, *reuse)), strict=True)
        stored = [next((key for key in one if key in cache), one[0]) for one in keys]
        wanted: dict[bytes, Pair] = {}
        for key, pair in zip(stored, pairs, strict=True):
            if pair.caption.strip() and key not in cache:
                wanted.setdefault(key, pair)
        log.info("%d pairs: %d captions to ask", len(pairs), len(wanted))
        work.run(wanted, progress)
        skipped = Explanation.made_now("", "", work.source, "skipped", ("no_caption",))
        rows = []
        for key, pair in zip(stored, pairs, strict=True):
            row = work.errors.get(key) or (cache.read(key) if pair.caption.strip() else skipped)
            rows.append(replace(row, id=pair.id))
    counts = {name: n for name, n in check_counts(row.checks for row in rows).items() if n}
    level = logging.WARNING if counts.get("failed") else logging.INFO
    told = ", ".join(f"{name} {n}" for name, n in counts.items()) + told_notes(rows)
    log.log(level, "explanations: %s", told)
    return rows


def told_notes(rows: Iterable[Explanation]) -> str:
    """Why there is no answer, for the end of a sentence: the three commonest reasons and counts."""
    common = Counter(row.note for row in rows if row.note).most_common(3)
    return "; no answer: " * bool(common) + ", ".join(f"{n} x {note}" for note, n in common)


def shard(pairs: Sequence[Pair], part: Part) -> list[Pair]:
    """The pairs that a part explains, in a cache of its own: a caption is always the same part's.

    `merge_caches` joins the parts' caches.
    """

    def number(caption: str) -> int:
        raw = caption.encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(raw, digest_size=8).digest())

    return [pair for pair in pairs if part.has(number(pair.caption))]


class _Extraction:
    """Asks one model under one prompt and sampling; answers go to a cache, others to `errors`."""

    def __init__(self, llm: LLM, prompt: Prompt, sampling: Sampling, cache: ExplanationCache):
        self.llm, self.prompt, self.cache = llm, prompt, cache
        self.source = Source(llm.model, prompt.version, sampling)
        self.errors: dict[bytes, Explanation] = {}
        self._told: set[str] = set()  # kinds of reasons that a warning has named

    def run(self, wanted: dict[bytes, Pair], progress: bool) -> None:
        """Ask for every key."""
        todo = list(wanted)
        with progress_bar(total=len(todo), desc="explain", unit="caption", show=progress) as bar:
            for start in range(0, len(todo), ROUND):
                block = todo[start : start + ROUND]
                self.cache.refresh()  # another process may have answered some
                keys = self.cache.missing(block)
                bar.update(len(block) - len(keys))
                self._round({key: wanted[key] for key in keys}, bar)

    def _round(self, wanted: dict[bytes, Pair], bar: Any) -> None:
        sampling = self.source.sampling
        failed: dict[bytes, Explanation] = {}
        for rows in self._ask(wanted, sampling):
            for key, row in rows:
                if row.finish_reason == "error":
                    self.errors[key] = row
                elif row.checks and sampling.temperature > 0:
                    failed[key] = row
            open_ = failed.keys() | self.errors
            self.cache.append([(key, row) for key, row in rows if key not in open_])
            bar.update(sum(key not in failed for key, _ in rows))
            self._tell(bar)
        for rows in self._ask({key: wanted[key] for key in failed}, sampling.again()):
            self.cache.append([(key, _better(failed[key], second)) for key, second in rows])
            bar.update(len(rows))
            self._tell(bar)

    def _tell(self, bar: Any) -> None:
        """How many are answered, failed and left, at the bar's own pace."""
        failed = len(self.errors)
        counts = f"{bar.n - failed} answered, {failed} failed, {bar.total - bar.n} left"
        bar.set_postfix_str(counts, refresh=False)

    def _ask(
        self, wanted: dict[bytes, Pair], sampling: Sampling
    ) -> Iterator[list[tuple[bytes, Explanation]]]:
        """As many rows at once as the back-end has at hand."""
        if not wanted:
            return
        keys, pairs = list(wanted), list(wanted.values())
        asked = [self.prompt.render(pair.caption) for pair in pairs], sampling
        if hasattr(self.llm, "complete_in_batches"):
            batches = self.llm.complete_in_batches(*asked)
        else:
            batches = ([answer] for answer in self.llm.complete(*asked))
        due = set(range(len(keys)))
        name, source = self.llm.model, self.source._replace(sampling=sampling)
        with closing(batches):
            for batch in batches:
                rows = []
                for index, completion in batch:
                    if index not in due:
                        raise LLMError(f"{name} answered position {index} twice or unasked")
                    due.remove(index)
                    rows.append((keys[index], self._row(pairs[index], completion, source)))
                yield rows
        if due:
            raise LLMError(f"{name} left {len(due)} of {len(keys)} prompts unanswered")

    def _row(self, pair: Pair, completion: Completion, source: Source) -> Explanation:
        text, reason, note = completion.text, completion.finish_reason, completion.note
        answer = clean_answer(text)
        if text.strip() and not answer and reason.lower() in STOPPED:
            reason, note = "error", SPENT
        checks = ("no_answer",)
        if reason != "error":
            checks = failed_checks(answer, pair.caption, self.prompt, reason)
        row = Explanation.made_now(pair.id, answer, source, reason, checks)
        if reason == "error" and (kind := note.split(":")[0]) not in self._told:
            self._told.add(kind)
            log.warning("a caption has no answer: %s", note or "no reason was given")
        return replace(row, note=note)


def _better(first: Explanation, second: Explanation) -> Explanation:
    """The one of two answers that is kept: the second only if it fails fewer checks."""
    fewer = second.finish_reason != "error" and len(second.checks) < len(first.checks)
    return replace(second if fewer else first, attempts=2)


def cost_table(
    replicas: Iterable[int],
    *,
    tokens_per_s: float,
    price_per_hour: float,
    tokens_per_caption: float = 90,
    retried: float = 0.0,
) -> pd.DataFrame:
    """Captions a second, hours and price per 100,000 distinct captions, one row a replica count.

    Captions a second are replicas · tokens_per_s / (tokens_per_caption · (1 + retried)), so that
    replicas shorten the wait and leave the price as it is.

    `tokens_per_s` are generated tokens of one replica at full load: measure yours, e.g. with ``vllm
    bench serve``, since it depends on GPU, model, precision and concurrency. `price_per_hour` is of
    one replica, in any currency. Answers of two to three sentences have 60 to 120 tokens. `retried`
    is the share of captions asked again because a check failed, 0 to 1.

    Raises ValueError for values that are not positive.
    """
    if min(tokens_per_s, tokens_per_caption) <= 0 or price_per_hour < 0 or not 0 <= retried <= 1:
        raise ValueError("tokens must be above 0, the price at least 0, `retried` from 0 to 1")
    table = pd.DataFrame({"replicas": list(replicas)})
    if (table["replicas"] < 1).any():
        raise ValueError(f"replicas is {table['replicas'].min()}; it must be at least 1")
    table["tokens_per_s"] = table["replicas"] * tokens_per_s
    table["captions_per_s"] = table["tokens_per_s"] / (tokens_per_caption * (1 + retried))
    table["hours_per_100k"] = 100_000 / table["captions_per_s"] / 3600
    table["price_per_100k"] = table["hours_per_100k"] * table["replicas"] * price_per_hour
    return table


def explain_until_killed(pairs: Sequence[Pair], cache: str | Path, *, rows: int) -> int:
    """Explain `pairs` in another process and SIGKILL it once `cache` holds `rows` whole lines.

    The knowledge base answers, one caption in 10 ms. Returns how many whole lines the process left,
    which may be more; raises RuntimeError if it ended before there were as many.
    """
    path, llm = Path(cache), KnowledgeBase(delay_s=0.01)
    # spawn: a fork of a notebook's kernel would inherit its sockets and threads
    process = multiprocessing.get_context("spawn").Process(
        target=explain, args=(list(pairs), llm, path), kwargs={"progress": False}
    )
    process.start()
    left, ended = 0, False
    try:
        while left < rows and not ended:
            time.sleep(0.005)
            ended = not process.is_alive()  # before its lines are counted
            left = path.read_bytes().count(b"\n") if path.exists() else 0
    finally:
        process.kill()
        process.join()
    if left < rows:
        raise RuntimeError(
            f"the extraction wrote {left} rows, not {rows}, before it ended; ask for fewer rows"
        )
    return path.read_bytes().count(b"\n")
