"""The shape of a joint embedding space: alignment, uniformity and its flattest view (PCA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from entityclip.evaluation import Embeddings

_CHUNK = 1024  # rows of the similarity matrix held at a time


def alignment(images: Tensor, texts: Tensor, alpha: float = 2) -> float:
    """Mean ‖image − text‖^α of true pairs (Wang & Isola 2020, equation 4); lower is closer.

    `images` and `texts` [N, d], row by row a pair, normalised. Raises ValueError for other shapes.
    """
    if images.shape != texts.shape or images.ndim != 2 or not len(images):
        raise ValueError(
            f"alignment needs pairs [N, d], got {list(images.shape)} and {list(texts.shape)}"
        )
    return (images - texts).norm(dim=1).pow(alpha).mean().item()


def uniformity(x: Tensor, t: float = 2) -> float:
    """log of the mean exp(−t‖x_i − x_j‖²) over pairs i < j (Wang & Isola 2020, equation 5).

    `x` [N, d], normalised; lower is more even, 0 means a single point. Raises ValueError for fewer
    than two rows.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"uniformity needs at least two rows [N, d], got {list(x.shape)}")
    x, total = x.double(), 0.0
    for start in range(0, len(x), _CHUNK):
        near = torch.exp(-t * torch.cdist(x[start : start + _CHUNK], x).square())
        total += near.triu(diagonal=start + 1).sum().item()
    return float(torch.tensor(total / (len(x) * (len(x) - 1) / 2)).log())


class Plane(NamedTuple):
    """A space seen in two dimensions, with what that view keeps and the space's own numbers.

    `points`: a row a caption and a row a picture, with `kind` ("caption" or "picture"), `pair`
    (the number of the picture both belong to), `x`, `y` and `label`; `explained` the two axes'
    shares of the variance.
    """

    points: pd.DataFrame
    explained: tuple[float, float]
    alignment: float
    uniformity_images: float
    uniformity_texts: float


def plane(embeddings: Embeddings, labels: Sequence[str | None]) -> Plane:
    """Pictures and captions of a split on their first two principal components.

    `labels` holds one a caption; a picture takes that of the first pair that shows it. Raises
    ValueError for another number of labels and for fewer than two pictures.
    """
    from sklearn.decomposition import PCA  # slow to import, and only figures need it

    texts, images = embeddings.texts.float().cpu(), embeddings.images.float().cpu()
    if len(labels) != len(texts):
        raise ValueError(f"{len(labels)} labels for {len(texts)} captions")
    if len(images) < 2:
        raise ValueError(f"{len(images)} picture(s) span no plane")
    pca = PCA(n_components=2, svd_solver="full").fit(torch.cat([texts, images]).numpy())
    of = embeddings.image_of.cpu()
    sides = {
        "caption": (texts, of.tolist(), list(labels)),
        "picture": (images, range(len(images)), [labels[i] for i in embeddings.first.tolist()]),
    }
    points = [
        pd.DataFrame(pca.transform(x.numpy()), columns=["x", "y"]).assign(
            kind=kind, pair=list(pair), label=[name or "" for name in named]
        )
        for kind, (x, pair, named) in sides.items()
    ]
    return Plane(
        pd.concat(points, ignore_index=True)[["kind", "pair", "label", "x", "y"]],
        tuple(map(float, pca.explained_variance_ratio_)),
        alignment(images[of], texts),
        uniformity(images),
        uniformity(texts),
    )
