"""Three drawn archives in the official layouts, with what the real ones do to a loader.

    python -m tests.rehearsal.archives FOLDER [--pairs 300]

Captions, explanations and pictures belong together: they are the drawn newsroom's, enlarged to the
sizes of news pictures. Around them stand the real archives' quirks: missing and broken pictures,
ids that recur, captions that are null or blank, line breaks, explanations under paths of another
machine, several pictures an article, 24 sections, EXIF turns, grey and CMYK pictures. The same
number of pairs and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from entityclip.datasets import load_pairs
from entityclip.datasets.pair import Pair
from entityclip.datasets.sources.visualnews import SOURCES
from entityclip.explanations import Completion, KnowledgeBase, Sampling, explain
from tests.fixtures.layouts import AUTHORS, write_json

SECTIONS = (
    *("Art & Design", "Automobiles", "Books", "Dance", "Economy", "Education", "Fashion & Style"),
    *("Food", "Global Business", "Health", "Media", "Movies", "Music", "Opinion", "Real Estate"),
    *("Science", "Sports", "Style", "Technology", "Television", "Theater", "Travel", "Well"),
    "Your Money",
)
_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
_DRAWN = 256  # pixels, before they are enlarged
_DONE = "drawn.json"


def draw_archives(folder: Path, *, pairs: int = 300, seed: int = 0) -> dict[str, Path]:
    """Each archive's folder by name; drawn unless whole archives of that many pairs are there.

    Beside them lies ``llm_explanations.jsonl``, what `entityclip explain` would leave of all three.
    """
    asked = {"pairs": pairs, "seed": seed}
    roots = {name: folder / name for name in _ARCHIVES}
    done = folder / _DONE
    if done.exists() and json.loads(done.read_text()) == asked:
        return roots
    told: list[Pair] = []
    for number, (name, (outlet, write)) in enumerate(_ARCHIVES.items()):
        drawn = load_pairs(
            outlet, "train", limit=pairs, seed=seed + number, image_size=_DRAWN
        )  # fmt: skip
        roots[name].mkdir(parents=True, exist_ok=True)
        write(roots[name], dict(_split(drawn)))
        told += drawn
    with mock.patch.dict(os.environ, SOURCE_DATE_EPOCH="1700000000"):  # rows say when
        explain(told, _Retold(), folder / "llm_explanations.jsonl", progress=False)
    write_json(done, asked)
    return roots


class _Retold(KnowledgeBase):
    """Another author: the knowledge base's sentences from the last to the first."""

    model = "retold"

    def complete(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """See `LLM.complete`."""
        for place, one in super().complete(prompts, sampling):
            sentences = one.text.removesuffix(".").split(". ")
            yield place, replace(one, text=". ".join(reversed(sentences)) + ".")


def _split(pairs: list[Pair]) -> Iterator[tuple[str, list[tuple[int, Pair]]]]:
    """Numbered pairs of each split, in whole articles of two pictures."""
    start = 0
    for split, share in _SHARES.items():
        end = len(pairs) if split == "test" else start + 2 * round(share * len(pairs) / 2)
        yield split, [(number, pairs[number]) for number in range(start, end)]
        start = end


def _save(path: Path, number: int, pair: Pair, *, plain: bool = False) -> None:
    """A pair's picture at a news picture's size; of forty some are not plain RGB JPEGs."""
    rng = np.random.default_rng(number)
    long, ratio = int(rng.integers(600, 1200)), (1.5, 1.33, 0.75, 1.0)[number % 4]
    size = (long, round(long / ratio)) if ratio >= 1 else (round(long * ratio), long)
    picture = pair.load_image().resize(size, Image.Resampling.BICUBIC)
    options: dict[str, Any] = {"quality": int(rng.integers(75, 90))}
    kind = "JPEG"
    odd = -1 if plain else number % 40
    if odd == 1:
        picture = picture.convert("L")
    elif odd == 11:
        picture = picture.convert("CMYK")
    elif odd == 21:
        kind, options = "PNG", {}  # under a name that says JPEG
    elif odd in (6, 26):  # stored lying: EXIF says how to turn it
        picture, exif = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    elif odd % 10 == 3:
        options |= {"progressive": True}
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, kind, **options)


def _lost(split: str, pairs: list[tuple[int, Pair]]) -> tuple[int, int | None]:
    """The numbers of a missing picture and, of training pairs, of a broken one if 1 % allow it."""
    return pairs[5][0], pairs[7][0] if split == "train" and len(pairs) >= 120 else None


