import hashlib
import io
import json
import logging
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from entityclip.evaluation.inspection import plane
from entityclip.evaluation.retrieval import Embeddings, RankedPictures
from entityclip.reporting.charts import (
    gate_table,
    plot_forest,
    plot_gates,
    plot_lengths,
    plot_recall_curves,
    plot_retrieval,
    plot_seed_curves,
    plot_space,
    plot_training_curves,
)
from entityclip.reporting.pictures import (
    ReadPair,
    SeenPicture,
    plot_gallery,
    plot_patch_attention,
    plot_retrieval_gallery,
    plot_word_attention,
)
from entityclip.reporting.style import (
    GREEN,
    VERMILLION,
    apply_style,
    marks,
    preview,
    save_figure,
    save_table,
    wrap,
)
from entityclip.reporting.tables import (
    COLUMNS,
    difference_sheet,
    reported_values,
    retrieval_markdown,
    retrieval_sheet,
    retrieval_table,
    save_sheet,
    seed_curves,
)
from entityclip.results import ResultsError, log_table, read_log
from entityclip.statistics import METRICS
from tests.processes import run_alone

pytestmark = pytest.mark.usefixtures("figure_style")
LEVELS = {"zero-shot": 1.0, "clip": 70.0, "entityclip": 65.0}


def make_rows(variants=LEVELS, splits=("test", "test_longtail"), seeds=(0,), **changes):
    """Rows as read_rows gives them: a value each can be computed in the head."""
    rows = []
    for split in splits:
        for variant, level in variants.items():
            for direction in ("text_to_image", "image_to_text"):
                for seed in seeds:
                    for i, metric in enumerate(METRICS):
                        value = level + i + seed
                        row = {
                            "variant": variant,
                            "dataset": "newsroom",
                            "split": split,
                            "direction": direction,
                            "metric": metric,
                            "value": value,
                            "low": value - 0.5,
                            "high": value + 0.5,
                            "n_queries": 400,
                            "n_candidates": 300,
                            "seed": seed,
                            "config": {"variant": variant, "train": {"lr": 1.0, "seed": seed}},
                            "config_hash": f"{variant}{seed}",
                            "data_fingerprint": f"data of {split}",
                        }
                        rows.append(row | changes)
    return pd.DataFrame(rows)


def cell(table, variant, split="test", direction="text_to_image"):
    (row,) = table[
        (table["variant"] == variant)
        & (table["split"] == split)
        & (table["direction"] == direction)
    ].to_dict("records")
    return row


def make_log(path, n=20, epochs=2, terms=("vtc",), level=1.0):
    per_epoch, lines = n // epochs, []
    for step in range(1, n + 1):
        row = {"step": step, "epoch": (step - 1) // per_epoch + 1, "lr": 1e-5, "pairs_per_s": 9.0}
        row |= {"loss": level + 1 / step} | {term: level + 1 / step for term in terms}
        lines.append(row)
        if step % per_epoch == 0:
            vtc = level + 0.1 * (step - per_epoch)  # rises: the first epoch is the best
            lines.append({"epoch": row["epoch"], "step": step, "val_loss": vtc, "val_vtc": vtc / 2})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---------------------------------------------------------------------------------------- tables


def test_table_holds_the_rows_values_in_the_houses_order():
    shuffled = make_rows().sample(frac=1, random_state=0)
    table = retrieval_table(shuffled)
    assert table["split"].tolist() == ["test"] * 6 + ["test_longtail"] * 6
    assert table["direction"].tolist()[:6] == ["text_to_image"] * 3 + ["image_to_text"] * 3
    assert table["variant"].tolist()[:3] == ["zero-shot", "clip", "entityclip"]
    row = cell(table, "clip")
    assert (row["R@1"], row["R@1_low"], row["R@1_high"]) == (70, 69.5, 70.5)
    assert (row["R@5"], row["MedR"], row["MeanR"]) == (71, 75, 76)
    assert (row["seeds"], row["n_queries"], row["n_candidates"]) == (1, 400, 300)
    assert row["interval"] == "bootstrap over queries"


def test_an_unknown_variant_comes_last_under_its_own_name():
    table = retrieval_table(make_rows({"other": 90, "entityclip": 65, "ablation": 5}))
    assert table["variant"].tolist()[:3] == ["entityclip", "ablation", "other"]
    assert "| other |" in retrieval_markdown(table)


def test_a_row_that_is_gone_leaves_exactly_its_cell_blank():
    rows = make_rows()
    gone = rows[
        (rows["variant"] == "clip")
        & (rows["split"] == "test")
        & (rows["direction"] == "text_to_image")
        & (rows["metric"] == "R@5")
    ]
    assert len(gone) == 1
    before, after = retrieval_table(rows), retrieval_table(rows.drop(gone.index))
    changed = before.ne(after) & ~(before.isna() & after.isna())
    assert changed.to_numpy().sum() == 3
    assert np.isnan([cell(after, "clip")[f"R@5{end}"] for end in ("", "_low", "_high")]).all()
    assert "| 70.0 [69.5, 70.5] |  | 72.0" in retrieval_markdown(after)


def test_several_seeds_are_averaged_with_students_interval():
    row = cell(retrieval_table(make_rows(seeds=(0, 1, 2))), "clip")
    assert (row["seeds"], row["interval"]) == (3, "t over seeds")
    assert row["R@1"] == pytest.approx(71)
    half = 4.302653 * 1 / 3**0.5  # t with 2 degrees of freedom, standard deviation 1
    assert row["R@1_low"] == pytest.approx(71 - half, abs=1e-3)
    assert row["R@1_high"] == pytest.approx(71 + half, abs=1e-3)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (1, 12.7062),
        (5, 2.5706),
        (9, 2.2622),
        (10, 2.2281),
        (15, 2.1314),
        (30, 2.0423),
        (500, 1.9647),
    ],
)
def test_students_quantiles_are_the_tables(degrees, expected):
    seeds = range(degrees + 1)
    rows = make_rows({"clip": 50.0}, ["test"], seeds)
    rows["value"] = 50 + 0.01 * rows["seed"]
    spread = np.std(0.01 * np.array(seeds), ddof=1) / len(seeds) ** 0.5
    row = cell(retrieval_table(rows), "clip")
    assert (row["R@1_high"] - row["R@1"]) / spread == pytest.approx(expected, abs=5e-4)


