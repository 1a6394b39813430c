"""Files that are the same bytes whenever the data are, and say what made them."""

import hashlib
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from entityclip.reporting import charts, curves, differences, inspection, pictures
from entityclip.reporting.markup import save_sheet
from entityclip.reporting.style import apply_style, preview, read_table, save_figure, save_table
from entityclip.reporting.tables import retrieval_sheet, retrieval_table
from tests.processes import run_alone
from tests.reporting import samples

pytestmark = pytest.mark.usefixtures("figure_style")


def lengths():
    return charts.plot_lengths({"caption": [1, 2, 2]}, 77)


def draw_everything(folder):
    """Every kind of output, from fixed inputs."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    apply_style()
    rows, log = samples.make_rows(), samples.make_log(folder / "log.jsonl", terms=("vtc", "itm"))
    shown = [samples.picture(colour) for colour in ("red", "green", "blue")]
    table, apart = retrieval_table(rows), samples.make_differences()
    gates, maps = inspection.gate_table(samples.make_gates()), np.linspace(0, 0.3, 4)
    for name, part in {"table": table, "differences": apart, "gates": gates}.items():
        save_table(part, folder, name)
    save_sheet(retrieval_sheet(table), folder, "printed", "Recall", "a test")
    for name, figure in {
        "retrieval": charts.plot_retrieval(table),
        "recall": charts.plot_recall_curves(rows),
        "training": curves.plot_training_curves({"clip": log}),
        "lengths": lengths(),
        "pairs": pictures.plot_gallery([("a caption", "an explanation", shown[0])]),
        "found": pictures.plot_retrieval_gallery([("a caption", shown, 1, shown[1], 2)]),
        "forest": differences.plot_forest(apart),
        "words": inspection.plot_word_attention(samples.make_words(0.4), ["a caption"], shown[:1]),
        "patches": inspection.plot_patch_attention(["a"], shown[:1], maps.reshape(1, 1, 2, 2)),
        "gates": inspection.plot_gates(gates),
        "space": inspection.plot_space({"CLIP": samples.make_plane()}),
    }.items():
        save_figure(figure, folder, name)
        plt.close(figure)
    (folder / "log.jsonl").unlink()
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_same_data_give_the_same_bytes_in_any_process(tmp_path):
    first = draw_everything(tmp_path / "a")
    assert len(first) == 27  # eleven figures and a printed table in two formats, three CSV
    # here other tests have drawn before; there nothing has been
    assert run_alone(print_drawn, tmp_path / "b") == str(first)


def print_drawn(folder):
    os.environ["SOURCE_DATE_EPOCH"] = "1"
    print(draw_everything(folder))


def test_laying_out_once_draws_what_laying_out_each_time_draws(tmp_path):
    def drawn():
        return charts.plot_retrieval(retrieval_table(samples.make_rows()))

    figure = drawn()
    engine, dpi = figure.get_layout_engine(), figure.dpi
    assert engine is not None
    png, _ = save_figure(figure, tmp_path, "once")
    literal = io.BytesIO()
    drawn().savefig(literal, format="png", dpi=200, metadata={"Software": None})
    assert png.read_bytes() == literal.getvalue()
    assert figure.get_layout_engine() is engine
    assert figure.dpi == dpi


def test_files_say_what_made_them_and_neither_date_nor_program(tmp_path):
    png, svg = save_figure(lengths(), tmp_path, "a", "entityclip figures a")
    plain = [path.read_bytes() for path in save_figure(lengths(), tmp_path, "plain")]
    assert [png.name, svg.name] == ["a.png", "a.svg"]
    with Image.open(png) as image, Image.open(io.BytesIO(plain[0])) as before:
        assert image.info.pop("Comment") == "entityclip figures a"
        assert set(image.info) == set(before.info) == {"dpi"}
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.size == (700, 480)
        assert image.tobytes() == before.tobytes()
    line = b"    <dc:description>entityclip figures a</dc:description>\n"
    assert svg.read_bytes().count(line) == 1
    assert svg.read_bytes().replace(line, b"") == plain[1]
    assert b"<dc:date>" not in plain[1]
    assert b"<dc:creator>" not in plain[1]
    sheet = retrieval_sheet(retrieval_table(samples.make_rows()))
    markdown, tex = save_sheet(sheet, tmp_path, "t_1", "T", "entityclip figures t")
    assert [markdown.name, tex.name] == ["t_1.md", "t_1.tex"]
    assert markdown.read_text().startswith("<!-- entityclip figures t -->\n| Split |")
    assert tex.read_text().startswith("% entityclip figures t\n\\begin{table}")
    assert r"\label{tab:t-1}" in tex.read_text()


def test_csv_is_plain_and_stable(tmp_path):
    table = pd.DataFrame({"name": ["# a", "ü,b"], "value": [1 / 3, np.nan], "n": [1, 2]})
    path = save_table(table, tmp_path, "t")
    assert path.read_bytes() == 'name,value,n\n# a,0.333333,1\n"ü,b",,2\n'.encode()
    said = save_table(table, tmp_path, "said", "entityclip figures t")
    assert said.read_bytes() == b"# entityclip figures t\n" + path.read_bytes()
    pd.testing.assert_frame_equal(read_table(said), read_table(path))
    pd.testing.assert_frame_equal(read_table(path), pd.read_csv(path))


def test_a_figure_that_cannot_be_drawn_leaves_the_last_one(tmp_path):
    save_figure(lengths(), tmp_path, "a")
    before = (tmp_path / "a.png").read_bytes()
    broken = plt.figure()
    broken.text(0.5, 0.5, "$x^$")
    with pytest.raises(ValueError, match="x"):
        save_figure(broken, tmp_path, "a")
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.svg"]


def test_previews_are_small_and_of_the_kind_that_fits():
    chart = preview(lengths(), width=340)
    assert (chart.format, chart.data[:4]) == ("png", b"\x89PNG")
    with Image.open(io.BytesIO(chart.data)) as page:
        assert page.width == 340
        assert min(page.convert("RGB").getpixel((0, 0))) > 250  # white, also on a dark page
    shown = preview(pictures.plot_gallery([("a caption", None, samples.picture("red"))]))
    assert (shown.format, shown.data[:2]) == ("jpeg", b"\xff\xd8")
    figure, axis = plt.subplots()
    matrix = axis.imshow(np.eye(3), interpolation="none")
    assert preview(figure).format == "png"
    assert matrix.get_interpolation() == "none"  # its cells keep their edges
    assert plt.get_fignums() == []
