"""Flickr30K and MSCOCO with Karpathy's splits, five captions a picture.

Flickr30K: Young et al., TACL 2014; MSCOCO: Lin et al., ECCV 2014; the splits: Karpathy and Fei-Fei,
CVPR 2015. Expected below the root::

    dataset_flickr30k.json     and   {images,flickr30k-images}/{filename}, or beside the JSON
    dataset_coco.json          and   images/{filepath}/{filename}, or {filepath}/{filename}
"""

from __future__ import annotations

from pathlib import Path

from entityclip.datasets.reading import Row, json_rows, known, need
from entityclip.datasets.table import PairBuilder, PairTable, Report

FLICKR30K_SPLITS = ("train", "val", "test")

# retrieval papers train MSCOCO on train and restval together
MSCOCO_SPLITS = ("train", "val", "test", "restval", "train+restval")
_FILES = {"flickr30k": "dataset_flickr30k.json", "mscoco": "dataset_coco.json"}
_LAYOUT = "expected below the root: {}, and its pictures there or in images/"


def karpathy_pairs(
    root: Path, split: str, *, dataset: str, limit: int | None = None, seed: int = 0
) -> tuple[PairTable, Report]:
    """The pairs of a split, one a caption, in the file's order, and what was left out.

    `dataset` is ``flickr30k`` or ``mscoco``, whose ``train+restval`` papers call the training set;
    `limit` counts pairs, not pictures. Ids are ``{file name without ending}#{number of the
    caption}``, groups the picture's file name. Where that name without ending is another
    picture's, of whatever split, further up in the file, both have ``{filepath}/{filename}``.
    Raises FileNotFoundError and ValueError as `n24news_pairs` does.
    """
    splits = FLICKR30K_SPLITS if dataset == "flickr30k" else MSCOCO_SPLITS
    known(dataset, split, splits)
    name = _FILES[dataset]
    path = need(root, name, layout=_LAYOUT.format(name))
    base = next((b for b in ("images", "flickr30k-images") if (root / b).is_dir()), "")
    builder = PairBuilder(root)
    first: dict[str, str] = {}  # file name without ending -> the first picture of that name
    for row in json_rows(path, "images"):
        given = row.id("split")
        if given not in MSCOCO_SPLITS[:4]:
            row.fail("split", f"is {given!r}, none of {', '.join(MSCOCO_SPLITS[:4])}")
        file = row.name("filename")
        folder = row.path_below("filepath") if "filepath" in row.values else ""
        place = f"{folder}/{file}" if folder else file
        stem = file.rpartition(".")[0] or file
        name, group = (stem, file) if first.setdefault(stem, place) == place else (place, place)
        if given in split.split("+"):
            _add(builder, row, f"{base}/{place}" if base else place, name, group)
    return builder.finish(f"{dataset} {split}", limit=limit, seed=seed)


def _add(builder: PairBuilder, row: Row, image: str, name: str, group: str) -> None:
    sentences = row.values.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        row.fail("sentences", "must be a list of at least one sentence")
    for position, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            row.fail(f"sentences[{position}]", f"must be dict, got {type(sentence).__name__}")
        field = f"sentences[{position}].raw"
        raw = {field: sentence["raw"]} if "raw" in sentence else {}
        caption = Row(raw, row.path, row.number).text(field)
        builder.add(f"{name}#{position}", image, caption, group=group, where=row)
