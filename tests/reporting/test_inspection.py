"""Figures of what a model looks at: that they show the numbers they are given."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle

from entityclip.reporting.inspection import (
    gate_table,
    plot_gates,
    plot_patch_attention,
    plot_space,
    plot_word_attention,
    space_numbers,
    space_table,
)
from entityclip.reporting.style import HEAT, save_figure
from tests.reporting.samples import make_gates, make_plane, make_words, picture

pytestmark = pytest.mark.usefixtures("figure_style")
WHITE = picture("white")


def test_words_are_coloured_by_their_weights_from_either_side_on_one_scale(tmp_path):
    table = make_words(0.4, 0.1)
    figure = plot_word_attention(table, ["Envoys from $x^ meet"] * 2, [WHITE] * 2)
    words = [text.get_text() for text in figure.texts if text.get_ha() == "center"]
    boxes = [to_hex(a.get_facecolor()) for a in figure.artists if isinstance(a, Rectangle)]
    read = [
        (row["word"], to_hex(mpl.colormaps[HEAT](row[side] / 0.4)))
        for _, rows in table.groupby("pair")
        for side in ("from_image", "from_text")
        for _, row in rows.iterrows()
    ]
    assert list(zip(words, boxes, strict=True)) == read
    save_figure(figure, tmp_path, "words")  # dollar signs are no mathematics


def test_words_stay_on_the_page_and_apart():
    table = make_words(0.4, 0.4, words=[f"word{i}" for i in range(75)])
    figure = plot_word_attention(table, ["Envoys meet"] * 2, [WHITE] * 2)
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


def test_patches_lie_where_their_weights_do():
    maps = np.zeros((1, 2, 4, 4))
    maps[0, 0, 0, 3] = 0.5  # upper right
    maps[0, 1, 3, 0] = 0.25  # lower left
    figure = plot_patch_attention(["a $ caption"], [WHITE], maps)
    shown, first, second = (np.asarray(a.images[0].get_array()) for a in figure.axes[:3])
    assert (shown == 255).all()
    heat = (255 * np.array(mpl.colormaps[HEAT](np.array([0.0, 0.5, 1.0])))[:, :3]).astype(np.uint8)
    assert np.abs(first[8, 56].astype(int) - heat[2]).max() <= 1
    assert np.abs(first[56, 8].astype(int) - heat[0]).max() <= 1
    assert np.abs(second[56, 8].astype(int) - heat[1]).max() <= 1
    assert [a.get_title() for a in figure.axes[:3]] == ["picture", "image 1", "image 2"]


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (plot_word_attention, (make_words(0.4), ["a", "b"], [WHITE]), "2 captions and 1 pictures"),
        (plot_word_attention, (make_words(0.4).iloc[:0], [], []), "0 pairs"),
        (plot_patch_attention, (["a"], [WHITE], np.zeros((4, 4))), r"got \(4, 4\)"),
        (plot_patch_attention, (["a"], [WHITE], np.zeros((2, 1, 4, 4))), r"1 pictures .* \(2, 1"),
        (plot_patch_attention, ([], [], np.zeros((0, 1, 4, 4))), r"0 pictures"),
        (plot_gates, (gate_table(make_gates()).iloc[:0],), "no gate weights"),
        (plot_space, ({},), "no planes"),
    ],
)
def test_what_does_not_fit_together_or_is_nothing_is_refused(plot, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot(*arguments)


def test_gates_are_drawn_from_their_table():
    table = gate_table(make_gates())
    assert table["expert"].tolist()[:2] == ["image 1", "explanation 1"]
    first = table.iloc[0]
    assert (first["gate"], first["pairs"], first["even"]) == ("image", 2, 0.5)
    assert first[["mean", "q25"]].tolist() == pytest.approx([0.3, 0.275])
    assert table["even"].tolist()[2:] == [pytest.approx(1 / 3)] * 3
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


def test_the_space_joins_pairs_and_names_labels_and_numbers():
    seen = make_plane()
    planes = {"CLIP": seen, "EntityCLIP": seen}
    figure = plot_space(planes)
    lines, pictures, captions = figure.axes[0].collections
    ends = np.array(lines.get_segments())
    points = seen.points
    np.testing.assert_allclose(ends[:, 0], points[points["kind"] == "caption"][["x", "y"]])
    np.testing.assert_allclose(ends[:, 1], points[points["kind"] == "picture"][["x", "y"]])
    assert len(pictures.get_offsets()) == len(captions.get_offsets()) == 6
    assert len({tuple(colour) for colour in pictures.get_facecolors()}) == 2
    title = "CLIP\nalignment 0.50, uniformity -1.25 (pictures), -2.50 (captions)"
    assert figure.axes[0].get_title(loc="left") == title
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["pictures", "captions", "harbour", "match"]
    assert figure.axes[0].get_xlabel() == "component 1 (60 % of variance)"
    assert space_table(planes)["model"].tolist() == ["CLIP"] * 12 + ["EntityCLIP"] * 12
    assert space_numbers(planes).iloc[1].tolist() == ["EntityCLIP", 0.5, -1.25, -2.5]


def test_a_crowded_space_shows_some_pairs_and_few_colours():
    figure = plot_space({"CLIP": make_plane(20, [f"section {i}" for i in range(10)])}, 8)
    assert len(figure.axes[0].collections[1].get_offsets()) == 8
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[2:] == [*(f"section {i}" for i in range(6)), "others"]
