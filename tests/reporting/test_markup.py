"""Printed tables: what stands out, what is escaped, and that LaTeX would take it."""

from __future__ import annotations

import re

import pytest

from entityclip.config import REPOSITORY
from entityclip.reporting.markup import (
    Cell,
    Sheet,
    latex,
    number_cell,
    sheet_latex,
    sheet_markdown,
    standings,
)
from entityclip.reporting.tables import retrieval_sheet, retrieval_table
from entityclip.variants import DIRECTION_LABELS, SPLIT_LABELS, VARIANT_LABELS
from tests.reporting.samples import NAN, make_rows


@pytest.mark.parametrize(
    ("values", "higher", "expected"),
    [
        ([1.0, 3.0, 2.0], True, ["", "best", "second"]),
        ([1.0, 3.0, 2.0], False, ["best", "", "second"]),
        ([3.0, 3.0, 2.0, 1.0], True, ["best", "best", "second", ""]),
        ([3.0, 2.0, 2.0, 1.0], True, ["best", "second", "second", ""]),
        ([3.0, NAN, 2.0], True, ["best", "", "second"]),
        ([NAN, 2.0], True, ["", ""]),  # one value beats nothing
        ([2.0, 2.0], True, ["", ""]),
        ([], True, []),
    ],
)
def test_standings_with_ties_and_blanks(values, higher, expected):
    assert standings(values, higher_is_better=higher) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 % of A_1 & B", r"100 \% of A\_1 \& B"),
        ("$5 #2 {x}", r"\$5 \#2 \{x\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("text → image, ± 1", r"text $\rightarrow$ image, $\pm$ 1"),
        ("plain, [1] (2)", "plain, [1] (2)"),
    ],
)
def test_latex_escapes(text, expected):
    assert latex(text) == expected


def sheet():
    return Sheet(
        ["Name", "R@1"],
        [
            [["a_b|c", Cell("70.0", "± 1.2", "best")], ["[x]", Cell("60.0", "", "second")]],
            [["d", Cell()]],
        ],
        1,
        ["5 % of $x$, -0.5 to 1-2."],
    )


def test_markdown_marks_rules_and_notes():
    assert sheet_markdown(sheet()) == (
        "| Name | R@1 |\n| --- | --: |\n| a_b\\|c | **70.0** ± 1.2 |\n| \\[x\\] | <u>60.0</u> |\n"
        "| d |  |\n\n5 % of <span>&#36;</span>x<span>&#36;</span>, -0.5 to 1-2.\n"
    )


def test_latex_is_a_booktabs_table():
    assert sheet_latex(sheet(), "Best & rest", "tab:best") == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{Best \& rest}",
            r"\label{tab:best}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            r"\begin{tabular}{lr}",
            r"\toprule",
            r"Name & R@1 \\",
            r"\midrule",
            r"a\_b\textbar{}c & \textbf{70.0} {\scriptsize $\pm$ 1.2} \\",
            r"{}[x] & \underline{60.0} \\",
            r"\midrule",
            r"d &  \\",
            r"\bottomrule",
            r"\end{tabular}%",
            "}",
            r"\par\smallskip{\footnotesize\raggedright 5 \% of \$x\$, $-$0.5 to 1-2.\par}",
            r"\end{table}",
            "",
        ]
    )


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        ([["Test", "a", "x"], ["Test", "a", "y"]], "Test, a"),
        ([["Test", "a", "x"], ["Test", "b", "y"]], "Test"),
        ([["Test", "a", "x"], ["Val", "a", "x"]], None),
        ([["Test", "a_b", "x"]], r"Test, a\_b"),  # the last name tells the rows apart, one or more
    ],
)
def test_names_that_a_block_shares_stand_once_above_it_in_latex(names, shared):
    rows = [[*row, Cell("1.0")] for row in names]
    text = sheet_latex(Sheet(["Split", "Way", "Name", "R@1"], [rows], 3), "", "")
    check_latex(text)
    found = re.search(r"\\multicolumn\{(\d)\}\{l\}\{\\emph\{(.*)\}\} ", text)
    if shared is None:
        assert found is None
        assert "Split & Way & Name & R@1" in text
    else:
        gone = shared.count(",") + 1
        assert found.groups() == (str(4 - gone), shared)
        assert " & ".join(["Split", "Way", "Name", "R@1"][gone:]) in text


