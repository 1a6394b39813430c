"""A checkpoint's two towers as a plain open_clip model: ``entityclip export CHECKPOINT FOLDER``.

Weights and config as open_clip's ``local-dir:`` reads them, and a model card. Weights of a Hugging
Face CLIPModel are exported too, which converts them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from entityclip.checkpoints import write_checkpoint
from entityclip.config import config_hash
from entityclip.datasets.manifest import Entry, load_manifest
from entityclip.files import atomic_write_text, git_commit, unwritable
from entityclip.models.clip import create_backbone, library
from entityclip.results import RETRIEVAL, SHIPPED, read_rows
from entityclip.search.encoder import CONFIG, WEIGHTS, read_about, weights_in

CARD = "README.md"

_OF_THE_RUN = ("train_data", "val_data", "train")  # in a checkpoint's identity, not in its rows'
_SHOWN = ("R@1", "R@5", "R@10", "MedR", "MeanR")
_OURS = "Apache-2.0"


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
    path = weights_in(source)
    meta = read_about(path)
    identity = meta.get("identity", {})
    name = backbone or identity.get("backbone")
    if name is None:
        raise ExportError(f"{path} does not say which model it is; give --backbone, e.g. ViT-B-32")
    if reason := unwritable(folder):
        raise ExportError(f"{reason}; give another folder")
    size = image_size or identity.get("image_size")
    built = create_backbone(name, str(path), size)
    found = stored_metrics(identity, _row_files(path) if rows is None else rows)
    kept = {key: meta[key] for key in ("identity", "step", "best") if key in meta}
    write_checkpoint(folder / WEIGHTS, built.clip.state_dict(), kept)
    model = library().get_model_config(name)
    if size is not None:
        model["vision_cfg"]["image_size"] = size
    config = {"model_cfg": model, "preprocess_cfg": built.preprocessing}
    atomic_write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    atomic_write_text(folder / CARD, model_card(name, size, meta, found))
    return folder / WEIGHTS


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


# ------------------------------------------------------------------------------------ model card


def model_card(
    backbone: str, image_size: int | None, meta: Mapping[str, Any], rows: pd.DataFrame
) -> str:
    """Markdown with front matter as model hubs read it.

    `meta` is what the checkpoint says of itself; `rows` are those of `stored_metrics`.
    """
    identity = meta.get("identity", {})
    data = load_manifest().datasets.get(identity.get("dataset"))
    drawn = data is not None and (data.license or "").startswith(_OURS)
    own = drawn and not isinstance(identity.get("start"), str)  # nobody else's weights or pictures
    variant = identity.get("variant") or ("pretraining" if "pairs" in identity else "converted")
    usual = (library().get_model_config(backbone) or {}).get("vision_cfg", {}).get("image_size")
    size = f", force_image_size={image_size}" if image_size not in (None, usual) else ""
    return f"""---
license: {_OURS.lower() if own else "other"}
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, entityclip]
---

# {backbone}, {variant}, by entityclip

A plain CLIP: picture and text tower. What EntityCLIP (arXiv 2410.17810) adds trains the towers
and is not needed to use them.

## Use

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH/TO/THIS/FOLDER")
tokenize = open_clip.get_tokenizer("local-dir:PATH/TO/THIS/FOLDER")
```

or, where open_clip knows the architecture by name:
`open_clip.create_model("{backbone}", pretrained="PATH/open_clip_model.safetensors"{size})`.
Embeddings are compared by cosine.

## Data

{_about_data(identity, data)}

## Training

{_about_training(meta)}

## Measured

{_measured(rows)}

## Licence

{f"{_OURS}, as entityclip's code, data and weights." if own else _licence(identity, data)}
"""


def _about_data(identity: Mapping[str, Any], data: Entry | None) -> str:
    if "dataset" not in identity:
        return "The weights do not say what they were trained on."
    about = f"{data.title}: {data.about}" if data else f"{identity['dataset']}: see its page."
    lines = [about]
    if data and data.paper:
        paper = data.paper
        lines.append(f"{paper.authors}, “{paper.title}”, {paper.venue} {paper.year}, {paper.url}")
    if data and data.page:
        lines.append(f"Page: {data.page}")
    splits = [split for split in ("train", "val") if f"{split}_data" in identity]
    if splits:
        prints = ", ".join(f"{split} `{identity[f'{split}_data']}`" for split in splits)
        lines.append(f"Fingerprints of the pairs: {prints}")
    start = identity.get("start")
    if start is not None:
        named = f"open_clip's `{start}` weights" if isinstance(start, str) else None
        lines.append(f"Started from {named or 'random weights, pretrained first'}")
    return "\n\n".join(lines)


def _about_training(meta: Mapping[str, Any]) -> str:
    identity, best = meta.get("identity", {}), meta.get("best", {})
    settings = json.dumps(identity, indent=1, ensure_ascii=False)
    said = f"Exported by entityclip at commit `{git_commit()}`. All settings:\n\n"
    said += f"```json\n{settings}\n```"
    if best.get("epoch"):
        loss = f"{best['val_loss']:.4f}"
        said = f"Step {meta['step']}, epoch {best['epoch']}: validation loss {loss}.\n\n{said}"
    return said


def _measured(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "There are no stored measurements of this model."
    lines = [
        "R@K in percent, higher is better; MedR and MeanR are ranks, lower is better. One training "
        f"seed ({rows['seed'].iloc[0]}); the interval holds test queries only.\n",
        "| data | split | direction | metric | value | 95 % interval "
        "| queries | candidates | commit |",
        "|---|---|---|---|--:|---|--:|--:|---|",
    ]
    for row in rows[rows["metric"].isin(_SHOWN)].itertuples():
        interval = "–" if pd.isna(row.low) else f"{row.low:.2f} – {row.high:.2f}"
        lines.append(
            f"| {row.dataset} | {row.split} | {row.direction.replace('_', ' ')} | {row.metric} "
            f"| {row.value:.2f} | {interval} | {row.n_queries} | {row.n_candidates} "
            f"| `{row.git_commit[:8]}` |"
        )
    return "\n".join(lines)


def _licence(identity: Mapping[str, Any], data: Entry | None) -> str:
    lines = [f"- entityclip's code: {_OURS}"]
    if data is not None:
        stated = data.license or "none that could be verified"
        lines.append(f"- data ({data.title}): {stated}. {data.terms}")
    start = identity.get("start")
    if isinstance(start, str) or not identity:
        origin = f"`{start}`" if start else "unknown; see where you got them"
        lines.append(f"- weights it started from: {origin}; their own licence holds")
    return "\n".join([*lines, "\nWhat you may do with these weights follows from all of them."])
