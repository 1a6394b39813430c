"""What a run of the notebooks found becomes what ``notebooks/`` stores.

    python -m benchmarks.notebook_outputs [FOLDER]

FOLDER holds executed notebooks, by default those of ``make reproduce``, ``runs/demo/notebooks``.
Outputs and counts are taken; injected cells, papermill's notes, noise of stderr and progress are
not. An output that differs by nothing but what nbval's sanitizer calls noise (times, memory, paths,
commits) stays as it was, so a run that found the same changes no file.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

from nbval.plugin import get_sanitize_patterns

from benchmarks.notebook_heads import NOTEBOOKS, dump
from entityclip.config import REPOSITORY
from entityclip.console import Refused
from entityclip.files import atomic_write_text

EXECUTED = REPOSITORY / "runs" / "demo" / "notebooks"
SANITIZER = NOTEBOOKS / ".nbval-sanitize.cfg"
_PROGRESS = re.compile(r"^.*epoch .* so far, about .*\n?", re.MULTILINE)
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.@-]+){2,}/(?=[\w.@-]+)")  # a file keeps its own name


def with_outputs(stored: dict, executed: dict) -> dict:
    """The stored notebook with the executed one's outputs.

    Raises Refused where their cells differ: what ran is another notebook than what is shipped.
    """
    result = copy.deepcopy(stored)
    code = [cell for cell in result["cells"] if cell["cell_type"] == "code"]
    ran = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    ran = [c for c in ran if "injected-parameters" not in c["metadata"].get("tags", [])]
    for number in range(max(len(code), len(ran))):
        pair = [_source(cells[number]) if number < len(cells) else None for cells in (code, ran)]
        if pair[0] != pair[1]:
            raise Refused(f"code cell {number + 1} is not what was run; run the notebook anew")
    for number, (cell, run) in enumerate(zip(code, ran, strict=True), start=1):
        found = cleaned(run["outputs"], number)
        cell["execution_count"] = number
        if _told(found) != _told(cell["outputs"]):
            cell["outputs"] = found
    return result


def cleaned(outputs: list[dict], count: int) -> list[dict]:
    """Outputs as they are stored: streams joined, stderr, progress and machine paths gone."""
    kept: list[dict] = []
    for output in copy.deepcopy(outputs):
        output.get("metadata", {}).pop("papermill", None)
        if output["output_type"] == "stream":
            if output["name"] == "stderr":
                continue
            text = _PATH.sub("", _PROGRESS.sub("", "".join(output["text"])))
            if kept and kept[-1]["output_type"] == "stream":
                text = "".join(kept.pop()["text"]) + text
            if not text.strip():
                continue
            output["text"] = text.splitlines(keepends=True)
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
        kept.append(output)
    return kept


def _told(outputs: list[dict]) -> list:
    """What outputs say, without noise: equal for two runs that found the same."""
    said = []
    for output in outputs:
        data = {"text": output.get("text", "")} | output.get("data", {})
        said.append((output["output_type"], {key: _plain(text) for key, text in data.items()}))
    return said


def _plain(text: object) -> str:
    plain = "".join(text) if isinstance(text, list) else str(text)
    for pattern, instead in _noise():
        plain = pattern.sub(instead, plain)
    return plain


def _noise() -> list[tuple[re.Pattern, str]]:
    patterns = get_sanitize_patterns(SANITIZER.read_text(encoding="utf-8"))
    return [(re.compile(regex), instead) for regex, instead in patterns]


def _source(cell: dict) -> str:
    return "".join(cell["source"])


def main(folder: Path = EXECUTED) -> None:
    """Take in what lies in the folder, and say which notebooks changed."""
    paths = [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if (folder / path.name).is_file()]
    if not paths:
        raise SystemExit(f"{folder} holds no executed notebook; run `make reproduce` first")
    for path in paths:
        before = json.loads(path.read_text(encoding="utf-8"))
        executed = json.loads((folder / path.name).read_text(encoding="utf-8"))
        try:
            after = with_outputs(before, executed)
        except Refused as refused:
            raise SystemExit(f"{path.name}: {refused}") from refused
        if after != before:
            atomic_write_text(path, dump(after))
            print(f"{path.name}: outputs taken in")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