def _n24news(root: Path, splits: dict[str, list[tuple[int, Pair]]]) -> None:
    for split, pairs in splits.items():
        rows, told = [], {}
        missing, broken = _lost(split, pairs)
        for place, (number, pair) in enumerate(pairs):
            image_id = f"100000{number:06d}" if number % 3 else 100_000_000_000 + number
            path = root / "imgs" / f"{image_id}.jpg"
            if number != missing:
                _save(path, number, pair)
            if number == broken:
                path.write_bytes(path.read_bytes()[:2000])
            rows.append({
                "image_id": image_id, "caption": f" {pair.caption}\n", "headline": "A headline",
                "abstract": None, "section": SECTIONS[place // 2 % len(SECTIONS)],
                "article_id": f"a{number // 2}",
            })  # fmt: skip
            told[("", f"{AUTHORS}/N24News/imgs/", "C:\\data\\")[number % 3] + path.name] = (
                f"{pair.explanation}\n"
            )
        if split == "train":
            rows.insert(3, {**rows[0], "image_id": "blank", "caption": " \r\n "})
            rows.insert(9, {**rows[0], "image_id": "null", "caption": None})
            rows.append(rows[4])  # once more
            told["nobody.jpg"] = "Fits no picture."
        name = "dev" if split == "val" else split
        write_json(root / "news" / f"nytimes_{name}.json", rows)
        write_json(root / "news" / f"CapDsc_mistral_{name}.json", told)


def _visualnews(root: Path, splits: dict[str, list[tuple[int, Pair]]]) -> None:
    everything = []
    for split, pairs in splits.items():
        rows, told = [], {}
        missing, broken = _lost(split, pairs)
        for number, pair in pairs:
            source = SOURCES[number % len(SOURCES)]
            below = f"{source}/images/{number % 50:04d}/{number}.jpg"
            path = root / "origin" / below
            if number != missing:
                _save(path, number, pair)
            if number == broken:
                path.write_bytes(b"")
            rows.append({
                "id": number, "caption": pair.caption, "source": source,
                "topic": None if number % 9 == 0 else f"{pair.section}",
                "image_path": f"./{below}", "article_path": f"./{source}/articles/{number}.txt",
            })  # fmt: skip
            told[f"{AUTHORS}/bbc/visual_news/origin/{below}"] = pair.explanation
        everything += rows
        if split == "train":
            rows = [*rows, rows[2], {**rows[0], "id": 10**7, "caption": ""}]
        write_json(root / "origin" / f"{split}.json", rows)
        write_json(root / "origin" / f"CapDsc_mistral_{split}.json", told)
    write_json(root / "origin" / "data.json", everything)


def _goodnews(root: Path, splits: dict[str, list[tuple[int, Pair]]]) -> None:
    articles: dict[str, Any] = {}
    split_of, unfit = {}, []
    for split, pairs in splits.items():
        rows, told = [], {}
        missing, broken = _lost(split, pairs)
        for number, pair in pairs:
            article, ix = f"{number // 2:024x}", number % 2
            image_id, words = f"{article}_{ix}", pair.caption.split()
            path = root / "resized" / f"{image_id}.jpg"
            if number != missing:
                _save(path, number, pair)
            if number == broken:
                path.write_bytes(path.read_bytes()[:999])
                unfit.append(f"{AUTHORS}/goodnews/{path.name}")
            caption = f"{' '.join(words[:3])}\r\n{' '.join(words[3:])}\r\n"
            images = articles.setdefault(
                article, {"images": {}, "headline": {"main": "A headline"}}
            )
            images["images"][str(ix)] = caption
            split_of[image_id] = split
            rows.append({"image_id": image_id, "captioning": caption, "title": "A headline"})
            told[image_id] = pair.explanation
        if split == "train":
            rows.append({**rows[1], "captioning": rows[1]["captioning"]})
        write_json(root / f"new_goodnews_capim_{split}.json", rows)
        name = f"New_Corr_CapDsc_mistral_{split}.json"
        write_json(root / "train_cap_individual" / name, told)
    write_json(root / "captioning_dataset.json", articles)
    write_json(root / "img_splits.json", split_of)
    (root / "broken_images.txt").write_text("".join(f"{line}\r\n" for line in unfit))


# of each the outlet that its pictures are from, and what writes its layout
_ARCHIVES = {
    "n24news": ("newsroom", _n24news),
    "visualnews": ("newsroom-b", _visualnews),
    "goodnews": ("newsroom", _goodnews),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=300, help="an archive")
    options = parser.parse_args()
    for name, root in draw_archives(options.folder, pairs=options.pairs).items():
        print(f"{name}: {root}")


if __name__ == "__main__":
    main()
