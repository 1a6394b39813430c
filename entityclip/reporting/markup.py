"""What data say, written so that no page, table or spreadsheet takes it for its own code.

Captions, names and errors become Markdown, LaTeX and CSV here and nowhere else; so do printed
tables, with what stands out in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from entityclip.files import atomic_write_text, printable

Mark = Literal["", "best", "second"]
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "%_&$#{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "…": r"\dots{}",
    "†": r"$\dagger$",
    "λ": r"$\lambda$",
    "η": r"$\eta$",
}
# what Markdown takes for its own; an underscore inside a word is none of it
_MARKDOWN = re.compile(r"[\\`*\[\]#|~$<>&!]|(?<!\w)_|_(?!\w)|:(?=//)")
_ENTITIES = {
    **{"<": "&lt;", ">": "&gt;", "&": "&amp;", ":": "&#58;"},
    # MathJax reads the page again when it is made, but never across the edge of a tag
    **{"$": "<span>&#36;</span>", "\\": "<span>&#92;</span>"},
}
_FORMULA = re.compile(r"'*[=+\-@\t\n]")
# never enlarged
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


class Cell(NamedTuple):
    """A number as printed, its interval ("± 0.4" or "[1.2, 3.4]") and whether it stands out."""

    text: str = ""
    interval: str = ""
    mark: Mark = ""


class Sheet(NamedTuple):
    """A printed table: `header`, then blocks of rows as wide, a rule between two blocks.

    The first `names` columns are words, left-aligned; the others numbers. A row without cells sets
    those below it apart. `notes` are sentences for below the table.
    """

    header: Sequence[str]
    blocks: Sequence[Sequence[Sequence[Cell | str]]]
    names: int
    notes: Sequence[str] = ()


def standings(values: Sequence[float], *, higher_is_better: bool = True) -> list[Mark]:
    """Which of some values, as printed, are "best" and which "second".

    Equal values share their mark; second is the next other value. A blank (NaN) has none, and where
    all are equal, or there is only one, nothing stands out.
    """
    known = sorted({v for v in values if not np.isnan(v)}, reverse=higher_is_better)
    if len(known) < 2:
        return [""] * len(values)
    places: dict[float, Mark] = {known[0]: "best", known[1]: "second"}
    return [places.get(value, "") for value in values]


def sheet_markdown(sheet: Sheet) -> str:
    """The table in Markdown: best bold, second underlined; notes as paragraphs below."""
    dashes = ["---" if i < sheet.names else "--:" for i in range(len(sheet.header))]
    lines = [[*map(markdown, sheet.header)], dashes]
    blank = [""] * len(sheet.header)
    lines += [[_markdown(cell) for cell in row or blank] for block in sheet.blocks for row in block]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n{markdown(note)}\n" for note in sheet.notes)


def sheet_latex(sheet: Sheet, caption: str, label: str) -> str:
    r"""A ``table`` environment for ``\usepackage{booktabs,graphicx}``.

    The best is bold, the second underlined. Names that a whole block shares stand once, above it; a
    table wider than the line is shrunk to it. All words are escaped, so names may hold %, _, & and
    $. Notes stand below the table.
    """
    shared = _shared_names(sheet)
    columns = "l" * (sheet.names - shared) + "r" * (len(sheet.header) - sheet.names)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(caption)}}}"]
    label = re.sub(r"[^\w:.-]", "-", label)
    lines += [rf"\label{{{label}}}", _FITTED, rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_row(map(latex, sheet.header[shared:])), r"\midrule"]
    for number, block in enumerate(sheet.blocks):
        lines += [r"\midrule"] if number else []
        if shared and block:
            above = ", ".join(_latex_cell(name) for name in block[0][:shared])
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{above}}}}} \\")
        apart = r"\addlinespace"
        lines += [_row(map(_latex_cell, row[shared:])) if row else apart for row in block]
    lines += [r"\bottomrule", r"\end{tabular}%", "}"]
    notes = (latex(re.sub(r"(?<!\w)-(?=\d)", "−", note)) for note in sheet.notes)
    lines += [rf"\par\smallskip{{\footnotesize\raggedright {note}\par}}" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _shared_names(sheet: Sheet) -> int:
    """How many leading names every block's rows have in common, the last name never among them."""
    for place in range(sheet.names - 1):
        if any(len({row[place] for row in block if row}) > 1 for block in sheet.blocks):
            return place
    return sheet.names - 1


