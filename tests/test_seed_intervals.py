"""A metric over seeds: the row's own interval, or Student's t within what the metric can be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from entityclip.statistics import mean_over_seeds, over_seeds


def rows(*values):
    return pd.DataFrame({"value": values, "low": 40.0, "high": 60.0})


def test_one_seed_keeps_its_rows_interval():
    assert over_seeds(rows(50.0)) == (50.0, 40.0, 60.0)
    assert np.isnan(over_seeds(rows(50.0).assign(low=None, high=None))[1:]).all()


def test_several_have_students_t_cut_at_the_bounds():
    values = [98.0, 99.0, 100.0]
    mean, low, high = over_seeds(rows(*values))
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (mean, high) == (99.0, 100.0)
    assert low == pytest.approx(expected[0])
    assert over_seeds(rows(*values), (-np.inf, np.inf))[2] == pytest.approx(expected[1])


def test_fewer_than_two_values_have_no_interval():
    assert mean_over_seeds([3.0])[0] == 3.0
    assert np.isnan([*mean_over_seeds([3.0])[1:], *mean_over_seeds([])]).all()
