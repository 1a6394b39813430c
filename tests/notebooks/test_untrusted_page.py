"""The calls of notebook 11 on captions that are code: the exported page obeys none of them."""

import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

SETUP = """
from PIL import Image
from IPython.display import Markdown, display
from entityclip.datasets.pair import Pair
from entityclip.models.clip import create_backbone
from entityclip.reporting import style
from entityclip.reporting.pictures import plot_gallery
from entityclip.search import explorer
from entityclip.search.collection import Collection
style.apply_style()
captions = [
    "<script>alert(1)</script> in Oslo",
    r"costs $\\frac{1 and $2",
    "<img src=x onerror=alert(2)> ![x](http://e.vil/a.png)",
]
folder = %r
for n in range(3):
    Image.new("RGB", (64, 64), (80 * n, 0, 99)).save(f"{folder}/{n}.png")
from pathlib import Path
pairs = [Pair(str(n), Path(folder, f"{n}.png"), text) for n, text in enumerate(captions)]
collection = Collection.build(create_backbone("newsroom-tiny"), pairs, progress=False)
"""
CELLS = [
    "explorer.show_page(collection, pairs[0])",
    "explorer.show_page(collection, captions[1])",
    "style.preview(plot_gallery([(p.caption, p.caption, p.load_image()) for p in pairs]))",
    # what a control shows of an input that is wrong
    "shown = []\n"
    "class Widgets:\n    interact = staticmethod(lambda show, **_: shown.append(show))\n"
    "def wrong():\n    raise ValueError(captions[0] + captions[2])\n"
    "explorer._interact(Widgets, wrong)\nshown[0]()",
    "import pandas as pd\npd.DataFrame({'caption': captions})",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    cells = [SETUP % str(tmp_path_factory.mktemp("pictures")), *CELLS]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    return NotebookClient(notebook, timeout=120, kernel_name="python3").execute()


def test_the_exported_page_obeys_no_caption(executed):
    page, _ = HTMLExporter().from_notebook_node(executed)
    assert "alert(1)" in page  # it is there to be read
    assert not re.search(r"<script[^>]*>\s*alert\(", page)
    assert not re.search(r"<img[^>]*(?:src=\"?x|onerror|e\.vil)", page)
    assert not re.search(r"<a[^>]*e\.vil", page)
    assert not re.search(r"<(?:p|strong)[^>]*>[^<]*\$\\frac", page)
    assert re.search(r'<table[^>]*class="[^"]*tex2jax_ignore', page)  # where it may stand as it is


def test_its_figures_draw(executed):
    pages = [out.data for cell in executed.cells[1:4] for out in cell.outputs if "data" in out]
    assert [any(kind.startswith("image/") for kind in data) for data in pages] == [True] * 3
