"""Cross-domain retrieval: which domains there are, what is shared, stored, skipped and shown."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from entityclip.config import load_profile
from entityclip.experiments.chapters import (
    Domain,
    choose_domains,
    domain_experiment,
    measure_cross_domain,
)
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import measure_sections
from entityclip.reporting.charts import plot_confusions, plot_cross_domain
from entityclip.reporting.tables import cross_domain_table, describe_transfer
from entityclip.results import chapter_rows, read_rows
from entityclip.statistics import BY_ARTICLE, METRICS
from tests.experiments.test_experiments import TINY, experiment, files, runs  # noqa: F401 - a fixture
from tests.fixtures import layouts

BOTH = [Domain("newsroom"), Domain("newsroom-b")]


def profile(**settings):
    return load_profile("smoke", settings={**TINY, **settings})


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (("tweets", "somewhere"), "tweets is no domain.*has train, test"),
        (("nope",), "nope is no domain.*being no data set"),
        (("n24news",), "domain n24news lies in files"),
        (("newsroom", None, "dev"), "needs splits train, val, dev"),
    ],
)
def test_a_domain_needs_its_splits_and_a_root(domain, message):
    with pytest.raises(ValueError, match=message):
        Domain(*domain)


def test_domains_are_the_drawn_ones_and_those_with_a_root():
    assert choose_domains(profile().settings) == BOTH
    roots = {"goodnews": "g", "n24news": "n"}
    real = [Domain("goodnews", "g"), Domain("n24news", "n")]
    assert choose_domains(profile(domains=roots).settings) == [*BOTH, *real]
    paper = load_profile("n24news", settings={"data_root": "n", "domains": roots}).settings
    assert choose_domains(paper) == [Domain("n24news", "n"), Domain("goodnews", "g")]
    with pytest.raises(ValueError, match="domain n24news lies in files"):
        choose_domains(load_profile("n24news").settings)


def test_other_domains_start_from_the_same_pretraining(runs):  # noqa: F811
    home = experiment()
    away = domain_experiment(home, BOTH[1])
    assert domain_experiment(home, BOTH[0]) is home
    assert away.pretrain() == home.pretrain()
    for a, b in zip(home.build("clip").parameters(), away.build("clip").parameters(), strict=True):
        assert torch.equal(a, b)
    assert away.pairs("test")[0].id.startswith("b-test-")
    assert away.identity("clip")["start"]["dataset"] == "newsroom"
    assert away.identity("clip")["dataset"] == "newsroom-b"
    assert "dataset" not in home.identity("clip")["start"]  # notebook 03's runs are found


def test_every_pair_is_measured_once_and_shown(runs, monkeypatch):  # noqa: F811
    rows = measure_cross_domain(profile(), BOTH, ["zero-shot", "clip"], progress=False)
    ranked = rows[rows["metric"].isin(METRICS)]
    cells, each = ranked.groupby(["variant", "trained_on", "dataset"]).size(), 2 * len(METRICS)
    assert cells.to_dict() == {
        ("zero-shot", "none", "newsroom"): each,
        ("zero-shot", "none", "newsroom-b"): each,
        **{("clip", a.dataset, b.dataset): each for a in BOTH for b in BOTH},
    }
    before = files(runs)
    monkeypatch.setattr("entityclip.evaluation.retrieval.evaluate_retrieval", None)
    monkeypatch.setattr(Experiment, "load", None)
    again = measure_cross_domain(profile(), BOTH, ["zero-shot", "clip"], progress=False)
    assert again.equals(rows)
    assert files(runs) == before
    # a cell that was lost is measured again, and no other
    path = runs / "smoke" / "results" / "cross_domain.jsonl"
    lost = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [r for r in lost if (r["trained_on"], r["dataset"]) != ("newsroom-b", "newsroom")]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    monkeypatch.undo()
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(runs))
    measured = []
    load = Experiment.load

    def told(self, variant):
        measured.append((self.settings.dataset, variant))
        return load(self, variant)

    monkeypatch.setattr(Experiment, "load", told)
    mended = measure_cross_domain(profile(), BOTH, ["zero-shot", "clip"], progress=False)
    assert measured == [("newsroom-b", "clip")]
    assert mended["value"].tolist() == rows["value"].tolist()
    assert len(read_rows(path)) == len(rows)

    table = cross_domain_table(mended)
    assert len(table) == 12
    figure = plot_cross_domain(table)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 6  # two domains and the pretrained model, on two domains
    cell = table[(table.trained_on == "newsroom-b") & (table.direction == "text_to_image")]
    assert f"{cell['R@1'].iloc[0]:.1f}\n[" in texts[2]


def test_a_real_data_set_takes_part_with_its_root(runs, tmp_path):  # noqa: F811
    """N24News' layout on disk, tested on, and its sections told apart."""
    root = layouts.whole_n24news(tmp_path / "n24", train=16, val=16, test=16)
    there = profile(domains={"n24news": str(root)})
    domains = choose_domains(there.settings)
    rows = measure_cross_domain(there, domains, ["entityclip"], progress=False)
    ranked = rows[rows["metric"].str.removesuffix(BY_ARTICLE).isin(METRICS)]
    cells, each = ranked.groupby(["trained_on", "dataset"]).size(), 2 * len(METRICS)
    drawn = [domain.dataset for domain in BOTH]  # which alone are trained on
    assert set(cells.index) == set(itertools.product(drawn, (*drawn, "n24news")))
    assert set(cells.drop("n24news", level="dataset")) == {each}
    assert set(cells.xs("n24news", level="dataset")) == {2 * each}  # by article, too
    assert set(chapter_rows(there, "cross_domain")["dataset"]) == {*drawn, "n24news"}
    # what was measured on an archive that is not given now is not shown beside the others
    other = profile(domains={"goodnews": str(tmp_path)})
    assert set(chapter_rows(other, "cross_domain")["dataset"]) == {*drawn}
    home = Experiment(there, progress=False)
    away = domain_experiment(home, domains[2])
    sections = measure_sections(home, ["clip"], on=away)
    assert sections["n_candidates"].unique().tolist() == [2]
    assert sections["dataset"].unique().tolist() == ["n24news"]