def test_an_interval_over_seeds_stays_within_what_a_metric_can_be():
    rows = make_rows({"clip": 98.0}, seeds=(0, 1))
    row = cell(retrieval_table(rows), "clip")
    assert row["R@1_high"] == 100
    rows["value"] -= 97
    assert cell(retrieval_table(rows), "clip")["R@1_low"] == 0
    assert cell(retrieval_table(rows), "clip")["MedR_low"] == 1


def test_a_metric_that_one_seed_lacks_is_blank():
    rows = make_rows(seeds=(0, 1))
    table = retrieval_table(rows[(rows["seed"] == 0) | (rows["metric"] != "R@1")])
    row = cell(table, "clip")
    assert row["seeds"] == 2
    assert np.isnan(row["R@1"])
    assert row["R@5"] == pytest.approx(71.5)


def test_rows_of_different_data_are_never_set_side_by_side():
    rows = make_rows()
    other = make_rows({"entityclip": 99}, data_fingerprint="other data")
    mixed = pd.concat([rows[rows["variant"] != "entityclip"], other], ignore_index=True)
    with pytest.raises(ResultsError, match=r"newsroom/test .*data of test: .*; other data: entity"):
        retrieval_table(mixed)


def test_rows_of_different_settings_are_never_averaged():
    changed = make_rows({"clip": 99}, seeds=(1,), config={"lr": 2.0}, config_hash="changed")
    with pytest.raises(ResultsError, match=r"rows of clip .* \(config_hash changed, clip0\)"):
        retrieval_table(pd.concat([make_rows(), changed], ignore_index=True))
    again = make_rows({"clip": 99}, config={"lr": 2.0}, config_hash="changed")  # the same seed
    with pytest.raises(ResultsError, match="different settings"):
        retrieval_table(pd.concat([make_rows(), again], ignore_index=True))


def test_markdown_shows_values_with_their_intervals():
    rows = make_rows({"clip": 76.7, "a|b": 1.0}, ["test"])
    rows.loc[rows["metric"] == "MeanR", ["low", "high"]] = np.nan
    lines = retrieval_markdown(retrieval_table(rows)).splitlines()
    assert lines[0] == "| Split | Direction | Variant | R@1 | R@5 | R@10 | MedR | MeanR |"
    assert lines[2] == (
        "| Test | text → image | CLIP, fine-tuned | 76.7 [76.2, 77.2] | 77.7 [77.2, 78.2] "
        "| 78.7 [78.2, 79.2] | 81.7 [81.2, 82.2] | 82.7 |"
    )
    assert "| a\\|b |" in lines[3]
    two = pd.concat([rows, rows.assign(dataset="n24news")], ignore_index=True)
    assert retrieval_markdown(retrieval_table(two)).startswith("| Dataset | Split |")


