"""Galleries: any text and picture, inside its column; right and wrong framed."""

import pytest
from matplotlib.colors import to_rgb

from entityclip.reporting.pictures import plot_gallery, plot_retrieval_gallery
from entityclip.reporting.style import GREEN, VERMILLION, save_figure, wrap
from tests.reporting.samples import picture

pytestmark = pytest.mark.usefixtures("figure_style")
LONG = "Ünïcödé 名前は長い文字列です \u202e\U0001f600 $5 and $x^{$ _{ " * 30


@pytest.mark.filterwarnings("ignore:Glyph")
def test_galleries_take_any_text_and_any_picture(tmp_path):
    items = [
        (LONG, LONG, picture(9, (1000, 30), "L")),
        ("x" * 500, None, picture("red", (8, 8), "P")),
        ("", "", picture("blue")),
    ]
    save_figure(plot_gallery(items, 2), tmp_path, "pairs")
    pictures = [image for _, _, image in items]
    queries = [(LONG, pictures, 0, pictures[0], 1), ("", pictures[:1], None, pictures[2], 123456)]
    save_figure(plot_retrieval_gallery(queries), tmp_path, "found")


def test_gallery_texts_stay_inside_their_column_and_figure():
    items = [("W" * 300 + " many wide words " * 20, "explained " * 100, picture("red"))] * 6
    figure = plot_gallery(items, 3)
    figure.set_dpi(200)  # what files and previews are drawn at; coarser, hinting widens the text
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    columns = [axis.get_window_extent(renderer) for axis in figure.axes for _ in range(2)]
    for box, column in zip(boxes, columns, strict=True):
        assert column.x0 - 2 <= box.x0
        assert box.x1 <= column.x1 + 2
        assert box.y1 <= column.y0  # below its picture
        assert box.y0 >= 0
    for caption, explanation in zip(boxes[::2], boxes[1::2], strict=True):
        assert explanation.y1 <= caption.y0 + 2
    for above, below in zip(boxes[1:6:2], figure.axes[3:], strict=True):
        assert above.y0 > below.get_window_extent(renderer).y1


def frames(figure):
    """(title, frame colour) of every picture."""
    spines = [(axis.get_title(), axis.spines["left"]) for axis in figure.axes]
    return [(t, to_rgb(s.get_edgecolor()) if s.get_visible() else None) for t, s in spines]


def test_retrieval_gallery_frames_right_and_wrong():
    five = [picture(c) for c in ("red", "green", "blue", "white", "black")]
    green, vermillion = to_rgb(GREEN), to_rgb(VERMILLION)
    queries = [
        ("found", five, 0, five[0], 1),
        ("third", five, 2, five[2], 3),
        ("not found", five, None, picture("yellow"), 37),
    ]
    figure = plot_retrieval_gallery(queries)
    plain = [("4", None), ("5", None)]
    assert frames(figure) == [
        *[("1 ✓", green), ("2", None), ("3", None), *plain],
        *[("1 ✗", vermillion), ("2", None), ("3 ✓", green), *plain],
        *[("1 ✗", vermillion), ("2", None), ("3", None), *plain, ("37 ✓", green)],
    ]
    texts = [text.get_text() for text in figure.texts]
    assert texts == [
        *["found", "right picture: rank 1", "third", "right picture: rank 3"],
        *["not found", "right picture: rank 37"],
    ]
    assert figure.axes[-1].images[0].get_array()[0, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize("plot", [plot_gallery, plot_retrieval_gallery])
def test_a_gallery_of_nothing_is_refused(plot):
    with pytest.raises(ValueError, match="nothing to show"):
        plot([])


@pytest.mark.parametrize(
    "text", ["two words", "", "W" * 200, "il" * 300, "a b c " * 99, "名前" * 80]
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_wrap_keeps_words_whole_and_lines_few(text):
    lines = wrap(text, 1.5, 7, 4).split("\n")
    assert len(lines) <= 4
    joined = "".join(lines).replace(" ", "")
    assert text.replace(" ", "").startswith(joined.removesuffix("…"))
    assert joined.endswith("…") == (len(joined.removesuffix("…")) < len(text.replace(" ", "")))
