"""Search pictures by text or by picture: a collection with its vectors, and pages of hits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from entityclip.datasets.pair import ImageError, Pair
from entityclip.search.embedding import (
    EmbedReport,
    Images,
    Source,
    Vectors,
    embed,
    key_of,
    list_pictures,
    load,
    load_encoder,
)

Floats = NDArray[np.floating]


Found = tuple[NDArray[np.float32], NDArray[np.int64]]


_SCORES_AT_ONCE = 2**21  # 8 MiB: the scores of a chunk stay in a CPU's cache


_ROWS_AT_ONCE = (2**10, 2**15)  # of the vectors: fewer waste calls, more waste memory


_QUERIES_AT_ONCE = 1024


_SPARE = 32  # candidates beyond the k best; their exact scores decide near ties


# Rounding of a float32 dot product of width d: about sqrt(d) units of 2**-24 (Higham and Mary
# 2019, SIAM J. Sci. Comput. 41(5), theorem 3.1), with room to spare
_ROUNDING = 4 * 2.0**-24


def nearest(queries: Floats, vectors: Floats, k: int, *, engine: str = "exact") -> Found:
    """The k vectors of largest dot product with each query (cosine, where both are normalised).

    queries [Q, d] and vectors [N, d] are floating-point arrays, the vectors a memmap as a rule:
    they are read in chunks, so memory grows with Q·k and not with N. engine "exact" multiplies and
    selects; "faiss" uses FAISS's IndexFlatIP kernel and needs ``pip install entityclip[faiss]``.

    Returns scores float32 [Q, k], largest first, and indices int64 [Q, k]. Both engines give the
    same: what either finds is scored again in float64 and rounded, and of equal scores the lower
    index comes first. Raises ValueError for shapes that do not fit, a k outside 1 … N, an unknown
    engine and values that are NaN or infinite; ImportError where FAISS is not installed.
    """
    _check(queries, vectors, k)
    if engine not in _ENGINES:
        raise ValueError(f"no search engine {engine!r}; there are {', '.join(_ENGINES)}")
    best_of = _ENGINES[engine]
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if not np.isfinite(queries).all():
        row = int(np.argwhere(~np.isfinite(queries))[0, 0])
        raise ValueError(f"query {row} holds NaN or infinite values")
    scores = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        found = _candidates(queries[rows], vectors, min(len(vectors), k + _SPARE), best_of)
        for row, (rough, places) in enumerate(zip(*found, strict=True), start):
            scores[row], indices[row] = _settled(queries[row], vectors, k, rough, places)
    return scores, indices


def _candidates(
    queries: NDArray[np.float32], vectors: Floats, wanted: int, best_of: Callable[..., Found | None]
) -> Found:
    """The `wanted` best by an engine's float32 scores, chunk after chunk: [Q, wanted], [Q, wanted].

    Largest first; equal scores in any order.
    """
    least, most = _ROWS_AT_ONCE
    size = min(most, max(least, _SCORES_AT_ONCE // len(queries)))
    scores = np.empty((len(queries), 0), dtype=np.float32)
    places = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(vectors), size):
        chunk = np.ascontiguousarray(vectors[start : start + size], dtype=np.float32)
        found = best_of(queries, chunk, min(wanted, len(chunk)))
        if found is None:
            _name_broken(chunk, start)
        more, rows = found
        scores = np.concatenate([scores, more], axis=1)
        places = np.concatenate([places, rows + start], axis=1)
        order = np.argsort(-scores, axis=1)[:, :wanted]
        scores, places = (np.take_along_axis(found, order, axis=1) for found in (scores, places))
    return scores, places


def _settled(
    query: NDArray[np.float32],
    vectors: Floats,
    k: int,
    rough: NDArray[np.float32],
    places: NDArray[np.int64],
) -> Found:
    """The k best of one query's candidates (rough scores, largest first), by their exact scores.

    Where rounding could have kept one of the best from being a candidate (more near ties than
    spare candidates), all vectors are scored exactly.
    """
    places = np.sort(places)
    found = vectors[places]
    scores = _exact_scores(query, found)
    best = np.argsort(-scores, kind="stable")[:k]
    longest = np.linalg.norm(np.asarray(found, dtype=np.float64), axis=1).max()
    slack = _ROUNDING * len(query) ** 0.5 * float(np.linalg.norm(query)) * longest
    if len(places) < len(vectors) and rough[-1] + slack >= scores[best[-1]]:
        least, _ = _ROWS_AT_ONCE
        starts = range(0, len(vectors), least)
        every = [_exact_scores(query, vectors[start : start + least]) for start in starts]
        places, scores = np.arange(len(vectors)), np.concatenate(every)
        best = np.argsort(-scores, kind="stable")[:k]
    return scores[best], places[best]


def _exact_scores(query: NDArray[np.float32], vectors: Floats) -> NDArray[np.float32]:
    """Dot products [n] in float64, rounded; equal vectors get equal scores wherever they stand."""
    products = np.multiply(vectors, query, dtype=np.float64)  # [n, d]
    return products.sum(axis=1).astype(np.float32)


# -------------------------------------------------------------------------------------- engines


def _exact_best(queries: NDArray[np.float32], chunk: NDArray[np.float32], k: int) -> Found | None:
    """The k best of a chunk, largest first; None where a value is NaN or infinite."""
    scores = _products(queries, chunk)
    if not torch.isfinite(scores.sum()):
        return None
    best = scores.topk(k, dim=1)
    return best.values.numpy(), best.indices.numpy()


def _products(queries: NDArray[np.float32], chunk: NDArray[np.float32]) -> Tensor:
    """Dot products [Q, n]: one query's with NumPy, more with PyTorch, as each is the faster.

    PyTorch's BLAS (MKL) takes one core for matrix times vector, NumPy's (OpenBLAS) all of them.
    """
    if len(queries) == 1:
        with np.errstate(all="ignore"):  # what overflows is found by the sum, and named
            return torch.from_numpy(queries @ chunk.T)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # it is only read
        return torch.from_numpy(queries) @ torch.from_numpy(chunk).T


def _faiss_best(queries: NDArray[np.float32], chunk: NDArray[np.float32], k: int) -> Found | None:
    """`_exact_best` by FAISS, which would quietly leave out what is not a number."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "engine 'faiss' needs faiss-cpu: pip install 'entityclip[faiss]'; "
            "engine 'exact' needs nothing and finds the same"
        ) from error
    if not np.isfinite(chunk.sum(dtype=np.float64)):
        return None
    return faiss.knn(queries, chunk, k, metric=faiss.METRIC_INNER_PRODUCT)


