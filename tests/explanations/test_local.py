"""The transformers back-end on a tiny model with random weights, made here."""

import importlib.util
from collections import Counter

import pytest
import torch

from entityclip.explanations import local
from entityclip.explanations.llm import LLMError, Sampling
from entityclip.explanations.local import GumbelDraw, LocalLLM

NEEDS = "the extra is not installed: pip install 'entityclip[llm]'"
transformers = pytest.importorskip("transformers", reason=NEEDS)
tokenizers = pytest.importorskip("tokenizers", reason=NEEDS)

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
GREEDY = Sampling(temperature=0, max_tokens=12)
DRAWN = Sampling(temperature=1.0, top_p=0.9, max_tokens=12, seed=3)
PROMPTS = [
    "Envoys from Nairobi and Berlin at the port",
    "",
    "A match",
    "Crowds gather in Quito " * 6,
    "Ministers from Oslo",
    "é ✓ 東京",
]


def make_tokenizer(template=TEMPLATE):
    """Bytes as tokens, and three special ones."""
    specials = ["<s>", "</s>", "<pad>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    tokenizer.padding_side = "right"  # as many come; it must not matter
    return tokenizer


def make_model(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **{"vocab_size": 259, "num_attention_heads": 2, "max_position_embeddings": 256},
        **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3},
        **{**sizes, **changes},
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def make_llm(model):
    def make(batch_size=4, template=TEMPLATE):
        return LocalLLM(model, make_tokenizer(template), name="tiny", batch_size=batch_size)

    return make


def answers(llm, prompts, sampling):
    """Completions in the prompts' order; every position must have come exactly once."""
    found = list(llm.complete(prompts, sampling))
    assert sorted(index for index, _ in found) == list(range(len(prompts)))
    return [completion for _, completion in sorted(found, key=lambda item: item[0])]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "plain"])
def test_batched_equals_one_by_one(make_llm, sampling, template):
    batched = answers(make_llm(4, template), PROMPTS, sampling)
    alone = [answers(make_llm(1, template), [p], sampling)[0] for p in PROMPTS]
    assert batched == alone
    assert len({completion.text for completion in batched}) > 1


