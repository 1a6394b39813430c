"""The stored rows of chapters 07 to 09 under a profile's present settings: nothing is trained here.

Beside `stored`, whose rows are those of `variants`: chapters have runs of their own.
"""

from __future__ import annotations

import pandas as pd

from entityclip.baselines.ascl.runs import VARIANTS as ASCL_VARIANTS
from entityclip.baselines.ascl.runs import AsCLRuns, Measured
from entityclip.cross_domain import choose_domains, domain_experiment, measure_cross_domain
from entityclip.experiments import Experiment
from entityclip.relations import RelationStudy
from entityclip.results import ResultsError
from entityclip.stored import write_shipped
from entityclip.zero_shot import measure_sections

GENERALIZED = ("zero-shot", "clip", "entityclip")  # the variants of notebook 07
ASCL_WAYS = (Measured(), Measured(short_queries=True), Measured(rerank=True))


def cross_domain_rows(experiment: Experiment) -> pd.DataFrame:
    """Rows of the cross-domain matrix between drawn domains, over `ablation_seeds`."""
    settings = experiment.settings
    domains = choose_domains(settings, {})
    seeds = settings.ablation_seeds
    return measure_cross_domain(
        experiment.profile, domains, GENERALIZED, seeds=seeds, train=False, progress=False
    )


def section_rows(experiment: Experiment) -> pd.DataFrame:
    """Rows of zero-shot sections on each drawn domain, over `ablation_seeds`."""
    parts = []
    for domain in choose_domains(experiment.settings, {}):
        there = domain_experiment(experiment, domain)
        for seed in experiment.settings.ablation_seeds:
            home = experiment.of_seed(seed)
            parts.append(measure_sections(home, GENERALIZED, on=there, train=False))
    return pd.concat(parts, ignore_index=True)


def relation_rows(experiment: Experiment) -> pd.DataFrame:
    """Rows of ITR's relation labels; none where the profile has no ITR or nothing is stored."""
    try:
        return RelationStudy(experiment).rows() if experiment.settings.itr else pd.DataFrame()
    except ResultsError:
        return pd.DataFrame()


def ascl_rows(experiment: Experiment) -> pd.DataFrame:
    """Rows of AsCL's own chapter: all of its variants, seeds and ways of asking."""
    if experiment.settings.ascl is None:
        return pd.DataFrame()
    runs = AsCLRuns(experiment)
    return runs.rows(ASCL_VARIANTS, runs.seeds, ASCL_WAYS)


CHAPTERS = {
    "cross_domain": cross_domain_rows,
    "sections": section_rows,
    "relations": relation_rows,
    "ascl": ascl_rows,
}


def ship_chapters(experiment: Experiment) -> dict[str, int]:
    """Put the chapters' rows among those that the repository ships; how many of each kind."""
    counts = {}
    for kind, read in CHAPTERS.items():
        rows = read(experiment)
        write_shipped(experiment, kind, rows)
        if len(rows):
            counts[kind] = len(rows)
    return counts
