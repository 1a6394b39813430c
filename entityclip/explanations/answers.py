"""The answer in what a model sent: without thinking, channels and chat tokens, in whatever shape.

`clean_answer` is what every text passes before anything looks at it; what it cannot take off for
certain (thinking that never ends, a chat token amid the text) `has_markup` finds: a check of its
own. `read_completion` takes the text out of a server's body, `told_reason` why it sent none.
"""

from __future__ import annotations

import json
import re
from typing import Any

from entityclip.explanations.llm import Completion, unescaped
from entityclip.files import printable, shortened

_T = r"(?:think|thinking|thoughts?|reasoning|analysis|reflection|scratchpad)"
_THINKING = re.compile(
    rf"(?P<opens><(?:\w{{1,20}}:)?{_T}(?:\s[^<>]{{0,200}})?>|\[{_T}\]|◁think▷|<unused94>"
    r"|<\|(?:begin_of_thought|start_thinking)\|>)"
    rf"|</(?:\w{{1,20}}:)?{_T}\s?>|\[/{_T}\]|◁/think▷|<unused95>"
    r"|<\|(?:end_of_thought|end_thinking)\|>",
    re.IGNORECASE,
)
# a message of harmony, gpt-oss's format, begins: <|start|>assistant<|channel|>final<|message|>
_MESSAGE = re.compile(
    r"(?:<\|start\|>(?P<role>\w*)[^<]{0,80})?(?:<\|channel\|>\s?(?P<channel>\w*)[^<]{0,80})?"
    r"(?:<\|constrain\|>[^<]{0,80})?<\|message\|>"
)
# the same as some decoders leave it: "analysisThe user wants …assistantfinalBarack Obama …"
_BARE_MESSAGE = re.compile(r"\Aanalysis(?=[A-Z\"'])|assistant(?:final|analysis|commentary)(?=\S)")
_TOKEN = re.compile(
    r"<\|[^<>|]{1,60}\|>|<｜[^<>｜]{1,60}｜>|<</?SYS>>"
    r"|(?i:</?s>|<(?:bos|eos|pad|unk|mask|sep|cls|sop|eop|eod|eot)>|<(?:start|end|begin)_of_\w{1,30}>"
    r"|</?(?:final_)?(?:answer|response|output|solution)>|<(?:unused|extra_id_|reserved_)\w{1,20}>"
    rf"|<0x[\da-f]{{2}}>|<{_T}\s?/>)"
    r"|\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|[gs]MASK|EOS|PAD|UNK|CLS|SEP|MASK)\]"
    r"|<[|｜]\w{0,40}[|｜]?\Z"  # torn by the token limit
)
_ROLES = ("", "assistant", "model")  # what stands between two tokens and is no text
_ROLE_LINE = re.compile(r"\s*(?:assistant|model)\s*\n")

# How a server says that a model came to its end, or was stopped; of all other reasons (one that is
# absent, "tool_calls", one that comes into use tomorrow) the text's own end decides.
ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
_CUT = ("length", "max_tokens", "max_length", "model_length", "max_output_tokens")
STOPPED = (*_CUT, "content_filter", "safety")
UNKNOWN = "unknown"
SPENT = "max_tokens were spent on thinking; raise Sampling.max_tokens or switch the thinking off"


def clean_answer(text: str) -> str:
    """The answer alone: thinking and what a chat template adds are taken off where they end.

    What has only the end of thinking is thinking up to there. Thinking that never ends stays as it
    is, likewise a token amid the text. A lone surrogate, which JSON allows, becomes "?".

    >>> clean_answer("<think>Oslo?</think> It rains in Oslo.<|im_end|>")
    'It rains in Oslo.'
    """
    text = text.encode("utf-8", "replace").decode()
    read = unescaped(text)
    if not _marked(read):
        return text.strip()
    return _without_tokens(_without_thinking(_last_message(read))).strip()


