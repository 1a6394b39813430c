"""Hugging Face transformers' CLIPModel weights, renamed as open_clip names them.

transformers keeps query, key and value projections apart and projections as Linear weights;
open_clip joins the three rows-wise and multiplies by the projections' transposes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # their spelling
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_TRANSPOSED = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_JOINED = [f"self_attn.{part}_proj" for part in "qkv"]


def is_transformers(state: dict[str, Tensor]) -> bool:
    """Whether these weights have a transformers CLIPModel's names."""
    return "text_model.final_layer_norm.weight" in state


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPModel's weights under open_clip's names; what has no counterpart keeps its own.

    Raises ValueError where one of an attention's three projections is missing.
    """
    renamed = {}
    for name, tensor in state.items():
        layer = _LAYER.fullmatch(name)
        if name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor.T
        elif layer:
            side, number, part, kind = layer.groups()
            block = f"{'visual.' if side == 'vision' else ''}transformer.resblocks.{number}"
            if part == _JOINED[0]:
                parts = [name.replace(part, other) for other in _JOINED]
                missing = [other for other in parts if other not in state]
                if missing:
                    raise ValueError(f"it lacks {missing[0]}")
                joined = torch.cat([state[other] for other in parts])
                renamed[f"{block}.attn.in_proj_{kind}"] = joined
            elif part not in _JOINED:
                renamed[f"{block}.{_IN_LAYER.get(part, part)}.{kind}"] = tensor
        elif not name.endswith(".position_ids"):  # older files store these counting numbers
            stem, dot, kind = name.rpartition(".")
            renamed[_NAMES.get(name) or f"{_NAMES.get(stem, stem)}{dot}{kind}"] = tensor
    return renamed


def check_config(path: Path, clip: nn.Module) -> None:
    """Refuse weights whose config.json describes another model than `clip`.

    Activation and number of heads leave no trace in the weights, but change every number. Raises
    ValueError naming what differs, and where there is no config.json beside `path`.
    """
    try:
        config = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"transformers weights need their config.json beside them ({error}): the activation "
            "and the number of heads cannot be seen in the weights"
        ) from error
    sides = {"vision": clip.visual.transformer, "text": clip.transformer}
    for side, transformer in sides.items():
        theirs, ours = _defaults(side) | config.get(f"{side}_config", {}), _described(transformer)
        for name, value in ours.items():
            if theirs[name] != value:
                hint = "; take the -quickgelu model" if theirs[name] == "quick_gelu" else ""
                raise ValueError(
                    f"its {side}_config has {name} {theirs[name]!r}, the model {value!r}{hint}"
                )
    # 2 is what older files say, and means the largest token, as in open_clip
    eos = (_defaults("text") | config.get("text_config", {}))["eos_token_id"]
    if eos not in (2, clip.vocab_size - 1):
        raise ValueError(f"its texts end with token {eos}, the model's with {clip.vocab_size - 1}")


def _described(transformer: nn.Module) -> dict[str, Any]:
    block = transformer.resblocks[0]
    gelu = isinstance(block.mlp.gelu, nn.GELU)
    return {
        "hidden_act": "gelu" if gelu else "quick_gelu",
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": block.ln_1.eps,
    }


def _defaults(side: str) -> dict[str, Any]:
    """What transformers assumes where config.json says nothing; older files leave these out."""
    heads = 12 if side == "vision" else 8
    shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": heads}
    return shared | ({"eos_token_id": 49407} if side == "text" else {})
