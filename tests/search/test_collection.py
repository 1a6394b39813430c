"""Search: the nearest vectors as a literal full sort finds them, and pages of them."""

import numpy as np
import pytest
import torch

from entityclip.datasets.pair import ImageError
from entityclip.search import collection as searching
from entityclip.search.collection import Collection, nearest
from entityclip.search.explorer import plot_page
from tests.fixtures.pictures import save


def unit(rng, n, d=24):
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def literal(queries, vectors, k):
    """Sort all, one query at a time: largest first, of equal scores the lower index."""
    scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(searching, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(searching, "_EXACT_AT_ONCE", 5)
    monkeypatch.setattr(searching, "_SCORES_AT_ONCE", 7 * 731)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_nearest_equals_the_literal_sort(small_chunks, dtype):
    rng = np.random.default_rng(0)
    queries, vectors = unit(rng, 25), unit(rng, 731).astype(dtype)
    scores, indices = nearest(queries, vectors, 10)
    expected = literal(queries, vectors, 10)
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize("copies", [3, 200])  # fewer and more than are asked for
def test_of_equal_vectors_the_lower_index_comes_first(small_chunks, copies):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 600)
    places = np.sort(rng.permutation(600)[:copies])
    vectors[places] = vectors[places[0]]
    queries = vectors[places[:1]] + 0.01 * unit(rng, 4)
    _, indices = nearest(queries, vectors, 8)
    first = places[: min(copies, 8)]
    for row in indices:
        assert row[: len(first)].tolist() == first.tolist()


def test_nearly_equal_vectors_are_told_apart(small_chunks):
    # steps of one float32 unit in one place: below the rounding of a float32 product of width 24
    rng = np.random.default_rng(2)
    query = np.full((1, 24), 24**-0.5, dtype=np.float32)
    vectors = np.repeat(query, 500, axis=0)
    for row, steps in enumerate(rng.permutation(500)):
        vectors[row, 0] = vectors[row, 0] + steps * np.spacing(vectors[row, 0])
    scores, indices = nearest(query, vectors, 500)
    _, expected = literal(query, vectors, 500)
    np.testing.assert_array_equal(indices, expected)
    assert nearest(query, vectors, 5)[1].tolist() == expected[:, :5].tolist()
    assert (np.diff(scores) <= 0).all()


@pytest.mark.filterwarnings("error")  # what is only read need not be writable
def test_a_memmap_and_edges(tmp_path):
    vectors = unit(np.random.default_rng(3), 50)
    path = tmp_path / "vectors.f32"
    vectors.tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=vectors.shape)
    scores, indices = nearest(vectors[:5], mapped, 50)
    assert indices[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert sorted(indices[0].tolist()) == list(range(50))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    assert [part.shape for part in nearest(vectors[:0], mapped, 3)] == [(0, 3)] * 2
    assert path.read_bytes() == vectors.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(small_chunks, value):
    vectors = unit(np.random.default_rng(5), 300)
    queries = vectors[:3].copy()
    queries[2, 1] = value
    with pytest.raises(ValueError, match="query 2 holds NaN or infinite"):
        nearest(queries, vectors, 2)
    vectors[233, 0] = value
    for query in vectors[:3]:  # whatever the sign of the product
        with pytest.raises(ValueError, match="vector 233 is NaN or infinite"):
            nearest(query[None], vectors, 2)
    huge = np.full((2, 3), 1e30, np.float32)
    with pytest.raises(ValueError, match="a product of huge values is NaN or infinite"):
        nearest(huge, huge, 1)


X = np.zeros((4, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("queries", "vectors", "k", "says"),
    [
        (X[:, :2], X, 1, "queries are 2 wide and vectors 3"),
        (X.astype(np.int64), X, 1, "queries are int64 of shape"),
        (X, X[0], 1, "vectors are float32 of shape"),
        (X, X, 0, "k is 0; give 1 to 4"),
        (X, X, 5, "k is 5; give 1 to 4"),
    ],
)
def test_bad_input_is_refused(queries, vectors, k, says):
    with pytest.raises(ValueError, match=says):
        nearest(queries, vectors, k)


# ----------------------------------------------------------------------------------- collection


def test_a_collection_holds_each_picture_once(collection, pairs):
    assert len(collection) == len({pair.image_key for pair in pairs}) < len(pairs)
    for pair in pairs:
        shown = collection.captions[pair.id][0].image_key
        kept = collection.captions[collection.captions[pair.id][1]][0].image_key
        assert shown == kept


@torch.inference_mode()
def test_pages_are_the_ranking_cut_in_pieces(collection, backbone, pairs):
    text = backbone.encode_text(backbone.tokenize([pairs[3].caption]))[0].numpy()
    scores = collection.vectors.values @ (text / np.linalg.norm(text))
    order = np.argsort(-scores, kind="stable")
    expected = [collection.vectors.ids[row] for row in order]
    pages = [collection.search(pairs[3], page=page, per_page=3) for page in range(3)]
    assert {page.pages for page in pages} == {3}
    found = [hit for page in pages for hit in page.hits]
    assert [hit.id for hit in found] == expected
    assert [hit.place for hit in found] == list(range(1, len(collection) + 1))
    np.testing.assert_allclose([hit.score for hit in found], scores[order], atol=1e-5)
    (true,) = [hit for hit in found if hit.true]
    assert true.id == collection.captions[pairs[3].id][1]


def test_a_picture_finds_itself(collection, pairs):
    name = collection.vectors.ids[2]
    best = collection.search(collection.picture(name)).hits[0]
    assert (best.id, best.true) == (name, False)
    assert best.score == pytest.approx(1, abs=1e-5)


def test_a_folder_is_searched_by_a_file(backbone, tmp_path):
    for number in range(4):
        save(tmp_path / f"{number}.jpg", number)
    collection = Collection.build(backbone, tmp_path, progress=False)
    page = collection.search(tmp_path / "2.jpg", per_page=2)
    assert page.hits[0].id == "2.jpg"
    assert plot_page(collection, page).axes
    other = tmp_path / page.hits[1].id
    other.unlink()
    with pytest.raises(ImageError, match=rf"{other.name}: no such file"):
        plot_page(collection, page)
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(ImageError, match="cannot read the picture to search by: no such file"):
        collection.search(tmp_path / "2.jpg")


def test_wrong_queries_are_named_errors(collection, backbone, tmp_path):
    with pytest.raises(ValueError, match="the query is empty"):
        collection.search("  ")
    with pytest.raises(ValueError, match=r"page 9 is not there; .* make 1 pages"):
        collection.search("a goal", page=9, per_page=50)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no picture to search: 0 p[^<]*1 unreadable[^<]*$"):
        Collection.build(backbone, tmp_path, progress=False)
