"""Files that are the same bytes whenever the data are, and say what made them."""

import hashlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from entityclip.reporting.charts import plot_lengths, plot_recall_curves, plot_retrieval
from entityclip.reporting.curves import plot_seed_curves, plot_training_curves, seed_curves
from entityclip.reporting.differences import COLUMNS, difference_sheet, plot_forest
from entityclip.reporting.inspection import (
    ReadPair,
    SeenPicture,
    gate_table,
    plot_gates,
    plot_patch_attention,
    plot_space,
    plot_word_attention,
)
from entityclip.reporting.markup import save_sheet
from entityclip.reporting.pictures import plot_gallery, plot_retrieval_gallery
from entityclip.reporting.style import apply_style, preview, read_table, save_figure, save_table
from entityclip.reporting.tables import retrieval_sheet, retrieval_table
from tests.processes import run_alone
from tests.reporting.samples import make_log, make_rows, picture

pytestmark = pytest.mark.usefixtures("figure_style")


def fixed_plane():
    x = np.sin(np.arange(24.0)).reshape(2, 6, 2)
    points = [
        {"kind": kind, "pair": pair, "label": ("harbour", "match", "")[pair % 3], "x": a, "y": b}
        for kind, side in zip(("caption", "picture"), x.tolist(), strict=True)
        for pair, (a, b) in enumerate(side)
    ]
    numbers = {"alignment": 0.5, "uniformity_images": -1.25, "uniformity_texts": -2.5}
    return SimpleNamespace(points=pd.DataFrame(points), explained=(0.6, 0.2), **numbers)