def test_greedy_equals_a_loop_over_the_model(model, make_llm):
    tokenizer = make_tokenizer()
    text = f"<s>user:{PROMPTS[0]}</s><s>assistant:"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    drawn = []
    with torch.no_grad():
        while len(drawn) < GREEDY.max_tokens and drawn[-1:] != [1]:
            drawn.append(int(model(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
    expected = tokenizer.decode(drawn, skip_special_tokens=True).strip()
    assert answers(make_llm(), PROMPTS, GREEDY)[0].text == expected


def test_batches_hold_prompts_of_similar_length(make_llm, monkeypatch):
    llm, seen = make_llm(3), []
    generate = llm._generate

    def spied(prompts, *rest):
        seen.append([*map(len, prompts)])
        return generate(prompts, *rest)

    monkeypatch.setattr(llm, "_generate", spied)
    prompts = ["a" * n for n in (3, 90, 5, 80, 70, 4)]
    order = [index for index, _ in llm.complete(prompts, GREEDY)]
    assert order == [1, 3, 4, 2, 5, 0]  # the longest first
    assert len(seen) == 2
    assert all(max(lengths) - min(lengths) <= 20 for lengths in seen)


def test_first_answers_come_before_all_prompts_are_tokenised(make_llm, monkeypatch):
    monkeypatch.setattr(local, "_WINDOW", 1)
    llm = make_llm(2)
    asked = []
    encode = llm._encode
    monkeypatch.setattr(llm, "_encode", lambda p: asked.extend(p) or encode(p))
    next(iter(llm.complete(PROMPTS, GREEDY)))
    assert asked == PROMPTS[:2]
    assert len(answers(llm, PROMPTS, GREEDY)) == len(PROMPTS)


def test_another_seed_draws_another_text_and_the_same_seed_the_same(make_llm):
    llm = make_llm()
    assert answers(llm, [], DRAWN) == []
    first, again, other = (answers(llm, PROMPTS, s) for s in (DRAWN, DRAWN, DRAWN.again()))
    assert first == again
    assert sum(a.text != b.text for a, b in zip(first, other, strict=True)) >= 4


def test_the_global_random_state_neither_matters_nor_moves(make_llm):
    llm = make_llm()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = answers(llm, PROMPTS, DRAWN)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert answers(llm, PROMPTS, DRAWN) == first


def test_gumbel_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 0.0, 1.0, -torch.inf])
    rows = 20_000
    draw = GumbelDraw(range(rows), torch.device("cpu"))
    counts = Counter(draw(None, logits.expand(rows, 4)).argmax(dim=1).tolist())
    shares = torch.tensor([counts[i] / rows for i in range(4)])
    # four standard errors of a share of 20,000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.015, rtol=0)


def test_temperature_and_top_p_are_applied(make_llm):
    llm = make_llm()
    greedy = [c.text for c in answers(llm, PROMPTS, GREEDY)]
    cold = Sampling(temperature=1e-4, top_p=1.0, max_tokens=12)
    narrow = Sampling(temperature=2.0, top_p=1e-6, max_tokens=12)
    hot = Sampling(temperature=2.0, top_p=1.0, max_tokens=12)
    assert [c.text for c in answers(llm, PROMPTS, cold)] == greedy
    assert [c.text for c in answers(llm, PROMPTS, narrow)] == greedy
    assert [c.text for c in answers(llm, PROMPTS, hot)] != greedy


def test_a_models_own_generation_defaults_are_dropped():
    plain, odd = make_model(), make_model()
    odd.generation_config.repetition_penalty = 50.0
    odd.generation_config.min_new_tokens = 12
    texts = [
        answers(LocalLLM(m, make_tokenizer(), name="tiny"), PROMPTS, GREEDY) for m in (plain, odd)
    ]
    assert texts[0] == texts[1]


class Scripted(torch.nn.Module):
    """Generates what it is told, whatever the prompt."""

    def __init__(self, tokens):
        super().__init__()
        self.config, self.device = make_model().config, torch.device("cpu")
        self.generation_config, self.tokens = None, tokens

    def generate(self, ids, max_new_tokens, **_):
        return torch.cat([ids, torch.tensor([self.tokens[:max_new_tokens]] * len(ids))], dim=1)


HI = [make_tokenizer().convert_tokens_to_ids(letter) for letter in "Hi"]


@pytest.mark.parametrize(
    ("tokens", "text", "reason"),
    [
        ([*HI, 1, 2], "Hi", "stop"),  # padded after its end
        ([*HI, HI[0], 1], "HiH", "stop"),  # the end is the last token allowed
        ([*HI, *HI], "HiHi", "length"),
        ([1, 2, 2, 2], "", "stop"),
        ([1, *HI, 1], "", "stop"),  # nothing after the first end counts
    ],
)
def test_finish_reason(tokens, text, reason):
    llm = LocalLLM(Scripted(tokens), make_tokenizer(), name="tiny")
    (completion,) = answers(llm, ["x"], Sampling(max_tokens=4))
    assert (completion.text, completion.finish_reason) == (text, reason)
    assert completion.model == "tiny"


def test_any_of_several_stop_tokens_ends_an_answer():
    scripted = Scripted([*HI, 2])
    scripted.generation_config = transformers.GenerationConfig(eos_token_id=[1, 2])
    (completion,) = answers(
        LocalLLM(scripted, make_tokenizer(), name="tiny"), ["x"], Sampling(max_tokens=3)
    )
    assert (completion.text, completion.finish_reason) == ("Hi", "stop")


def test_a_prompt_too_long_for_the_context_is_an_error_and_the_others_are_answered(make_llm):
    prompts = ["short", "long " * 60, "also short"]
    found = answers(make_llm(), prompts, GREEDY)
    assert [c.finish_reason == "error" for c in found] == [False, True, False]
    assert found[1].text == ""


def test_a_batch_that_does_not_fit_is_halved(make_llm, monkeypatch):
    llm, sizes, most = make_llm(4), [], 2
    generate = llm._generate

    def tight(prompts, seeds, sampling):
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("no room")
        return generate(prompts, seeds, sampling)

    expected = answers(llm, PROMPTS, DRAWN)
    monkeypatch.setattr(llm, "_generate", tight)
    assert answers(llm, PROMPTS, DRAWN) == expected
    assert sizes == [4, 2, 2, 2]
    most = 0
    with pytest.raises(LLMError, match="use precision bf16"):
        list(llm.complete(["x"], GREEDY))


def test_a_chat_prompt_has_one_user_message_and_no_second_start(make_llm):
    llm, plain = make_llm(), make_llm(template=None)
    (ids,) = llm._encode(["who?"])
    text = "<s>user:who?</s><s>assistant:"
    assert llm._tokenizer.decode(ids, skip_special_tokens=False).replace("> ", ">") == text
    assert ids.count(0) == 2  # the template's; the tokenizer adds none of its own
    (ids,) = plain._encode(["{who}?"])
    assert ids[0] == 0
    assert plain._tokenizer.decode(ids[1:]) == "{who}?\n\nAnswer:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_saved_folder_loads_and_answers_alike(folder, make_llm):
    llm = LocalLLM.load(folder, batch_size=4, precision="fp32", device="cpu")
    assert llm.model == "tiny-chat"
    texts = [c.text for c in answers(llm, PROMPTS, GREEDY)]
    assert texts == [c.text for c in answers(make_llm(), PROMPTS, GREEDY)]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)],
)
def test_weights_have_the_precision_asked_for(folder, precision, dtype):
    llm = LocalLLM.load(str(folder), precision=precision, device="cpu", name="mine")
    assert {p.dtype for p in llm._lm.parameters()} == {dtype}
    assert {c.model for c in answers(llm, PROMPTS[:2], DRAWN)} == {"mine"}


