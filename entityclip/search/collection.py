"""Search pictures by text or by picture: the nearest vectors, a collection, and pages of hits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from entityclip.datasets.pair import ImageError, Pair
from entityclip.models.clip import Backbone
from entityclip.models.encoder import load_encoder
from entityclip.search.embedding import EmbedReport, Vectors, embed
from entityclip.search.sources import Images, Source, list_pictures, read_picture

Floats = NDArray[np.floating]
Scores = NDArray[np.float32]

_ROWS_AT_ONCE = 2**17  # of the vectors: few products, on which threads need to meet
_EXACT_AT_ONCE = 2**12  # vectors scored in float64
_SCORES_AT_ONCE = 2**26  # 256 MiB: of as many queries as that allows, and of one at least

# Rounding of a float32 dot product of width d: about sqrt(d) units of 2**-24 (Higham and Mary
# 2019, SIAM J. Sci. Comput. 41(5), theorem 3.1), with room to spare
_ROUNDING = 4 * 2.0**-24


def nearest(queries: Floats, vectors: Floats, k: int) -> tuple[Scores, NDArray[np.int64]]:
    """The k vectors of largest dot product with each query (cosine, where both are normalised).

    queries [Q, d] and vectors [N, d] are floating-point arrays, the vectors a memmap as a rule:
    they are read in chunks, and memory holds N scores of a query. Returns scores float32 [Q, k],
    largest first, and indices int64 [Q, k]: exactly what sorting all float64 products, rounded,
    would give; of equal scores the lower index comes first.

    Raises ValueError for shapes that do not fit, a k outside 1 … N, and NaN or infinite values.
    """
    _check(queries, vectors, k)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)
    for row, rough in enumerate(_rough_scores(queries, vectors)):
        scores[row], indices[row] = _best(queries[row], vectors, rough, k)
    return scores, indices


def _rough_scores(queries: Scores, vectors: Floats) -> Iterator[Scores]:
    """Each query's float32 dot products [N] with all vectors."""
    at_once = max(1, _SCORES_AT_ONCE // len(vectors))
    for first in range(0, len(queries), at_once):
        part = queries[first : first + at_once]
        scores = np.empty((len(part), len(vectors)), dtype=np.float32)
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            chunk = np.ascontiguousarray(vectors[start : start + _ROWS_AT_ONCE], dtype=np.float32)
            found = scores[:, start : start + len(chunk)]
            with np.errstate(all="ignore"):  # what overflows is named
                np.matmul(part, chunk.T, out=found)
                finite = np.isfinite(found.sum(dtype=np.float64))
            if not finite:
                broken = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
                which = f"vector {start + broken[0]}" if len(broken) else "a product of huge values"
                raise ValueError(f"{which} is NaN or infinite; embed it again or leave it out")
        yield from scores


def _best(
    query: Scores, vectors: Floats, rough: Scores, k: int
) -> tuple[Scores, NDArray[np.int64]]:
    """The k best of one query: whatever rounding could have put among them is scored exactly."""
    top = np.argpartition(rough, len(rough) - k)[-k:]
    longest = np.linalg.norm(np.asarray(vectors[np.sort(top)], dtype=np.float64), axis=1).max()
    slack = 2 * _ROUNDING * len(query) ** 0.5 * float(np.linalg.norm(query)) * longest
    places = np.flatnonzero(rough >= rough[top].min() - slack)
    exact = []
    for start in range(0, len(places), _EXACT_AT_ONCE):
        found = vectors[places[start : start + _EXACT_AT_ONCE]]
        # not a matrix product: equal vectors get equal scores wherever they stand
        products = np.multiply(found, query, dtype=np.float64)
        exact.append(products.sum(axis=1).astype(np.float32))
    scores = np.concatenate(exact)
    best = np.argsort(-scores, kind="stable")[:k]
    return scores[best], places[best]


def _check(queries: Floats, vectors: Floats, k: int) -> None:
    """Raise ValueError for arguments of `nearest` that cannot be searched."""
    for name, array in (("queries", queries), ("vectors", vectors)):
        if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind != "f":
            raise ValueError(
                f"{name} are {array.dtype} of shape {array.shape}; expected floats [rows, d]"
            )
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"queries are {queries.shape[1]} wide and vectors {vectors.shape[1]}; "
            "both must come from one joint space"
        )
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k is {k}; give 1 to {len(vectors)}, the number of vectors")
    broken = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if len(broken):
        raise ValueError(f"query {broken[0]} holds NaN or infinite values")