def draw_everything(folder):
    """Every kind of output, from fixed inputs."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    apply_style()
    rows = make_rows()
    log = make_log(folder / "log.jsonl", terms=("vtc", "itm"))
    pictures = [picture(c) for c in ("red", "green", "blue")]
    table = retrieval_table(rows)
    lines = [("a", "A", "Test", 2.0, 0.5, 3.5, 3), ("b", "B", "Test", 1.0, -1.0, 3.0, 3)]
    differences = pd.DataFrame(lines, columns=list(COLUMNS))
    weights = np.linspace(0, 0.3, 4)
    read = ReadPair("a caption", pictures[0], ["the", "flag", "of", "ghana"], weights, weights)
    seen = SeenPicture("a caption", pictures[0], weights.reshape(1, 2, 2))
    gates = gate_table(
        pd.DataFrame({"gate": "image", "expert": ["image 1", "image 2"] * 2, "weight": weights})
    )
    losses = {"variant": "clip", "split": "train", "metric": ["vtc, epoch 1", "vtc, epoch 2"] * 2}
    curves = seed_curves(
        pd.DataFrame(losses | {"seed": [0, 0, 1, 1], "value": [3.0, 2.0, 4.0, 1.0]})
    )
    for name, part in {"table": table, "differences": differences, "gates": gates}.items():
        save_table(part, folder, name)
    save_table(curves, folder, "curves")
    save_sheet(retrieval_sheet(table), folder, "retrieval_table")
    save_sheet(difference_sheet(differences, "CLIP"), folder, "difference_table")
    for name, figure in {
        "retrieval": plot_retrieval(table),
        "recall": plot_recall_curves(rows),
        "training": plot_training_curves({"clip": log}),
        "lengths": plot_lengths({"caption": [1, 2, 2]}, 77),
        "pairs": plot_gallery([("a caption", "an explanation", pictures[0])]),
        "found": plot_retrieval_gallery([("a caption", pictures, 1, pictures[1], 2)]),
        "forest": plot_forest(differences),
        "words": plot_word_attention([read]),
        "patches": plot_patch_attention([seen]),
        "gates": plot_gates(gates),
        "seeds": plot_seed_curves(curves),
        "space": plot_space({"CLIP": fixed_plane()}),
    }.items():
        save_figure(figure, folder, name)
        plt.close(figure)
    (folder / "log.jsonl").unlink()
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_same_data_give_the_same_bytes_in_any_process(tmp_path):
    first = draw_everything(tmp_path / "a")
    assert len(first) == 32  # twelve figures and two tables in two formats, four tables as CSV
    # here other tests have drawn before; there nothing has been
    assert run_alone(print_drawn, tmp_path / "b") == str(first)


def print_drawn(folder):
    os.environ["SOURCE_DATE_EPOCH"] = "1"
    print(draw_everything(folder))


def test_laying_out_once_draws_what_laying_out_each_time_draws(tmp_path):
    def drawn():
        return plot_retrieval(retrieval_table(make_rows()))

    figure = drawn()
    engine, dpi = figure.get_layout_engine(), figure.dpi
    assert engine is not None
    png, _ = save_figure(figure, tmp_path, "once")
    literal = io.BytesIO()
    drawn().savefig(literal, format="png", dpi=200, metadata={"Software": None})
    assert png.read_bytes() == literal.getvalue()
    assert type(figure.get_layout_engine()) is type(engine)
    assert figure.dpi == dpi


def test_figures_carry_neither_date_nor_program(tmp_path):
    figure = plot_lengths({"caption": [1, 2, 2]}, 77)
    png, svg = save_figure(figure, tmp_path, "lengths")
    assert [png.name, svg.name] == ["lengths.png", "lengths.svg"]
    with Image.open(png) as image:
        assert not {"Software", "Creation Time"} & set(image.info)
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert image.size == (700, 480)
    text = svg.read_text()
    assert "<dc:date>" not in text
    assert "<dc:creator>" not in text


def test_csv_is_plain_and_stable(tmp_path):
    table = pd.DataFrame({"name": ["# a", "ü,b"], "value": [1 / 3, np.nan], "n": [1, 2]})
    path = save_table(table, tmp_path, "t")
    assert path.read_bytes() == 'name,value,n\n# a,0.333333,1\n"ü,b",,2\n'.encode()
    said = save_table(table, tmp_path, "said", "entityclip figures t")
    assert said.read_bytes() == b"# entityclip figures t\n" + path.read_bytes()
    pd.testing.assert_frame_equal(read_table(said), read_table(path))
    pd.testing.assert_frame_equal(read_table(path), pd.read_csv(path))


def test_a_figure_that_cannot_be_drawn_leaves_the_last_one(tmp_path):
    save_figure(plot_lengths({"caption": [1]}, 77), tmp_path, "a")
    before = (tmp_path / "a.png").read_bytes()
    broken = plt.figure()
    broken.text(0.5, 0.5, "$x^$")
    with pytest.raises(ValueError, match="x"):
        save_figure(broken, tmp_path, "a")
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.svg"]


def test_previews_are_small_and_of_the_kind_that_fits():
    chart = preview(plot_lengths({"caption": [1, 2, 2]}, 77), width=340)
    assert (chart.format, chart.data[:4]) == ("png", b"\x89PNG")
    with Image.open(io.BytesIO(chart.data)) as page:
        assert page.width == 340
        assert min(page.convert("RGB").getpixel((0, 0))) > 250  # white, also on a dark page
    pictures = preview(plot_gallery([("a caption", None, picture("red"))]))
    assert (pictures.format, pictures.data[:2]) == ("jpeg", b"\xff\xd8")
    figure, axis = plt.subplots()
    matrix = axis.imshow(np.eye(3), interpolation="none")
    assert preview(figure).format == "png"
    assert matrix.get_interpolation() == "none"  # its cells keep their edges
    assert plt.get_fignums() == []


def test_a_figures_files_say_in_one_place_what_made_them(tmp_path):
    def drawn(name, **said):
        figure = plot_lengths({"caption": [1, 2, 2]}, 77)
        return [path.read_bytes() for path in save_figure(figure, tmp_path, name, **said)]

    plain, said = drawn("a"), drawn("a", made_by="entityclip figures a")
    with Image.open(tmp_path / "a.png") as image, Image.open(io.BytesIO(plain[0])) as before:
        assert image.info["Comment"] == "entityclip figures a"
        assert "Comment" not in before.info
        assert image.tobytes() == before.tobytes()
    line = b"    <dc:description>entityclip figures a</dc:description>\n"
    assert said[1].count(line) == 1
    assert said[1].replace(line, b"") == plain[1]
    sheet = retrieval_sheet(retrieval_table(make_rows()))
    for (bare, full), comment in zip(
        zip(*(save_sheet(sheet, tmp_path / who, "t", "T", who) for who in ("", "x")), strict=True),
        (b"<!-- x -->\n", b"% x\n"),
        strict=True,
    ):
        assert full.read_bytes() == comment + bare.read_bytes()
