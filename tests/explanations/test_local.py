"""The transformers back-end on a tiny model with random weights, made here."""

import importlib.util

import pytest
import torch

from entityclip.explanations import local
from entityclip.explanations.answers import clean_answer
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


def make_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **{"vocab_size": 259, "num_attention_heads": 2, "max_position_embeddings": 256},
        **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3},
        **sizes,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def model():
    return make_model()


def tiny(model, batch_size=4, template=TEMPLATE):
    return LocalLLM(model, make_tokenizer(template), name="tiny", batch_size=batch_size)


@pytest.fixture
def llm(model):
    return tiny(model)


def answers(llm, prompts, sampling):
    """Completions in the prompts' order; every position must have come exactly once."""
    found = list(llm.complete(prompts, sampling))
    assert sorted(index for index, _ in found) == list(range(len(prompts)))
    return [completion for _, completion in sorted(found, key=lambda item: item[0])]


def texts(llm, sampling):
    return [completion.text for completion in answers(llm, PROMPTS, sampling)]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "plain"])
def test_batched_equals_one_by_one(model, sampling, template):
    batched = answers(tiny(model, 4, template), PROMPTS, sampling)
    alone = [answers(tiny(model, 1, template), [p], sampling)[0] for p in PROMPTS]
    assert batched == alone
    assert len({completion.text for completion in batched}) > 1


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (TEMPLATE, f"<s>user:{PROMPTS[0]}</s><s>assistant:"),  # one message, and no second start
        (None, f"<s>{PROMPTS[0]}\n\nAnswer:"),
    ],
    ids=["chat", "plain"],
)
def test_greedy_equals_a_loop_over_the_model(template, text, model):
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    drawn = []
    with torch.no_grad():
        while len(drawn) < GREEDY.max_tokens and drawn[-1:] != [1]:
            drawn.append(int(model(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
    expected = tokenizer.decode(drawn, skip_special_tokens=True).strip()
    assert texts(tiny(model, template=template), GREEDY)[0] == expected


@pytest.fixture
def spied(llm, monkeypatch):
    """The lengths of the prompts in each batch that is generated, and the most that fit."""
    generate, found = llm._generate, {"lengths": [], "most": 99}

    def spy(prompts, *rest):
        found["lengths"].append([*map(len, prompts)])
        if len(prompts) > found["most"]:
            raise torch.OutOfMemoryError("no room")
        return generate(prompts, *rest)

    monkeypatch.setattr(llm, "_generate", spy)
    return found


def test_batches_hold_prompts_of_similar_length(llm, spied):
    llm.batch_size = 3
    order = [i for i, _ in llm.complete(["a" * n for n in (3, 90, 5, 80, 70, 4)], GREEDY)]
    assert order == [1, 3, 4, 2, 5, 0]  # the longest first
    assert len(spied["lengths"]) == 2
    assert all(max(lengths) - min(lengths) <= 20 for lengths in spied["lengths"])


def test_a_batch_that_does_not_fit_is_halved(llm, spied):
    expected = answers(llm, PROMPTS, DRAWN)
    spied.update(lengths=[], most=2)
    assert answers(llm, PROMPTS, DRAWN) == expected
    assert [*map(len, spied["lengths"])] == [4, 2, 2, 2]
    spied["most"] = 0
    with pytest.raises(LLMError, match="use precision bf16"):
        list(llm.complete(["x"], GREEDY))


def test_first_answers_come_before_all_prompts_are_tokenised(llm, spied, monkeypatch):
    monkeypatch.setattr(local, "_WINDOW", 1)
    llm.batch_size = 2
    answers(llm, PROMPTS, GREEDY)  # all, over several windows
    encode, asked = llm._encode, []
    monkeypatch.setattr(llm, "_encode", lambda p: asked.extend(p) or encode(p))
    next(llm.complete(PROMPTS, GREEDY))
    assert asked == PROMPTS[:2]


def test_seeds_alone_decide_what_is_drawn(llm):
    assert answers(llm, [], DRAWN) == []
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = texts(llm, DRAWN)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert texts(llm, DRAWN) == first
    other = texts(llm, DRAWN.again())
    assert sum(a != b for a, b in zip(first, other, strict=True)) >= 4


def test_gumbel_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 0.0, 1.0, -torch.inf])
    rows = 20_000
    draw = GumbelDraw(range(rows), torch.device("cpu"))
    drawn = draw(None, logits.expand(rows, 4)).argmax(dim=1)
    shares = drawn.bincount(minlength=4) / rows
    # four standard errors of a share of 20,000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("temperature", "top_p", "greedy"), [(1e-4, 1.0, True), (2.0, 1e-6, True), (2.0, 1.0, False)]
)
def test_temperature_and_top_p_are_applied(temperature, top_p, greedy, llm):
    drawn = texts(llm, Sampling(temperature=temperature, top_p=top_p, max_tokens=12))
    assert (drawn == texts(llm, GREEDY)) is greedy