# ----------------------------------------------------------------------------------- collection

Query = str | Pair | Path | Image.Image


class Hit(NamedTuple):
    """A picture that was found: its place (1 is best), cosine, id, and whether it is the pair's."""

    place: int
    score: float
    id: str
    true: bool


@dataclass(frozen=True)
class Page:
    """Some consecutive hits of a query, page `number` of `pages`, counted from 0."""

    query: Query
    hits: list[Hit]
    number: int
    pages: int


@dataclass(frozen=True)
class Collection:
    """Distinct pictures with their vectors, searched by cosine in a CLIP's joint space.

    `captions` holds what is known to be said of a picture: by pair id, the pair and its picture's
    id.
    """

    encoder: Backbone
    pictures: dict[str, Source]
    vectors: Vectors
    report: EmbedReport
    captions: dict[str, tuple[Pair, str]]

    @classmethod
    def build(
        cls,
        checkpoint: str | Path | nn.Module,
        images: Images,
        *,
        model: str | None = None,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> Collection:
        """Embed pictures, of pairs each distinct one once; arguments are those of `embed`.

        Raises ValueError where no picture can be read, and as `embed` does.
        """
        encoder = load_encoder(checkpoint, model)
        captions: dict[str, tuple[Pair, str]] = {}
        in_order = not isinstance(images, (str, Path, Mapping))
        if in_order and len(images) and isinstance(images[0], Pair):
            first: dict[str, str] = {}  # picture key -> id of the pair that first shows it
            captions = {p.id: (p, first.setdefault(p.image_key, p.id)) for p in images}
            images = {name: captions[name][0].image for name in first.values()}
        sources, left_out = list_pictures(images)
        found = embed(encoder, sources, cache=cache, progress=progress)
        found.report.left_out = left_out
        if not len(found.images):
            raise ValueError(f"there is no picture to search: {found.report}")
        pictures = {name: sources[name] for name in found.images.ids}
        return cls(encoder, pictures, found.images, found.report, captions)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, query: Query, *, page: int = 0, per_page: int = 12) -> Page:
        """A page of the pictures nearest to a text, a pair's caption, a picture or its file.

        Raises ValueError for an empty text and a page that is not there, ImageError for a picture
        that cannot be read.
        """
        pages = -(-len(self) // per_page)
        if not 0 <= page < pages:
            raise ValueError(f"page {page} is not there; {len(self)} pictures make {pages} pages")
        wanted = min(len(self), (page + 1) * per_page)
        (scores,), (rows,) = nearest(self._vector(query), self.vectors.values, wanted)
        true = self.captions[query.id][1] if isinstance(query, Pair) else None
        names = [self.vectors.ids[row] for row in rows]
        hits = [Hit(n + 1, float(scores[n]), names[n], names[n] == true) for n in range(wanted)]
        return Page(query, hits[page * per_page :], page, pages)

    def picture(self, name: str) -> Image.Image:
        """A picture of the collection in RGB. Raises ImageError naming it."""
        try:
            _, load = read_picture(self.pictures[name])
            return load()
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def _vector(self, query: Query) -> np.ndarray:
        """The query's vector [1, d]."""
        text = query.caption if isinstance(query, Pair) else query
        if isinstance(text, str):
            if not text.strip():
                raise ValueError("the query is empty; write what the picture should show")
            return embed(self.encoder, texts=[text], progress=False).texts.values
        found = embed(self.encoder, [query], progress=False)
        if not len(found.images):
            (problem,) = found.report.unreadable.values()
            raise ImageError(f"cannot read the picture to search by: {problem}")
        return found.images.values