def has_markup(text: str) -> bool:
    """Whether something that is no answer is in a text: a mark of thinking, or a chat token."""
    return _marked(unescaped(text))


def has_thinking(text: str) -> bool:
    """Whether a text has marks of thinking or of channels."""
    return any(mark.search(text) for mark in (_THINKING, _MESSAGE))


def _marked(text: str) -> bool:
    if any(c in text for c in "<[◁") and (_THINKING.search(text) or _TOKEN.search(text)):
        return True
    return bool(_BARE_MESSAGE.search(text))


def _last_message(text: str) -> str:
    """The last message's text if it is the answer; else, as where there are none, all of it."""
    if messages := list(_MESSAGE.finditer(text)):
        last = messages[-1]
        answers = last["role"] in (None, "", "assistant") and last["channel"] in (None, "final")
        return text[last.end() :] if answers else text
    if bare := list(_BARE_MESSAGE.finditer(text)):
        return text[bare[-1].end() :] if bare[-1][0] == "assistantfinal" else text
    return text


def _without_thinking(text: str) -> str:
    kept, depth, at = [], 0, 0  # at: where the text, or open thinking, begins
    for mark in _THINKING.finditer(text):
        if mark["opens"]:
            if depth == 0:
                kept.append(text[at : mark.start()].strip())
                at = mark.start()
            depth += 1
        else:
            if depth == 0:
                kept.clear()
            depth = max(depth - 1, 0)
            at = at if depth else mark.end()
    return " ".join([*filter(None, kept), text[at:]])


def _without_tokens(text: str) -> str:
    """Tokens, and the roles between them, off both ends."""
    tokens = list(_TOKEN.finditer(text))
    start, end = 0, len(text)
    for token in tokens:
        if text[start : token.start()].strip() not in _ROLES:
            break
        start = token.end()
    for token in reversed(tokens):
        if token.start() < start or text[token.end() : end].strip() not in _ROLES:
            break
        end = token.start()
    role = _ROLE_LINE.match(text, start, end) if start else None
    return text[role.end() if role else start : end]


class Unusable(Exception):
    """A body that holds no answer and will hold none when asked again."""


class Broken(Exception):
    """A failure that may pass: worth another attempt, after `retry_after` seconds if given.

    `attempts` is how often it is believed to be an accident; None: as long as patience lasts.
    """

    def __init__(self, what: str, *, attempts: int | None = None, retry_after: float | None = None):
        super().__init__(what)
        self.attempts, self.retry_after = attempts, retry_after


_ODD_BODIES = 3


def read_completion(content: bytes) -> Completion:
    """The completion in a body, as servers of this and of related interfaces write it.

    Raises Unusable, saying what to do, and Broken.
    """
    if content.lstrip()[:5] == b"data:":
        raise Unusable("it streams although it was not asked to")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Broken("an answer that is no JSON") from None
    if not isinstance(body, dict):
        raise Unusable(f"an answer that is a JSON {type(body).__name__}, not an object")
    if body.get("error") or body.get("object") == "error":
        raise Broken("an error although the status is 200", attempts=_ODD_BODIES)
    choice = body.get("choices", body)
    if isinstance(choice, list):
        choice = next(filter(_text, choice), choice[0] if choice else None)
    told = choice is body and isinstance(body.get("message"), str)  # by a gateway, not a model
    if told or not isinstance(choice, dict) or not _SHAPES.intersection(choice):
        raise Broken("an answer that holds no message", attempts=_ODD_BODIES)
    named = (choice.get(name) or body.get(name) for name in _REASONS)
    reason = next((name for name in named if isinstance(name, str)), UNKNOWN)
    reason = printable(shortened(reason, 40))
    text = _text(choice)
    if reason == "error" or (not text.strip() and reason.lower() not in (*ENDED, UNKNOWN)):
        raise Unusable(_NO_TEXT.get(reason.lower(), f"no text came, finish_reason {reason!r}"))
    if not text.strip():
        message = choice.get("message")
        if isinstance(message, dict) and any(map(message.get, ("reasoning_content", "reasoning"))):
            raise Unusable("only thinking came and no answer; switch the model's thinking off")
        if isinstance(message, dict) and isinstance(message.get("refusal"), str):
            raise Unusable("the model declines")
    return Completion(text, reason, str(body.get("model", "")))


