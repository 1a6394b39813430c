"""Captions, names and errors that are code somewhere: shown as they stand, and never obeyed."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from nbconvert.filters import markdown2html

from entityclip.reporting import catalogue, charts, curves, inspection, pictures, tables
from entityclip.reporting.differences import forest_table, plot_forest
from entityclip.reporting.markup import Cell, Sheet, latex, markdown, one_line, save_sheet
from entityclip.reporting.style import preview, read_table, save_figure, save_table
from entityclip.results import ResultsError
from tests.reporting.samples import make_log, make_plane, make_rows, make_words, picture
from tests.reporting.test_markup import check_latex

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://e.vil/a.png)",
    "[a](javascript:x)",
    "<http://e.vil> and https://e.vil",
    "$\\frac{",
    "$a$ to $\\frac{b}$",
    "\\(x\\) \\[y\\] \\begin{align}z\\end{align}",
    "\\input{x}",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b]0;title\x07",
    "**a** _b_ `c` ~~d~~ a_b # 1",
    "one\r\n\r\n# two\n| three |",
    "turned \u202e over",
)
HALF = "half \ud800 of a character"  # which no table takes
pytestmark = [
    pytest.mark.usefixtures("figure_style"),
    pytest.mark.filterwarnings("ignore:Glyph"),
    pytest.mark.filterwarnings("error:.*mathtext"),
]
hostile = pytest.mark.parametrize("text", HOSTILE, ids=ascii)
hostile_or_half = pytest.mark.parametrize("text", [*HOSTILE, HALF], ids=ascii)
OURS = {"p", "strong", "em", "u", "span", "table", "thead", "tbody", "tr", "th", "td", "br"}
OURS |= {"div", "style"}  # pandas' own
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


class Read(HTMLParser):
    """The tags of a page and the pieces of text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.pieces = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not {name for name, _ in attributes} & {"href", "src", "onerror"}

    def handle_data(self, data):
        self.pieces.append(data)


def squeezed(text):
    return "".join(text.split())


def check_page(page, text):
    """A page holds no tag but ours and no mathematics, and the text can be read in it."""
    read = Read(page)
    assert read.tags <= OURS
    assert not any(re.search(r"\$.*\$|\\[(\[]|\\begin", piece) for piece in read.pieces)
    assert squeezed(one_line(text)) in squeezed("".join(read.pieces))
    assert not RAW.search(page)


@hostile_or_half
def test_markdown_shows_it_as_it_stands(text):
    for shown in (markdown(text), f"**{markdown(text)}** – {markdown(text)}"):
        check_page(markdown2html(shown), text)


@hostile_or_half
def test_a_printed_table_shows_it_everywhere(text, tmp_path):
    rows = [[text, "b", Cell("1.0", "± 0.1", "best")], [text, "c", Cell("2.0")]]
    sheet = Sheet([text, "Name", "R@1"], [rows], 2, [text, f"{text}: better."])
    md, tex = save_sheet(sheet, tmp_path, "printed", text, f"entityclip {text}")
    page = markdown2html(md.read_text(encoding="utf-8"))
    check_page(page, text)
    assert page.count("<td") == 6
    check_latex(tex.read_text(encoding="utf-8").replace("…", "").split("\n", 1)[1])
    assert latex(text) in tex.read_text(encoding="utf-8")


def test_a_table_s_latex_label_is_one_word(tmp_path):
    _, tex = save_sheet(Sheet(["a"], [], 1), tmp_path, "a}b %c", "", "")
    assert r"\label{tab:a-b--c}" in tex.read_text()


@hostile
def test_no_cell_of_a_csv_is_a_formula_and_it_is_read_back(text, tmp_path):
    table = pd.DataFrame({text: [text, f"@{text}", f"'={text}"], "n": [-1.5, 2.0, 3.0]})
    path = save_table(table, tmp_path, "t", f"entityclip {text}")
    with path.open(encoding="utf-8", newline="") as file:
        assert next(file).startswith("# ")
        cells = [cell for row in csv.reader(file) for cell in row]
    assert len(cells) == 8
    assert not any(cell[:1] in "=+@\t\r\n" for cell in cells if cell)
    assert not RAW.search("".join(cells))
    assert [cell for cell in cells if cell.startswith("-")] == ["-1.5"]  # numbers stay numbers
    back = read_table(path)
    assert back["n"].tolist() == table["n"].tolist()
    if not RAW.search(text) and "\r" not in text:
        pd.testing.assert_frame_equal(back, table)


@pytest.mark.parametrize("text", ["+1.5", "-0.5", "-2e-3", "a=b", "−1", "", "it's", "'"])
def test_what_is_no_formula_is_written_as_it_is(text, tmp_path):
    path = save_table(pd.DataFrame({"a": [text]}), tmp_path, "t")
    assert path.read_text().splitlines()[1] == (text or '""')


# ----------------------------------------------------------------------------------------- figures

WHITE = picture("white")
CONFUSION = [[3, 1], [0, 2]]


def drawn_of_rows(plot):
    return lambda text, folder: plot(make_rows({text: 70.0, "clip": 60.0}, splits=(text, "test")))


def relation_rows(text):
    one = {"variant": text, "protocol": text, "value": 50.0}
    return pd.DataFrame([one | {"label": label} for label in charts.RELATIONS])


def forest(text):
    row = {
        "variant": text,
        "first": text,
        "second": "clip",
        "split": text,
        "direction": "text_to_image",
    }
    numbers = {"metric": "R@1", "value": 1.0, "low": 0.5, "high": 1.5, "seeds": 3}
    numbers["survives"] = True
    return plot_forest(forest_table(pd.DataFrame([row | numbers])), text)


