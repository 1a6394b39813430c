"""The parts of notebooks/ that are generated: README.md, and each notebook's head and foot.

    python -m benchmarks.notebook_heads

Titles come from the notebooks, times and memory from ``figures/reproduce.json``, rounded so that
a second run on the same machine says the same. Only Markdown between ``<!-- head -->`` and
``<!-- /head -->`` (or foot) is written: all else, outputs too, stays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.marked_parts import replace_part, written_part
from entityclip.config import REPOSITORY
from entityclip.files import atomic_write_text
from entityclip.reproduce.plan import find_notebooks

NOTEBOOKS = REPOSITORY / "notebooks"
REPORT = REPOSITORY / "figures" / "reproduce.json"
_SPACE = "\N{NO-BREAK SPACE}"  # a narrow column would part a number from its unit
_INTRODUCTION = """\
Open one and choose *Run → Run All Cells*. They store what the `demo` profile found; 07, 08 and 09, whose trainings take
hours, that of `smoke`, whose numbers mean nothing. `profile` in the first code cell chooses, `ENTITYCLIP_PROFILE=smoke` in
the environment overrules it. Times and memory are those of `demo` on the machine named in `figures/reproduce.json`. Each
notebook runs alone: what it needs from an earlier one it finds in `runs/` or makes.
"""  # noqa: E501


class Chapter(NamedTuple):
    """A notebook as its neighbours and the table of contents name it."""

    path: Path
    title: str
    about: str  # the first sentence of its claim
    minutes: str
    memory: str


def read_chapters(folder: Path = NOTEBOOKS, report: Path = REPORT) -> list[Chapter]:
    """The notebooks of a folder in order, with what they took when `report` was written.

    Raises ValueError for a notebook without a title.
    """
    rows = json.loads(report.read_text(encoding="utf-8"))["notebooks"]
    measured = {row["notebook"]: row for row in rows}
    chapters = []
    for path in sorted(find_notebooks(folder)):  # as they are read
        text = "".join(_read(path)["cells"][0]["source"])
        title = re.match(r"# +(.+)", text)
        if not title:
            raise ValueError(f"{path.name}: its first cell has no `# title`")
        row = measured.get(path.stem, {})
        chapters.append(Chapter(path, title[1].strip(), _claim(text), _minutes(row), _memory(row)))
    return chapters


def contents(chapters: Sequence[Chapter]) -> str:
    """``notebooks/README.md``."""
    lines = [
        "<!-- Written by `python -m benchmarks.notebook_heads`. -->",
        "# Notebooks",
        "",
        _INTRODUCTION,
        "| notebook | what it shows, or the claim it tests | time | memory |",
        "|---|---|--:|--:|",
    ]
    for chapter in chapters:
        link = f"[{chapter.title}]({chapter.path.name})"
        lines.append(f"| {link} | {chapter.about} | {chapter.minutes} | {chapter.memory} |")
    return "\n".join(lines) + "\n"


def with_head(notebook: dict, chapters: Sequence[Chapter], place: int) -> dict:
    """A notebook with its head and foot brought up to date; all else as it was."""
    chapter = chapters[place]
    links = [
        *(f"← [{it.title}]({it.path.name})" for it in chapters[:place][-1:]),
        "[Contents](README.md)",
        *(f"[{it.title}]({it.path.name}) →" for it in chapters[place + 1 :][:1]),
    ]
    way = " · ".join(links)
    took = f"about {chapter.minutes} and {chapter.memory}"
    if "–" in (chapter.minutes, chapter.memory):
        took = "not measured yet"
    source = "".join(_text(cell) for cell in notebook["cells"] if cell["cell_type"] == "code")
    stored = re.search(r'^profile = "(\w+)"', source, flags=re.MULTILINE)
    here = f"Stored here: profile `{stored[1]}`. " if stored else ""
    head = f"{way}\n\n*{here}Profile `demo` on two CPU cores: {took}.*"
    cells = [dict(cell) for cell in notebook["cells"]]
    markdown = [n for n, cell in enumerate(cells) if cell["cell_type"] == "markdown"]
    first, last = markdown[0], markdown[-1]
    cells[first]["source"] = _lines(_marked(_text(cells[first]), "head", head))
    if first != last:
        cells[last]["source"] = _lines(_marked(_text(cells[last]), "foot", way))
    return notebook | {"cells": cells}


def main() -> None:
    """Write what is out of date."""
    chapters = read_chapters()
    atomic_write_text(NOTEBOOKS / "README.md", contents(chapters))
    for place, chapter in enumerate(chapters):
        before = _read(chapter.path)
        after = with_head(before, chapters, place)
        if after != before:
            atomic_write_text(chapter.path, dump(after))
            print(f"{chapter.path.name}: head or foot written")


def dump(notebook: dict) -> str:
    """A notebook as Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _marked(text: str, name: str, content: str) -> str:
    """The text with its marked part replaced, or put at its end."""
    if f"<!-- {name} -->" in text:
        return replace_part(text, name, content)
    return f"{text.rstrip()}\n\n{written_part(name, content)}".lstrip()


def _claim(text: str) -> str:
    """The first sentence after the title, without its bold opening."""
    body = re.sub(r"<!-- head -->.*?<!-- /head -->", "", text.partition("\n")[2], flags=re.DOTALL)
    body = " ".join(re.sub(r"\*\*[^*]+\*\*", "", body, count=1).split())
    return re.split(r"(?<=[.?!]) ", body, maxsplit=1)[0].replace("|", "\\|")


def _minutes(row: dict) -> str:
    seconds = row.get("seconds")
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{'1' if seconds > 30 else '½'}{_SPACE}min"
    return f"{_two_steps(seconds / 60)}{_SPACE}min"


def _memory(row: dict) -> str:
    return f"{math.ceil(row['peak_mb'] / 500) * 0.5:g}{_SPACE}GB" if row.get("peak_mb") else "–"


def _two_steps(minutes: float) -> int:
    """Minutes rounded up to steps that two runs of one machine agree on."""
    step = 1 if minutes < 5 else 5 if minutes < 30 else 15
    return math.ceil(minutes / step) * step


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _text(cell: dict) -> str:
    return "".join(cell["source"])


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
