"""An exported model scored by MTEB on a retrieval task made of your own files, beside ours.

    python -m benchmarks.mteb_task EXPORTED photos --split test

EXPORTED is what ``entityclip export … --format transformers`` wrote, photos a folder as ``--data``
takes. MTEB (``pip install mteb``, no part of the lock) loads it by its own wrapper of
transformers' CLIP and ranks the pictures for each caption; nothing is fetched. Printed as Markdown:
MTEB's recall beside `evaluate_retrieval`'s, which must agree, and its main score.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import datasets
import mteb
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.model_implementations.clip_models import CLIPModel

from entityclip.config import EntityCLIPConfig
from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import PairDataset
from entityclip.evaluation.retrieval import evaluate_embeddings
from entityclip.models.encoder import load_encoder
from entityclip.models.entityclip import EntityCLIP
from entityclip.variants import NO_EXPERTS

AT = (1, 5, 10)


class OwnPictures(AbsTaskRetrieval):
    """Captions that ask for their pictures."""

    metadata = TaskMetadata(
        name="OwnPictures", description="Captions of a folder ask for its pictures.",
        reference=None, dataset={"path": "local", "revision": "1"}, type="Any2AnyRetrieval",
        category="t2i", modalities=["text", "image"], eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score="ndcg_at_10", date=("2000-01-01", "2030-01-01"),
        domains=["Written"], task_subtypes=["Image Text Retrieval"], license=None,
        annotations_creators="human-annotated", dialect=[], sample_creation="found",
        bibtex_citation="",
    )  # fmt: skip

    def __init__(self, pairs: Any, folder: Path):
        super().__init__()
        self.pairs = pairs

    def load_data(self, *_: Any, **__: Any) -> None:
        """The pairs as MTEB wants them: a corpus, queries, and which belongs to which."""
        keys = list(dict.fromkeys(pair.image_key for pair in self.pairs))
        images = {pair.image_key: pair.load_image() for pair in self.pairs}
        corpus = datasets.Dataset.from_dict(
            {"id": keys, "image": [images[key] for key in keys]},
            features=datasets.Features(id=datasets.Value("string"), image=datasets.Image()),
        )
        names = [f"q{n}" for n in range(len(self.pairs))]
        texts = [pair.caption for pair in self.pairs]
        right = {n: {p.image_key: 1} for n, p in zip(names, self.pairs, strict=True)}
        queries = datasets.Dataset.from_dict({"id": names, "text": texts})
        whole = {"corpus": corpus, "queries": queries, "relevant_docs": right, "top_ranked": None}
        self.dataset = {"default": {"test": whole}}
        self.data_loaded = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    pairs = load_pairs("folder", options.split, root=options.data)

    model = CLIPModel(str(options.exported), revision=None)
    model.mteb_model_meta = ModelMeta.create_empty(
        {"name": f"local/{options.exported.name}", "modalities": ["image", "text"]}
    )
    task = OwnPictures(pairs, options.data)
    result = mteb.evaluate(model, task, cache=None, overwrite_strategy="always")
    (theirs,) = result.task_results[0].scores["test"]

    backbone = load_encoder(options.exported)
    ours = EntityCLIP(backbone, EntityCLIPConfig(**NO_EXPERTS)).eval()
    served = PairDataset(pairs, backbone.preprocess, backbone.tokenize)
    found = evaluate_embeddings(ours, served, progress=False).metrics()["text_to_image"]

    print(f"\n{len(pairs)} captions, mteb {mteb.__version__}\n")
    print("| | mteb | entityclip |\n|---|--:|--:|")
    for k in AT:
        both = f"{100 * theirs[f'recall_at_{k}']:.1f} | {found[f'R@{k}']:.1f}"
        print(f"| text to picture, R@{k} (%) | {both} |")
    print(f"| nDCG@10 | {theirs['ndcg_at_10']:.3f} | |")


if __name__ == "__main__":
    main()