def save_sheet(
    sheet: Sheet, folder: str | Path, name: str, caption: str, made_by: str
) -> list[Path]:
    """Write ``name.md`` and ``name.tex`` into `folder`, each below a comment `made_by`; the paths.

    LaTeX's label is the name with hyphens, below "tab:".
    """
    command = one_line(made_by)
    md = f"<!-- {command.replace('>', '&gt;')} -->\n{sheet_markdown(sheet)}"
    tex = f"% {command}\n{sheet_latex(sheet, caption, f'tab:{name}'.replace('_', '-'))}"
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("md", "tex")]
    for path, text in zip(paths, (md, tex), strict=True):
        atomic_write_text(path, text)
    return paths


def plain(text: str) -> str:
    """Text with control characters, a terminal's escape codes among them, written out."""
    lines = re.sub("\r\n?", "\n", text).split("\n")
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines)


def one_line(text: str) -> str:
    """`plain` text without line breaks."""
    return printable(re.sub(r"[ \t\r\n]+", " ", text))


def latex(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))


def markdown(text: str) -> str:
    """Text that Markdown shows as it stands: no tags, links, pictures, emphasis or mathematics."""
    return _MARKDOWN.sub(lambda sign: _ENTITIES.get(sign[0], "\\" + sign[0]), one_line(text))


def spreadsheet(text: str) -> str:
    """Text that no spreadsheet computes: after an apostrophe where it would be a formula."""
    text = plain(text)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def from_spreadsheet(text: str) -> str:
    """What `spreadsheet` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def words_changed(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with every text in it, column names too, as `change` gives it."""

    def changed(value: object) -> object:
        return change(value) if isinstance(value, str) else value

    table = table.rename(columns=changed)
    for place, (_, column) in enumerate(table.items()):
        if not pd.api.types.is_numeric_dtype(column):
            words = pd.Series(map(changed, column), column.index, column.dtype)
            table.isetitem(place, words)
    return table


def _row(cells: Iterable[str]) -> str:
    line = " & ".join(cells)
    # LaTeX reads a "[" or "*" that follows \\ as belonging to it, even on the next line
    return (f"{{}}{line}" if line.startswith(("[", "*")) else line) + r" \\"


def _markdown(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return markdown(cell)
    text = {"best": f"**{cell.text}**", "second": f"<u>{cell.text}</u>"}.get(cell.mark, cell.text)
    return f"{text} {cell.interval}".rstrip()


def _latex_cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return latex(cell)
    marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(cell.mark, "%s")
    text = marked % _latex_number(cell.text)
    return f"{text} {{\\scriptsize {_latex_number(cell.interval)}}}" if cell.interval else text


def _latex_number(text: str) -> str:
    return latex(text.replace("-", "−"))  # a minus, where LaTeX would set a hyphen


def number_cell(
    value: float, low: float, high: float, mark: Mark = "", *, over_seeds: bool, sign: str = ""
) -> Cell:
    """A value to one decimal with its interval: "± half" if it is symmetric and over seeds.

    `sign` "+" shows a difference's sign. NaN gives an empty cell, or one without interval.
    """
    if np.isnan(value):
        return Cell()
    text = f"{value:{sign}.1f}"
    if np.isnan(low):
        return Cell(text, mark=mark)
    if over_seeds and np.isclose(high - value, value - low):
        return Cell(text, f"± {high - value:.1f}", mark)
    return Cell(text, f"[{low:{sign}.1f}, {high:{sign}.1f}]", mark)
