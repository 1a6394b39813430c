"""Zero-shot news sections (EntityCLIP's news classification): which section is a picture from?

Each section is described by an ensemble of prompts whose text embeddings are averaged and
renormalised (CLIP, Radford et al. 2021, section 3.1.4); a picture belongs to the section whose
embedding is nearest. No label is learnt from: sections come from the data, N24News' 24 or the drawn
newsroom's scenes. Only the two CLIP towers run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from entityclip.datasets.dataset import PairDataset
from entityclip.datasets.pair import Pair
from entityclip.evaluation.retrieval import encode_pairs, evaluating
from entityclip.models.entityclip import EntityCLIP
from entityclip.statistics import interval
from entityclip.variants import TEMPLATES


def section_embeddings(
    model: EntityCLIP, sections: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """A normalised embedding [K, d] of each section: its prompts' mean, renormalised.

    Every prompt counts the same, since its embedding is normalised before the mean. Raises
    ValueError for no templates and for one without ``{section}``.
    """
    lacking = [template for template in templates if "{section}" not in template]
    if lacking or not templates:
        raise ValueError(f"a prompt template needs {{section}} in it; got {list(templates)}")
    prompts = [template.format(section=name) for name in sections for template in templates]
    with evaluating(model) as device:
        embedded = model.encode_text(model.backbone.tokenize(prompts).to(device)).float()
    return F.normalize(embedded.view(len(sections), len(templates), -1).mean(1), dim=-1)


def predict_sections(images: Tensor, sections: Tensor, truth: Tensor) -> Tensor:
    """The nearest section of each picture: images [N, d], sections [K, d], truth [N] → [N].

    A true section that another one ties with is not found, so that a model which says the same of
    every section scores nothing.
    """
    similarity = images @ sections.T
    rows = torch.arange(len(truth), device=similarity.device)
    truth = truth.to(similarity.device)
    of_truth = similarity[rows, truth]
    others = similarity.index_put((rows, truth), similarity.new_tensor(-torch.inf))
    best, found = others.max(1)
    return torch.where(of_truth > best, truth, found).cpu()


def class_counts(
    weights: NDArray[Any], true: NDArray[np.int64], predicted: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hits, true members and predictions of each of k classes, in each of R resamples: [R, k] each.

    `weights` [R, N] is how often each resample holds each pair; `true` and `predicted` [N] hold
    classes. A class's F1 is 2 · hits / (members + predictions).
    """
    one_hot = np.eye(k)
    of_true, of_predicted = one_hot[true], one_hot[predicted]
    return weights @ (of_true * of_predicted), weights @ of_true, weights @ of_predicted


@dataclass(frozen=True)
class SectionResult:
    """N pairs of K sections: `truth` and `predicted` [N] number `sections`; `pictures` [N]."""

    sections: tuple[str, ...]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    pictures: NDArray[np.int64]  # equal where pairs show one picture, and so are not independent

    def confusion(self) -> NDArray[np.int64]:
        """Counts [K, K]; rows are true sections, columns predicted ones."""
        k = len(self.sections)
        return np.bincount(self.truth * k + self.predicted, minlength=k * k).reshape(k, k)

    def metrics(self) -> dict[str, float]:
        """Accuracy, macro-F1 and each section's F1, in percent."""
        names = ("accuracy", "macro_f1", *(f"f1/{name}" for name in self.sections))
        values = self._measure(np.ones((1, len(self.truth)))).ravel().tolist()
        return dict(zip(names, values, strict=True))

    def intervals(self, n_resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % percentile bootstrap intervals of `metrics`; whole pictures are drawn.

        A section that a resample holds no pair of, true or predicted, does not count there. Raises
        ValueError for fewer than 2 pictures.
        """
        cells = self.truth * len(self.sections) + self.predicted
        ends = interval(cells, self.pictures, self._measure, n_resamples=n_resamples, seed=seed)
        pairs = zip(*(end.tolist() for end in ends), strict=True)
        return dict(zip(self.metrics(), pairs, strict=True))

    def _measure(self, weights: NDArray[Any], _: Any = None) -> NDArray[np.float64]:
        """`metrics` of resamples: weights [R, N], how often each holds a pair → [R, K + 2, 1]."""
        hits, true, found = class_counts(weights, self.truth, self.predicted, len(self.sections))
        counted = true + found
        f1 = np.divide(200 * hits, counted, out=np.full_like(hits, np.nan), where=counted > 0)
        accuracy = 100 * hits.sum(1) / weights.sum(1)
        return np.stack([accuracy, np.nanmean(f1, axis=1), *f1.T], axis=1)[..., None]


def classify_sections(
    model: EntityCLIP,
    dataset: PairDataset,
    *,
    templates: Sequence[str] = TEMPLATES,
    progress: bool = True,
) -> SectionResult:
    """Ask for each picture of `dataset` which of its sections it is from.

    Raises ValueError for pairs without a section and for fewer than two sections.
    """
    sections = section_names(dataset.pairs)
    truth = torch.tensor([sections.index(str(pair.section)) for pair in dataset.pairs])
    embedded = encode_pairs(model, dataset, progress=progress)
    prompts = section_embeddings(model, sections, templates)
    image_of = embedded.image_of
    images = embedded.images[image_of.to(embedded.images.device)]
    predicted = predict_sections(images, prompts, truth)
    return SectionResult(sections, truth.numpy(), predicted.numpy(), image_of.numpy())


def section_names(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The sections of some pairs by alphabet.

    Raises ValueError for pairs without a section and for fewer than two sections.
    """
    lacking = [pair.id for pair in pairs if not pair.section]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs have no section, the first is {lacking[0]!r}; "
            "sections can be told apart only where the data name them"
        )
    names = tuple(sorted({str(pair.section) for pair in pairs}))
    if len(names) < 2:
        raise ValueError(f"the pairs have {len(names)} section {list(names)}; telling needs two")
    return names
