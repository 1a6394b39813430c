"""A small collection to search."""

import pytest

from entityclip.datasets import load_pairs
from entityclip.search.collection import Collection


@pytest.fixture(scope="session")
def pairs():
    """Forty pairs: eight pictures with five captions each."""
    return load_pairs("newsroom", "captions_test", limit=40, image_size=64)


@pytest.fixture(scope="session")
def collection(backbone, pairs):
    return Collection.build(backbone, pairs, progress=False)
