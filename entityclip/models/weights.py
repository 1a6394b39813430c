"""What comes with weights: how their pictures are prepared; the names of transformers' CLIPs."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from entityclip.checkpoints import CheckpointError, read_meta
from entityclip.files import read_json

BACKBONES = Path(__file__).resolve().parent.parent / "backbones"  # our own architectures


@cache
def library() -> ModuleType:
    """open_clip, knowing `BACKBONES` too; imported late, for it takes seconds."""
    import open_clip

    open_clip.add_model_config(BACKBONES)
    return open_clip


# of open_clip's PreprocessCfg, what belongs to weights
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_Three = Annotated[list[float], Field(min_length=3, max_length=3)]


class _PreprocessCfg(TypedDict, total=False):
    mean: _Three
    std: _Three
    interpolation: str
    resize_mode: str


class _OpenCLIPConfig(TypedDict, total=False):
    preprocess_cfg: _PreprocessCfg | None


class _ImageProcessor(TypedDict, total=False):
    """What of a CLIPImageProcessor's settings is looked at."""

    size: Any
    image_mean: _Three | None
    image_std: _Three | None
    resample: int | None


_RESAMPLINGS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def preprocessing_of(name: str, pretrained: str | None) -> dict[str, Any]:
    """How pictures are prepared for weights that want it otherwise than open_clip's default does.

    Some of `mean`, `std` (three numbers each), `interpolation` and `resize_mode`: of a tag from
    open_clip's list; of a .safetensors file from its own note, where it is a checkpoint of ours,
    or from the open_clip_config.json or preprocessor_config.json beside it. Raises CheckpointError
    naming a file that cannot be read.
    """
    if pretrained is None:
        return {}
    path = Path(pretrained)
    if not path.suffix:
        return _known(library().get_pretrained_cfg(name, pretrained))
    told = read_meta(path) if path.exists() else {}
    if found := told.get("facts", {}).get("preprocessing"):
        return _known(found)
    for beside, kind, read in (
        ("open_clip_config.json", _OpenCLIPConfig, lambda config: config.get("preprocess_cfg")),
        ("preprocessor_config.json", _ImageProcessor, _transformers),
    ):
        config = path.with_name(beside)
        if config.exists():
            return _known(read(read_json(config, CheckpointError, kind)) or {})
    start = told.get("identity", {}).get("start")  # checkpoints from before they noted it
    return preprocessing_of(name, start) if isinstance(start, str) and start != pretrained else {}


def _known(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in PREPROCESSING if config.get(key) is not None}


def _transformers(config: _ImageProcessor) -> dict[str, Any]:
    """A CLIPImageProcessor's settings under open_clip's names."""
    side = config.get("size")
    squash = isinstance(side, dict) and "shortest_edge" not in side
    return {
        "mean": config.get("image_mean"),
        "std": config.get("image_std"),
        "interpolation": _RESAMPLINGS.get(config.get("resample")),
        "resize_mode": "squash" if squash else "shortest",
    }


# a transformers CLIPModel's names, and open_clip's
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
_TRANSPOSED = {"visual_projection.weight": "visual.proj",
               "text_projection.weight": "text_projection"}  # fmt: skip
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
_BLOCK = re.compile(
    r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias|in_proj_weight|in_proj_bias)"
)
_JOINED = [f"self_attn.{part}_proj" for part in "qkv"]


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
                renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat([state[p] for p in parts])
            elif part not in _JOINED:
                renamed[f"{block}.{_IN_LAYER.get(part, part)}.{kind}"] = tensor
        elif not name.endswith(".position_ids"):  # older files store these counting numbers
            stem, dot, kind = name.rpartition(".")
            renamed[_NAMES.get(name) or f"{_NAMES.get(stem, stem)}{dot}{kind}"] = tensor
    return renamed


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`as_open_clip` backwards: plain open_clip ViT weights under a CLIPModel's names."""
    back = {ours: theirs for theirs, ours in _NAMES.items()}
    transposed = {ours: theirs for theirs, ours in _TRANSPOSED.items()}
    in_layer = {ours: theirs for theirs, ours in _IN_LAYER.items()}
    renamed = {}
    for name, tensor in state.items():
        layer = _BLOCK.fullmatch(name)
        if name in transposed:
            renamed[transposed[name]] = tensor.T
        elif layer:
            visual, number, part, kind = layer.groups()
            block = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
            if part == "attn":  # in_proj_weight, in_proj_bias: the three one below the other
                for of, third in zip(_JOINED, tensor.chunk(3), strict=True):
                    renamed[f"{block}.{of}.{kind.removeprefix('in_proj_')}"] = third
            else:
                renamed[f"{block}.{in_layer.get(part, part)}.{kind}"] = tensor
        else:
            stem, dot, kind = name.rpartition(".")
            renamed[back.get(name) or f"{back.get(stem, stem)}{dot}{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


class _CLIPConfig(TypedDict, total=False):
    """What of a CLIPConfig is looked at."""

    projection_dim: int | None
    text_config: dict[str, Any] | None
    text_config_dict: dict[str, Any] | None
    vision_config: dict[str, Any] | None
    vision_config_dict: dict[str, Any] | None


def _side(config: _CLIPConfig, side: str) -> dict[str, Any]:
    """A tower's settings, as transformers takes them: those of the older name win."""
    return (config.get(f"{side}_config") or {}) | (config.get(f"{side}_config_dict") or {})


# what transformers assumes where config.json says nothing, of the picture tower and of the text's
_USUAL = {
    "vision": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
               "intermediate_size": 3072, "patch_size": 32, "image_size": 224},
    "text": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8,
             "intermediate_size": 2048, "vocab_size": 49408, "max_position_embeddings": 77},
}  # fmt: skip


