"""Zero-shot sections: the prompt ensemble, the tie rule, metrics against scikit-learn, the rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from entityclip.config import EntityCLIPConfig
from entityclip.datasets.dataset import PairDataset
from entityclip.evaluation.sections import (
    SectionResult,
    classify_sections,
    predict_sections,
    section_embeddings,
    section_names,
)
from entityclip.experiments.measure import measure_sections
from entityclip.models.entityclip import EntityCLIP
from entityclip.reporting.scores import SUMMARY, confusions, section_table, summary_table
from entityclip.results import ResultsError, measurement_rows, read_rows
from entityclip.statistics import as_clusters, resample_weights
from tests.experiments.test_experiments import experiment, runs  # noqa: F401 - a fixture

NAMES = ("arts", "sports", "travel", "world")


def result(n=80, seed=0, pictures=None):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    predicted = np.where(rng.random(n) < 0.5, truth, rng.integers(0, 3, n))  # "world" seldom found
    return SectionResult(NAMES, truth, predicted, np.arange(n) if pictures is None else pictures)


@pytest.fixture(scope="module")
def model(backbone):
    return EntityCLIP(backbone, EntityCLIPConfig(0, 0, 0))


def test_a_section_is_the_renormalised_mean_of_its_prompts(model):
    templates = ("a photo of {section}", "{section} news", "the {section} pages")
    found = section_embeddings(model, NAMES, templates)
    for name, row in zip(NAMES, found, strict=True):
        total = torch.zeros(row.shape)
        for template in templates:
            tokens = model.backbone.tokenize([template.format(section=name)])
            with torch.no_grad():
                total += model.encode_text(tokens)[0]
        torch.testing.assert_close(row, F.normalize(total / 3, dim=0), atol=1e-5, rtol=1e-5)
    for bad in ((), ("a photo",)):
        with pytest.raises(ValueError, match=r"needs \{section\}"):
            section_embeddings(model, NAMES, bad)


def test_prediction_is_the_nearest_section_and_ties_count_against_the_model():
    generator = torch.Generator().manual_seed(1)
    images, sections = torch.randn(50, 8, generator=generator), torch.randn(4, 8)
    truth = torch.randint(0, 4, (50,), generator=generator)
    similarity = images @ sections.T
    assert predict_sections(images, sections, truth).tolist() == similarity.argmax(1).tolist()
    same = torch.ones(4, 8)
    assert not (predict_sections(images, same, truth) == truth).any()


def test_metrics_are_scikit_learns():
    r = result()
    found = r.metrics()
    assert r.confusion().tolist() == confusion_matrix(r.truth, r.predicted).tolist()
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(r.truth, r.predicted))
    assert found["macro_f1"] == pytest.approx(100 * f1_score(r.truth, r.predicted, average="macro"))
    each = 100 * f1_score(r.truth, r.predicted, average=None)
    assert [found[f"f1/{name}"] for name in NAMES] == pytest.approx(each.tolist())


def test_intervals_are_those_of_a_literal_bootstrap_over_pictures():
    """Pairs drawn one by one; few pictures, so that some resamples lack a section."""
    pictures = np.arange(12) // 2
    r = result(12, seed=3, pictures=pictures)
    (weights,) = resample_weights(as_clusters(pictures, 12), 60, np.random.default_rng(5))
    assert (weights[:, ::2] == weights[:, 1::2]).all()  # both pairs of a picture, or neither
    drawn = [np.repeat(np.arange(12), row) for row in weights]
    literal = [
        100 * f1_score(r.truth[rows], r.predicted[rows], average="macro", zero_division=0)
        for rows in drawn
    ]
    assert len({len(np.unique(r.truth[rows])) for rows in drawn}) > 1
    low, high = r.intervals(60, seed=5)["macro_f1"]
    assert (low, high) == pytest.approx(tuple(np.quantile(literal, [0.025, 0.975])))
    assert r.intervals(60, seed=5) == r.intervals(60, seed=5)


def test_sections_come_from_the_data_and_must_be_there(make_dataset, model):
    pairs = make_dataset("test", 40).pairs
    assert section_names(pairs) == tuple(sorted({pair.section for pair in pairs}))
    unlabelled = [pairs[0], replace(pairs[1], section=None), replace(pairs[2], section="")]
    with pytest.raises(ValueError, match=f"2 of 3 pairs have no section.*{pairs[1].id!r}"):
        section_names(unlabelled)
    one = [replace(pair, section="world") for pair in pairs[:3]]
    data = PairDataset(
        one, model.backbone.preprocess, model.backbone.tokenize, with_explanations=False, cache=True
    )
    with pytest.raises(ValueError, match=r"1 section \['world'\]"):
        classify_sections(model, data, progress=False)


def test_rows_are_stored_once_and_tables_are_made_of_them(runs, monkeypatch):  # noqa: F811
    base = experiment(test_pairs=24)
    rows = measure_sections(base, ["clip", "zero-shot"])
    k = rows["n_candidates"].iloc[0]
    assert len(rows) == 2 * (len(SUMMARY) + k)
    assert set(rows["direction"]) == {"image_to_section"}
    assert len(read_rows(runs / "smoke" / "results" / "sections.jsonl")) == len(rows)

    for variant, counts in confusions(rows).items():
        assert counts.to_numpy().sum() == 24
        accuracy = 100 * np.trace(counts.to_numpy()) / 24
        stored = rows[(rows["variant"] == variant) & (rows["metric"] == "accuracy")]
        assert stored["value"].item() == pytest.approx(accuracy)
    table = section_table(rows)
    assert table.groupby("variant")["pairs"].sum().tolist() == [24, 24]
    harmonic = 2 * table["precision"] * table["recall"] / (table["precision"] + table["recall"])
    known = harmonic.notna()
    assert known.any()
    assert table["f1"][known].tolist() == pytest.approx(harmonic[known].tolist())
    summary = summary_table(rows)
    assert summary["guessing"].tolist() == pytest.approx([100 / k] * 2)
    commonest = table.groupby("variant")["pairs"].max()["clip"]
    assert summary["majority"].tolist() == pytest.approx([100 * commonest / 24] * 2)
    assert summary["macro_f1"].tolist() == pytest.approx(
        table.groupby("variant", sort=False)["f1"].mean().tolist()
    )

    # nothing is measured again, unless something else is asked
    with monkeypatch.context() as patch:
        patch.setattr("entityclip.experiments.measure.classify_sections", None)
        again = measure_sections(experiment(test_pairs=24), ["clip", "zero-shot"])
        assert again.equals(rows)
        for changed in ({"templates": ["{section}"]}, {"split": "val"}):
            with pytest.raises(TypeError):
                measure_sections(base, ["clip"], **changed)
    both = rows.assign(split="val")
    with pytest.raises(ValueError, match="several confusion matrices of clip, zero-shot"):
        confusions(pd.concat([rows, both], ignore_index=True))


def test_a_misspelt_direction_is_still_refused():
    with pytest.raises(ResultsError, match="image_to_section"):
        measurement_rows(
            *({}, {}), variant="a", dataset="b", split="c", direction="image_to_sections",
            n_queries=1, n_candidates=1, provenance={},
        )  # fmt: skip
