"""What a metric is over seeds: its mean and a 95 % interval."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

PERCENT = (0.0, 100.0)  # where a share can lie


def over_seeds(
    rows: pd.DataFrame, bounds: tuple[float, float] = PERCENT
) -> tuple[float, float, float]:
    """Value, low and high of one metric from its rows, one a seed, in the metric's unit.

    One seed has its row's own interval, a bootstrap over queries; several have their mean and
    Student's t interval over seeds, cut at the `bounds` of what the metric can be.
    """
    if len(rows) == 1:
        return tuple(rows[["value", "low", "high"]].to_numpy(float)[0].tolist())
    mean, low, high = mean_over_seeds(rows["value"].to_numpy(float))
    low, high = np.clip([low, high], *bounds)
    return mean, low, high


def mean_over_seeds(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of values [S], one a seed, and its 95 % interval by Student's t; NaN where S < 2."""
    values = np.asarray(values, float)
    mean = values.mean() if len(values) else np.nan
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / len(values) ** 0.5
    return mean, mean - half, mean + half
