"""What frozen towers know of relations: a linear probe, and clusters without any label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from entityclip.config import ClassifierConfig
from entityclip.console import progress_bar
from entityclip.datasets.dataset import Batch, PairDataset
from entityclip.datasets.pair import Pair
from entityclip.datasets.sources.tweets import relation_labels
from entityclip.evaluation.retrieval import evaluating
from entityclip.evaluation.sections import class_counts
from entityclip.models.clip import Backbone
from entityclip.models.itr import cluster
from entityclip.statistics import Estimate, interval
from entityclip.training.loop import repeatable

Classes = dict[str, NDArray[np.int64]]  # "text", "image", "combined": a class a pair, [N]
CLASSES = {"text": 2, "image": 2, "combined": 4}
# the label that a prediction is judged by, where it was read from that of the combined one
READ = {"text of combined": "text", "image of combined": "image"}


def relation_classes(pairs: Sequence[Pair]) -> Classes:
    """The labels of pairs: is the text represented, does the image add, and 2 · text + image.

    Raises ValueError naming the first pair without a label.
    """
    lacking = [pair.id for pair in pairs if pair.section not in ("0", "1", "2", "3")]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs have no relation label, the first is "
            f"{lacking[0]!r}; take a labelled split"
        )
    both = np.array([relation_labels(str(pair.section)) for pair in pairs]).reshape(-1, 2)
    return {"text": both[:, 0], "image": both[:, 1], "combined": 2 * both[:, 0] + both[:, 1]}


def weighted_f1(
    predicted: NDArray[np.int64], true: NDArray[np.int64], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """F1 of each class, averaged by the classes' true counts; as scikit-learn's, many at once.

    `predicted` and `true` [N] hold classes; `weights` [R, N] how often each of R resamples holds
    each pair. Returns [R], from 0 to 1.
    """
    k = 1 + int(max(predicted.max(), true.max()))
    hits, members, named = class_counts(weights, true, predicted, k)
    total = (members * 2 * hits / np.maximum(members + named, 1)).sum(axis=1)
    return total / weights.sum(axis=1)


def score(predicted: Classes, true: Classes, *, n_resamples: int, seed: int) -> dict[str, Estimate]:
    """Weighted F1 of each label in percent, with percentile bootstrap intervals over the pairs.

    The intervals hold the luck of the pairs judged, not that of a training seed. Raises ValueError
    for predictions of another number of pairs.
    """
    scores = {}
    for name, found in predicted.items():
        labels = true[READ.get(name, name)]
        if found.shape != labels.shape:
            raise ValueError(f"{len(found)} predictions of {name!r} for {len(labels)} pairs")

        def f1(weights, _=None, pair=(found, labels)) -> NDArray[np.float64]:
            return weighted_f1(*pair, weights)[:, None]

        ends = interval(found, statistic=f1, n_resamples=n_resamples, seed=seed)
        numbers = f1(np.ones((1, len(found))))[0, 0], *ends
        scores[name] = Estimate(*(100 * float(number) for number in numbers))
    return scores


def pair_embeddings(
    backbone: Backbone, dataset: PairDataset, *, batch_size: int = 256
) -> NDArray[np.float32]:
    """Text and image features of each pair before CLIP's projections, [N, w_t + w_v]."""
    found = []
    with evaluating(backbone) as device:
        for batch in DataLoader(dataset, batch_size, collate_fn=dataset.collate):
            batch = batch.to(device)
            image, text = backbone.unprojected(batch.images, batch.captions)
            found.append(torch.cat([text, image], dim=-1).float().cpu())
    return torch.cat(found).numpy()


def linear_probe(train: NDArray[np.float32], labels: Classes, test: NDArray[np.float32]) -> Classes:
    """Predictions [M] for `test` [M, D] of a logistic regression a label, fit to `train` [N, D].

    Beside them, as the authors' code does it, the two labels read from the class that the combined
    label's probe chose (`READ`). A linear probe adds up what it reads off the text and what it
    reads off the picture; whether the two agree it cannot see. Raises ValueError where a label has
    only one class.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, and only this needs it

    predicted = {}
    for name, classes in labels.items():
        if len(np.unique(classes)) < 2:
            raise ValueError(
                f"all {len(classes)} labels of {name!r} are {classes[0]}: nothing to fit"
            )
        probe = LogisticRegression(C=0.25, max_iter=2000)  # the authors' L2 penalty, inverse
        predicted[name] = probe.fit(train, classes).predict(test).astype(np.int64)
    if "combined" in predicted:
        predicted |= zip(READ, np.divmod(predicted["combined"], 2), strict=True)
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


class RelationClassifier(nn.Module):
    """The towers and a linear head a label, over [text; image; text · image element by element].

    The product lets a head see whether text and image agree, which their concatenation hides.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(
            {name: nn.Linear(3 * backbone.width, n) for name, n in CLASSES.items()}
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits [B, classes] of each label."""
        text = F.normalize(self.backbone.encode_text(batch.captions), dim=-1)
        image = F.normalize(self.backbone.encode_image(batch.images), dim=-1)
        scale = self.backbone.width**0.5  # entries of about 1, whatever the towers' norm
        seen = torch.cat([text, image, text * image * scale], dim=-1) * scale
        return {name: head(seen) for name, head in self.heads.items()}


def finetune_classifier(
    backbone: Backbone,
    dataset: PairDataset,
    labels: Classes,
    config: ClassifierConfig,
    *,
    seed: int,
    progress: bool = True,
) -> RelationClassifier:
    """Train towers (in place) and heads on labelled pairs; cross-entropy of the three labels."""
    device = backbone.device
    torch.manual_seed(seed)
    model = RelationClassifier(backbone).to(device).train()
    rates = {"backbone": config.lr, "heads": config.lr * config.head_lr_scale}
    optimizer = torch.optim.AdamW(
        [{"params": getattr(model, part).parameters(), "lr": lr} for part, lr in rates.items()],
        weight_decay=config.weight_decay,
    )
    targets = {name: torch.from_numpy(found) for name, found in labels.items()}
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(dataset), generator=generator) for _ in range(config.epochs)]
    batches = [rows for order in orders for rows in order.split(config.batch_size)]
    with repeatable(device):
        for rows in progress_bar(batches, desc="fine-tune", show=progress, leave=False):
            batch = dataset.collate([dataset[row] for row in rows.tolist()])
            logits = model(batch.to(device))
            loss = sum(F.cross_entropy(logits[n], t[rows].to(device)) for n, t in targets.items())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.inference_mode()
def classify(model: RelationClassifier, dataset: PairDataset, *, batch_size: int = 256) -> Classes:
    """The classes [N] that a fine-tuned classifier gives the pairs, label by label."""
    device = model.backbone.device
    found: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
    for batch in DataLoader(dataset, batch_size, collate_fn=dataset.collate):
        for name, logits in model(batch.to(device)).items():
            found[name].append(logits.argmax(-1).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}
