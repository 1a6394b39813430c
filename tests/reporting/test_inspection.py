"""Figures of what a model looks at: that they show the numbers they are given."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

from entityclip.evaluation.inspection import plane
from entityclip.evaluation.retrieval import Embeddings
from entityclip.reporting.inspection import (
    ReadPair,
    SeenPicture,
    gate_table,
    plot_gates,
    plot_patch_attention,
    plot_space,
    plot_word_attention,
)
from entityclip.reporting.style import HEAT, save_figure

pytestmark = pytest.mark.usefixtures("figure_style")
WHITE = Image.new("RGB", (64, 64), "white")


# ----------------------------------------------------------------------------------------- words


def read_pair(words=("⟨start⟩", "the", "flag", "costs", "$5", "⟨end⟩")):
    weights = np.linspace(0, 0.4, len(words))
    return ReadPair("Envoys from $x^ meet", WHITE, list(words), weights, weights[::-1])


def coloured(figure):
    """(word, colour behind it) in the order drawn."""
    boxes = [a for a in figure.artists if isinstance(a, Rectangle)]
    words = [text for text in figure.texts if text.get_ha() == "center"]
    return [
        (text.get_text(), to_hex(box.get_facecolor()))
        for text, box in zip(words, boxes, strict=True)
    ]


def test_words_are_coloured_by_their_weights_from_either_side(tmp_path):
    pair = read_pair()
    figure = plot_word_attention([pair])
    shown = coloured(figure)
    assert [word for word, _ in shown] == [*pair.words, *pair.words]
    colours = [to_hex(mpl.colormaps[HEAT](w / 0.4)) for w in pair.from_image]
    assert [colour for _, colour in shown] == [*colours, *colours[::-1]]
    save_figure(figure, tmp_path, "words")  # dollar signs are no mathematics


def test_rows_share_one_scale():
    strong = read_pair()
    weak = strong._replace(from_image=strong.from_image / 4, from_text=strong.from_text / 4)
    shown = coloured(plot_word_attention([strong, weak]))
    n = len(strong.words)
    assert shown[n - 1][1] == to_hex(mpl.colormaps[HEAT](1.0))
    assert shown[3 * n - 1][1] == to_hex(mpl.colormaps[HEAT](0.25))


def test_words_stay_on_the_page_and_apart():
    figure = plot_word_attention([read_pair([f"word{i}" for i in range(75)])] * 2)
    figure.set_dpi(200)
    renderer = figure.canvas.get_renderer()
    page = figure.get_window_extent(renderer)
    words = [t.get_window_extent(renderer) for t in figure.texts if t.get_ha() == "center"]
    assert len(words) == 300
    for one, two in itertools.pairwise(words):
        assert page.x0 <= one.x0
        assert one.x1 <= page.x1
        assert two.x0 >= one.x1 - 1 or two.y1 <= one.y0 + 2  # beside, or on a line below
    assert min(word.y0 for word in words) > 0.3 * 200  # above the colour bar


def test_words_without_weights_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        plot_word_attention([])
    with pytest.raises(ValueError, match="6 words with 6 and 5 weights: 'Envoys"):
        plot_word_attention([read_pair()._replace(from_text=[0.1] * 5)])


# --------------------------------------------------------------------------------------- patches


def test_patches_lie_where_their_weights_do():
    maps = np.zeros((2, 4, 4))
    maps[0, 0, 3] = 0.5  # upper right
    maps[1, 3, 0] = 0.25  # lower left
    figure = plot_patch_attention([SeenPicture("a $ caption", WHITE, maps)])
    picture, first, second = (np.asarray(a.images[0].get_array()) for a in figure.axes[:3])
    assert (picture == 255).all()
    heat = (255 * np.array(mpl.colormaps[HEAT](np.array([0.0, 0.5, 1.0])))[:, :3]).astype(np.uint8)
    assert np.abs(first[8, 56].astype(int) - heat[2]).max() <= 1
    assert np.abs(first[56, 8].astype(int) - heat[0]).max() <= 1
    assert np.abs(second[56, 8].astype(int) - heat[1]).max() <= 1
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["picture", "image 1", "image 2"]


def test_maps_of_other_shapes_are_refused():
    pair = SeenPicture("a", WHITE, np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="alike for all"):
        plot_patch_attention([pair, pair._replace(maps=np.zeros((3, 4, 4)))])
    with pytest.raises(ValueError, match=r"got \[\(4, 4\)\]"):
        plot_patch_attention([pair._replace(maps=np.zeros((4, 4)))])
    with pytest.raises(ValueError, match=r"got \[\]"):
        plot_patch_attention([])


# ----------------------------------------------------------------------------------------- gates


def gate_rows():
    """Two pairs, an image gate of two experts and a fusion gate of three."""
    shares = {
        "image": {"image 1": (0.25, 0.35), "explanation 1": (0.75, 0.65)},
        "fusion": {
            "image 1": (0.5, 0.3),
            "explanation 1 from image": (0.2, 0.3),
            "explanation 1 from text": (0.3, 0.4),
        },
    }
    return pd.DataFrame(
        [
            {"pair": pair, "gate": gate, "expert": expert, "weight": weights[pair]}
            for pair in (0, 1)
            for gate, experts in shares.items()
            for expert, weights in experts.items()
        ]
    )


def test_gate_table_by_hand():
    table = gate_table(gate_rows())
    assert table["expert"].tolist()[:2] == ["image 1", "explanation 1"]
    first = table.iloc[0]
    assert (first["gate"], first["pairs"], first["even"]) == ("image", 2, 0.5)
    assert first["mean"] == pytest.approx(0.3)
    assert first["q25"] == pytest.approx(0.275)
    assert table["even"].tolist()[2:] == [pytest.approx(1 / 3)] * 3
    sums = table.groupby("gate")["mean"].sum()
    np.testing.assert_allclose(sums, 1)


def test_gates_are_drawn_from_the_table():
    table = gate_table(gate_rows())
    figure = plot_gates(table)
    axes = {axis.get_title(loc="left"): axis for axis in figure.findobj(plt.Axes)}
    assert set(axes) == {"Image gate", "Fusion gate"}
    boxes = [p for p in axes["Image gate"].patches if isinstance(p, PathPatch)]
    edges = [(p.get_path().vertices[:, 0].min(), p.get_path().vertices[:, 0].max()) for p in boxes]
    np.testing.assert_allclose(edges, table[table["gate"] == "image"][["q25", "q75"]])
    names = [tick.get_text() for tick in axes["Fusion gate"].get_yticklabels()]
    assert names == ["image 1", "explanation 1", "explanation 1"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["image", "explanation from image", "explanation from text"]
    with pytest.raises(ValueError, match="no gate weights"):
        plot_gates(table.iloc[:0])


# ----------------------------------------------------------------------------------------- space


def make_plane(n=6, labels=None):
    x = torch.nn.functional.normalize(torch.randn(2, n, 5, generator=torch.Generator()), dim=-1)
    embeddings = Embeddings(x[0], x[1], torch.arange(n), torch.arange(n))
    return plane(embeddings, labels or ["harbour", "match"] * (n // 2))


def test_the_space_joins_pairs_and_names_labels_and_numbers():
    seen = make_plane()
    figure = plot_space({"CLIP": seen, "EntityCLIP": seen})
    lines, pictures, captions = figure.axes[0].collections
    ends = np.array(lines.get_segments())
    points = seen.points
    np.testing.assert_allclose(ends[:, 0], points[points["kind"] == "caption"][["x", "y"]])
    np.testing.assert_allclose(ends[:, 1], points[points["kind"] == "picture"][["x", "y"]])
    assert len(pictures.get_offsets()) == len(captions.get_offsets()) == 6
    assert len({tuple(colour) for colour in pictures.get_facecolors()}) == 2
    title = figure.axes[0].get_title(loc="left")
    assert title.startswith(f"CLIP\nalignment {seen.alignment:.2f}, uniformity")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["pictures", "captions", "harbour", "match"]
    assert "% of variance" in figure.axes[0].get_xlabel()


def test_a_crowded_space_shows_some_pairs_and_few_colours():
    figure = plot_space({"CLIP": make_plane(20, [f"section {i % 10}" for i in range(20)])}, 8)
    assert len(figure.axes[0].collections[1].get_offsets()) == 8
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[2:] == [*(f"section {i}" for i in range(6)), "others"]
    with pytest.raises(ValueError, match="no planes"):
        plot_space({})