def model_like(path: Path) -> str | None:
    """open_clip's name of the model that the config.json beside a CLIPModel's weights describes.

    None where there is none. Raises CheckpointError for a model that open_clip has not.
    """
    beside = path.with_name("config.json")
    if not beside.exists():
        return None
    config = read_json(beside, CheckpointError, _CLIPConfig)
    if not (config.get("vision_config") or config.get("vision_config_dict")):
        raise CheckpointError(f"{beside} describes no CLIPModel: it has no vision_config")
    sides = {side: usual | _side(config, side) for side, usual in _USUAL.items()}
    wanted = {"embed_dim": config.get("projection_dim") or 512, **sides}
    activations = {side.get("hidden_act", "quick_gelu") for side in sides.values()}
    models = library()
    for name in models.list_models():
        known = models.get_model_config(name)
        quick = "quick_gelu" if known.get("quick_gelu") else "gelu"
        if activations == {quick} and _same_model(known, wanted):
            return name
    raise CheckpointError(f"{beside} describes a model that open_clip has not")


def _same_model(known: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether an open_clip configuration is that of these transformers settings."""
    vision, text = known["vision_cfg"], known["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "hf_model_name" in text:
        return False  # a ResNet, or a text tower of transformers' own
    plain = not {"timm_model_name", "attentional_pool", "pool_type", "ls_init_value"} & {*vision}
    size, side, words = vision.get("image_size", 224), wanted["vision"], wanted["text"]
    heads = vision["width"] // vision.get("head_width", 64)
    return plain and "multimodal_cfg" not in known and (
        (known["embed_dim"], vision["width"], vision["layers"], heads, vision["patch_size"], size,
         text["width"], text["layers"], text["heads"], text.get("vocab_size", 49408),
         text.get("context_length", 77))
        == (wanted["embed_dim"], side["hidden_size"], side["num_hidden_layers"],
            side["num_attention_heads"], side["patch_size"], side["image_size"],
            words["hidden_size"], words["num_hidden_layers"], words["num_attention_heads"],
            words["vocab_size"], words["max_position_embeddings"])
    )  # fmt: skip


def check_config(path: Path, clip: nn.Module) -> None:
    """Refuse weights whose config.json describes another model than `clip`.

    Activation and number of heads leave no trace in the weights, but change every number. Raises
    ValueError naming what differs, and where there is no config.json beside `path`.
    """
    beside = path.with_name("config.json")
    if not beside.exists():
        raise ValueError(
            "transformers weights need their config.json beside them: the activation and the "
            "number of heads cannot be seen in the weights"
        )
    config = read_json(beside, ValueError, _CLIPConfig)
    sides = (("vision", 12, clip.visual.transformer), ("text", 8, clip.transformer))
    for side, heads, transformer in sides:
        # what transformers assumes where config.json says nothing; older files leave these out
        usual = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": heads}
        theirs = usual | _side(config, side)
        block = transformer.resblocks[0]
        gelu = isinstance(block.mlp.gelu, nn.GELU)
        ours = {"hidden_act": "gelu" if gelu else "quick_gelu",
                "num_attention_heads": block.attn.num_heads,
                "layer_norm_eps": block.ln_1.eps}  # fmt: skip
        for name, value in ours.items():
            if theirs[name] != value:
                hint = "; take the -quickgelu model" if theirs[name] == "quick_gelu" else ""
                raise ValueError(
                    f"its {side}_config has {name} {theirs[name]!r}, the model {value!r}{hint}"
                )
    # 2 is what older files say, and means the largest token, as in open_clip
    eos = _side(config, "text").get("eos_token_id", 49407)
    if eos not in (2, clip.vocab_size - 1):
        raise ValueError(f"its texts end with token {eos}, the model's with {clip.vocab_size - 1}")