def test_reported_values_are_read_with_their_places(tmp_path):
    path = tmp_path / "reported.csv"
    assert reported_values(path).empty
    assert list(reported_values(path)) == ["paper", "table", "row", "column", "value"]
    path.write_text("paper,table,row,column,value\nP,1,CLIP,R@1,12.5\nP,1,CLIP,R@5,\n")
    values = reported_values(path)
    assert values["value"].tolist()[0] == 12.5
    assert np.isnan(values["value"].tolist()[1])  # unknown stays unknown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("P,,CLIP,R@1,1", "line 3: the value lacks its paper, table"),
        ("P,1,CLIP,R@5,about 3", "line 3: the value is no finite number"),
        ("P,1,CLIP,R@5,inf", "line 3: the value is no finite number"),
        ("P,1,CLIP,R@1,2", "line 3: the value stands there twice"),
    ],
)
def test_a_reported_value_without_source_is_refused(tmp_path, line, message):
    path = tmp_path / "reported.csv"
    path.write_text(f"paper,table,row,column,value\nP,1,CLIP,R@1,12.5\n{line}\n")
    with pytest.raises(ResultsError, match=message):
        reported_values(path)
    path.write_text("paper,value\nP,1\n")
    with pytest.raises(ResultsError, match="columns are"):
        reported_values(path)


# ------------------------------------------------------------------------------------------ logs


def test_a_log_is_read_as_steps_and_validations(tmp_path):
    steps, validations = read_log(make_log(tmp_path / "log.jsonl", 20, 2))
    assert steps["step"].tolist() == list(range(1, 21))
    assert steps["loss"].iloc[3] == 1.25
    assert validations["epoch"].tolist() == [1, 2]
    assert "val_loss" not in steps
    assert "loss" not in validations


def test_steps_done_again_after_a_resume_count_once(tmp_path):
    path = make_log(tmp_path / "log.jsonl", 4, 1)
    path.write_text(path.read_text() + '{"step": 3, "epoch": 1, "loss": 7.0}\n')
    steps, _ = read_log(path)
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps["loss"].iloc[2] == 7.0


def test_the_line_being_written_is_left_out(tmp_path, caplog):
    path = make_log(tmp_path / "log.jsonl", 4, 1)
    path.write_text(path.read_text() + '{"step": 5, "ep')
    with caplog.at_level(logging.WARNING):
        assert len(read_log(path)[0]) == 4
    assert "incomplete" in caplog.text


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1.0}', '{"step": 1, "epoch": 1}'])
def test_a_line_that_is_no_log_row_is_named(tmp_path, line):
    path = make_log(tmp_path / "log.jsonl", 1, 1)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ResultsError, match=r"log\.jsonl, line 3 is neither"):
        read_log(path)


def test_an_empty_log_is_empty_tables(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    steps, validations = read_log(tmp_path / "log.jsonl")
    assert (len(steps), len(validations)) == (0, 0)
    assert "loss" in steps
    assert "val_loss" in validations


# --------------------------------------------------------------------------------------- figures


def drawn(axis):
    """{colour: (x, y) of the line with markers} of an axis."""
    return {
        to_hex(line.get_color()): line.get_xydata().T
        for line in axis.lines
        if line.get_marker() not in ("None", "", None)
    }


def test_plot_retrieval_draws_each_value_with_its_interval():
    figure = plot_retrieval(retrieval_table(make_rows()))
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Test, text → image",
        "Long tail, text → image",
        "Test, image → text",
        "Long tail, image → text",
    ]
    axis, colours = figure.axes[0], marks(list(LEVELS))
    for variant, level in LEVELS.items():
        np.testing.assert_allclose(
            drawn(axis)[colours[variant][0].lower()][1], [level, level + 1, level + 2]
        )
    segments = [segment[:, 1] for lines in axis.collections for segment in lines.get_segments()]
    assert [64.5, 65.5] in [list(ends) for ends in segments]
    assert {text.get_text() for text in axis.texts} >= {"70.0", "65.0", "1.0"}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["CLIP, zero-shot", "CLIP, fine-tuned", "EntityCLIP"]


def test_a_missing_value_is_not_drawn():
    rows = make_rows(splits=["test"])
    table = retrieval_table(rows[~((rows["variant"] == "clip") & (rows["metric"] == "R@5"))])
    axis = plot_retrieval(table).axes[0]
    values = drawn(axis)[marks(list(LEVELS))["clip"][0].lower()][1]
    assert np.isnan(values).tolist() == [False, True, False]
    assert "71.0" not in {text.get_text() for text in axis.texts}


