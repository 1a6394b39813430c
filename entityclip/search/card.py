"""The model card of an exported CLIP: what it is, was trained on, and was measured to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from entityclip.datasets.manifest import Entry, load_manifest
from entityclip.files import git_commit
from entityclip.models.clip import library
from entityclip.reporting.markup import markdown, one_line

_USE = {
    "open_clip": """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH/TO/THIS/FOLDER")
tokenize = open_clip.get_tokenizer("local-dir:PATH/TO/THIS/FOLDER")
```

or, where open_clip knows the architecture by name:
`open_clip.create_model("{backbone}", pretrained="PATH/open_clip_model.safetensors"{size})`.
""",
    "transformers": """```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("PATH/TO/THIS/FOLDER")
processor = CLIPProcessor.from_pretrained("PATH/TO/THIS/FOLDER")
```
""",
}
_SHOWN = ("R@1", "R@5", "R@10", "MedR", "MeanR")
_OURS = "Apache-2.0"


def model_card(
    backbone: str,
    image_size: int | None,
    meta: Mapping[str, Any],
    rows: pd.DataFrame,
    form: str = "open_clip",
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
    use = _USE[form].format(backbone=backbone, size=size)
    return f"""---
license: {_OURS.lower() if own else "other"}
library_name: {form}
pipeline_tag: zero-shot-image-classification
tags: [clip, entityclip]
---

# {markdown(backbone)}, {markdown(variant)}, by entityclip

A plain CLIP: picture and text tower. What EntityCLIP (arXiv 2410.17810) adds trains the towers
and is not needed to use them.

## Use

{use}
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


def _code(text: Any) -> str:
    """Text as code, which nothing in it ends."""
    return f"`{one_line(str(text)).replace('`', ' ')}`"


def _about_data(identity: Mapping[str, Any], data: Entry | None) -> str:
    if "dataset" not in identity:
        return "The weights do not say what they were trained on."
    named = markdown(str(identity["dataset"]))
    about = f"{data.title}: {data.about}" if data else f"{named}: see its page."
    lines = [about]
    if data and data.paper:
        paper = data.paper
        lines.append(f"{paper.authors}, “{paper.title}”, {paper.venue} {paper.year}, {paper.url}")
    if data and data.page:
        lines.append(f"Page: {data.page}")
    splits = [split for split in ("train", "val") if f"{split}_data" in identity]
    if splits:
        prints = ", ".join(f"{s} {_code(identity[f'{s}_data'])}" for s in splits)
        lines.append(f"Fingerprints of the pairs: {prints}")
    start = identity.get("start")
    if start is not None:
        named = f"open_clip's {_code(start)} weights" if isinstance(start, str) else None
        lines.append(f"Started from {named or 'random weights, pretrained first'}")
    return "\n\n".join(lines)


def _about_training(meta: Mapping[str, Any]) -> str:
    identity, best = meta.get("identity", {}), meta.get("best", {})
    settings = json.dumps(identity, indent=1, ensure_ascii=False)
    said = f"Exported by entityclip at commit `{git_commit()}`. All settings:\n\n"
    said += f"````json\n{settings.replace('```', '`')}\n````"
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
            f"| {markdown(row.dataset)} | {markdown(row.split)} "
            f"| {row.direction.replace('_', ' ')} | {markdown(row.metric)} "
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
        origin = _code(start) if start else "unknown; see where you got them"
        lines.append(f"- weights it started from: {origin}; their own licence holds")
    return "\n".join([*lines, "\nWhat you may do with these weights follows from all of them."])
