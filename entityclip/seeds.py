"""An experiment under every seed it was measured with."""

from __future__ import annotations

from dataclasses import replace

from entityclip.config import config_hash
from entityclip.experiments import VARIANTS, Experiment
from entityclip.results import read_rows


def over_seeds(experiment: Experiment) -> list[Experiment]:
    """The same experiment for each seed that has retrieval rows of its very settings, in order.

    Raises ResultsError if there are no rows at all.
    """
    rows = read_rows(experiment.results / "retrieval.jsonl")
    known = set(rows["config_hash"])
    experiments = [
        Experiment(replace(experiment.profile, seed=int(seed)), progress=experiment.progress)
        for seed in sorted(rows["seed"].unique())
    ]
    return [
        one
        for one in experiments
        if any(config_hash(one.identity(variant)) in known for variant in VARIANTS)
    ]
