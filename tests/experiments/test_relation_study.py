"""ITR's chapter: its rows, measured once, and the tables and figures made of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from entityclip import variants
from entityclip.config import load_profile
from entityclip.experiments import chapters
from entityclip.experiments.chapters import measure_relations
from entityclip.experiments.experiment import Experiment
from entityclip.models.clip import create_backbone
from entityclip.reporting import charts
from entityclip.reporting.inspection import plot_cams
from entityclip.reporting.scores import relation_table
from entityclip.results import (
    CLASSIFICATION,
    ResultsError,
    append_rows,
    chapter_rows,
    read_rows,
)
from entityclip.variants import BEFORE, PROTOCOLS


@pytest.fixture(scope="module")
def data(make_dataset):
    return make_dataset("relation_train", 24)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The smoke profile at its smallest, two seeds, without generic pretraining."""
    source = {"dataset": "newsroom", "limit": 12}
    itr = {
        "unlabelled": source, "labelled": source, "judged": source, "held_out": 8, "seeds": [0, 4],
        "objective": {"iterations": 1, "subset": 8, "batch_size": 8, "clusters": 2},
    }  # fmt: skip
    profile = load_profile("smoke", settings={"itr": itr})
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENTITYCLIP_RUNS", str(folder))
        patch.setattr(Experiment, "build", lambda self, variant: _Untrained())
        study = Experiment(profile, progress=False)
        measure_relations(study)
        yield study


class _Untrained:
    def __init__(self):
        torch.manual_seed(5)
        self.backbone = create_backbone("newsroom-tiny")


def test_every_variant_seed_protocol_and_label_has_its_row(study):
    rows = chapter_rows(study.profile, "relations")
    keys = rows[["variant", "seed", "protocol", "label"]].drop_duplicates()
    assert len(rows) == len(keys) == 2 * 2 * (5 + 3 + 3)  # the probe's are five
    assert set(rows["variant"]) == {BEFORE, "ITR: cluster_image + contrast"}
    assert rows["low"].le(rows["value"]).all()
    assert rows["value"].le(rows["high"]).all()
    assert set(rows.loc[rows["protocol"] == "clusters", "n_train"]) == {0}
    assert set(rows["n_test"]) == {12}
    assert {"git_commit", "versions", "data_fingerprint"} < set(rows.columns)


def stored(study):
    return study.results / "relations.jsonl"


def test_what_is_stored_is_not_measured_again(study, monkeypatch):
    before = stored(study).read_bytes()
    monkeypatch.setattr(chapters, "score", pytest.fail)
    assert len(measure_relations(study)) == 44
    assert stored(study).read_bytes() == before
    assert len(measure_relations(study, [4], ["clusters"])) == 6


def test_a_stopped_study_goes_on_with_what_is_missing(study, monkeypatch):
    whole = stored(study).read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = [line for line in lines if b'"fine-tuning"' not in line or b'"seed": 4,' not in line]
    stored(study).write_bytes(b"".join(kept))
    asked = []
    original = chapters._relation_rows
    monkeypatch.setattr(
        chapters,
        "_relation_rows",
        lambda x, judge, protocol, *rest: (
            asked.append((judge.seed, protocol)) or original(x, judge, protocol, *rest)
        ),
    )
    rows = measure_relations(study)
    assert asked == [(4, "fine-tuning")] * 2
    again = read_rows(stored(study), schema=CLASSIFICATION)
    assert len(rows) == len(again) == 44
    stored(study).write_bytes(whole)
    was = read_rows(stored(study), schema=CLASSIFICATION)
    key = ["variant", "seed", "protocol", "label"]
    pd.testing.assert_series_equal(
        again.set_index(key)["value"].sort_index(), was.set_index(key)["value"].sort_index()
    )


def test_rows_come_in_one_order_whatever_was_stored_first(study):
    whole, rows = stored(study).read_bytes(), chapter_rows(study.profile, "relations")
    stored(study).write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    pd.testing.assert_frame_equal(chapter_rows(study.profile, "relations"), rows)
    stored(study).write_bytes(whole)
    shown = relation_table(rows)
    assert shown["label"].head(3).tolist() == ["text", "image", "combined"]
    assert list(dict.fromkeys(shown["protocol"])) == list(PROTOCOLS)


def test_unknown_protocols_and_missing_rows_are_named(study):
    with pytest.raises(ValueError, match="no protocol 'probe'; there are linear probe, clusters"):
        measure_relations(study, protocols=["probe"])
    assert measure_relations(study, [99], train=False).empty
    with pytest.raises(ResultsError, match=r"row 1 lacks .*protocol"):
        append_rows(stored(study).with_name("x.jsonl"), [{"variant": "a"}], CLASSIFICATION)


def test_gains_are_paired_by_seed():
    values = {BEFORE: [50.0, 54.0, 52.0], "ITR: contrast": [53.0, 56.0, 53.0]}
    rows = pd.DataFrame(
        {"protocol": "linear probe", "label": "text", "variant": v, "seed": s, "value": x}
        for v, found in values.items()
        for s, x in enumerate(found)
    )
    before, after = relation_table(rows).to_dict("records")
    assert (before["gain"], before["gain_low"], before["gain_high"]) == (0, 0, 0)
    assert after["value"] == pytest.approx(54)
    assert after["gain"] == pytest.approx(2)
    # t(0.975, 2) = 4.303 times the standard error of 3, 2, 1
    assert after["gain_high"] - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    alone = relation_table(rows[rows["seed"] == 0])
    assert alone["gain_low"].isna().all()


def test_figures_show_every_seed_and_picture(study, data):
    rows = chapter_rows(study.profile, "relations")
    figure = charts.plot_relation_scores(rows)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(PROTOCOLS)
    shown = [len(points.get_offsets()) for points in figure.axes[0].collections[::2]]
    assert shown == [2] * 6
    pictures = [pair.load_image() for pair in data.pairs[:3]]
    maps = np.zeros((3, 64, 64), np.float32)
    drawn = plot_cams(pictures, ["a", "b $x$", "c"], {"CLIP": maps, "ITR": maps})
    assert len(drawn.axes) == 9
    with pytest.raises(ValueError, match="2 maps of 'CLIP' for 3 pictures"):
        plot_cams(pictures, ["a", "b", "c"], {"CLIP": maps[:2]})
    with pytest.raises(ValueError, match="no rows"):
        charts.plot_relation_scores(rows[:0])


def test_names_of_variants():
    assert variants.variant_name(None) == "CLIP"
    assert variants.variant_name(("cluster_generated", "contrast")) == (
        "ITR: cluster_generated + contrast"
    )
