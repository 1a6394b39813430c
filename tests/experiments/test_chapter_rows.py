"""Rows of the later chapters: shipped, found elsewhere, never of other data or settings."""

from __future__ import annotations

import pandas as pd
import pytest

from entityclip import results
from entityclip.experiments.chapters import ship_chapters
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure_sections
from entityclip.reporting import catalogue
from entityclip.reporting.scores import summary_table
from entityclip.reporting.style import read_table
from entityclip.results import chapter_rows
from tests.experiments.test_experiments import experiment


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "shipped")

    def runs(name):
        monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / name))

    runs("here")
    return tmp_path, runs


def test_sections_are_shipped_and_redrawn_where_nothing_was_trained(places, monkeypatch):
    folder, runs = places
    measured = measure_sections(experiment(), ["zero-shot"])
    assert ship_chapters(experiment()) == {"sections": len(measured)}
    shipped = (folder / "shipped" / "smoke" / "sections.jsonl").read_bytes()
    assert ship_chapters(experiment()) == {"sections": len(measured)}
    assert (folder / "shipped" / "smoke" / "sections.jsonl").read_bytes() == shipped

    runs("elsewhere")
    monkeypatch.setattr(Experiment, "load", lambda *_: pytest.fail("trained or measured again"))
    found = chapter_rows(experiment().profile, "sections")
    assert found["value"].tolist() == measured["value"].tolist()
    assert (
        measure_sections(experiment(), ["zero-shot"])["value"].tolist() == found["value"].tolist()
    )
    other_data = measure_sections(experiment(test_pairs=6), ["zero-shot"], train=False)
    assert other_data.empty
    assert chapter_rows(experiment(image_size=32).profile, "sections").empty  # other settings
    for name in ("sections", "section_confusion"):
        catalogue.show(experiment().profile, name, folder)
    assert (folder / "section_confusion.png").exists()
    assert read_table(folder / "sections.csv")["variant"].tolist() == ["zero-shot"]


def test_what_has_no_rows_is_said_and_left_out(places, capsys):
    folder, _ = places
    base = experiment(itr=None, ascl=None)
    for kind in ("cross_domain", "sections", "relations", "ascl"):
        assert chapter_rows(base.profile, kind).empty
    for name in ("cross_domain", "sections", "itr_relations_f1", "ascl_rsum"):
        catalogue.show(base.profile, name, folder)
    assert capsys.readouterr().out.count("skipped") == 4
    assert not [*folder.rglob("*.csv"), *folder.rglob("*.png")]
    assert ship_chapters(base) == {}


def test_sections_over_seeds_are_means_with_an_interval_over_them(places):
    one = measure_sections(experiment(), ["zero-shot"])
    other = one.assign(seed=1, value=one["value"] + 10)
    third = one.assign(seed=2, value=one["value"] + 20)
    table = summary_table(pd.concat([one, other, third]))
    alone = summary_table(one).iloc[0]
    row = table.iloc[0]
    assert (row["seeds"], alone["seeds"]) == (3, 1)
    assert row["accuracy"] == pytest.approx(alone["accuracy"] + 10)
    # Student's t with two degrees of freedom: 4.3027 * 10 / sqrt(3)
    assert row["accuracy_high"] - row["accuracy"] == pytest.approx(24.84, abs=0.01)
    assert row["majority"] == alone["majority"]
