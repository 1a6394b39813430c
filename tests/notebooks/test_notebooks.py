"""Shipped notebooks keep the house rules; notebooks/conftest.py refuses what nbval lets pass."""

import ast
import re
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import find_comment_markers

from entityclip.config import REPOSITORY
from entityclip.reproduce.plan import ReproduceError, check_parameters, find_notebooks

NOTEBOOKS = REPOSITORY / "notebooks"
SHIPPED = sorted(NOTEBOOKS.glob("*.ipynb"))
WITHOUT_ROWS = {"07_generalization", "08_itr", "09_ascl"}  # of the demo: they store smoke's
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|Users|usr|opt|var|mnt|srv|data)/\w+")


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


# ------------------------------------------------------- house rules: each names what breaks it


def length(notebook, path):
    code = code_of(notebook)
    counts = [len(lines(cell)) for cell in code]
    if not 8 <= len(code) <= 16:
        yield f"{len(code)} code cells; 8 to 16 are readable"
    if counts and statistics.median(counts) >= 8:
        yield f"the median code cell has {statistics.median(counts)} lines; keep it below 8"
    yield from (f"code cell {n} has {c} lines; 25 at most" for n, c in enumerate(counts) if c > 25)


def title(notebook, path):
    first = notebook.cells[0] if notebook.cells else new_code_cell()
    if first.cell_type != "markdown" or not re.match(r"# \S", first.source):
        yield "the first cell is no markdown with a `# title`"


def parameters(notebook, path):
    try:
        check_parameters(path, {"profile", "seed", "output_dir", "settings"})
    except ReproduceError as error:
        yield str(error)
        return
    (cell,) = [c for c in code_of(notebook) if "parameters" in c.metadata.get("tags", [])]
    nodes = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}
    profile = "smoke" if path.stem in WITHOUT_ROWS else "demo"
    defaults = {"profile": profile, "seed": None, "output_dir": "", "settings": {}}
    yield from (
        f"its default for {name} is {values.get(name, 'missing')!r}, not {value!r}"
        for name, value in defaults.items()
        if values.get(name, ...) != value
    )


def kernel(notebook, path):
    name = notebook.metadata.get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"kernelspec is {name!r}; it must be python3 to run anywhere"


def size(notebook, path):
    if path.stat().st_size >= 400_000:
        yield f"{path.stat().st_size} bytes; below 400,000 it can be read on the web"


def outputs(notebook, path):
    if not any(cell.outputs for cell in code_of(notebook)):
        yield "no outputs are stored; run it and save"
    for number, cell in enumerate(code_of(notebook), start=1):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                yield f"code cell {number} stores noise from stderr: {output.text[:80]!r}"


def machine_paths(notebook, path):
    for number, cell in enumerate(notebook.cells, start=1):
        parts = [part for output in cell.get("outputs", []) for part in texts(output)]
        for text in (cell.source, *parts):
            if found := MACHINE_PATH.search(text):
                yield f"cell {number} names a path of one machine: {found[0]}"


def texts(output):
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return output.traceback
    return [str(v) for k, v in output.data.items() if not k.startswith("image/png")]


def logic(notebook, path):
    for number, cell in enumerate(code_of(notebook), start=1):
        try:
            nodes = list(ast.walk(ast.parse(cell.source)))
        except SyntaxError as error:  # magics too: they hide failures and run in no other tool
            yield f"code cell {number} is no plain Python: {error}"
            continue
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                yield f"code cell {number} defines class {node.name}; it belongs into the package"


def prose(notebook, path):
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    start = tagged[0] + 1 if tagged else 0
    code = [i for i in range(start, len(notebook.cells)) if notebook.cells[i].cell_type == "code"]
    told = [i for i in code if notebook.cells[i - 1].cell_type == "markdown"]
    if len(told) < 0.6 * len(code):
        yield f"{len(told)} of {len(code)} code cells follow a text; 60 % should"


def checked(notebook, path):
    marked = [c for c in code_of(notebook) if dict(find_comment_markers(c.source)).get("check")]
    said = [line for c in marked for o in c.outputs for line in "".join(texts(o)).splitlines()]
    if len(said) < 3:
        yield f"cells marked # NBVAL_CHECK_OUTPUT print {len(said)} lines; check three at least"


