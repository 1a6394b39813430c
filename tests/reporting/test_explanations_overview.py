"""The checks' figure."""

from entityclip.explanations.checks import checks_table
from entityclip.reporting.charts import plot_checks


def test_the_figure_shows_the_tables_numbers():
    table = checks_table({"good": [()], "bad": [("cut",), ()]})
    (axis,) = plot_checks(table).axes
    for line in axis.get_lines():
        assert list(line.get_xdata()) == list(table[line.get_label()])
        assert list(line.get_ydata()) == list(axis.get_yticks())  # first check on top
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        c.replace("_", " ") for c in table.index
    ]
