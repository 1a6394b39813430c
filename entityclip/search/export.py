"""A checkpoint's two towers as a plain CLIP: ``entityclip export CHECKPOINT FOLDER``.

For open_clip (``local-dir:``) or for transformers (``CLIPModel.from_pretrained``), with a model
card; whatever `load_encoder` takes can be exported, which converts it. What is written gives the
same features: that is looked at before anything is.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn

from entityclip.checkpoints import write_checkpoint
from entityclip.config import config_hash
from entityclip.files import atomic_write_text, unwritable
from entityclip.models.clip import Backbone, create_backbone, library
from entityclip.models.encoder import CONFIG, WEIGHTS, model_of, read_about, weights_in
from entityclip.models.weights import as_transformers
from entityclip.results import RETRIEVAL, SHIPPED, read_rows
from entityclip.search.card import model_card

Format = Literal["open_clip", "transformers"]
CARD = "README.md"

_OF_THE_RUN = ("train_data", "val_data", "train")  # in a checkpoint's identity, not in its rows'
_AGREE = 1e-5  # how far normalised features may lie apart


class ExportError(ValueError):
    """The checkpoint says too little about itself, or no such model can be written."""


def export(
    source: str | Path,
    folder: Path,
    *,
    form: Format = "open_clip",
    backbone: str | None = None,
    image_size: int | None = None,
    rows: Sequence[Path] | None = None,
) -> list[Path]:
    """Write the CLIP of whatever `load_encoder` takes to `folder`; returns the files.

    `backbone` and `image_size` are needed for weights that do not tell them. `rows` are the files
    of result rows whose metrics the card shows; by default those of the run's profile. Files that
    stand in `folder` are replaced one by one, each whole, the weights first.

    Raises ExportError where the backbone isn't known or transformers' CLIP cannot be it,
    BackboneError and CheckpointError for weights that cannot be read, do not fit or cannot be
    written.
    """
    path = weights_in(source)
    meta = read_about(path)
    identity = meta.get("identity", {})
    name = backbone or model_of(path, identity)
    if name is None:
        raise ExportError(f"{path} does not say which model it is; give --backbone, e.g. ViT-B-32")
    if reason := unwritable(folder):
        raise ExportError(f"{reason}; give another folder")
    size = image_size or identity.get("image_size")
    built = create_backbone(name, str(path), size).eval()
    found = stored_metrics(identity, _row_files(path) if rows is None else rows)
    kept = {key: meta[key] for key in ("identity", "step", "best") if key in meta}
    kept = without_paths(kept)
    write = {"open_clip": _write_open_clip, "transformers": _write_transformers}[form]
    files = write(built, name, size, kept, folder)
    card = folder / CARD
    atomic_write_text(card, model_card(name, size, kept, found, form))
    return [*files, card]


def without_paths(value: Any) -> Any:
    """The same with each absolute path cut to its last name: whose machine it was is no one's."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    local = isinstance(value, str) and (value.startswith(("/", "~", "\\")) or value[1:3] == ":\\")
    return value.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if local else value


def _row_files(checkpoint: Path) -> list[Path]:
    """Where a run's retrieval rows lie: beside its checkpoints, and those the repository ships."""
    profile = checkpoint.resolve().parents[2]
    return [SHIPPED / profile.name / "retrieval.jsonl", profile / "results" / "retrieval.jsonl"]


def stored_metrics(identity: Mapping[str, Any], files: Sequence[Path]) -> pd.DataFrame:
    """The rows in `files` that measured the model of this identity; none where no file is there."""
    known = [file for file in files if file.exists() and file.stat().st_size]
    rows = read_rows(*known) if known else pd.DataFrame(columns=list(RETRIEVAL.columns))
    wanted = config_hash({k: v for k, v in identity.items() if k not in _OF_THE_RUN})
    return rows[rows["config_hash"] == wanted].reset_index(drop=True)


# -------------------------------------------------------------------------------------- formats


def _write_open_clip(
    built: Backbone, name: str, size: int | None, meta: dict[str, Any], folder: Path
) -> list[Path]:
    write_checkpoint(folder / WEIGHTS, built.clip.state_dict(), meta)
    model = library().get_model_config(name)
    if size is not None:
        model["vision_cfg"]["image_size"] = size
    config = {"model_cfg": model, "preprocess_cfg": built.preprocessing}
    atomic_write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return [folder / WEIGHTS, folder / CONFIG]


