"""The grid of weights, what steps cost, and figures of several data sets together."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from entityclip.config import Joined, load_profile
from entityclip.identities import table_entries
from entityclip.reporting import catalogue
from entityclip.reporting.settings import cost_sheet, cost_table, plot_costs, plot_grid
from entityclip.reporting.tables import recall_table, retrieval_sheet, retrieval_table
from entityclip.results import ResultsError
from entityclip.variants import COSTS
from tests.reporting.samples import make_rows


def test_a_grid_shows_each_pair_of_weights_in_its_place():
    levels = {"0.01 × 0.1": 10.0, "0.1 × 0.1": 30.0, "0.1 × 1": 50.0}
    rows = make_rows(levels, splits=("test",))
    figure = plot_grid(recall_table(rows, list(levels)))
    axis = figure.axes[0]
    texts = {text.get_position(): text.get_text().split("\n")[0] for text in axis.texts}
    assert texts == {(0, 0): "10.0", (0, 1): "30.0", (1, 1): "50.0"}  # (η, λ); one is blank
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0.01", "0.1"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.1", "1"]
    # equal values are neither white nor black
    even = plot_grid(recall_table(make_rows(dict.fromkeys(levels, 5.0), ("test",)), list(levels)))
    picture = even.axes[0].images[0]
    shades = picture.norm(picture.get_array().compressed())
    assert set(np.round(shades, 6)) == {0.5}
    plt.close("all")


def cost_rows(variants=("clip", "entityclip"), seeds=(0, 1), **changes):
    rows = []
    for place, variant in enumerate(variants):
        for seed in seeds:
            for number, metric in enumerate(COSTS):
                value = 10.0 * place + number + 100 * seed + 1
                row = {"variant": variant, "dataset": "newsroom", "split": "test", "seed": seed,
                       "metric": metric, "value": value, "low": value - 1, "high": value + 1,
                       "n_queries": 32, "n_candidates": 400, "device": "CPU"}  # fmt: skip
                rows.append(row | changes)
    return pd.DataFrame(rows)


def test_costs_are_one_seeds_and_say_where_they_were_measured():
    table = cost_table(pd.concat([cost_rows(), cost_rows(dataset="goodnews", device="GPU")]))
    assert table["dataset"].tolist() == ["newsroom", "newsroom", "goodnews", "goodnews"]
    assert table["parameters"].tolist() == [1, 11, 1, 11]  # no mean over seeds
    assert table["query_high"].tolist() == [7, 17, 7, 17]
    sheet = cost_sheet(table)
    assert [len(block) for block in sheet.blocks] == [2, 2]
    assert sheet.blocks[0][1][1] == "EntityCLIP"
    assert [cell.interval for cell in sheet.blocks[0][0][2:]] == [
        "",
        "",
        "",
        "[3, 5]",
        "",
        "[5, 7]",
    ]
    assert "on CPU, batches of 32, queries among 400 pictures of newsroom" in sheet.notes[0]
    assert "on GPU" in sheet.notes[1]
    figure = plot_costs(table)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(COSTS.values())
    plt.close("all")


@pytest.fixture
def joined(monkeypatch):
    """Two archives whose rows are those of `make_rows`."""
    parts = tuple(load_profile(name) for name in ("n24news", "goodnews"))
    here = {part.name: make_rows(splits=("test",), dataset=part.name) for part in parts}

    def rows(profile):
        return here[profile.name]

    for name in ("retrieval", "cross_domain"):
        figure = catalogue.FIGURES[name]._replace(rows=rows)
        monkeypatch.setitem(catalogue.FIGURES, name, figure)
    return Joined("paper", parts), here


def test_rows_of_several_data_sets_stand_beside_each_other(joined):
    paper, here = joined
    table = catalogue.draw(paper, "retrieval").table
    assert len(table) == 2 * len(retrieval_table(here["n24news"]))
    assert set(table["split"]) == {"N24News, test", "GoodNews, test"}
    sheet = retrieval_sheet(table)
    assert sheet.header[:3] == ["Split", "Direction", "Variant"]  # splits tell the data set
    here["goodnews"] = here["goodnews"][:0]
    assert set(catalogue.draw(paper, "retrieval").table["split"]) == {"N24News, test"}
    here["n24news"] = here["n24news"][:0]
    with pytest.raises(ResultsError, match="retrieval has no rows of profile paper"):
        catalogue.draw(paper, "retrieval")
    plt.close("all")


def test_a_model_without_training_is_tested_on_each_archive_once(joined):
    paper, here = joined
    for name in here:
        parts = [
            make_rows({variant: 9.0}, ("test",), dataset=tested).assign(trained_on=trained)
            for variant, trained in (("zero-shot", "none"), ("clip", name))
            for tested in here
        ]
        here[name] = pd.concat(parts, ignore_index=True)
    table = catalogue.draw(paper, "cross_domain").table
    cells = (
        table[table["direction"] == "text_to_image"].groupby("trained_on")["dataset"].agg(sorted)
    )
    both = ["goodnews", "n24news"]
    assert cells.to_dict() == {"none": both, "n24news": both, "goodnews": both}
    plt.close("all")


def test_listed_tables_find_what_other_tables_trained():
    demo = load_profile("demo")
    told = catalogue.draw(demo, "mixes").table
    ablation = catalogue.draw(demo, "ablation_mmae").table
    for entry in table_entries(demo.settings, "mixes"):
        columns = ["split", "direction", "R@1", "MeanR", "seeds"]
        ours, theirs = (
            table[table["variant"] == name][columns].reset_index(drop=True)
            for table, name in ((told, entry.label), (ablation, entry.variant))
        )
        assert len(ours) == 8  # query sets, both ways
        pd.testing.assert_frame_equal(ours, theirs)
    nothing = replace(demo, settings=demo.settings.model_copy(update={"mixes": []}))
    with pytest.raises(ResultsError, match="mixes has no rows"):
        catalogue.draw(nothing, "mixes")
    plt.close("all")