_ENGINES: dict[str, Callable[..., Found | None]] = {"exact": _exact_best, "faiss": _faiss_best}


# --------------------------------------------------------------------------------------- errors


def _check(queries: Floats, vectors: Floats, k: int) -> None:
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


def _name_broken(chunk: NDArray[np.float32], start: int) -> NoReturn:
    broken = np.argwhere(~np.isfinite(chunk))
    which = f"vector {start + int(broken[0, 0])}" if len(broken) else "a product of huge values"
    raise ValueError(f"{which} is NaN or infinite; embed it again or leave it out")


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

    encoder: nn.Module
    pictures: dict[str, Source]
    vectors: Vectors
    report: EmbedReport
    captions: dict[str, tuple[Pair, str]] = field(default_factory=dict)
    engine: str = "exact"  # of `nearest`

    @classmethod
    def build(
        cls,
        checkpoint: str | Path | nn.Module,
        images: Images | Sequence[Pair],
        *,
        model: str | None = None,
        cache: str | Path | None = None,
        engine: str = "exact",
        progress: bool = True,
    ) -> Collection:
        """Embed pictures, of pairs each distinct one once; arguments are those of `embed`.

        Raises ValueError where no picture can be read, and as `embed` does.
        """
        encoder = load_encoder(checkpoint, model) if isinstance(checkpoint, (str, Path)) else None
        encoder = checkpoint if encoder is None else encoder
        captions: dict[str, tuple[Pair, str]] = {}
        if not isinstance(images, (str, Path)) and len(images) and isinstance(images[0], Pair):
            first: dict[str, str] = {}  # picture key -> id of the pair that first shows it
            captions = {p.id: (p, first.setdefault(p.image_key, p.id)) for p in images}
            images = {name: captions[name][0].image for name in first.values()}
        found = embed(encoder, images, cache=cache, progress=progress)
        if not len(found.images):
            raise ValueError(f"there is no picture to search: {found.report}")
        sources = list_pictures(images).pictures
        pictures = {name: sources[name] for name in found.images.ids}
        return cls(encoder, pictures, found.images, found.report, captions, engine)

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
        vector = self._vector(query)
        scores, rows = nearest(vector, self.vectors.values, wanted, engine=self.engine)
        true = self.captions[query.id][1] if isinstance(query, Pair) else None
        places = range(page * per_page, wanted)
        names = [self.vectors.ids[rows[0, place]] for place in places]
        hits = [
            Hit(place + 1, float(scores[0, place]), name, name == true)
            for place, name in zip(places, names, strict=True)
        ]
        return Page(query, hits, page, pages)

    def rank(self, pair: Pair) -> int:
        """The place of a pair's own picture for its caption; equal scores count against it."""
        true = self.vectors.ids.index(self.captions[pair.id][1])
        scores = self.vectors.values @ self._vector(pair)[0]
        return int((scores >= scores[true]).sum())

    def picture(self, name: str) -> Image.Image:
        """A picture of the collection in RGB. Raises ImageError naming it."""
        source = self.pictures[name]
        try:
            return load(source, key_of(source)[1])
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def _vector(self, query: Query) -> np.ndarray:
        """The query's vector [1, d]."""
        if isinstance(query, Pair):
            query = query.caption
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty; write what the picture should show")
            return embed(self.encoder, texts=[query], progress=False).texts.values
        found = embed(self.encoder, [query], progress=False)
        if not len(found.images):
            (problem,) = found.report.unreadable.values()
            raise ImageError(f"cannot read the picture to search by: {problem}")
        return found.images.values
