"""What nbval does not see to: it passes notebooks without outputs, and runs on after a failure."""

import re
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import comment_markers, find_comment_markers, find_metadata_tags

# of a cell's output nbval compares neither pictures nor widgets, and a repr is no value
NOT_COMPARED = ("image/", "application/vnd.jupyter.widget")
ONLY_A_REPR = re.compile(r"\s*(<[^<>]*>\s*)*")
FAILED = pytest.StashKey[dict[Path, str]]()


def problems(notebook):
    """Why nbval's comparison of this notebook would be worth nothing; empty if it is worth it."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"its cells were run as {counts}; restart the kernel, run all and save")
    checked = 0
    for number, cell in enumerate(code, start=1):
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"code cell {number} holds an error as its output")
        found += [f"code cell {number}: {text}" for text in unknown_markers(cell.source)]
        options = dict(find_metadata_tags(cell.metadata)) | dict(find_comment_markers(cell.source))
        if options.get("check") and not options.get("skip"):
            checked += 1
            if not any(compared(output) for output in cell.outputs):
                found.append(f"code cell {number} is to be checked, but stores no printed value")
    if not checked:
        found.append("no cell is marked # NBVAL_CHECK_OUTPUT")
    return found


def compared(output):
    """Whether nbval will compare a value in this output."""
    if output.output_type == "stream":
        texts = [output.text] if output.name == "stdout" else []
    else:
        data = output.get("data", {})
        texts = [str(data[mime]) for mime in data if not mime.startswith(NOT_COMPARED)]
    return any(not ONLY_A_REPR.fullmatch(text) for text in texts)


def unknown_markers(source):
    """Comments meant for nbval that it silently ignores."""
    comments = [line.strip().lstrip("#").strip() for line in source.splitlines() if "#" in line]
    meant = [text for text in comments if text.upper().startswith("NBVAL")]
    return [f"nbval does not know # {text}" for text in meant if text not in comment_markers]


class Guard(pytest.Item):
    """One test a notebook, before its cells."""

    def runtest(self):
        notebook = nbformat.read(self.path, as_version=4)
        found = problems(notebook)
        if found:
            pytest.fail("\n".join(f"{self.path.name}: {text}" for text in found), pytrace=False)

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}::guard"


class GuardedNotebook(pytest.File):
    """A notebook, as the place its guard stands at."""

    def collect(self):
        yield Guard.from_parent(self, name="guard")


@pytest.hookimpl(tryfirst=True)
def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return GuardedNotebook.from_parent(parent, path=file_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and item.path.suffix == ".ipynb":
        item.config.stash.setdefault(FAILED, {}).setdefault(item.path, item.name)
    return report


@pytest.hookimpl(tryfirst=True)  # before nbval starts a kernel
def pytest_runtest_setup(item):
    failed = item.config.stash.get(FAILED, {}).get(item.path)
    if failed:
        pytest.skip(f"{failed} of this notebook failed")
