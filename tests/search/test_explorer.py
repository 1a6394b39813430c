"""Pages of hits, stored ranks, and the controls that turn and choose them."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from IPython.display import Image as Shown
from ipywidgets import Output
from ipywidgets.widgets import interaction
from PIL import Image

from entityclip.config import load_profile
from entityclip.experiments.experiment import Experiment
from entityclip.reporting import style
from entityclip.search import explorer as exploring
from entityclip.search.explorer import (
    Explorer,
    describe_page,
    explain_hits,
    plot_page,
    search_controls,
    show_page,
    title_of,
)
from tests.fixtures.pictures import save


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


def test_controls_stay_away_where_nobody_can_press_them(collection, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = []
    monkeypatch.setattr(exploring, "display", shown.append)
    search_controls(collection, "a goal")
    assert [type(item).__name__ for item in shown] == ["Markdown"]


@pytest.fixture
def shown(monkeypatch):
    """What is displayed where somebody sits; the controls last."""
    monkeypatch.setenv("JPY_SESSION_NAME", "11_search.ipynb")
    items = []
    monkeypatch.setattr(interaction, "display", items.append)
    return items


def uploaded(data):
    """What ipywidgets makes of a file that was chosen."""
    file = {"name": "a.jpg", "type": "image/jpeg", "size": len(data), "content": memoryview(data)}
    return [file | {"last_modified": datetime.now(UTC)}]


def test_controls_turn_pages_and_take_texts_and_pictures(collection, shown, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(exploring, "show_page", lambda _, *asking: asked.append(asking) or "a page")
    search_controls(collection, "a goal", per_page=4)
    by_text, by_picture = (item for item in shown if isinstance(item, interaction.interactive))
    line, page, _ = by_text.children
    page.value = 2
    assert page.max == 2 == -(-len(collection) // 4)
    line.value = "a port"
    assert page.value == 1
    assert asked[:2] == [("a goal", 0, 4), ("a goal", 1, 4)]
    assert set(asked[2:]) == {("a port", 0, 4)}
    upload, page, _ = by_picture.children
    upload.value = uploaded(save(tmp_path / "a.jpg", 1).read_bytes())
    page.value = 2
    assert all(isinstance(query, Image.Image) for query, *_ in asked[-2:])
    assert [number for _, number, _ in asked[-2:]] == [0, 1]
    upload.value = uploaded(b"no picture")
    assert "UnidentifiedImageError" in shown[-1].data


def test_controls_say_what_is_wrong_with_a_query(collection, shown):
    search_controls(collection, " ")
    assert "the query is empty" in shown[0].data


def test_a_shown_page_tells_what_it_shows(collection):
    shown = show_page(collection, "a goal", per_page=4)
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


def test_explorer_controls_change_query_and_variant(explorer, shown, monkeypatch):
    asked = []
    monkeypatch.setattr(explorer, "show", lambda *asking: asked.append(asking) or "a query")
    explorer.controls()
    query, variant, _ = shown[-1].children
    variant.value = "clip"
    query.value = int(explorer.table["query"][1])
    first, second = explorer.table["query"][:2]
    assert asked == [(first, ["entityclip"]), (first, ["clip"]), (second, ["clip"])]


def test_what_a_query_displays_on_the_way_stands_below_its_controls(explorer, shown, monkeypatch):
    inside, where = [], []
    monkeypatch.setattr(Output, "__enter__", lambda self: inside.append(self))
    monkeypatch.setattr(Output, "__exit__", lambda self, *_: inside.pop() and None)
    for module in (exploring, interaction):
        monkeypatch.setattr(module, "display", lambda item: where.append((item, len(inside))))
    explorer.controls()
    kinds = [(type(item).__name__, depth) for item, depth in where]
    assert kinds == [("Markdown", 1), ("Image", 1), ("interactive", 0)]


def test_compared_variants_must_be_among_those_shown(explorer):
    with pytest.raises(ValueError, match="must be among zero-shot"):
        Explorer(explorer.experiment, "test", ["zero-shot", "clip"])


def test_why_reads_the_explanation_as_each_picture_asks(explorer, backbone):
    pairs = explorer.experiment.pairs("test")
    model = explorer.model("entityclip")
    collection = explorer.collection("entityclip")
    hits = collection.vectors.ids[:2]
    figure, table = explain_hits(model, collection, pairs[0], hits)
    assert list(table["pair"].unique()) == hits
    np.testing.assert_allclose(table.groupby("pair")[["from_image", "from_text"]].sum(), 1, 1e-4)
    asked = table.set_index(["pair", "place"])["from_image"].unstack()
    assert not np.allclose(*asked.to_numpy())
    assert figure.axes
    with pytest.raises(ValueError, match="has no explanation to look into"):
        explain_hits(model, collection, replace(pairs[0], explanation=None), hits)