_SHAPES = {"message", "text", "delta", "content", "response", "output_text", "generated_text"}
_NO_ANSWER = ("thinking", "reasoning", "tool_use")  # types of parts
_REASONS = ("finish_reason", "stop_reason", "done_reason")
_TOOLS = "the model called a tool instead of answering; serve it without tools"
_NO_TEXT = dict.fromkeys(_CUT, SPENT) | {
    "content_filter": "the server's content filter left no text (finish_reason 'content_filter')",
    "safety": "the server's content filter left no text (finish_reason 'safety')",
    "tool_calls": f"{_TOOLS} (finish_reason 'tool_calls')",
    "function_call": f"{_TOOLS} (finish_reason 'function_call')",
}


def _text(value: Any, depth: int = 5) -> str:
    """The text in a choice, a message, a list of parts or a part; "" where there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth:
        return "".join(_text(part, depth - 1) for part in value)
    if not isinstance(value, dict) or not depth or value.get("type") in _NO_ANSWER:
        return ""
    found = (_text(value.get(name), depth - 1) for name in sorted(_SHAPES))
    return next(filter(None, found), "")


# --------------------------------------------------------------------------------- why none came

_CODED = re.compile(  # escapes, which spell out anything, and keys, also with stars in them
    r"(?:\\[uUx][0-9a-fA-F]{2,8}|%[0-9a-fA-F]{2}|&#?\w{1,8};)+"
    r"|\b(?:sk|hf|gsk|xai|nvapi)[-_]\S+|\w*\*\*[\w*]*"
)
_WORD = re.compile(r"\w+|…")


def told_reason(body: bytes, secret: str) -> str:
    """The first line of what a server says went wrong, nothing of `secret` (prompt, key) in it.

    Servers repeat what they were sent. So words that stand in `secret` are left out, but for short
    common ones that stand alone.
    """
    found: Any = body[:10_000].decode("utf-8", "replace")
    try:
        found = json.loads(found)
    except (ValueError, RecursionError):
        found = re.sub(r"<[^<>]*>", "\n", found)  # a proxy's page
    while isinstance(found, (dict, list)):
        names = ("error", "message", "detail", "msg", "title", "code", "type")
        values = found if isinstance(found, list) else map(found.get, names)
        found = next(filter(None, values), "")
    line = next((line.strip() for line in str(found).splitlines() if line.strip()), "")
    told = _withheld(printable(line)[:300], secret)[:200]
    return told if re.search(r"\w", told) else ""


def _withheld(line: str, secret: str) -> str:
    line, lowered = _CODED.sub("…", line), secret.casefold()
    words = list(_WORD.finditer(line))
    known = _WORD.findall(lowered)
    runs = set(zip(known, known[1:], known[2:], strict=False))
    low = [word[0].casefold() for word in words]
    hide = {place for place, word in enumerate(words) if _tells(word[0], lowered)}
    for place, run in enumerate(zip(low, low[1:], low[2:], strict=False)):
        if run in runs:
            hide.update(range(place, place + 3))
    parts, at = [], 0
    for place in sorted(hide):
        parts += [line[at : words[place].start()], "…"]
        at = words[place].end()
    return re.sub(r"…(?:[^\w…]*…)+", "…", "".join([*parts, line[at:]]))


def _tells(word: str, secret: str) -> bool:
    plain = len(word) <= 3 and word.isascii() and word.islower()
    return len(word) > 40 or (not plain and word.casefold() in secret)
