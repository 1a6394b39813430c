"""Ablation tables from stored rows: what they need, what they show, what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from entityclip import results
from entityclip.config import load_profile
from entityclip.datasets.pair import data_fingerprint
from entityclip.evaluation.provenance import provenance
from entityclip.experiments import sweep
from entityclip.experiments.experiment import Experiment
from entityclip.reporting import catalogue, charts, differences, scores, tables
from entityclip.results import ResultsError, append_rows, measurement_rows
from entityclip.variants import CONDITIONS, MATCHING, TABLES, VAL_SPLITS, VARIANTS
from entityclip.variants import VARIANT_LABELS as LABELS
from tests.experiments.test_experiments import TINY
from tests.reporting.samples import make_rows


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "shipped")
    settings = {**TINY, "ablation_seeds": [0, 1], "main_seeds": [0, 1, 2]}
    return Experiment(load_profile("smoke", settings=settings), progress=False)


def store(experiment, variant, split, recall, ranks=None):
    """Rows as a measurement would have left them, without a model."""
    origin = provenance(
        config=experiment.identity(variant), seed=experiment.seed, device="cpu", wall_time_s=0,
        data_fingerprint=data_fingerprint(experiment.pairs(split)),
    )  # fmt: skip
    for direction in ("text_to_image", "image_to_text"):
        rows = measurement_rows(
            {"R@1": recall, "MeanR": 2.0}, {"R@1": (recall - 1, recall + 1)},
            variant=variant, dataset="newsroom", split=split, direction=direction,
            n_queries=8, n_candidates=8, provenance=origin,
        )  # fmt: skip
        append_rows(experiment.results / "retrieval.jsonl", rows)
        ranked = {**rows[1], "ranks": ranks or [1, 2, 3, 4, 5, 6, 7, 8], "clusters": None}
        append_rows(experiment.results / "ranks.jsonl", [ranked])


def test_seeds_follow_the_profile(experiment):
    assert [e.seed for e in sweep.seed_experiments(experiment, "main")] == [0, 1, 2]
    assert [e.seed for e in sweep.seed_experiments(experiment, "controls")] == [0, 1]


def test_missing_runs_are_those_without_rows(experiment):
    table = TABLES["ablation_gi_itm"]
    lacking = sweep.missing_runs(experiment, "ablation_gi_itm")
    assert sorted(lacking) == sorted((name, seed) for name in table for seed in (0, 1))
    for split in (*VAL_SPLITS, "test"):
        store(experiment, "entityclip", split, 50.0)
    assert ("entityclip", 0) not in sweep.missing_runs(experiment, "ablation_gi_itm")
    assert ("entityclip", 1) in sweep.missing_runs(experiment, "ablation_gi_itm")
    main = sweep.missing_runs(experiment, "main")
    assert main.count(("zero-shot", 0)) == 1
    assert ("zero-shot", 1) not in main  # without training, seeds differ in nothing


def test_recall_table_keeps_the_tables_order_and_splits(experiment):
    for name in reversed(TABLES["ablation_gi_itm"]):
        for split in ("val", "test"):
            store(experiment, name, split, 40.0)
    table = catalogue.draw(experiment.profile, "ablation_gi_itm").table
    assert set(table["split"]) == {"test"}
    shown = table[table["direction"] == "text_to_image"]["variant"].tolist()
    assert shown == list(TABLES["ablation_gi_itm"])


def test_differences_to_the_first_and_their_forest(experiment):
    store(experiment, "entityclip", "test", 12.5)
    store(experiment, "no-matching", "test", 25.0, [1, 1, 3, 4, 5, 6, 7, 8])
    found = catalogue.draw(experiment.profile, "ablation_gi_itm_differences").table
    assert found["variant"].unique().tolist() == ["no-matching minus entityclip"]
    assert found["value"].tolist() == [6.25, 6.25]  # MRR: one query from rank 2 to 1
    forest = differences.forest_table(found)
    assert forest["label"].unique().tolist() == ["No matching"]
    assert len(differences.plot_forest(forest).axes) == 1
    several = pd.concat([found, found.assign(second="clip")])
    assert f"No matching − {LABELS['clip']}" in differences.forest_table(several)["label"].tolist()


def test_the_choice_reads_validation_only_and_wants_equal_seeds(experiment):
    for number, name in enumerate(TABLES["search"]):
        lacking = ", ".join(TABLES["search"][number:])
        message = f"still lacks runs of {lacking}$" if number else None
        with pytest.raises(ResultsError, match=message):
            catalogue.draw(experiment.profile, "search")
        store(experiment, name, "val", 10.0 + number)
        store(experiment, name, "test", 90.0 - number)
    choice = catalogue.draw(experiment.profile, "search").table
    assert choice["variant"].iloc[0] == TABLES["search"][-1]
    assert choice["R@1"].is_monotonic_decreasing
    other = sweep.seed_experiments(experiment, "search")[1]
    store(other, "bridge", "val", 99.0)  # a seed that the others lack gives no advantage
    pd.testing.assert_frame_equal(catalogue.draw(experiment.profile, "search").table, choice)


def test_candidates_alone_are_measured_where_one_of_them_is_chosen():
    smoke = Experiment(load_profile("smoke"))
    for name in VARIANTS:
        splits = sweep.splits_of(smoke, name)
        val = list(VAL_SPLITS) if name in TABLES["search"] else []
        assert splits == val + smoke.settings.test_splits
    refuters = [name for name in TABLES["search"] if VARIANTS[name].explanations != "own"]
    assert refuters == []


def test_the_choice_reads_both_validation_splits_and_no_other():
    levels = {name: 10.0 + place for place, name in enumerate(TABLES["search"])}
    rows = make_rows(levels, (*VAL_SPLITS, "test"))
    best = max(levels, key=levels.get)
    assert tables.choose_on_validation(rows)["variant"].iloc[0] == best
    rows.loc[rows["split"] == "test", "value"] *= -1
    assert tables.choose_on_validation(rows)["variant"].iloc[0] == best
    for split in VAL_SPLITS:
        other = rows.copy()
        here = (other["split"] == split) & (other["variant"] == best)
        other.loc[here, "value"] -= 50
        assert tables.choose_on_validation(other)["variant"].iloc[0] != best


def test_describe_variants_says_what_changes(experiment):
    table = tables.describe_variants("controls").set_index("variant")
    assert table.loc["entityclip", "changes"] == ""
    assert table.loc["shuffled-explanations", "changes"] == "explanations=shuffled"
    assert "bridge=1.0" in table.loc["bridge", "changes"]


def probe_rows(prefix, kinds, variants=("entityclip", "crossed"), seeds=(0, 1)):
    return pd.DataFrame(
        {
            "variant": variant, "split": "test", "direction": "text_to_image", "seed": seed,
            "metric": f"{prefix}{kind}", "value": 10.0 * i + seed, "low": 0.0, "high": 100.0,
            "n_candidates": 400,
        }
        for variant in variants for i, kind in enumerate(kinds) for seed in seeds
    )  # fmt: skip


def test_leak_table_means_over_seeds_and_says_chance():
    table = scores.leak_table(probe_rows("R@1, ", CONDITIONS))
    assert len(table) == 2 * len(CONDITIONS)
    row = table.iloc[1]
    assert (row["reads"], row["value"], row["seeds"]) == ("same wrong", 10.5, 2)
    assert row["chance"] == 0.25
    assert table["low"].iloc[0] == 0.0  # t over 0 and 1 reaches further than a share can
    one = scores.leak_table(probe_rows("R@1, ", CONDITIONS, seeds=(0,)))
    assert (one["low"].iloc[0], one["high"].iloc[0]) == (0.0, 100.0)
    said = scores.describe_leak(table)
    assert len(said) == 2
    assert "is 0.5 with the own explanation, 10.5 when both read the same wrong one" in said[0]
    assert len(charts.plot_leak(table).axes) == 1
    with pytest.raises(ResultsError, match="no rows whose metric"):
        scores.leak_table(probe_rows("other, ", CONDITIONS))


def test_matching_table_and_figure():
    table = scores.matching_table(probe_rows("accuracy, ", MATCHING))
    assert table["reads"].tolist() == [*MATCHING, *MATCHING]
    assert set(table["chance"]) == {50.0}
    assert len(charts.plot_matching(table).axes) == 1


def test_doses_lie_on_their_axes():
    shown = {"split": "test", "R@1": 50.0, "R@1_low": 45.0, "R@1_high": 55.0}
    rows = pd.DataFrame(
        {**shown, "variant": name, "direction": direction}
        for name in ("clip", "experts-1", "entityclip", "lambda-1.0")
        for direction in ("text_to_image", "image_to_text")
    )
    figure = charts.plot_doses(rows)
    experts, weights = figure.axes
    assert [t.get_text() for t in experts.get_xticklabels()] == ["0", "1", "2", "4", "8"]
    # beside their places, so that two directions' intervals do not hide each other; 2 and 8 were
    # not measured
    assert np.array_equal(experts.lines[0].get_xdata().round(), [0, 1, 3])
    assert np.array_equal(weights.lines[0].get_xdata().round(), [1, 2])
    assert (experts.lines[0].get_xdata() != experts.lines[1].get_xdata()).all()
    with pytest.raises(ResultsError, match="no text_to_image rows of"):
        charts.plot_doses(rows.assign(variant="klip"))


def test_the_winner_is_measured_on_test(experiment, monkeypatch):
    choice = pd.DataFrame({"variant": ["bridge-crossed", "clip"], "R@1": [2.0, 1.0]})
    asked = []
    monkeypatch.setattr(
        sweep, "measure",
        lambda e, names, splits, **_: asked.append((e.seed, tuple(names), tuple(splits))),
    )  # fmt: skip
    assert sweep.measure_chosen(experiment, choice) == "bridge-crossed"
    assert asked == [(seed, ("bridge-crossed",), ("test",)) for seed in (0, 1)]


def test_a_profile_that_does_not_train_tables_says_what_is_missing(experiment, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "work_off", lambda *_: pytest.fail("trained"))
    experiment.settings = experiment.settings.model_copy(update={"train_tables": False})
    lacking = sweep.run_table(experiment, "ablation_gi_itm")
    assert len(lacking) == 2 * len(TABLES["ablation_gi_itm"])
    assert f"{len(lacking)} runs of table ablation_gi_itm are not stored" in capsys.readouterr().out


def test_listed_tables_are_trained_once_where_they_differ_and_refuse_with_the_reason(experiment):
    listed = {
        "mixes": ["1-1-1", "0-0-1"], "backbones": [{"backbone": "RN50"}],
        "ablation_seeds": [0], "model": {"image_experts": 1, "text_experts": 1},
    }  # fmt: skip
    settings = {**TINY, **listed}
    there = Experiment(load_profile("smoke", settings=settings), progress=False)
    (reason,) = sweep.refused_backbones(there).values()
    assert "picture tower is a ModifiedResNet" in reason
    runs = list(sweep.table_runs(there, "backbones"))
    assert {run.settings.backbone for run, _ in runs} == {"newsroom-tiny"}
    asked = [name for _, name in sweep.table_runs(there, "mixes")]
    assert asked == ["entityclip", "experts-1", "mix-0-0-1"]
    assert sweep.run_table(there, "mixes") == []
    made = [path.name for path in (there.profile.runs / "checkpoints").glob("*-seed0-*")]
    assert len([name for name in made if not name.endswith(".lock")]) == 4  # and the pretraining
    table = catalogue.draw(there.profile, "mixes").table
    assert table["variant"].unique().tolist() == ["1-1-4", "1-1-1", "0-0-1"]
    assert there.under(there.settings) is there
    other = there.under(there.settings.model_copy(update={"explanation_source": "own"}))
    assert other._pairs is not there._pairs
    less = there.under(there.settings.model_copy(update={"train_pairs": 11}))
    assert len(less.pairs("train")) == 11 != len(there.pairs("train"))
    same = there.under(there.settings.model_copy(update={"backbone": "newsroom-tiny-p8"}))
    assert same._pairs is there._pairs