def check_latex(text):
    """What a compiler would stumble over: open groups, columns of another number, bare signs."""
    text = text.replace("{!}{%\n", "{!}{\n").replace("{tabular}%\n", "{tabular}\n")
    plain = re.sub(r"\\[\\%_&$#{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    for begun, ended in zip(
        re.findall(r"\\begin\{(\w+)\}", text),
        re.findall(r"\\end\{(\w+)\}", text)[::-1],
        strict=True,
    ):
        assert begun == ended
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert rows
    for row in rows:
        if row.startswith(rf"\multicolumn{{{columns}}}{{l}}"):
            continue
        assert len(re.findall(r"(?<!\\)&", row)) == columns - 1
        assert not re.search(r"(?<!\\)[%#_]", row)
    assert all(ord(sign) < 128 for sign in text)


def test_the_retrieval_table_in_latex_would_compile():
    rows = make_rows({"clip": 70.0, "with_100%_of_{a}&$b": 65.0}, seeds=(0, 1, 2))
    text = sheet_latex(retrieval_sheet(retrieval_table(rows)), "R@K in %", "tab:main")
    check_latex(text)
    assert text.count(r"\midrule") == 4  # below the head, and between four groups
    assert r"\textbf{71.0} {\scriptsize $\pm$ 2.5}" in text


def test_the_shipped_tables_in_latex_would_compile():
    for path in (REPOSITORY / "figures").glob("*.tex"):
        check_latex(path.read_text(encoding="utf-8"))


def test_latex_sets_every_name_that_tables_use_and_a_minus():
    names = [*VARIANT_LABELS.values(), *SPLIT_LABELS.values(), *DIRECTION_LABELS.values()]
    assert all(latex(name).isascii() for name in names)
    text = sheet_latex(Sheet(["a"], [[[Cell("-0.5", "[-1.9, +1.1]")]]], 0), "", "")
    assert r"$-$0.5 {\scriptsize [$-$1.9, +1.1]}" in text


def marks_of(sheet, metric):
    column = list(sheet.header).index(metric)
    return [[row[column].mark for row in block] for block in sheet.blocks]


def test_best_and_second_of_each_group_and_metric_as_printed():
    rows = make_rows({"zero-shot": 1.0, "clip": 70.04, "entityclip": 69.96, "bridge": 60.0})
    gone = (rows["variant"] == "clip") & (rows["split"] == "test") & (rows["metric"] == "R@1")
    sheet = retrieval_sheet(retrieval_table(rows[~gone]))
    assert marks_of(sheet, "R@5") == [["", "best", "best", "second"]] * 4  # what prints equal
    assert marks_of(sheet, "MedR") == [["best", "", "", "second"]] * 4  # of ranks the lowest
    # a missing cell changes no other group's marks
    assert marks_of(sheet, "R@1")[:2] == [["", "", "best", "second"]] * 2
    assert marks_of(sheet, "R@1")[2:] == [["", "best", "best", "second"]] * 2


@pytest.mark.parametrize(
    ("arguments", "over_seeds", "expected"),
    [
        ((70.0, 68.8, 71.2), True, Cell("70.0", "± 1.2")),
        ((99.0, 96.0, 100.0), True, Cell("99.0", "[96.0, 100.0]")),  # cut at the bound
        ((70.0, 68.8, 71.2), False, Cell("70.0", "[68.8, 71.2]")),
        ((70.0, NAN, NAN), True, Cell("70.0")),
        ((NAN, NAN, NAN), True, Cell()),
    ],
)
def test_intervals_as_printed(arguments, over_seeds, expected):
    assert number_cell(*arguments, over_seeds=over_seeds) == expected
