"""Search finds what a plain matrix product finds, page by page; the explorer tells ranks apart."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from IPython.display import Image as Shown
from PIL import Image

from entityclip.config import load_profile
from entityclip.datasets import load_pairs
from entityclip.datasets.pair import ImageError
from entityclip.experiments.experiment import Experiment
from entityclip.reporting import style
from entityclip.search import explorer as widgets
from entityclip.search.collection import Collection
from entityclip.search.explorer import Explorer, describe_page, explain_hits, plot_page, title_of
from tests.fixtures.pictures import save


@pytest.fixture(scope="module")
def pairs():
    """Forty pairs: eight pictures with five captions each."""
    return load_pairs("newsroom", "captions_test", limit=40, image_size=64)


@pytest.fixture(scope="module")
def collection(backbone, pairs):
    return Collection.build(backbone, pairs, progress=False)


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
    found, page = [], 0
    while len(found) < len(collection):
        hits = collection.search(pairs[3], page=page, per_page=3)
        found += hits.hits
        page += 1
    assert [hit.id for hit in found] == expected
    assert [hit.place for hit in found] == list(range(1, len(collection) + 1))
    np.testing.assert_allclose([hit.score for hit in found], scores[order], atol=1e-5)
    (true,) = [hit for hit in found if hit.true]
    assert true.id == collection.captions[pairs[3].id][1]
    assert collection.rank(pairs[3]) == true.place
    assert hits.pages == page


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


def test_a_page_is_drawn_with_the_true_picture_framed(collection, pairs):
    page = collection.search(pairs[0], per_page=len(collection))
    figure = plot_page(collection, page)
    titles = [axis.get_title() for axis in figure.axes]
    place = next(hit.place for hit in page.hits if hit.true)
    assert [title for title in titles if "✓" in title] == [titles[place - 1]]
    framed = [n for n, axis in enumerate(figure.axes, 1) if axis.spines["top"].get_visible()]
    assert framed == [place]
    assert f"its own picture is at place {place}" in describe_page(page)
    assert title_of(page) == f"“{pairs[0].caption}” – page 1 of 1"


# -------------------------------------------------------------------------------------- controls


def test_controls_stay_away_where_nobody_can_press_them(collection, monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("ENTITYCLIP_WIDGETS", raising=False)
    assert not widgets.interactive()
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    widgets.search_controls(collection, "a goal")
    assert [type(item).__name__ for item in shown] == ["Markdown"]
    monkeypatch.setenv("JPY_SESSION_NAME", "11_search.ipynb")
    assert widgets.interactive()


def uploaded(data):
    """What ipywidgets makes of a file that was chosen."""
    file = {"name": "a.jpg", "type": "image/jpeg", "size": len(data), "content": memoryview(data)}
    return [file | {"last_modified": datetime.now(UTC)}]


def test_controls_turn_pages_and_take_texts_and_pictures(collection, monkeypatch, tmp_path):
    monkeypatch.setenv("ENTITYCLIP_WIDGETS", "1")
    shown, asked = [], []
    monkeypatch.setattr(widgets, "display", shown.append)
    monkeypatch.setattr(
        widgets, "show_page", lambda collection, *asking: asked.append(asking) or "a page"
    )
    widgets.search_controls(collection, "a goal", per_page=4)
    (line, upload), (before, after) = (box.children for box in shown[-1].children[:2])
    assert before.disabled
    after.click()
    line.value = "a port"
    line.value = " "
    upload.value = uploaded(save(tmp_path / "a.jpg", 1).read_bytes())
    *texts, (picture, page, _) = asked
    assert texts == [("a goal", 0, 4), ("a goal", 1, 4), ("a port", 0, 4), (" ", 0, 4)]
    assert isinstance(picture, Image.Image)
    assert page == 0
    assert not after.disabled
    upload.value = uploaded(b"no picture")
    assert "UnidentifiedImageError" in shown[-1].data


def test_a_shown_page_tells_what_it_shows(collection):
    shown = widgets.show_page(collection, "a goal", per_page=4)
    assert isinstance(shown, Shown)
    assert shown.alt.startswith("Search for “a goal” – page 1")


@pytest.mark.usefixtures("figure_style")
def test_a_figure_without_a_description_says_its_labels():
    figure, axes = style.plt.subplots(1, 2)
    axes[0].set(xlabel="epoch", ylabel="loss", title="Test")
    axes[1].imshow(np.zeros((2, 2)))
    assert style.describe_axes(figure) == "1 pictures; loss by epoch; Test"
    assert style.preview(figure).alt == "1 pictures; loss by epoch; Test"


# -------------------------------------------------------------------------------------- explorer


@pytest.fixture(scope="module")
def explorer(tmp_path_factory, backbone):
    """Three variants with random weights, measured on 24 pairs."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ENTITYCLIP_RUNS", str(tmp_path_factory.mktemp("runs")))
    experiment = Experiment(
        load_profile("smoke", settings={"test_pairs": 24, "bootstrap": 10}), progress=False
    )
    experiment.pretrain = lambda **_: pytest.fail("nothing is trained here")
    build = Experiment.build

    def untrained(variant):
        experiment.settings.__dict__["pretraining"], before = None, experiment.settings.pretraining
        model = build(experiment, variant).eval()
        experiment.settings.__dict__["pretraining"] = before
        with torch.no_grad():
            model.backbone.clip.visual.proj.add_(0.1 * len(variant))
        return model

    experiment.load = untrained
    yield Explorer(experiment, "test")
    patch.undo()