def _write_transformers(
    built: Backbone, name: str, size: int | None, meta: dict[str, Any], folder: Path
) -> list[Path]:
    """Weights, config, tokenizer and preprocessing, as ``from_pretrained`` reads them."""
    from transformers import CLIPModel

    state, config = as_transformers(built.clip.state_dict()), _clip_config(built, name)
    model = CLIPModel(config)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    if {key: value.shape for key, value in state.items()} != wanted:
        raise ExportError(f"{name} has parts that transformers' CLIPModel has not: use open_clip")
    model.load_state_dict(state, assign=True)
    _refuse_other_features(built, model.eval(), name)
    tokenizer, processor = _tokenizer(built), _processor(built, name)
    files = [folder / "model.safetensors"]
    write_checkpoint(files[0], state, meta, transformers=True)
    with tempfile.TemporaryDirectory() as staged:
        for part in (config, tokenizer, processor):
            part.save_pretrained(staged)
        for source in sorted(Path(staged).iterdir()):  # each is put in place whole
            atomic_write_text(folder / source.name, source.read_text(encoding="utf-8"))
            files.append(folder / source.name)
    return files


def _clip_config(built: Backbone, name: str) -> Any:
    from transformers import CLIPConfig

    clip, visual = built.clip, built.clip.visual
    sides = {}
    for side, tower in (("vision", visual.transformer), ("text", clip.transformer)):
        block = tower.resblocks[0]
        exact = isinstance(block.mlp.gelu, nn.GELU)
        sides[f"{side}_config"] = {
            "hidden_size": tower.width, "num_hidden_layers": len(tower.resblocks),
            "num_attention_heads": block.attn.num_heads,
            "intermediate_size": block.mlp.c_fc.out_features,
            "hidden_act": "gelu" if exact else "quick_gelu", "layer_norm_eps": block.ln_1.eps,
            "projection_dim": built.width,
        }  # fmt: skip
    if visual.image_size[0] != visual.image_size[1]:
        raise ExportError(f"{name}'s pictures are {visual.image_size}, transformers' are square")
    end = clip.vocab_size - 1
    sides["vision_config"] |= {"image_size": visual.image_size[0],
                               "patch_size": visual.patch_size[0]}  # fmt: skip
    sides["text_config"] |= {"vocab_size": clip.vocab_size, "eos_token_id": end,
                             "bos_token_id": end - 1, "pad_token_id": end,
                             "max_position_embeddings": clip.context_length}  # fmt: skip
    return CLIPConfig(**sides, projection_dim=built.width)


@torch.inference_mode()
def _refuse_other_features(built: Backbone, model: nn.Module, name: str) -> None:
    """Compare both on noise and words: no list of differences is as complete as the features."""
    generator = torch.Generator().manual_seed(0)
    side = built.clip.visual.image_size[0]
    images = torch.randn(2, 3, side, side, generator=generator)
    tokens = built.tokenize(["a summit in Lima", "two flags"])
    ours = built.encode_image(images), built.encode_text(tokens)
    theirs = (model.get_image_features(pixel_values=images),
              model.get_text_features(input_ids=tokens))  # fmt: skip
    for one, other in zip(ours, theirs, strict=True):
        other = getattr(other, "pooler_output", other)
        unit = nn.functional.normalize
        if (apart := (unit(one, dim=-1) - unit(other, dim=-1)).abs().max().item()) > _AGREE:
            raise ExportError(
                f"{name} in transformers gives other features ({apart:.1g} apart): use open_clip"
            )


def _tokenizer(built: Backbone) -> Any:
    from transformers import CLIPTokenizer

    ours = built.tokenize
    if not hasattr(ours, "bpe_ranks"):
        raise ExportError("its tokenizer is not CLIP's, which transformers' CLIPTokenizer is")
    merges = sorted(ours.bpe_ranks, key=ours.bpe_ranks.get)
    # the same two tokens, called otherwise
    names = {ours.sot_token_id: "<|startoftext|>", ours.eot_token_id: "<|endoftext|>"}
    vocab = {names.get(number, token): number for token, number in ours.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=ours.context_length)


def _processor(built: Backbone, name: str) -> Any:
    from transformers import CLIPImageProcessor

    told, side = built.preprocessing, built.clip.visual.image_size[0]
    mode, by = told.get("resize_mode", "shortest"), told.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or by not in ("bicubic", "bilinear"):
        raise ExportError(f"{name} prepares pictures by {mode}, {by}: transformers cannot")
    squash = mode == "squash"
    return CLIPImageProcessor(
        size={"height": side, "width": side} if squash else {"shortest_edge": side},
        do_center_crop=not squash, crop_size={"height": side, "width": side},
        image_mean=list(told["mean"]), image_std=list(told["std"]),
        resample={"bilinear": 2, "bicubic": 3}[by],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ hub


def push(files: Sequence[Path], repository: str) -> str:
    """Upload exported files to a repository of the Hugging Face hub, made private if it is new.

    The token is the client's own: ``HF_TOKEN`` or a login. Returns the page. Never tried against
    the real hub here. Raises ExportError for what the hub refuses.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        folder = files[0].parent
        done = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=[path.name for path in files],
            commit_message="A model exported by entityclip",
        )  # fmt: skip
    except Exception as error:  # the client raises its own, requests' and OSErrors
        why = " ".join(str(error).split())[:300]
        raise ExportError(f"{repository} was not pushed: {why}; the files are there") from error
    return str(done)
