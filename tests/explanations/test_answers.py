"""What is taken off an answer, what is found in odd bodies, and what is told of refusals."""

from __future__ import annotations

import json
import time

import pytest

from entityclip.datasets.pair import Pair
from entityclip.explanations import (
    DEFAULT_PROMPT,
    Completion,
    StubLLM,
    apply_policy,
    explain,
    failed_checks,
)
from entityclip.explanations.answers import (
    Broken,
    Unusable,
    clean_answer,
    has_markup,
    read_completion,
    told_reason,
)

CAPTION = "Mayor Ada Torv opens the Lindhagen bridge in Oslo."
GOOD = "Ada Torv wears a dark coat. A grey bridge stands behind her."
PAIR = Pair("p", None, CAPTION)


@pytest.mark.parametrize(
    "sent",
    [
        GOOD,
        f"<think>\nOslo?\n</think>\n\n{GOOD}",
        f"<THINKING>Oslo?</THINKING>{GOOD}",
        f"[THINK]Oslo?[/THINK]{GOOD}",
        f"<reasoning type='x'>Oslo?</reasoning>\n<answer>{GOOD}</answer>",
        f"Oslo, in Norway? I should say so.</think>{GOOD}",
        f"<think>a <think>b</think> c</think>{GOOD}",
        f"<seed:think>Oslo?</seed:think>{GOOD}",
        f"◁think▷Oslo?◁/think▷{GOOD}",
        f"<think></think><think>Oslo?</think>{GOOD}",
        f"&lt;think&gt;Oslo?&lt;/think&gt;{GOOD}",
        "Ada Torv wears a dark coat. <think>The bridge?</think>A grey bridge stands behind her.",
        f"<|channel|>analysis<|message|>Oslo?<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}",
        f"<|start|>assistant<|channel|>final<|constrain|>text<|message|>{GOOD}<|return|>",
        f"analysisThe user wants Oslo.assistantfinal{GOOD}",
        f"<|START_THINKING|>Oslo?<|END_THINKING|><|START_RESPONSE|>{GOOD}<|END_RESPONSE|>",
        f"{GOOD}<|im_end|>",
        f"{GOOD}<|im_end|>\n<|im_start|>assistant",
        f"<|im_start|>assistant\n{GOOD}<|im_end|>\n",
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{GOOD}<|eot_id|><|eot_id|>",
        f"<start_of_turn>model\n{GOOD}<end_of_turn>",
        f"[/INST] {GOOD}</s>",
        f"<｜Assistant｜>{GOOD}<｜end▁of▁sentence｜>",
        f"{GOOD}<|im_e",
    ],
)
def test_what_is_no_answer_is_taken_off_where_it_ends(sent):
    assert clean_answer(sent) == clean_answer(clean_answer(sent)) == GOOD
    assert failed_checks(GOOD, CAPTION, DEFAULT_PROMPT, "stop") == ()


LEFT = [
    f"<think>Oslo? {GOOD}",
    f"{GOOD} <think>Was that right?",
    f"<think>a <think>b</think> {GOOD}",
    f"[THINK]{GOOD}",
    f"<|channel|>analysis<|message|>{GOOD}",
    f"{GOOD}<|end|><|start|>assistant<|channel|>commentary<|message|>Done.",
    f"analysisThe user wants this. {GOOD}",
    f"{GOOD}<|im_end|>\n<|im_start|>user\nThanks!",
    f"{GOOD} [INST] And now? [/INST] Now she goes.",
    f"Ada Torv</s> wears a coat. {GOOD}",
    f"&lt;think&gt;Oslo? {GOOD}",
]


@pytest.mark.parametrize("sent", LEFT)
def test_what_never_ends_fails_a_check_of_its_own_and_is_asked_again(sent, tmp_path):
    asked = []
    llm = StubLLM(lambda prompt, seed: asked.append(seed) or sent)
    (row,) = explain([PAIR], llm, tmp_path / "c.jsonl", progress=False)
    assert "markup" in row.checks
    assert len(asked) == 2
    kept, report = apply_policy([PAIR], [row], "drop")
    assert (kept, report.checks["markup"]) == ([], 1)
    kept, report = apply_policy([PAIR], [row], "caption")
    assert kept[0].explanation == CAPTION


