"""Search pictures by text or by picture: a collection with its vectors, and pages of hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from entityclip.datasets.decode import ImageError
from entityclip.datasets.pair import Pair
from entityclip.embedding import EmbedReport, embed
from entityclip.encoder import load_encoder
from entityclip.picture_sources import Images, Source, key_of, list_pictures, load
from entityclip.search_index import nearest
from entityclip.vectors import Vectors

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