def test_a_models_own_generation_defaults_are_dropped(llm):
    odd = make_model()
    odd.generation_config.repetition_penalty = 50.0
    odd.generation_config.min_new_tokens = 12
    assert texts(tiny(odd), GREEDY) == texts(llm, GREEDY)


class Scripted(torch.nn.Module):
    """Generates what it is told, whatever the prompt."""

    def __init__(self, tokens):
        super().__init__()
        self.config, self.device = make_model().config, torch.device("cpu")
        self.tokens = tokens

    def generate(self, ids, max_new_tokens, **_):
        return torch.cat([ids, torch.tensor([self.tokens[:max_new_tokens]] * len(ids))], dim=1)


HI = [make_tokenizer().convert_tokens_to_ids(letter) for letter in "Hi"]


def test_marks_of_thinking_stay_though_they_are_special_tokens():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    think, end = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    scripted = Scripted([think, *HI, end, *HI, 1])
    scripted.generation_config = transformers.GenerationConfig(eos_token_id=1)
    llm = LocalLLM(scripted, tokenizer, name="tiny")
    (completion,) = answers(llm, ["x"], Sampling(max_tokens=8))
    assert clean_answer(completion.text) == "Hi"
    assert completion.text.startswith("[THINK]")


@pytest.mark.parametrize(
    ("tokens", "text", "reason", "stops"),
    [
        ([*HI, 1, 2], "Hi", "stop", 1),  # padded after its end
        ([*HI, HI[0], 1], "HiH", "stop", 1),  # the end is the last token allowed
        ([*HI, *HI], "HiHi", "length", 1),
        ([1, 2, 2, 2], "", "stop", 1),
        ([1, *HI, 1], "", "stop", 1),  # nothing after the first end counts
        ([*HI, 2, *HI], "Hi", "stop", [1, 2]),  # any of several ends it
    ],
)
def test_finish_reason(tokens, text, reason, stops):
    scripted = Scripted(tokens)
    scripted.generation_config = transformers.GenerationConfig(eos_token_id=stops)
    (completion,) = answers(tiny(scripted), ["x"], Sampling(max_tokens=4))
    assert (completion.text, completion.finish_reason, completion.model) == (text, reason, "tiny")


def test_a_prompt_too_long_for_the_context_is_an_error_and_the_others_are_answered(llm):
    found = answers(llm, ["short", "long " * 60, "also short"], GREEDY)
    assert [c.finish_reason == "error" for c in found] == [False, True, False]
    assert (found[1].text, "context of 256" in found[1].note) == ("", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)],
)
def test_a_saved_folder_loads_in_the_precision_asked_for(folder, precision, dtype, llm):
    loaded = LocalLLM.load(folder, precision=precision, device="cpu")
    assert {p.dtype for p in loaded._lm.parameters()} == {dtype}
    assert loaded.model == "tiny-chat"
    assert dtype == torch.bfloat16 or texts(loaded, GREEDY) == texts(llm, GREEDY)
    mine = LocalLLM.load(str(folder), precision=precision, device="cpu", name="mine")
    assert {c.model for c in answers(mine, PROMPTS[:2], DRAWN)} == {"mine"}


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
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else find(n))
    with pytest.raises(LLMError, match=rf"needs {package}: pip install 'entityclip\[llm\]'"):
        LocalLLM.load(gguf(tmp_path / "a.gguf", b"GGUF"), device="cpu")


def test_odd_arguments_are_refused(model, folder):
    with pytest.raises(ValueError, match="precision is 'fp16'"):
        LocalLLM.load(folder, precision="fp16", device="cpu")
    with pytest.raises(ValueError, match="batch_size is 0"):
        tiny(model, batch_size=0)
