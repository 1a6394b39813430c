"""What is taken as a model: runs, weights, exports, Hugging Face's CLIPs, ids of hub and tags.

`load_encoder` looks at what it is given and says, where it is none of these, what it lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, with_config
from torch import nn
from typing_extensions import TypedDict

from entityclip.checkpoints import BEST, INDEX, ONLY_SAFETENSORS, CheckpointError, read_meta
from entityclip.files import read_json
from entityclip.models.clip import Backbone, BackboneError, create_backbone, library
from entityclip.models.weights import model_like

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"  # of `export`
HUB = "hf-hub:"
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*config.json"]  # of a hub's repository


def load_encoder(
    checkpoint: str | Path | nn.Module,
    model: str | None = None,
    *,
    image_size: int | None = None,
) -> Backbone:
    """The two towers of a checkpoint, ready to encode, or those of a loaded model, as it is.

    Args:
        checkpoint: a run's folder or its ``best.safetensors``, a folder that `export` or Hugging
            Face's ``save_pretrained`` wrote (in shards, too), ``hf-hub:NAME`` of such a repository,
            any open_clip model's weights as .safetensors, the tag of weights that open_clip knows,
            or a loaded `Backbone` or `EntityCLIP`.
        model: open_clip's name of the model; whatever has a config names it itself.
        image_size: side of the pictures in pixels; None: the checkpoint's or the model's own.

    Raises BackboneError for what is no such checkpoint, where `model` is missing or contradicts the
    file, and as `create_backbone` does (a picture tower that is no ViT, weights that do not fit).
    """
    if isinstance(checkpoint, nn.Module):
        return getattr(checkpoint, "backbone", checkpoint)
    hub = str(checkpoint).startswith(HUB)
    path = Path(checkpoint).expanduser()
    if not (hub or path.is_dir() or path.suffix):
        if model is None:
            raise BackboneError(
                f"{str(checkpoint)!r} is no file or folder here; for weights by tag also give the "
                "model, e.g. model='ViT-B-32-quickgelu'"
            )
        return create_backbone(model, str(checkpoint), image_size).eval()
    try:
        path = weights_in(checkpoint)
        identity = read_about(path).get("identity", {})
        named = model_of(path, identity)
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    if model is None and named is None:
        raise BackboneError(
            f"{path} does not say which model its weights are of; give it, e.g. model='ViT-B-32'"
        )
    if None not in (model, named) and model != named:
        raise BackboneError(f"{path} holds weights of {named}, not of {model}")
    size = image_size or identity.get("image_size")
    return create_backbone(model or named, str(path), size).eval()


@with_config(ConfigDict(extra="allow"))
class _Identity(TypedDict, total=False):
    backbone: str
    image_size: Annotated[int, Field(ge=1)] | None


@with_config(ConfigDict(extra="allow"))
class _Meta(TypedDict, total=False):
    """What of a checkpoint's metadata an encoder looks at."""

    identity: _Identity


def start_weights(pretrained: str | None) -> str | None:
    """What a training starts from, as `create_backbone` takes it: a folder's or a hub's weights.

    Tags and files stay as they are. Raises BackboneError as `load_encoder`.
    """
    if pretrained is None:
        return None
    path = Path(pretrained).expanduser()
    if not (pretrained.startswith(HUB) or ("/" in pretrained and path.is_dir())):
        return pretrained
    try:
        return str(weights_in(pretrained))
    except CheckpointError as error:
        raise BackboneError(str(error)) from error


def read_about(path: Path) -> dict[str, Any]:
    """A checkpoint's metadata, for whoever builds its model. Raises CheckpointError by field."""
    return read_meta(path, _Meta)


def weights_in(checkpoint: str | Path) -> Path:
    """The weights in a folder of a run, of `export` or of Hugging Face, or the file itself.

    Of ``hf-hub:NAME`` what the hub's client has or fetches. Raises CheckpointError for a folder
    without any, and for what the hub does not give.
    """
    if str(checkpoint).startswith(HUB):
        checkpoint = _fetched(str(checkpoint).removeprefix(HUB))
    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        return path
    names = (BEST, WEIGHTS, "model.safetensors", INDEX)
    there = [path / name for name in names if (path / name).is_file()]
    if there:
        return there[0]
    if pickles := sorted(path.glob("*.bin")):
        raise CheckpointError(f"{pickles[0]}: {ONLY_SAFETENSORS}")
    raise CheckpointError(f"no checkpoint at {path / BEST}, nor {' or '.join(names[1:])} there")


def model_of(path: Path, identity: dict[str, Any]) -> str | None:
    """open_clip's name of the model that weights are of: by their own note, or a config beside.

    None where nothing tells; raises CheckpointError for a config of a model that it lacks.
    """
    return identity.get("backbone") or _named_by(path.with_name(CONFIG)) or model_like(path)


def _fetched(name: str) -> Path:
    """A hub repository's folder in the client's cache. Never tried against the real hub here."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except Exception as error:  # the client raises its own, requests' and OSErrors
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{HUB}{name} could not be fetched: {why}") from error


def _named_by(config: Path) -> str | None:
    """Which of the models that open_clip knows an open_clip_config.json describes, if any."""
    if not config.exists():
        return None
    described = read_json(config, CheckpointError).get("model_cfg")
    known = library()
    return next((n for n in known.list_models() if known.get_model_config(n) == described), None)
