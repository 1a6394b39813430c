"""The generated parts of notebooks/ are up to date, and writing them changes nothing else."""

import copy
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from benchmarks import notebook_heads
from benchmarks.notebook_heads import NOTEBOOKS, contents, dump, read_chapters, with_head


@pytest.fixture(scope="module")
def reports(committed_figures):
    """The reports whose times the heads may tell: a reader's own run, and the committed one."""
    return notebook_heads.REPORT, committed_figures / "reproduce.json"


def test_the_table_of_contents_is_up_to_date(reports):
    written = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    expected = [contents(read_chapters(report=report)) for report in reports]
    assert written in expected, "run python -m benchmarks.notebook_heads"


@pytest.mark.parametrize("place", range(len(read_chapters())))
def test_heads_and_feet_are_up_to_date(place, reports):
    text = read_chapters()[place].path.read_text(encoding="utf-8")
    expected = [
        dump(with_head(json.loads(text), read_chapters(report=report), place)) for report in reports
    ]
    assert text in expected, "run python -m benchmarks.notebook_heads"


def test_every_link_leads_to_a_notebook():
    text = contents(read_chapters())
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert text.count(f"]({path.name})") == 1


@pytest.fixture
def folder(tmp_path):
    """Three small notebooks, of which two were measured."""
    for number, name in enumerate(("00_a", "01_b", "12_c")):
        cells = [
            new_markdown_cell(f"# {number} · Title\n\n**The claim.** It holds. More of it."),
            new_code_cell("profile = 1", metadata={"tags": ["parameters"]}),
            new_code_cell(
                "experiment = Experiment(load_profile(profile))\nprint(1)",
                execution_count=2,
                outputs=[new_output("stream", name="stdout", text="1\n")],
            ),
            new_markdown_cell("The end."),
        ]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    rows = [
        {"notebook": "00_a", "seconds": 20.0, "peak_mb": 1048},
        {"notebook": "01_b", "seconds": 700.0, "peak_mb": 1945},
    ]
    (tmp_path / "reproduce.json").write_text(json.dumps({"notebooks": rows}))
    return tmp_path


def written(folder):
    chapters = read_chapters(folder, folder / "reproduce.json")
    return [
        with_head(json.loads(chapter.path.read_text()), chapters, place)
        for place, chapter in enumerate(chapters)
    ]


def test_a_head_says_profile_time_memory_and_the_way(folder):
    first, second, last = ("".join(nb["cells"][0]["source"]) for nb in written(folder))
    assert first.startswith("# 0 · Title\n\n**The claim.** It holds.")
    assert "[Contents](README.md) · [1 · Title](01_b.ipynb) →" in first
    assert "←" not in first
    assert "Profile `demo` on two CPU cores: about ½\xa0min and 1.5\xa0GB." in first
    assert "← [0 · Title](00_a.ipynb) · [Contents](README.md) · [2 · Title](12_c.ipynb) →" in second
    assert "about 15\xa0min and 2\xa0GB" in second
    assert "not measured yet" in last
    assert "→" not in last.partition("<!-- head -->")[2].partition("\n\n")[0]


def test_a_foot_is_added_and_code_and_outputs_stay(folder):
    before = json.loads((folder / "01_b.ipynb").read_text())
    after = written(folder)[1]
    assert "".join(after["cells"][-1]["source"]).startswith("The end.\n\n<!-- foot -->")
    assert after["cells"][1:-1] == before["cells"][1:-1]


@pytest.mark.parametrize("place", range(len(read_chapters())))
def test_whoever_makes_an_experiment_checks_it_at_once(place):
    """What it lacks is told before hours of training, not after."""
    notebook = json.loads(read_chapters()[place].path.read_text(encoding="utf-8"))
    for source in ("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"):
        assert "experiment = Experiment(" not in source or "experiment.check(" in source


def test_a_second_run_changes_nothing(folder):
    chapters = read_chapters(folder, folder / "reproduce.json")
    once = written(folder)
    for place, notebook in enumerate(once):
        assert with_head(copy.deepcopy(notebook), chapters, place) == notebook


def test_what_was_measured_anew_replaces_the_old(folder, monkeypatch):
    monkeypatch.setattr(notebook_heads, "NOTEBOOKS", folder)
    once = written(folder)[1]
    report = folder / "reproduce.json"
    report.write_text(report.read_text().replace("700.0", "70.0"))
    chapters = read_chapters(folder, report)
    head = "".join(with_head(once, chapters, 1)["cells"][0]["source"])
    assert "about 2\xa0min" in head
    assert head.count("<!-- head -->") == 1


def test_a_notebook_without_a_title_is_named(folder):
    nbformat.write(new_notebook(cells=[new_markdown_cell("no title")]), folder / "02_d.ipynb")
    with pytest.raises(ValueError, match=r"02_d\.ipynb: its first cell has no"):
        read_chapters(folder, folder / "reproduce.json")
