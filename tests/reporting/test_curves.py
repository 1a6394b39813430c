"""Logs as tables, a run's curves and the bands of several seeds."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from entityclip.reporting.curves import plot_seed_curves, plot_training_curves, seed_curves
from entityclip.reporting.style import save_figure
from entityclip.results import ResultsError, log_table, read_log
from tests.reporting.samples import make_log

pytestmark = pytest.mark.usefixtures("figure_style")


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


def stored(variant, seed, losses, split="train"):
    """Rows of kind "curves": a loss an epoch."""
    return pd.DataFrame(
        {"variant": variant, "seed": seed, "split": split, "metric": f"vtc, epoch {epoch}",
         "value": loss}
        for epoch, loss in enumerate(losses, start=1)
    )  # fmt: skip


def test_seed_curves_are_means_with_the_least_and_the_greatest_seed():
    losses = {0: [1.5, 1.0, 0.5], 1: [2.5, 1.5, 1.0], 2: [6.5, 3.5, 3.0]}
    rows = [stored("clip", seed, loss) for seed, loss in losses.items()]
    rows += [stored("clip", seed, [2 * x for x in loss], "val") for seed, loss in losses.items()]
    curves = seed_curves(pd.concat(rows, ignore_index=True))
    assert list(curves) == ["variant", "phase", "epoch", "seeds", "mean", "low", "high"]
    training = curves[curves["phase"] == "training"]
    assert training["epoch"].tolist() == [1, 2, 3]
    assert training.iloc[0].tolist()[3:] == [3, 3.5, 1.5, 6.5]
    assert curves.iloc[-1].tolist()[1:] == ["validation", 3, 3, 3.0, 1.0, 6.0]


def test_an_epoch_that_a_seed_lacks_is_left_out():
    rows = [stored("clip", 0, [3, 2, 1]), stored("clip", 1, [3, 2]), stored("clip", 0, [4], "val")]
    curves = seed_curves(pd.concat(rows, ignore_index=True))
    assert curves.groupby("phase")["epoch"].max().to_dict() == {"training": 2, "validation": 1}


def test_seed_curves_draw_their_band():
    # a run before its first validation has training only
    rows = [stored("clip", 0, [1.5, 1]), stored("clip", 1, [2.5, 2]), stored("entityclip", 0, [2])]
    curves = seed_curves(pd.concat(rows, ignore_index=True))
    figure = plot_seed_curves(curves)
    training = curves[curves["variant"] == "clip"]
    line = next(line for line in figure.axes[0].lines if line.get_marker() == "s")
    np.testing.assert_allclose(line.get_ydata(), training["mean"])
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (training["low"].min(), training["high"].max())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["CLIP, fine-tuned (2 seeds)", "EntityCLIP (1 seed)"]
    assert figure.axes[0].get_ylabel() == "VTC"
    with pytest.raises(ValueError, match="no curves"):
        plot_seed_curves(curves.iloc[:0])
