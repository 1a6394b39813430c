"""Charts show the values of their tables, with their intervals."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from entityclip.explanations.checks import checks_table
from entityclip.reporting.charts import (
    plot_checks,
    plot_lengths,
    plot_recall_curves,
    plot_retrieval,
    save_summary,
)
from entityclip.reporting.style import marks, save_figure
from entityclip.reporting.tables import retrieval_table
from entityclip.variants import FLOORS
from tests.reporting.samples import LEVELS, make_floors, make_rows

pytestmark = pytest.mark.usefixtures("figure_style")


def drawn(axis):
    """{colour: (x, y) of the line with markers} of an axis."""
    return {
        to_hex(line.get_color()): line.get_xydata().T
        for line in axis.lines
        if line.get_marker() not in ("None", "", None)
    }


def test_plot_retrieval_draws_each_value_with_its_interval():
    figure = plot_retrieval(retrieval_table(make_rows()))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Test, text → image",
        "Aliases, text → image",
        "Test, image → text",
        "Aliases, image → text",
    ]
    axis, colours = figure.axes[0], marks(list(LEVELS))
    for variant, level in LEVELS.items():
        x, y = drawn(axis)[colours[variant][0].lower()]
        assert x.round().tolist() == [0, 1, 2]  # at their metric, side by side
        np.testing.assert_allclose(y, [level, level + 1, level + 2])
    segments = [segment[:, 1] for lines in axis.collections for segment in lines.get_segments()]
    assert [64.5, 65.5] in [list(ends) for ends in segments]
    assert {text.get_text() for text in axis.texts} >= {"70.0", "65.0", "1.0"}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["CLIP, zero-shot", "CLIP, fine-tuned", "EntityCLIP"]


def test_a_missing_value_is_not_drawn():
    rows = make_rows(splits=["test"])
    table = retrieval_table(rows[~((rows["variant"] == "clip") & (rows["metric"] == "R@5"))])
    axis = plot_retrieval(table).axes[0]
    values = drawn(axis)[marks(list(LEVELS))["clip"][0].lower()][1]
    assert np.isnan(values).tolist() == [False, True, False]
    assert "71.0" not in {text.get_text() for text in axis.texts}


def test_plot_recall_curves_draws_recall_against_k():
    figure = plot_recall_curves(make_rows())
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["Test, text → image", "Aliases, text → image"]
    x, y = drawn(figure.axes[0])[marks(list(LEVELS))["clip"][0].lower()]
    assert x.tolist() == [1, 5, 10, 50, 100]
    assert y.tolist() == [70, 71, 72, 73, 74]


def test_floors_are_dashed_lines_named_in_the_legend():
    rows = pd.concat([make_rows(splits=["test"]), make_floors()], ignore_index=True)
    figure = plot_retrieval(retrieval_table(rows))
    first, second = figure.axes
    dashed = [c for c in first.collections if c.get_linestyles()[0][1] is not None]
    heights = {tuple(s[0, 1] for s in c.get_segments()) for c in dashed}
    assert heights == {(20, 21, 22), (10, 11, 12)}
    assert all(
        s[0, 0] < place < s[1, 0] for c in dashed for place, s in enumerate(c.get_segments())
    )
    assert all(c.get_linestyles()[0][1] is None for c in second.collections)  # image to text
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["CLIP, zero-shot", "CLIP, fine-tuned", "EntityCLIP", *FLOORS.values()]
    assert len(drawn(first)) == 3  # they have no marks
    (axis,) = plot_recall_curves(rows).axes
    lines = [line.get_xydata().tolist() for line in axis.lines if line.get_linestyle() == "--"]
    assert lines == [[[1, y], [5, y + 1], [10, y + 2]] for y in (20, 10)]


def test_many_variants_and_dollar_signs_are_drawn(tmp_path):
    variants = {f"variant_{i} $x^$": float(i) for i in range(14)}
    assert len(set(marks(list(variants)).values())) == 14
    save_figure(plot_retrieval(retrieval_table(make_rows(variants))), tmp_path, "many")


def test_a_figure_of_two_datasets_or_of_nothing_is_refused():
    rows = make_rows()
    both = pd.concat([rows, rows.assign(dataset="n24news")], ignore_index=True)
    with pytest.raises(ValueError, match="one dataset; the table has n24news, newsroom"):
        plot_retrieval(retrieval_table(both))
    with pytest.raises(ValueError, match="the table has no rows"):
        plot_retrieval(retrieval_table(rows).iloc[:0])


def test_plot_lengths_counts_every_text_once():
    lengths = {"caption": [5, 5, 9, 20], "explanation": [70, 100, 150]}
    figure = plot_lengths(lengths, limit=77)
    counted = [sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers]
    assert counted == [4, 3]
    dashed = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert dashed == [77]


def test_the_figure_shows_the_tables_numbers():
    table = checks_table({"good": [()], "bad": [("cut",), ()]})
    (axis,) = plot_checks(table).axes
    for line in axis.get_lines():
        assert list(line.get_xdata()) == list(table[line.get_label()])
        assert list(line.get_ydata()) == list(axis.get_yticks())  # first check on top
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        c.replace("_", " ") for c in table.index
    ]


def test_a_summary_of_splits_is_drawn_and_saved(tmp_path):
    words, sizes = np.array([3, 4, 4, 9]), np.array([[64, 48], [48, 64]])
    splits = [
        SimpleNamespace(split="train", words=words, names=words // 3, sizes=sizes),
        SimpleNamespace(split="test", words=words, names=words // 3, sizes=sizes[:0]),
    ]
    assert [path.name for path in save_summary(splits, tmp_path)] == ["summary.png", "summary.svg"]
    lengths, names, shown = plt.gcf().axes
    assert [len(axis.patches) for axis in (lengths, names)] == [2, 2]
    assert [text.get_text() for text in lengths.get_legend().get_texts()] == ["train", "test"]
    assert shown.collections[0].get_offsets().tolist() == sizes.tolist()
