"""Names in captions: by capitals, by a recogniser, cut, counted, and kept."""

from __future__ import annotations

import json
import logging

import pytest

from entityclip.datasets import names
from entityclip.datasets.names import NamesError, capitalised_names, cut_names, find_names, rarest


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Barack Obama meets Angela Merkel here.", ("Barack Obama", "Angela Merkel")),
        ("On Monday, officials leave. Protesters stay in May", ()),
        ("Donald J. Trump and Mr. de la Cruz", ("Donald J Trump", "Mr de la Cruz")),
        ("Ursula von der Leyen in New York's Central Park",
         ("Ursula von der Leyen", "New York", "Central Park")),
        ("WASHINGTON (AP) — Prayuth Chan-ocha’s plan",
         ("WASHINGTON", "AP", "Prayuth Chan-ocha")),
        ("the van of the man", ()),
        ("Łukasz, Íñigo: the 2020 Olympics", ("Łukasz", "Íñigo", "Olympics")),
        ("", ()),
        ("…  \t", ()),
    ],
)  # fmt: skip
def test_names_by_capitals(text, found):
    others = ["on a day the officials and protesters met", "they may stay"]
    assert capitalised_names([text, *others])[0] == found


def test_a_first_word_is_a_name_where_nothing_writes_it_small():
    alone, told = "Investors flee", "the investors flee"
    assert capitalised_names([alone]) == [("Investors",)]
    assert capitalised_names([alone, told]) == [(), ()]


def test_a_query_counts_by_its_rarest_name():
    training = [("Obama", "Merkel"), ("obama", "Obama's"), ("Berlin",)]
    queries = [("Obama",), ("Merkel", "Obama"), ("Macron", "Obama"), ()]
    assert rarest(queries, training).tolist() == [2, 1, 0, -1]


def test_names_are_cut_whole():
    text = "Merkel’s plan: Obama and Obamacare in New York, York"
    assert cut_names(text, ("Obama", "Merkel", "New York")) == "plan: and Obamacare in , York"


@pytest.fixture
def asked(monkeypatch):
    """What a recogniser is asked; it finds each text's first three letters."""
    texts = []

    def recognised(new, model):
        texts.extend(new)
        return [(text[:3],) if text else () for text in new]

    monkeypatch.setattr(names, "recognised_names", recognised)
    return texts


def test_what_a_recogniser_found_is_not_asked_again(asked, tmp_path):
    cache = tmp_path / "found" / "names.jsonl"
    assert find_names(["Eva x", "", "Eva x"], "ner", cache=cache) == [("Eva",), (), ("Eva",)]
    assert asked == ["Eva x", ""]
    with cache.open("a") as file:
        file.write('{"key": "half')  # a killed process's
    assert find_names(["Eva x", "Ada"], "ner", cache=cache)[1] == ("Ada",)
    assert asked == ["Eva x", "", "Ada"]
    assert find_names(["Eva x"], "another", cache=cache) == [("Eva",)]
    assert len(asked) == 4


@pytest.mark.parametrize(
    "line", ["[]", '{"key": 1, "names": []}', '{"key": "a", "names": "b"}', "x"]
)
def test_a_file_that_holds_no_names_is_refused(asked, tmp_path, line):
    cache = tmp_path / "names.jsonl"
    cache.write_text(line + "\n")
    with pytest.raises(NamesError, match=r"names\.jsonl, line 1"):
        find_names(["Eva"], "ner", cache=cache)
    assert cache.read_text() == line + "\n"


def test_a_recogniser_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(NamesError, match="cannot be loaded as a recogniser") as caught:
        find_names(["Eva"], str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_real_recogniser_of_random_weights_runs(tmp_path, caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "Eva", "met", "Ada"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=5, intermediate_size=8, max_position_embeddings=16, **size,
                        id2label={0: "O", 1: "B-PER"}, label2id={"O": 0, "B-PER": 1})  # fmt: skip
    model = BertForTokenClassification(config)
    model.classifier.bias.data = model.classifier.bias.data.new_tensor([-9.0, 9.0])
    model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger=names.__name__):
        (found,) = find_names(["Eva met Ada"], str(tmp_path))
    assert " ".join(found) == "Eva met Ada"
    assert "1 texts are asked for names" in caplog.text
