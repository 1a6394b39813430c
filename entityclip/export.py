"""Checkpoints as plain open_clip models: ``python -m entityclip.export CHECKPOINT FOLDER``.

Inference needs only CLIP's two towers, so what is exported is a plain CLIP: weights and config as
open_clip's ``local-dir:`` reads them, and a model card. Weights of a Hugging Face CLIPModel can be
exported too, which converts them.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entityclip.architectures import open_clip
from entityclip.backbone import Backbone, BackboneError, create_backbone
from entityclip.checkpoint import CheckpointError, read_meta, write_checkpoint
from entityclip.encoder import best_of
from entityclip.files import atomic_write_text
from entityclip.model_card import model_card, stored_metrics
from entityclip.results import ResultsError

WEIGHTS, CONFIG, CARD = "open_clip_model.safetensors", "open_clip_config.json", "README.md"


class ExportError(ValueError):
    """The checkpoint says too little about itself to be exported."""


def export(
    source: Path,
    folder: Path,
    *,
    backbone: str | None = None,
    image_size: int | None = None,
    rows: Sequence[Path] | None = None,
) -> Path:
    """Write the CLIP of a checkpoint, or of a run's folder, to `folder`; returns the weights' path.

    `backbone` and `image_size` are needed for weights that are no checkpoint of ours. `rows` are
    the files of result rows whose metrics the card shows; by default those of the run's profile.
    Files that stand in `folder` are replaced one by one, each whole, the weights first.

    Raises ExportError where the backbone isn't known, BackboneError and CheckpointError for weights
    that cannot be read, do not fit or cannot be written.
    """
    path = best_of(source)
    meta = read_meta(path)
    identity = meta.get("identity", {})
    name = backbone or identity.get("backbone")
    if name is None:
        raise ExportError(f"{path} does not say which model it is; give --backbone, e.g. ViT-B-32")
    size = image_size or identity.get("image_size")
    built = create_backbone(name, str(path), size)
    found = stored_metrics(identity, row_files(path) if rows is None else rows)
    kept = {key: meta[key] for key in ("identity", "step", "best") if key in meta}
    write_checkpoint(folder / WEIGHTS, built.clip.state_dict(), kept)
    config = {"model_cfg": model_config(built, size), "preprocess_cfg": preprocessing(built)}
    atomic_write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    atomic_write_text(folder / CARD, model_card(name, size, meta, found))
    return folder / WEIGHTS


def model_config(backbone: Backbone, image_size: int | None) -> dict[str, Any]:
    """open_clip's description of the model, at the size it was trained with."""
    config = copy.deepcopy(open_clip.get_model_config(backbone.name))
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    return config


def preprocessing(backbone: Backbone) -> dict[str, Any]:
    """How pictures are prepared, as open_clip's config files say it."""
    known = backbone.clip.visual.preprocess_cfg
    return {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode")}


def row_files(checkpoint: Path) -> list[Path]:
    """Where a run's retrieval rows lie: beside its checkpoints, and those the repository ships."""
    from entityclip.stored import SHIPPED

    profile = checkpoint.resolve().parent.parent.parent
    return [SHIPPED / profile.name / "retrieval.jsonl", profile / "results" / "retrieval.jsonl"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the model was written, 1 with a reason if not."""
    parser = argparse.ArgumentParser(
        prog="python -m entityclip.export", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file, or a run's folder")
    parser.add_argument("folder", type=Path, help="where the model is written")
    parser.add_argument("--backbone", help="open_clip's name, where the checkpoint has none")
    parser.add_argument("--image-size", type=int, help="pixels, where it isn't the backbone's")
    parser.add_argument("--rows", type=Path, nargs="+", help="JSONL files of result rows")
    given = parser.parse_args(arguments)
    try:
        weights = export(
            *(given.checkpoint, given.folder),
            **dict(backbone=given.backbone, image_size=given.image_size, rows=given.rows),
        )
    except (ExportError, BackboneError, CheckpointError, ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {weights}, {CONFIG} and {CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