def test_many_variants_and_dollar_signs_are_drawn(tmp_path):
    variants = {f"variant_{i} $x^$": float(i) for i in range(14)}
    assert len(set(marks(list(variants)).values())) == 14
    save_figure(plot_retrieval(retrieval_table(make_rows(variants))), tmp_path, "many")
    save_figure(plot_recall_curves(make_rows(variants)), tmp_path, "curves")


def test_plot_recall_curves_draws_recall_against_k():
    figure = plot_recall_curves(make_rows(), "image_to_text")
    assert len(figure.axes) == 2
    x, y = drawn(figure.axes[0])[marks(list(LEVELS))["clip"][0].lower()]
    assert x.tolist() == [1, 5, 10, 50, 100]
    assert y.tolist() == [70, 71, 72, 73, 74]
    assert figure.axes[0].get_title(loc="left") == "Test, image → text"


def test_a_figure_of_two_datasets_or_of_nothing_is_refused():
    rows = make_rows()
    both = pd.concat([rows, rows.assign(dataset="n24news")], ignore_index=True)
    with pytest.raises(ValueError, match="one dataset; the table has n24news, newsroom"):
        plot_retrieval(retrieval_table(both))
    with pytest.raises(ValueError, match="the table has no rows"):
        plot_retrieval(retrieval_table(rows).iloc[:0])


def test_plot_training_curves_rings_the_epoch_that_is_kept(tmp_path):
    logs = {
        "clip": make_log(tmp_path / "clip.jsonl", level=1.0),
        "entityclip": read_log(make_log(tmp_path / "e.jsonl", terms=("vtc", "vtc_moe", "itm"))),
    }
    figure = plot_training_curves(logs)
    assert len(figure.axes) == 3
    rings = [
        line.get_xydata().tolist()
        for line in figure.axes[1].lines
        if line.get_markerfacecolor() == "none"
    ]
    assert rings == [[[1.0, 0.5]]] * 2  # epoch 1, val_vtc there
    terms = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert terms == ["VTC of the experts", "GI-ITM"]
    assert len(plot_training_curves({"clip": logs["clip"]}).axes) == 2


def test_plot_training_curves_before_the_first_validation(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "epoch": 1, "loss": 2.0, "vtc": 2.0}\n')
    save_figure(plot_training_curves({"clip": path}), tmp_path, "curves")


def test_plot_training_curves_names_the_log_without_the_term(tmp_path):
    with pytest.raises(ValueError, match="no 'itm' in the logs of clip"):
        plot_training_curves({"clip": make_log(tmp_path / "log.jsonl")}, "itm")
    with pytest.raises(ValueError, match="logs of nothing"):
        plot_training_curves({})


def test_plot_lengths_counts_every_text_once():
    lengths = {"caption": [5, 5, 9, 20], "explanation": [70, 100, 150]}
    figure = plot_lengths(lengths, limit=77)
    counted = [sum(bar.get_height() for bar in bars) for bars in figure.axes[0].containers]
    assert counted == [4, 3]
    dashed = [line.get_xdata()[0] for line in figure.axes[0].lines]
    assert dashed == [77]


# ------------------------------------------------------------------------------------- galleries

LONG = "Ünïcödé 名前は長い文字列です \u202e\U0001f600 $5 and $x^{$ _{ " * 30


def picture(colour, size=(64, 64), mode="RGB"):
    return Image.new(mode, size, colour)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_galleries_take_any_text_and_any_picture(tmp_path):
    items = [
        (LONG, LONG, picture(9, (1000, 30), "L")),
        ("x" * 500, None, picture("red", (8, 8), "P")),
        ("", "", picture("blue")),
    ]
    save_figure(plot_gallery(items, 2), tmp_path, "pairs")
    pictures = [image for _, _, image in items]
    queries = [
        RankedPictures(LONG, pictures, 0, pictures[0], 1),
        RankedPictures("", pictures[:1], None, pictures[2], 123456),
    ]
    save_figure(plot_retrieval_gallery(queries), tmp_path, "found")


def test_gallery_texts_stay_inside_their_column_and_figure():
    items = [("W" * 300 + " many wide words " * 20, "explained " * 100, picture("red"))] * 6
    figure = plot_gallery(items, 3)
    figure.set_dpi(200)  # what files and previews are drawn at; coarser, hinting widens the text
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    columns = [axis.get_window_extent(renderer) for axis in figure.axes for _ in range(2)]
    for box, column in zip(boxes, columns, strict=True):
        assert column.x0 - 2 <= box.x0
        assert box.x1 <= column.x1 + 2
        assert box.y1 <= column.y0  # below its picture
        assert box.y0 >= 0
    for caption, explanation in zip(boxes[::2], boxes[1::2], strict=True):
        assert explanation.y1 <= caption.y0 + 2
    for above, below in zip(boxes[1:6:2], figure.axes[3:], strict=True):
        assert above.y0 > below.get_window_extent(renderer).y1