def test_the_explorer_puts_disagreements_first(explorer):
    table = explorer.table
    ratio = np.log2(table["clip"] / table["entityclip"])
    np.testing.assert_allclose(table["disagreement"], ratio)
    assert table["disagreement"].abs().is_monotonic_decreasing
    assert sorted(table["query"]) == list(range(24))
    row = table.iloc[0]
    assert explorer.ranks(row["query"])["clip"] == row["clip"]


@pytest.mark.parametrize("variant", ["clip", "entityclip"])
def test_the_hardest_negatives_agree_with_the_stored_rank(variant, explorer):
    for query in explorer.table["query"][:5]:
        found = explorer.hardest_negatives(query, variant, k=24)
        assert found.true + 1 == found.rank == explorer.ranks(query)[variant]


def test_the_gates_of_a_query_sum_to_one(explorer):
    gates = explorer.gates(3)
    sums = gates.groupby("gate")["weight"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert set(sums.index) == {"image", "text", "fusion"}
    with pytest.raises(ValueError, match="has no experts"):
        explorer.gates(3, "clip")


def test_explorer_controls_change_query_and_variant(explorer, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_WIDGETS", "1")
    shown, asked = [], []
    monkeypatch.setattr(widgets, "display", shown.append)
    monkeypatch.setattr(widgets, "show_query", lambda _, *asking: asked.append(asking) or "a query")
    widgets.explorer_controls(explorer)
    query, variant, _ = shown[-1].children
    variant.value = "clip"
    query.value = int(explorer.table["query"][1])
    first, second = explorer.table["query"][:2]
    assert asked == [(first, ["entityclip"]), (first, ["clip"]), (second, ["clip"])]


def test_a_redraw_keeps_in_its_output_what_is_displayed_on_the_way(explorer, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_WIDGETS", "1")
    inside, where = [], []
    output = widgets._widgets().Output
    monkeypatch.setattr(output, "__enter__", lambda self: inside.append(self))
    monkeypatch.setattr(output, "__exit__", lambda self, *_: inside.pop() and None)
    monkeypatch.setattr(widgets, "display", lambda item: where.append((item, len(inside))))
    widgets.explorer_controls(explorer)
    kinds = [(type(item).__name__, depth) for item, depth in where]
    assert kinds == [("Markdown", 1), ("Image", 1), ("VBox", 0)]


def test_compared_variants_must_be_among_those_shown(explorer):
    with pytest.raises(ValueError, match="must be among zero-shot"):
        Explorer(explorer.experiment, "test", ["zero-shot", "clip"])


def test_why_reads_the_explanation_as_each_picture_asks(explorer, backbone):
    pairs = explorer.experiment.pairs("test")
    model = explorer._model("entityclip")
    collection = explorer._collection("entityclip")
    hits = collection.vectors.ids[:2]
    figure, table = explain_hits(model, collection, pairs[0], hits)
    assert list(table["pair"].unique()) == hits
    np.testing.assert_allclose(table.groupby("pair")[["from_image", "from_text"]].sum(), 1, 1e-4)
    asked = table.set_index(["pair", "place"])["from_image"].unstack()
    assert not np.allclose(*asked.to_numpy())
    assert figure.axes
    with pytest.raises(ValueError, match="has no explanation to look into"):
        explain_hits(model, collection, replace(pairs[0], explanation=None), hits)
