"""Logs as tables, a run's curves and the bands of several seeds."""

import logging

import pandas as pd
import pytest

from entityclip.reporting.curves import (
    name_table,
    plot_by_name,
    plot_seed_curves,
    plot_training_curves,
    seed_curves,
)
from entityclip.reporting.style import save_figure
from entityclip.results import ResultsError, log_table, read_log
from tests.reporting.samples import make_log, make_rows

pytestmark = pytest.mark.usefixtures("figure_style")


def test_a_log_is_read_as_steps_and_validations(tmp_path):
    steps, validations = read_log(make_log(tmp_path / "log.jsonl", 20, 2))
    assert steps["step"].tolist() == list(range(1, 21))
    assert steps["loss"].iloc[3] == 1.25
    assert validations["epoch"].tolist() == [1, 2]
    assert "val_loss" not in steps
    assert "loss" not in validations


def test_steps_done_again_count_once_and_the_line_being_written_is_left_out(tmp_path, caplog):
    path = make_log(tmp_path / "log.jsonl", 4, 1)
    again = '{"step": 3, "epoch": 1, "loss": 7.0}\n'  # after a resume
    path.write_text(path.read_text() + again + '{"step": 5, "ep')
    with caplog.at_level(logging.WARNING):
        steps, _ = read_log(path)
    assert "incomplete" in caplog.text
    assert steps["step"].tolist() == [1, 2, 3, 4]
    assert steps["loss"].iloc[2] == 7.0


@pytest.mark.parametrize("line", ["[1]", '{"loss": 1.0}', '{"step": 1, "epoch": 1}'])
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
    path = make_log(tmp_path / "log.jsonl", 2, 1)
    table = log_table({"clip": path, "entityclip": path})
    assert table.columns[:3].tolist() == ["variant", "step", "epoch"]
    assert "pairs_per_s" not in table
    assert table["variant"].tolist() == ["clip"] * 3 + ["entityclip"] * 3
    assert table["loss"].dropna().tolist() == [2.0, 1.5] * 2
    assert table["val_loss"].dropna().tolist() == [1.0] * 2


def test_plot_training_curves_rings_the_epoch_that_is_kept(tmp_path):
    logs = {
        "clip": make_log(tmp_path / "clip.jsonl", level=1.0),
        "entityclip": make_log(tmp_path / "e.jsonl", terms=("vtc", "vtc_moe", "itm")),
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


def test_plot_training_curves_before_the_first_validation_and_without_the_term(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "epoch": 1, "loss": 2.0, "vtc": 2.0}\n')
    save_figure(plot_training_curves({"clip": path}), tmp_path, "curves")
    with pytest.raises(ValueError, match="no 'itm' in the logs of clip"):
        plot_training_curves({"clip": path}, "itm")
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
    losses = {0: [1.5, 1.0, 0.5], 1: [2.5, 1.5, 1.0], 2: [6.5, 3.5]}
    rows = [stored("clip", seed, loss) for seed, loss in losses.items()]
    rows += [stored("clip", seed, [2 * x for x in loss], "val") for seed, loss in losses.items()]
    # a run before its first validation has training only
    curves = seed_curves(pd.concat([*rows, stored("entityclip", 0, [2])], ignore_index=True))
    assert list(curves) == ["variant", "phase", "epoch", "seeds", "mean", "low", "high"]
    lines = [["clip", "training", 1, 3, 3.5, 1.5, 6.5], ["clip", "training", 2, 3, 2.0, 1.0, 3.5]]
    assert curves.to_numpy().tolist()[:2] == lines  # no third epoch, which a seed lacks
    assert curves.iloc[3].tolist()[1:] == ["validation", 2, 3, 4.0, 2.0, 7.0]
    figure = plot_seed_curves(curves)
    line = next(line for line in figure.axes[0].lines if line.get_marker() == "s")
    assert line.get_ydata().tolist() == [3.5, 2.0]
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.0, 6.5)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["CLIP, fine-tuned (3 seeds)", "EntityCLIP (1 seed)"]
    assert figure.axes[0].get_ylabel() == "VTC"
    with pytest.raises(ValueError, match="no curves"):
        plot_seed_curves(curves.iloc[:0])


def test_recall_by_name_is_averaged_over_seeds_in_the_order_of_the_bins():
    rows = make_rows(seeds=(0, 2))
    asked = rows[(rows["direction"] == "text_to_image") & rows["metric"].isin(["R@1", "R@10"])]
    named = [
        asked.assign(metric=asked["metric"] + f", rarest name in {name} training captions")
        for name in ("20–99", "0")
    ]
    cut = asked.assign(metric=asked["metric"] + ", names cut", n_queries=300)
    table = name_table(pd.concat([cut, *named]))
    one = table[(table["split"] == "test") & (table["variant"] == "clip")]
    one = one[one["metric"] == "R@10"].set_index("training captions")
    assert one.index.tolist() == ["0", "20–99", "names cut"]
    assert one["value"].tolist() == [73.0] * 3  # R@10 is the third metric, seeds 0 and 2
    assert one["seeds"].tolist() == [2] * 3
    assert one["queries"].tolist() == [400, 400, 300]
    figure = plot_by_name(table)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Test", "Aliases"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["0\n(400)", "20–99\n(400)", "names\ncut\n(300)"]