def frames(figure):
    """(title, frame colour) of every picture."""
    found = []
    for axis in figure.axes:
        spine = axis.spines["left"]
        found.append(
            (axis.get_title(), to_rgb(spine.get_edgecolor()) if spine.get_visible() else None)
        )
    return found


def test_retrieval_gallery_frames_right_and_wrong():
    five = [picture(c) for c in ("red", "green", "blue", "white", "black")]
    green, vermillion = to_rgb(GREEN), to_rgb(VERMILLION)
    queries = [
        RankedPictures("found", five, 0, five[0], 1),
        RankedPictures("third", five, 2, five[2], 3),
        RankedPictures("not found", five, None, picture("yellow"), 37),
    ]
    figure = plot_retrieval_gallery(queries)
    plain = [("4", None), ("5", None)]
    assert frames(figure) == [
        *[("1 ✓", green), ("2", None), ("3", None), *plain],
        *[("1 ✗", vermillion), ("2", None), ("3 ✓", green), *plain],
        *[("1 ✗", vermillion), ("2", None), ("3", None), *plain, ("37 ✓", green)],
    ]
    texts = [text.get_text() for text in figure.texts]
    assert texts == [
        *["found", "right picture: rank 1", "third", "right picture: rank 3"],
        *["not found", "right picture: rank 37"],
    ]
    assert figure.axes[-1].images[0].get_array()[0, 0].tolist() == [255, 255, 0]


def test_retrieval_gallery_refuses_a_place_that_is_not_there():
    with pytest.raises(ValueError, match="picture 1 of 1"):
        plot_retrieval_gallery([("q", [picture("red")], 1, picture("red"), 2)])
    with pytest.raises(ValueError, match="no queries"):
        plot_retrieval_gallery([])
    with pytest.raises(ValueError, match="0 items in 4 columns"):
        plot_gallery([])


@pytest.mark.parametrize(
    "text", ["two words", "", "W" * 200, "il" * 300, "a b c " * 99, "名前" * 80]
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_wrap_keeps_words_whole_and_lines_few(text):
    lines = wrap(text, 1.5, 7, 4).split("\n")
    assert len(lines) <= 4
    joined = "".join(lines).replace(" ", "")
    assert text.replace(" ", "").startswith(joined.removesuffix("…"))
    assert joined.endswith("…") == (len(joined.removesuffix("…")) < len(text.replace(" ", "")))


# -------------------------------------------------------------------------------- the same bytes


def fixed_plane():
    x = np.sin(np.arange(48.0)).reshape(2, 6, 4)
    images, texts = torch.tensor(x / np.linalg.norm(x, axis=-1, keepdims=True))
    rows = torch.arange(6)
    return plane(Embeddings(texts, images, rows, rows), ["harbour", "match", None] * 2)


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
    curves = seed_curves({"clip": [log, log]})
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
    table = pd.DataFrame({"name": ["a", "ü,b"], "value": [1 / 3, np.nan], "n": [1, 2]})
    path = save_table(table, tmp_path, "t")
    assert path.read_bytes() == 'name,value,n\na,0.333333,1\n"ü,b",,2\n'.encode()


def test_a_figure_that_cannot_be_drawn_leaves_the_last_one(tmp_path):
    save_figure(plot_lengths({"caption": [1]}, 77), tmp_path, "a")
    before = (tmp_path / "a.png").read_bytes()
    broken = plt.figure()
    broken.text(0.5, 0.5, "$x^$")
    with pytest.raises(ValueError, match="x"):
        save_figure(broken, tmp_path, "a")
    assert (tmp_path / "a.png").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.svg"]


def test_the_table_behind_the_curves_holds_every_step_and_validation(tmp_path):
    rows = [
        {"step": 1, "epoch": 1, "loss": 2.0, "vtc": 2.0, "lr": 0.1, "pairs_per_s": 5.0},
        {"step": 2, "epoch": 1, "loss": 1.0, "vtc": 1.0, "lr": 0.1, "pairs_per_s": 7.0},
        {"step": 2, "epoch": 1, "val_loss": 1.5},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = log_table({"clip": path, "entityclip": path})
    assert table.columns[:3].tolist() == ["variant", "step", "epoch"]
    assert "pairs_per_s" not in table
    assert table["variant"].tolist() == ["clip"] * 3 + ["entityclip"] * 3
    assert table["loss"].dropna().tolist() == [2.0, 1.0] * 2
    assert table["val_loss"].dropna().tolist() == [1.5] * 2


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
