"""Nearest vectors: the literal full sort, ties, chunks, memmaps, both engines, bad input."""

import runpy
import sys

import numpy as np
import pytest

from entityclip.search import collection
from entityclip.search.collection import nearest


def engines():
    yield "exact"
    yield pytest.param("faiss", marks=pytest.mark.skipif(not has_faiss(), reason="no faiss"))


def has_faiss():
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def unit(rng, n, d=24):
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def literal(queries, vectors, k):
    """Sort all, one query at a time: largest first, of equal scores the lower index."""
    scores, indices = [], []
    for query in queries.astype(np.float64):
        s = np.array([np.dot(query, vector) for vector in vectors.astype(np.float64)])
        s = s.astype(np.float32)
        order = np.lexsort((np.arange(len(s)), -s))[:k]
        scores.append(s[order])
        indices.append(order)
    return np.array(scores), np.array(indices)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(collection, "_ROWS_AT_ONCE", (64, 100))
    monkeypatch.setattr(collection, "_SCORES_AT_ONCE", 100 * 7)
    monkeypatch.setattr(collection, "_QUERIES_AT_ONCE", 9)


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_equals_the_literal_sort(small_chunks, engine, dtype):
    rng = np.random.default_rng(0)
    queries, vectors = unit(rng, 25), unit(rng, 731).astype(dtype)
    scores, indices = nearest(queries, vectors, 10, engine=engine)
    expected_scores, expected = literal(queries, vectors, 10)
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("copies", [3, 200])  # fewer and more than the spare candidates
def test_of_equal_vectors_the_lower_index_comes_first(small_chunks, engine, copies):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 600)
    places = np.sort(rng.permutation(600)[:copies])
    vectors[places] = vectors[places[0]]
    queries = vectors[places[:1]] + 0.01 * unit(rng, 4)
    _, indices = nearest(queries, vectors, 8, engine=engine)
    first = places[: min(copies, 8)]
    for row in indices:
        assert row[: len(first)].tolist() == first.tolist()


@pytest.mark.parametrize("engine", engines())
def test_nearly_equal_vectors_are_told_apart(small_chunks, engine):
    # steps of one float32 unit in one place: below the rounding of a float32 product of width 24
    rng = np.random.default_rng(2)
    query = np.full((1, 24), 24**-0.5, dtype=np.float32)
    vectors = np.repeat(query, 500, axis=0)
    for row, steps in enumerate(rng.permutation(500)):
        vectors[row, 0] = vectors[row, 0] + steps * np.spacing(vectors[row, 0])
    scores, indices = nearest(query, vectors, 500, engine=engine)
    _, expected = literal(query, vectors, 500)
    np.testing.assert_array_equal(indices, expected)
    assert nearest(query, vectors, 5, engine=engine)[1].tolist() == expected[:, :5].tolist()
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("engine", engines())
def test_memmap_and_edges(tmp_path, engine):
    vectors = unit(np.random.default_rng(3), 50)
    path = tmp_path / "vectors.f32"
    vectors.tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=vectors.shape)
    scores, indices = nearest(vectors[:5], mapped, 50, engine=engine)
    assert indices[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert sorted(indices[0].tolist()) == list(range(50))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    assert [part.shape for part in nearest(vectors[:0], mapped, 3, engine=engine)] == [(0, 3)] * 2
    assert path.read_bytes() == vectors.tobytes()


@pytest.mark.filterwarnings("error")
def test_read_only_vectors_give_no_warning():
    vectors = unit(np.random.default_rng(4), 10)
    vectors.flags.writeable = False
    nearest(vectors[:1], vectors, 2)


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(small_chunks, engine, value):
    vectors = unit(np.random.default_rng(5), 300)
    queries = vectors[:3].copy()
    queries[2, 1] = value
    with pytest.raises(ValueError, match="query 2 holds NaN or infinite"):
        nearest(queries, vectors, 2, engine=engine)
    vectors[233, 0] = value
    for query in vectors[:3]:  # whatever the sign of the product
        with pytest.raises(ValueError, match="vector 233 is NaN or infinite"):
            nearest(query[None], vectors, 2, engine=engine)


def test_bad_input_is_refused():
    x = np.zeros((4, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="queries are 2 wide and vectors 3"):
        nearest(x[:, :2], x, 1)
    with pytest.raises(ValueError, match="queries are int64 of shape"):
        nearest(x.astype(np.int64), x, 1)
    with pytest.raises(ValueError, match="vectors are float32 of shape"):
        nearest(x, x[0], 1)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k}; give 1 to 4"):
            nearest(x, x, k)
    with pytest.raises(ValueError, match="no search engine 'annoy'; there are exact, faiss"):
        nearest(x, x, 1, engine="annoy")


def test_without_faiss_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    x = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(ImportError, match=r"pip install 'entityclip\[faiss\]'"):
        nearest(x, x, 1, engine="faiss")


def test_exact_search_does_not_import_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # to import it is an error now
    anew = runpy.run_path(collection.__file__)["nearest"]
    x = np.eye(3, dtype=np.float32)
    assert anew(x, x, 1)[1].tolist() == [[0], [1], [2]]


def test_both_engines_agree_at_ten():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(6)
    vectors = unit(rng, 20_000, 64)
    vectors[10_000:10_200] = vectors[:200]  # ties
    queries = vectors[:50] + 0.1 * unit(rng, 50, 64)
    for ours, theirs in zip(
        nearest(queries, vectors, 10), nearest(queries, vectors, 10, engine="faiss"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
