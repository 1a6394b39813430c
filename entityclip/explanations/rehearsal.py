"""An extraction that is killed on purpose, to see that nothing is lost."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from entityclip.datasets.record import Pair
from entityclip.explanations.extraction import explain
from entityclip.explanations.knowledge import KnowledgeBase
from entityclip.explanations.llm import LLM, Completion, Sampling


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