RULES = (
    *(length, title, parameters, kernel, size, outputs),
    *(machine_paths, logic, prose, checked),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_notebook(path, rule):
    assert list(rule(nbformat.read(path, as_version=4), path)) == []


# --------------------------------------------------------------------- each rule and guard bites


def model_notebook():
    """The smallest notebook that keeps all rules."""
    cells = [new_markdown_cell("# A claim")]
    names = 'profile = "demo"\nseed = None\noutput_dir = ""\nsettings = {}'
    for number in range(1, 9):
        source = names if number == 1 else f"# NBVAL_CHECK_OUTPUT\nprint({number})"
        output = [] if number == 1 else [new_output("stream", name="stdout", text=f"{number}\n")]
        cells.append(new_markdown_cell("What to expect."))
        cells.append(new_code_cell(source, execution_count=number, outputs=output))
    cells[2].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def stored(text, name="stdout"):
    return [new_output("stream", name=name, text=text)]


# how to break a rule, given the notebook and its code cells
BREAKS = {
    "length-few": (length, lambda nb, code: nb.cells.pop()),
    "length-long": (length, lambda nb, code: code[3].update(source="a = 1\n" * 26)),
    "length-median": (length, lambda nb, code: [c.update(source="a = 1\n" * 8) for c in code]),
    "title-none": (title, lambda nb, code: nb.cells[0].update(source="A claim")),
    "title-code": (title, lambda nb, code: nb.cells.pop(0) and nb.cells.pop(0)),
    "parameters-untagged": (parameters, lambda nb, code: code[0].metadata.clear()),
    "parameters-lack": (parameters, lambda nb, code: code[0].update(source='profile = "demo"')),
    "parameters-default": (
        parameters,
        lambda nb, code: code[0].update(source=code[0].source.replace("demo", "smoke")),
    ),
    "kernel": (kernel, lambda nb, code: nb.metadata.kernelspec.update(name="venv")),
    "size": (size, lambda nb, code: code[3].update(outputs=stored("x" * 400_000))),
    "outputs-none": (outputs, lambda nb, code: [c.update(outputs=[]) for c in code]),
    "outputs-stderr": (outputs, lambda nb, code: code[3].update(outputs=stored("!", "stderr"))),
    "path-source": (machine_paths, lambda nb, code: code[3].update(source="a = '/home/someone/x'")),
    "path-output": (
        machine_paths,
        lambda nb, code: code[3].update(outputs=stored("/home/someone")),
    ),
    "logic-class": (logic, lambda nb, code: code[3].update(source="class A:\n    pass")),
    "logic-magic": (logic, lambda nb, code: code[3].update(source="!false")),
    "prose": (prose, lambda nb, code: [nb.cells.pop(i) for i in (15, 13, 11)]),
    "checked": (checked, lambda nb, code: [c.update(source="print(1)") for c in code]),
}


def written(notebook, path):
    nbformat.write(notebook, path)
    return notebook, path


def test_model_notebook_keeps_all_rules(tmp_path):
    notebook, path = written(model_notebook(), tmp_path / "00_good.ipynb")
    assert {rule.__name__: list(rule(notebook, path)) for rule in RULES} == {
        rule.__name__: [] for rule in RULES
    }


@pytest.mark.parametrize("name", BREAKS)
def test_rule_bites(name, tmp_path):
    rule, spoil = BREAKS[name]
    notebook = model_notebook()
    spoil(notebook, code_of(notebook))
    notebook, path = written(notebook, tmp_path / "00_bad.ipynb")
    assert len(list(rule(notebook, path))) >= 1


def test_web_addresses_are_no_machine_paths():
    assert not MACHINE_PATH.search("https://example.org/home/page and figures/tmp/a.png, and/or")


def figure_only():
    data = {"image/png": "aGk=", "text/plain": "<Figure size 640x480 with 1 Axes>"}
    return [new_output("display_data", data=data)]


# each spoils the model notebook's fourth code cell (or all), and what the guard then says
GUARDED = {
    "stripped": (
        lambda nb, code: [c.update(outputs=[], execution_count=None) for c in code],
        "its cells were run as [None, None",
    ),
    "no_output": (
        lambda nb, code: code[3].update(outputs=[]),
        "code cell 4 is to be checked, but stores no printed value",
    ),
    "figure_only": (
        lambda nb, code: code[3].update(outputs=figure_only()),
        "code cell 4 is to be checked, but stores no printed value",
    ),
    "stderr_only": (
        lambda nb, code: code[3].update(outputs=stored("4", "stderr")),
        "code cell 4 is to be checked, but stores no printed value",
    ),
    "unmarked": (
        lambda nb, code: [c.update(source="print(1)") for c in code],
        "no cell is marked # NBVAL_CHECK_OUTPUT",
    ),
    "misspelt": (
        lambda nb, code: code[3].update(source="# NBVAL_CHECK_OUTPUT: the value\nprint(4)"),
        "code cell 4: nbval does not know # NBVAL_CHECK_OUTPUT: the value",
    ),
    "order": (
        lambda nb, code: code[3].update(execution_count=9),
        "its cells were run as [1, 2, 3, 9, 5, 6, 7, 8]",
    ),
    "error": (
        lambda nb, code: code[3].update(outputs=[new_output("error", ename="E", evalue="")]),
        "code cell 4 holds an error as its output",
    ),
}


@pytest.fixture(scope="module")
def nbval_run(tmp_path_factory):
    """One nbval run over spoilt notebooks; two kernels start, for `good` and `wrong_value`."""
    folder = tmp_path_factory.mktemp("nbval")
    shutil.copy(NOTEBOOKS / "conftest.py", folder)
    notebooks = {name: model_notebook() for name in ("good", "wrong_value", *GUARDED)}
    for name, (spoil, _) in GUARDED.items():
        spoil(notebooks[name], code_of(notebooks[name]))
    wrong = code_of(notebooks["wrong_value"])[3]
    wrong.outputs = stored("3.99 after 12.5 s\n")
    wrong.source = "# NBVAL_CHECK_OUTPUT\nprint('4.00 after 0.1 s')"
    timed = code_of(notebooks["good"])[4]
    timed.outputs = stored("5 after 12.5 s\n")
    timed.source = "# NBVAL_CHECK_OUTPUT\nprint('5 after 0.1 s')"
    for name, notebook in notebooks.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
    sanitizer = NOTEBOOKS / ".nbval-sanitize.cfg"
    command = [sys.executable, "-m", "pytest", str(folder), "-p", "no:cacheprovider"]
    command += ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=60"]
    command += [f"--nbval-sanitize-with={sanitizer}", f"--junitxml={folder / 'report.xml'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    return outcomes(folder / "report.xml")


def outcomes(report):
    """{notebook: {test: (outcome, message)}} of a junit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        result = [(child.tag, child.get("message", "") + (child.text or "")) for child in case]
        notebook = case.get("classname").split(".")[-1]
        notebook = notebook if notebook != "ipynb" else case.get("classname").split(".")[-2]
        found.setdefault(notebook, {})[case.get("name")] = result[0] if result else ("passed", "")
    return found


def test_good_notebook_passes_cell_by_cell(nbval_run):
    assert {outcome for outcome, _ in nbval_run["good"].values()} == {"passed"}
    assert list(nbval_run["good"]) == ["guard", *(f"Cell {n}" for n in range(8))]


@pytest.mark.parametrize("name", GUARDED)
def test_guard_refuses(nbval_run, name):
    tests = dict(nbval_run[name])
    outcome, message = tests.pop("guard")
    assert outcome == "failure"
    assert GUARDED[name][1] in message
    assert {outcome for outcome, _ in tests.values()} == {"skipped"}


def test_cells_after_a_failed_one_are_skipped(nbval_run):
    tests = nbval_run["wrong_value"]
    assert [tests[f"Cell {n}"][0] for n in range(8)] == ["passed"] * 3 + ["failure"] + [
        "skipped"
    ] * 4
    assert "Cell 3 of this notebook failed" in tests["Cell 7"][1]


def test_reproduce_runs_every_shipped_notebook():
    assert sorted(find_notebooks(NOTEBOOKS)) == SHIPPED
    assert find_notebooks(NOTEBOOKS)[-1].stem == "10_tables_and_figures"  # draws all others'