@pytest.mark.parametrize(
    "text",
    [
        "In 1990 [left] she said <b>yes</b> & went; 3 < 4 > 2.",
        "Analysis shows that the assistant finalised it.",
        "She thinks. [applause] The reasoning: sound.",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert clean_answer(text) == text
    assert not has_markup(text)


def test_thinking_that_took_all_tokens_is_said_and_not_asked_twice(tmp_path, caplog):
    class Thinking:
        model = "thinking"

        def complete(self, prompts, sampling):
            assert len(prompts) == 1
            assert sampling.seed == 0
            yield 0, Completion("<think>Oslo?</think>", "length", "thinking")

    (row,) = explain([PAIR], Thinking(), tmp_path / "c.jsonl", progress=False)
    assert (row.finish_reason, row.checks) == ("error", ("no_answer",))
    assert "raise Sampling.max_tokens" in row.note
    assert caplog.text.count("raise Sampling.max_tokens") == 2  # at once, and at the end
    assert not (tmp_path / "c.jsonl").read_text()  # asked anew when called again


@pytest.mark.parametrize(
    ("reason", "cut"),
    [
        *[(reason, ()) for reason in ("stop", "eos", "end_turn", "stop_sequence", "STOP")],
        *[
            (reason, ("cut",))
            for reason in ("length", "max_tokens", "MAX_TOKENS", "content_filter")
        ],
    ],
)
def test_reasons_by_name(reason, cut):
    assert failed_checks(GOOD[:-1], CAPTION, DEFAULT_PROMPT, reason) == cut


@pytest.mark.parametrize("reason", ["unknown", "tool_calls", "function_call", "of_tomorrow"])
def test_of_other_reasons_the_texts_end_decides(reason):
    assert failed_checks(GOOD, CAPTION, DEFAULT_PROMPT, reason) == ()
    assert failed_checks(GOOD[:-9], CAPTION, DEFAULT_PROMPT, reason) == ("cut",)


def test_entities_and_accents_are_read_as_training_reads_them():
    caption = "Shaquille O&amp;#8217;Neal and Pelé arrive."
    for text in (
        "O’Neal is tall.",
        "O'Neal is tall.",
        "O&#39;Neal is tall.",
        "Pel\u00e9 is there.",
    ):
        assert failed_checks(text, caption, DEFAULT_PROMPT, "stop") == ()
    assert "<caption>\nShaquille O’Neal and" in DEFAULT_PROMPT.render(caption)
    assert "‹s›" in DEFAULT_PROMPT.render("&lt;s&gt;")
    assert "opener" in failed_checks("Sure&#44; O’Neal.", caption, DEFAULT_PROMPT, "stop")


def test_checks_take_time_in_proportion_to_the_text():
    names = " ".join(f"Nam{n}e" for n in range(30_000))
    words = " ".join(f"wor{n}d" for n in range(30_000))
    began = time.perf_counter()
    for text in (
        words,
        "x" * 500_000,
        "[ " * 100_000,
        "<" * 200_000,
        "<think>" * 50_000,
        "&amp;" * 9,
    ):
        clean_answer(text)
        failed_checks(text, names, DEFAULT_PROMPT, "stop")
    assert time.perf_counter() - began < 8  # 3,000 names by 3,000 words once took 49 s


def body(message=None, reason="stop", **choice):
    choice = {"index": 0, "message": message, "finish_reason": reason, **choice}
    return {"model": "m", "choices": [{k: v for k, v in choice.items() if v != "absent"}]}


PARTS = [{"type": "thinking", "text": "Oslo?"}, {"type": "text", "text": GOOD}]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (body({"role": "assistant", "content": GOOD}), "stop"),
        (body({"content": GOOD}), "stop"),
        (body({"content": GOOD}, None), "unknown"),
        (body({"content": GOOD}, "absent"), "unknown"),
        (body({"content": GOOD}, {"type": "stop"}), "unknown"),
        (body({"content": GOOD}, "of_tomorrow"), "of_tomorrow"),
        (body({"content": GOOD, "tool_calls": []}, "tool_calls"), "tool_calls"),
        (body({"content": PARTS}), "stop"),
        (body({"content": [GOOD]}), "stop"),
        (body("absent", text=GOOD), "stop"),
        (body("absent", delta={"content": GOOD}), "stop"),
        (body(GOOD), "stop"),
        ({"choices": [None, {"text": GOOD}]}, "unknown"),
        ({"choices": {"message": {"content": GOOD}}}, "unknown"),
        ({"content": [{"type": "text", "text": GOOD}], "stop_reason": "end_turn"}, "end_turn"),
        ({"message": {"content": GOOD}, "done_reason": "stop"}, "stop"),
    ],
)
def test_odd_shapes_that_carry_a_text_are_used(sent, reason):
    completion = read_completion(json.dumps(sent).encode())
    assert (completion.text, completion.finish_reason) == (GOOD, reason)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (body({"content": None, "reasoning_content": "Oslo?"}, "length"), "raise Sampling.max_tok"),
        (body({"reasoning": "Oslo?"}, "length"), "raise Sampling.max_tokens"),
        (body({"content": "", "reasoning_content": "Oslo?"}), "switch the model's thinking off"),
        (body({"content": None}, "content_filter"), "content filter"),
        (
            body({"content": None, "tool_calls": [{"id": 1}]}, "tool_calls"),
            "serve it without tools",
        ),
        (body({"content": None}, "function_call"), "serve it without tools"),
        (body({"content": None}, "of_tomorrow"), "finish_reason 'of_tomorrow'"),
        (body({"content": GOOD}, "error"), "finish_reason 'error'"),
        (body({"content": None, "refusal": "I cannot."}), "the model declines"),
        ([1], "a JSON list"),
        ("x", "a JSON str"),
    ],
)
def test_what_holds_no_answer_and_never_will_says_so(sent, told):
    with pytest.raises(Unusable, match=told):
        read_completion(json.dumps(sent).encode())
    with pytest.raises(Unusable, match="streams"):
        read_completion(b'data: {"choices": []}\n\n')


