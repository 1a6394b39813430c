"""What frozen towers know of relations: a linear probe, and clusters without any label."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from entityclip.backbone import Backbone
from entityclip.baselines.itr.clustering import cluster
from entityclip.baselines.itr.scores import CLASSES, Classes
from entityclip.datasets.pair import PairDataset

PROBE_C = 0.25  # inverse strength of the probe's L2 penalty, the authors'
_STEPS = 2000  # at most, of the probe's solver


@torch.inference_mode()
def pair_embeddings(
    backbone: Backbone, dataset: PairDataset, *, batch_size: int = 256
) -> NDArray[np.float32]:
    """Text and image embeddings of each pair, as the towers give them, concatenated [N, 2d]."""
    device = backbone.device
    was_training = backbone.training
    backbone.eval()
    found = []
    for batch in DataLoader(dataset, batch_size, collate_fn=dataset.collate):
        batch = batch.to(device)
        sides = backbone.encode_text(batch.captions), backbone.encode_image(batch.images)
        found.append(torch.cat(sides, dim=-1).float().cpu())
    backbone.train(was_training)
    return torch.cat(found).numpy()


def linear_probe(train: NDArray[np.float32], labels: Classes, test: NDArray[np.float32]) -> Classes:
    """Predictions [M] for `test` [M, D] of a logistic regression a label, fit to `train` [N, D].

    A linear probe adds up what it reads off the text and what it reads off the picture; whether
    the two agree it cannot see. Raises ValueError where a label has only one class.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and only this needs it

    predicted = {}
    for name, classes in labels.items():
        if len(np.unique(classes)) < 2:
            raise ValueError(
                f"all {len(classes)} labels of {name!r} are {classes[0]}: nothing to fit"
            )
        probe = LogisticRegression(C=PROBE_C, max_iter=_STEPS).fit(train, classes)
        predicted[name] = probe.predict(test).astype(np.int64)
    return predicted


def zero_shot_clusters(test: NDArray[np.float32], labels: Classes, *, seed: int) -> Classes:
    """Predictions [M] from k-means over `test` [M, D], as many clusters as a label has classes.

    Each cluster is named after the class that suits it best, which reads the labels of the very
    pairs that are judged: an upper bound, as in the paper. Raises ValueError for fewer pairs than
    clusters.
    """
    predicted = {}
    for name, classes in labels.items():
        found = cluster(test, CLASSES[name], seed=seed)
        predicted[name] = best_permutation(found, classes, CLASSES[name])[found]
    return predicted


def best_permutation(
    clusters: NDArray[np.int64], classes: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """The class [k] of each of k clusters, a permutation with most pairs in their own class.

    Hungarian method on the k × k table of counts, not k! tries. `clusters` and `classes` are [N].
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((k, k), np.int64)
    np.add.at(counts, (clusters, classes), 1)
    return linear_sum_assignment(counts, maximize=True)[1]