def test_pickled_weights_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(make_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LLMError, match="safetensors"):
        LocalLLM.load(tmp_path, device="cpu")


def gguf(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.gguf", "there is no GGUF file .*none.gguf"),
        (lambda p: gguf(p / "page.gguf", b"<html>not found"), "is no GGUF file"),
        (lambda p: gguf(p / "cut.gguf", b"GGUF\x03\x00\x00\x00"), "cannot load .*cut.gguf"),
        (lambda p: p / "nowhere", "there is no model folder"),
        (lambda p: f"{p}/nowhere", "there is no model folder"),
        (lambda p: gguf(p / "weights.bin", b"x"), "is a file; give its folder"),
        (lambda p: p, "cannot load the language model"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, make, message):
    with pytest.raises(LLMError, match=message):
        LocalLLM.load(make(tmp_path), device="cpu")


@pytest.mark.parametrize("package", ["transformers", "gguf"])
def test_a_missing_extra_says_what_to_install(monkeypatch, tmp_path, package):
    find = importlib.util.find_spec
    found = {package: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: found[n] if n in found else find(n))
    with pytest.raises(LLMError, match=rf"needs {package}: pip install 'entityclip\[llm\]'"):
        LocalLLM.load(gguf(tmp_path / "a.gguf", b"GGUF"), device="cpu")


def test_odd_arguments_are_refused(model, folder):
    with pytest.raises(ValueError, match="precision is 'fp16'"):
        LocalLLM.load(folder, precision="fp16", device="cpu")
    with pytest.raises(ValueError, match="batch_size is 0"):
        LocalLLM(model, make_tokenizer(), name="tiny", batch_size=0)
