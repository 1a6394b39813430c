"""Tokens and masks against open_clip's own encoders; which models and weights are refused."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from safetensors.torch import save, save_file

from entityclip.config import EntityCLIPConfig
from entityclip.models.clip import BackboneError, create_backbone, refuse_other_towers
from entityclip.models.entityclip import EntityCLIP

TEXTS = ["Ghana meets Japan", "a", "envoys of four nations gather at the harbour on Tuesday", ""]
LONGER = ["a much longer explanation of who Ghana is and what its flag looks like", "b c", "d", "e"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_cls_and_eot_rows_are_open_clips_features(backbone, dtype, tolerance):
    """fp64 to 1e-12; fp32 to 1e-6 of the feature's length, which is what retrieval compares."""
    backbone = copy.deepcopy(backbone).to(dtype)
    images, tokens = torch.randn(3, 3, 64, 64, dtype=dtype), backbone.tokenize(TEXTS)
    image = backbone.image_tokens(images)
    assert image.tokens.shape == (3, 17, backbone.width)
    assert image.valid.all()
    pairs = [(image, backbone.clip.encode_image(images))]
    pairs += [
        (backbone.text_tokens(tokens, trim=trim), backbone.clip.encode_text(tokens))
        for trim in (True, False)
    ]
    for side, expected in pairs:
        row = side.tokens[torch.arange(len(side.at)), side.at]
        assert torch.equal(row, side.pooled)
        error = (row - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() <= tolerance


def test_nothing_after_eot_is_valid(backbone):
    tokens = backbone.tokenize(TEXTS)
    text = backbone.text_tokens(tokens)
    lengths = (tokens != 0).sum(dim=1)  # start, words, end; the padding id is 0
    assert text.valid.sum(dim=1).tolist() == lengths.tolist()
    assert text.tokens.shape[1] == lengths.max()
    assert text.valid[torch.arange(len(TEXTS)), text.at].all()


@pytest.mark.parametrize(("first", "second"), [(TEXTS, TEXTS), (["a"] * 4, LONGER)])
def test_both_texts_in_one_call_equal_each_alone(backbone, first, second):
    """One pass for texts of like length, two for unlike: the same numbers."""
    sides = backbone.tokenize(first), backbone.tokenize(second)
    for together, tokens in zip(backbone.texts_tokens(*sides), sides, strict=True):
        alone = backbone.text_tokens(tokens)
        assert torch.equal(together.at, alone.at)
        torch.testing.assert_close(together.pooled, alone.pooled, atol=1e-6, rtol=1e-6)
        assert torch.equal(together.valid.sum(dim=1), alone.valid.sum(dim=1))
        torch.testing.assert_close(
            together.tokens[together.valid], alone.tokens[alone.valid], atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "pretrained", "says"),
    [
        ("RN50", None, "picture tower is a ModifiedResNet"),
        ("coca_ViT-B-32", None, "is a CoCa"),
        ("ViT-B-32x", None, "close: ViT-B-32"),
        ("ViT-B-16-SigLIP", None, "ViT-B-16-SigLIP"),
        ("ViT-B-32", "opanai", "ViT-B-32 has no weights 'opanai'.*openai"),
    ],
)
def test_other_models_and_weights_are_refused_by_name(name, pretrained, says):
    with pytest.raises(BackboneError, match=says):
        create_backbone(name, pretrained)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"attentional_pool": True}, "attention"), ({"pool_type": "avg"}, "avg")],
)
def test_pooled_features_that_are_no_token_are_refused(change, says):
    config = open_clip.get_model_config("newsroom-tiny")
    vision = {**config["vision_cfg"], **change}
    clip = open_clip.model.CLIP(config["embed_dim"], vision, config["text_cfg"])
    with pytest.raises(BackboneError, match=says):
        refuse_other_towers(clip, "changed")


def test_clip_part_loads_into_plain_open_clip_and_back(backbone, tmp_path):
    model = EntityCLIP(backbone, EntityCLIPConfig())
    plain = open_clip.create_model("newsroom-tiny")
    plain.load_state_dict(model.clip_state_dict())
    images, tokens = torch.randn(2, 3, 64, 64), backbone.tokenize(TEXTS[:2])
    plain.eval()
    with torch.no_grad():
        for ours, theirs in (
            (model.encode_image(images), plain.encode_image(images, normalize=True)),
            (model.encode_text(tokens), plain.encode_text(tokens, normalize=True)),
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    path = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in plain.state_dict().items()}, path)
    again = create_backbone("newsroom-tiny", str(path))
    assert torch.equal(again.clip.visual.proj, plain.visual.proj)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pickled.pt", b"\x80\x02}q\x00.", r"only \.safetensors"),
        ("damaged.safetensors", b"\x10\0\0\0\0\0\0\0{not json", "damaged"),
        ("absent.safetensors", None, "no checkpoint at"),
        ("other.safetensors", save({"logit_scale": torch.zeros(3)}),
         r"other\.safetensors does not fit newsroom-tiny"),
    ],
)  # fmt: skip
def test_weights_that_do_not_serve_name_the_file(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=says):
        create_backbone("newsroom-tiny", str(tmp_path / name))