def test_domains_are_named_once(runs):  # noqa: F811
    for domains in ([], [BOTH[0], BOTH[0]]):
        with pytest.raises(ValueError, match="name each once, and at least one"):
            measure_cross_domain(profile(), domains, ["clip"], progress=False)


def table(**values):
    """One variant on two domains: {"ab": (R@1, low, high)}, trained on a, tested on b."""
    rows = [
        {"variant": "clip", "direction": "text_to_image", "trained_on": t, "dataset": d}
        | dict(zip(("R@1", "R@1_low", "R@1_high"), numbers, strict=True))
        for (t, d), numbers in values.items()
    ]
    return pd.DataFrame(rows)


def test_transfer_in_words():
    numbers = {"aa": (60, 55, 65), "ba": (30, 25, 35), "bb": (50, 45, 55), "ab": (46, 41, 51)}
    assert describe_transfer(table(**numbers)) == [
        "clip on a: R@1 30.0 [25.0, 35.0] trained on b, 60.0 [55.0, 65.0] trained on its own; "
        "intervals apart",
        "clip on b: R@1 46.0 [41.0, 51.0] trained on a, 50.0 [45.0, 55.0] trained on its own; "
        "intervals overlap",
    ]
    assert describe_transfer(table(aa=(60, 55, 65))) == []


def test_what_was_not_measured_stays_blank():
    figure = plot_cross_domain(table(aa=(60, 55, 65), ba=(30, 25, 35), bb=(50, 45, 55)))
    drawn = figure.axes[0].images[0].get_array()
    assert np.ma.masked_invalid(drawn).count() == 3
    assert len(figure.axes[0].texts) == 3
    with pytest.raises(ValueError, match="nothing to show"):
        plot_cross_domain(table(aa=(60, 55, 65)).iloc[:0])


def test_a_confusion_matrix_is_normalised_by_row():
    counts = pd.DataFrame([[3, 1], [0, 16]], ["arts", "world"], ["arts", "world"])
    figure = plot_confusions({"clip": counts})
    assert figure.axes[0].images[0].get_array().tolist() == [[75, 25], [0, 100]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "1", "16"]
    with pytest.raises(ValueError, match="nothing to show"):
        plot_confusions({})