def cross_domain(text):
    rows = make_rows({"clip": 60.0}, splits=("test",), dataset=text, trained_on=text)
    return charts.plot_cross_domain(tables.cross_domain_table(rows))


def summary(text):
    numbers = np.array([3, 4, 5])
    sizes = np.array([[64, 64], [32, 48]])
    return charts.plot_summary(
        [SimpleNamespace(split=text, words=numbers, names=numbers, sizes=sizes)]
    )


def seeds(text):
    row = {"variant": text, "phase": "training", "epoch": 1, "seeds": 2}
    return curves.plot_seed_curves(pd.DataFrame([row | {"mean": 1.0, "low": 0.5, "high": 1.5}]))


FIGURES = {
    "gallery": lambda t, _: pictures.plot_gallery([(t, t, WHITE)], 2),
    "retrieval gallery": lambda t, _: pictures.plot_retrieval_gallery([(t, [WHITE], 0, WHITE, 1)]),
    "words": lambda t, _: inspection.plot_word_attention(
        make_words(0.4, words=t.split()), [t], [WHITE]
    ),
    "patches": lambda t, _: inspection.plot_patch_attention([t], [WHITE], np.ones((1, 1, 2, 2))),
    "grad-cam": lambda t, _: inspection.plot_cams([WHITE], [t], {t: np.ones((1, 2, 2))}),
    "space": lambda t, _: inspection.plot_space({t: make_plane(labels=(t, "match"))}),
    "wrong": lambda t, _: inspection.plot_wrong(
        pd.DataFrame({"kind": [t], "true": [0.5], "wrong": [0.25]})
    ),
    "forest": lambda t, _: forest(t),
    "retrieval": lambda t, _: charts.plot_retrieval(
        tables.retrieval_table(make_rows({t: 70.0, "clip": 60.0}, splits=(t, "test")))
    ),
    "recall": lambda t, _: charts.plot_recall_curves(make_rows({t: 70.0}, splits=(t,))),
    "rsum": lambda t, _: charts.plot_rsum(pd.DataFrame({"variant": [t], "RSUM": [300.0]}), t),
    "relations": lambda t, _: charts.plot_relation_scores(relation_rows(t)),
    "confusions": lambda t, _: charts.plot_confusions(
        {t: pd.DataFrame(CONFUSION, [t, "b"], [t, "b"])}
    ),
    "cross domain": lambda t, _: cross_domain(t),
    "summary": lambda t, _: summary(t),
    "lengths": lambda t, _: charts.plot_lengths({t: [3, 4]}, 77),
    "checks": lambda t, _: charts.plot_checks(pd.DataFrame({t: [5.0]}, index=[t])),
    "training": lambda t, folder: curves.plot_training_curves({t: make_log(folder / "log.jsonl")}),
    "seeds": lambda t, _: seeds(t),
}


# a tag, mathematics, a terminal's codes: of the others, figures have nothing to obey
@pytest.mark.parametrize("text", [HOSTILE[0], "$a$ to $\\frac{", "\x1b[31mred\x07"], ids=ascii)
@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_draws_it_as_it_stands(kind, text, tmp_path):
    figure = FIGURES[kind](text, tmp_path)
    _, svg = save_figure(figure, tmp_path, "figure", f"entityclip {text}")
    ElementTree.parse(svg)  # which takes no control character
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts if not powers(text))
    said = squeezed("".join(text.get_text() for text in texts))
    first = squeezed(one_line(text))[:6].replace("_", " ")
    assert squeezed(first) in said.replace("_", "")
    shown = preview(figure)
    assert not RAW.search(shown.alt)


def powers(text):
    return text.get_text().startswith("$\\mathdefault{10^")


@hostile_or_half
def test_a_figure_of_nobody_s_saving_draws_too(text):
    figure = pictures.plot_gallery([(text, text, WHITE)])
    figure.canvas.draw()
    figure, axes = charts.panels(1, 1, 2)
    axes[0, 0].set(title=text, xlabel=text, xscale="log", xlim=(1, 1000))
    axes[0, 0].set_yticks([0, 1], [text, "b"])
    figure.legend([], [], title=text)
    figure.canvas.draw()
    labels = [label for label in axes[0, 0].get_xticklabels() if label.get_text()]
    assert labels
    assert all(powers(label) and label.get_parse_math() for label in labels)


# ---------------------------------------------------------------------------------- notebook cells


@pytest.fixture
def displayed(monkeypatch):
    """What `catalogue.show` hands to the page."""
    import IPython
    import IPython.display

    items = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda *shown: items.extend(shown))
    return items


@hostile
def test_what_a_cell_shows_of_a_figure_is_plain(text, displayed, monkeypatch, capsys):
    table = pd.DataFrame({text: [text]})
    sheet = Sheet([text, "R@1"], [[[text, Cell("1.0")]]], 1)
    results = {
        "none": ResultsError(text),
        "sheet": catalogue.Drawn(sheet=sheet, notes=[text]),
        "table": catalogue.Drawn(table=table, notes=[text]),
    }

    def draw(profile, name, rows):
        if isinstance(results[name], Exception):
            raise results[name]
        return results[name]

    monkeypatch.setattr(catalogue, "draw", draw)
    for name in results:
        catalogue.show(None, name)
    said = capsys.readouterr().out
    assert said == f"skipped: {one_line(text)}\n"
    assert not RAW.search(said.rstrip())
    printed, note, frame, other = displayed
    for item in (printed, note, other):
        check_page(markdown2html(item.data), text)
    page = frame._repr_html_()
    assert "tex2jax_ignore" in page
    assert Read(page).tags <= OURS
    assert not RAW.search(page)
