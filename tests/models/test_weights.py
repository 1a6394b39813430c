"""Weights from elsewhere: what they and the files beside them must be, said by name."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import entityclip
from entityclip.models.clip import BackboneError, create_backbone
from tests.search.test_export import hugging_face


def refused(path):
    with pytest.raises(BackboneError) as caught:
        create_backbone("newsroom-tiny", str(path))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def theirs(tmp_path):
    """A CLIPModel's weights, and how to write its config.json otherwise."""
    hugging_face(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def write(change):
        changed = change(config) if callable(change) else change
        (tmp_path / "config.json").write_text(json.dumps(changed))
        return tmp_path / "model.safetensors"

    return write


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda c: c | {"text_config_dict": {"hidden_act": "quick_gelu"}},
            "text_config has hidden_",
        ),
        (lambda c: c | {"vision_config_dict": {"num_attention_heads": 1}}, "num_attention_heads 1"),
        (lambda c: c | {"text_config": None}, "text_config has hidden_act 'quick_gelu'"),
        (lambda c: c | {"text_config": [1]}, "config.json: text_config: Input should be an object"),
        ([], "config.json: Input should be an object"),
        (3, "config.json: Input should be an object"),
    ],
)
def test_a_config_that_says_otherwise_is_refused_by_field(theirs, change, says):
    assert says in refused(theirs(change))


def test_the_older_names_settings_win_as_in_transformers(theirs):
    path = theirs(lambda c: c | {"text_config_dict": dict(c["text_config"]), "text_config": None})
    create_backbone("newsroom-tiny", str(path))


@pytest.mark.parametrize(
    ("beside", "content", "says"),
    [
        (
            "preprocessor_config.json",
            {"image_mean": [0.5]},
            "image_mean: List should have at least 3",
        ),
        ("preprocessor_config.json", {"resample": [3]}, "resample: "),
        ("preprocessor_config.json", [], "Input should be an object"),
        ("open_clip_config.json", {"preprocess_cfg": {"std": "0.5"}}, "preprocess_cfg.std: "),
        ("open_clip_config.json", {"preprocess_cfg": 1}, "preprocess_cfg: "),
    ],
)
def test_preprocessing_of_another_shape_is_named(tmp_path, beside, content, says):
    path = tmp_path / "weights.safetensors"
    save_file(create_backbone("newsroom-tiny").clip.state_dict(), path)
    (tmp_path / beside).write_text(json.dumps(content))
    message = refused(path)
    assert beside in message
    assert says in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["visual.proj", "logit_scale", "token_embedding.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name, value):
    state = create_backbone("newsroom-tiny").clip.state_dict()
    state[name].view(-1)[-1] = value
    save_file(state, tmp_path / "bad.safetensors")
    assert f"{name} holds NaN or infinite" in refused(tmp_path / "bad.safetensors")


def test_half_precision_is_read_and_whole_numbers_are_not(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = create_backbone("newsroom-tiny").clip.state_dict()
    save_file({name: tensor.half() for name, tensor in state.items()}, path)
    read = create_backbone("newsroom-tiny", str(path)).clip.state_dict()
    for name, tensor in state.items():
        torch.testing.assert_close(read[name], tensor.half().float(), rtol=0, atol=0)
    state["visual.proj"] = state["visual.proj"].to(torch.int8)
    save_file(state, path)
    assert "visual.proj is int8 [" in refused(path)
    assert load_file(path)["visual.proj"].dtype == torch.int8


def test_open_clip_is_only_asked_where_it_knows_our_own_models_too():
    package = Path(entityclip.__file__).parent
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (getattr(node, "module", None), *(alias.name for alias in node.names))
        if str(name).split(".")[0] == "open_clip"
    }
    assert asking == {"models/weights.py"}
