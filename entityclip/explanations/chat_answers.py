"""What a chat server answers, read: a completion, or a failure that may pass."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from entityclip.explanations.llm import Completion

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
