"""Deep multimodal clustering: k-means over a subset's embeddings gives its pseudo-labels."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

_RESTARTS = 10  # the best of so many starts is kept
_MINI_BATCH = 4096


def cluster(
    features: NDArray[np.float32], k: int, *, seed: int, mini_batch_above: int = 20_000
) -> NDArray[np.int64]:
    """Pseudo-labels [N] of features [N, D]: 0, 1, … of the clusters that are not empty, at most k.

    Larger sets than `mini_batch_above` are clustered by mini-batch k-means. Clusters stay empty
    where there are fewer distinct features than k. Raises ValueError for k below 2 or above N and
    for features that are not finite.
    """
    # slow to import, and only ITR needs them
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if features.ndim != 2 or not 2 <= k <= len(features):
        raise ValueError(
            f"k is {k} for features of shape {features.shape}; it must be from 2 to the number of "
            "pairs: lower `clusters` or take a larger `subset`"
        )
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(f"{len(rows)} of {len(features)} embeddings are not finite: row {rows[0]}")
    if len(features) > mini_batch_above:
        kind = MiniBatchKMeans(k, random_state=seed, n_init=_RESTARTS, batch_size=_MINI_BATCH)
    else:
        kind = KMeans(k, random_state=seed, n_init=_RESTARTS)
    # one thread: sums in another order can move a pair to another cluster
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct features than k
        labels = kind.fit_predict(features)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