@pytest.mark.parametrize(
    ("sent", "attempts"),
    [
        (b'{"choices": [', None),
        (b"<html>starting</html>", None),
        (b"[" * 100_000, None),
        (b'{"choices": []}', 3),
        (b'{"choices": [{"x": ' + b"[" * 400 + b"]" * 400 + b"}]}", 3),
        (b'{"choices": null}', 3),
        (b'{"error": {"message": "busy"}}', 3),
        (b'{"object": "error", "message": "busy"}', 3),
        (b'{"message": "Endpoint request timed out"}', 3),
    ],
)
def test_what_another_attempt_may_put_right(sent, attempts):
    with pytest.raises(Broken) as caught:
        read_completion(sent)
    assert caught.value.attempts == attempts


KEY = "sk-proj-" + "0123456789abcdef"
SECRET = DEFAULT_PROMPT.render(CAPTION) + " " + KEY


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (
            {"error": {"message": "max_tokens is too large: 160.\nmore"}},
            "max_tokens is too large: 160.",
        ),
        ({"error": {"code": "unsupported_parameter"}}, "unsupported_parameter"),
        ({"error": "model 'x' does not exist"}, "model 'x' does not exist"),
        ({"object": "error", "message": "Unsupported value"}, "Unsupported value"),
        (
            {"detail": [{"loc": ["body"], "msg": "extra fields not permitted"}]},
            "extra fields not perm",
        ),
        ("<html>\n<h1>413 Too Large</h1>", "413 Too Large"),
        ({"error": {"message": CAPTION}}, ""),
        ({"error": {"message": f"invalid input {CAPTION!r}"}}, "invalid input '…"),
        ({"error": {"message": "invalid input: mayor ada torv opens"}}, "invalid input: …"),
        ({"error": {"message": f"wrong key {KEY[:-4]}"}}, "wrong key …"),
        ({"error": {"message": f"wrong key {KEY}"}}, "wrong key …"),
        ({"error": {"message": "ends in cdef"}}, "ends in …"),
        ({"error": {"message": "bad \x1b[31m escape"}}, "bad …[31m escape"),
        ("", ""),
    ],
)
def test_the_reason_is_told_without_key_or_caption(sent, told):
    raw = sent if isinstance(sent, str) else json.dumps(sent)
    found = told_reason(raw.encode(), SECRET)
    assert found.startswith(told)
    assert bool(found) == bool(told)
    for word in ("Ada", "Torv", "Lindhagen", "Oslo", KEY[8:], "bridge"):
        assert word.lower() not in found.lower()
