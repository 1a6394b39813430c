"""Differences between variants: their tables, their forest plot and their sentences."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from entityclip.reporting.differences import describe_differences, difference_sheet, plot_forest
from entityclip.reporting.markup import Cell, sheet_latex
from entityclip.reporting.style import save_figure
from tests.reporting.samples import make_differences
from tests.reporting.test_markup import check_latex

pytestmark = pytest.mark.usefixtures("figure_style")


def test_sentences_say_what_the_intervals_do_below_a_table_of_signed_numbers():
    sentences = describe_differences(make_differences(), "CLIP")
    assert sentences == [
        "Test, R@1: better than CLIP: A & more $x^ (+2.0, +0.5 to +3.5); not separable from CLIP: "
        "B (+1.0, -1.0 to +3.0); without an interval, so not compared with CLIP: C (+4.0).",
        "Long tail, R@1: worse than CLIP: A & more $x^ (-2.0, -3.0 to -1.0).",
    ]
    alone = describe_differences(make_differences())
    assert alone[0].startswith("Test, R@1: better: A & more")
    assert "not separable from 0: B" in alone[0]
    sheet = difference_sheet(make_differences(), "CLIP")
    assert sheet.blocks[0][0][2:] == [Cell("+2.0", "[+0.5, +3.5]"), Cell("3")]
    assert sheet.blocks[0][2][2:] == [Cell("+4.0"), Cell("1")]
    assert sheet.notes == sentences
    check_latex(sheet_latex(sheet, "Differences", "tab:d"))


def test_the_forest_fills_what_excludes_zero(tmp_path):
    figure = plot_forest(make_differences(), "R@1 against CLIP (points)")
    (axis,) = figure.axes
    marks = {
        line.get_xdata()[0]: to_hex(line.get_markerfacecolor())
        for line in axis.lines
        if line.get_marker() == "o"
    }
    hollow = to_hex("white")
    assert [marks[value] == hollow for value in (2.0, 1.0, 4.0, -2.0)] == [False, True, True, False]
    ends = [segment[:, 0].tolist() for c in axis.collections for segment in c.get_segments()]
    assert ends == [[0.5, 3.5], [-1.0, 3.0], [-3.0, -1.0]]
    zero = [line for line in axis.lines if list(line.get_xdata()) == [0, 0]]
    assert len(zero) == 1
    words = [text.get_text() for text in axis.texts]
    assert words[:2] == ["+2.0 [+0.5, +3.5]", "3 seeds"]
    assert words[4:6] == ["+4.0", "1 seed"]
    names = [(tick.get_text(), tick.get_fontweight()) for tick in axis.get_yticklabels()]
    plain = [(name, "normal") for name in ("A & more $x^", "B", "C")]
    bold = [("Test, R@1", "bold"), ("Long tail, R@1", "bold")]
    assert names == [bold[0], *plain, bold[1], plain[0]]
    places = axis.get_yticks()
    assert (np.diff(places) >= 1).all()
    assert places[4] - places[3] > 1.5  # room above the second heading
    assert axis.yaxis_inverted()
    save_figure(figure, tmp_path, "forest")  # dollar signs are no mathematics
    with pytest.raises(ValueError, match="no differences to show"):
        plot_forest(make_differences().iloc[:0])
