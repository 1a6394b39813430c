"""Every notebook in JupyterLab in a real browser: Run All, no error, no broken widget.

``make test-browser`` runs all of them and leaves screenshots in ``runs/browser``; ``make test``
runs one, where chromium and playwright are there. ``ENTITYCLIP_BROWSER`` names others: ``all``, or
notebooks separated by commas.
"""

import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from entityclip.config import REPOSITORY
from entityclip.reproduce.plan import find_notebooks
from tests.browser.lab import (
    NOTEBOOKS,
    find_chromium,
    lab_by_make,
    run_all,
    running_lab,
    screenshot,
)

LIGHT = "11_search"  # the lightest with controls and pictures
TIMEOUT = float(os.environ.get("ENTITYCLIP_BROWSER_TIMEOUT", 1200))  # seconds a notebook
THEME = os.environ.get("ENTITYCLIP_BROWSER_THEME", "light")
SHOTS = Path(os.environ.get("ENTITYCLIP_RUNS") or REPOSITORY / "runs") / "browser"

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; make test-browser installs it"
)
pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no chromium here; make test-browser installs it"
)


def chosen():
    wanted = os.environ.get("ENTITYCLIP_BROWSER", LIGHT)
    known = [path.stem for path in find_notebooks(NOTEBOOKS)]
    return known if wanted == "all" else [name for name in known if name in wanted.split(",")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab"), theme=THEME) as lab:
        yield lab


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as started:
        # in a container root has no sandbox to put a browser in; it sees loopback only
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=find_chromium(), args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        yield page
        browser.close()


@pytest.mark.parametrize("notebook", chosen())
def test_run_all(notebook, lab, page):
    try:
        faults = run_all(page, lab, notebook, TIMEOUT)
    finally:
        screenshot(page, SHOTS / f"{notebook}-{THEME}.png")
    assert faults == []


def test_make_lab_opens_the_contents_as_a_page(page, tmp_path):
    with lab_by_make(tmp_path) as lab:
        page.goto(f"{lab.url}/?token={lab.token}", wait_until="domcontentloaded", timeout=120_000)
        links = page.locator(".jp-RenderedMarkdown td a")
        links.first.wait_for(timeout=120_000)
        targets = [links.nth(n).get_attribute("href") for n in range(links.count())]
        page.goto("about:blank")  # or the page would ask the next server for this one's kernels
    names = [path.name for path in find_notebooks(NOTEBOOKS)]
    assert [target.partition("?")[0].rpartition("/")[2] for target in targets] == names


# what a spoilt notebook's cells do, and the fault that must be seen
SPOILT = {
    "error": ("raise ValueError('no')", "error: "),
    "stderr": ("import sys; print('noise', file=sys.stderr)", "stderr: noise"),
    "raw repr": ("object()", "raw repr: <object at 0x"),
    "widget": (
        "from IPython.display import display\n"
        "kind = 'application/vnd.jupyter.widget-view+json'\n"
        "display({kind: {'model_id': 'none', 'version_major': 2, 'version_minor': 0}}, raw=True)",
        "widget: ",
    ),
}


def test_faults_are_seen(lab, page):
    """The four faults in one notebook, the error last, so that one kernel starts."""
    cells = [new_code_cell(SPOILT[name][0]) for name in ("stderr", "raw repr", "widget", "error")]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, lab.folder / "notebooks" / "spoilt.ipynb")
    faults = run_all(page, lab, "spoilt", 120)
    for name, (_, seen) in SPOILT.items():
        assert any(fault.startswith(seen) for fault in faults), (name, faults)
