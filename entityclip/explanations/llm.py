"""The protocol every language model here speaks, and a stub that speaks it for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

_RETRY_SEED = 1_000_003  # far from the small seeds that people try one after the other


class LLMError(RuntimeError):
    """A model cannot be used or a server stays away. Never holds a key or a caption's text."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Part of a cached row's key: other sampling, other rows."""

    temperature: float = 0.7  # 0 takes the likeliest token
    top_p: float = 0.95  # draw from the likeliest tokens that hold this probability
    max_tokens: int = 160  # of the answer; below 128 three sentences are often cut
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature is {self.temperature}; it must be from 0 to 2")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be an integer >= 0")

    def again(self) -> Sampling:
        """The same under another seed, for the one retry of an answer that failed a check."""
        return replace(self, seed=self.seed + _RETRY_SEED)

    def before(self) -> Sampling:
        """What `again` was called on; itself if it is no retry's."""
        retry = self.seed >= _RETRY_SEED
        return replace(self, seed=self.seed - _RETRY_SEED) if retry else self


@dataclass(frozen=True)
class Completion:
    """A model's answer to one prompt."""

    text: str
    finish_reason: str  # "stop", "length" (cut by max_tokens), "content_filter", or "error"
    model: str  # as the server names it


class LLM(Protocol):
    """A language model that answers prompts, each one user message without a system role."""

    model: str  # names it in cached rows; the same name must mean the same weights

    def complete(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Answer prompts in any order, as they finish, each with its position in `prompts`.

        Every position comes exactly once. A prompt that gets no answer although others do comes as
        finish_reason "error" with an empty text. Raises LLMError when nothing can be answered; what
        came before stays valid. Closing the iterator stops the work.
        """
        ...


@runtime_checkable
class OffersBatches(Protocol):
    """A language model that tells which answers are there at once, so that they are stored so."""

    def complete_in_batches(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[list[tuple[int, Completion]]]:
        """`LLM.complete` in lists, none empty; no list waits for an answer that is not there."""
        ...


class StubLLM:
    """Answers with `answer(prompt, seed)` after `delay_s` seconds each, for tests."""

    def __init__(
        self, answer: Callable[[str, int], str], *, model: str = "stub", delay_s: float = 0.0
    ):
        self.model, self._answer, self._delay_s = model, answer, delay_s

    def complete(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """See `LLM.complete`; in order."""
        for index, prompt in enumerate(prompts):
            if self._delay_s:
                time.sleep(self._delay_s)
            yield index, Completion(self._answer(prompt, sampling.seed), "stop", self.model)
