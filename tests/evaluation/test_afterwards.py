"""Ways to ask a trained model afterwards, beside their literal twins."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from entityclip.config import EntityCLIPConfig
from entityclip.datasets import load_pairs
from entityclip.datasets.dataset import PairDataset
from entityclip.evaluation import afterwards
from entityclip.evaluation.afterwards import dual_softmax, rank_dual_softmax, rank_expanded
from entityclip.evaluation.retrieval import encode_pairs
from entityclip.experiments.interpolation import ALPHAS, between, interpolate
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.variants import NO_EXPERTS


def towers(seed):
    torch.manual_seed(seed)
    return create_backbone("newsroom-tiny", image_size=16)


@pytest.fixture(scope="module")
def model():
    return EntityCLIP(towers(0), EntityCLIPConfig(**NO_EXPERTS)).eval()


def served(backbone, split="test", n=24, explanations=True):
    pairs = load_pairs("newsroom", split, limit=n, image_size=64)
    return PairDataset(
        pairs, backbone.preprocess, backbone.tokenize, with_explanations=explanations, cache=True
    )


def literal_rank(scores, own):
    return 1 + sum(bool(score >= scores[own]) for at, score in enumerate(scores) if at != own)


def test_an_expanded_query_is_caption_and_explanation_together(model):
    data = served(model.backbone)
    found = rank_expanded(model, data, progress=False)
    embedded = encode_pairs(model, data, progress=False)
    keys = [pair.image_key for pair in data.pairs]
    order = [embedded.image_of[row].item() for row in range(len(keys))]
    for row, pair in enumerate(data.pairs):
        tokens = model.backbone.tokenize([str(pair.explanation)])
        with torch.no_grad():
            asked = F.normalize(embedded.texts[row] + model.encode_text(tokens)[0], dim=0)
        scores = (embedded.images @ asked).tolist()
        assert abs(found.text_to_image[row] - literal_rank(scores, order[row])) <= 1  # last bits
    assert found.beaten.keys()


def test_a_query_without_explanation_is_refused(model):
    data = served(model.backbone, "generic", explanations=False)
    with pytest.raises(ValueError, match="24 pairs have no explanation to ask with, as 'generic"):
        rank_expanded(model, data, progress=False)


def test_the_dual_softmax_is_the_product_of_both():
    torch.manual_seed(0)
    cosines, scale = torch.rand(7, 9).double() * 2 - 1, 20.0
    product = (scale * cosines).softmax(1) * (scale * cosines).softmax(0)
    found = dual_softmax(cosines, scale)
    assert torch.equal(found.argsort(dim=1), product.argsort(dim=1))
    offset = found - product.log()  # a number a row, which changes no order
    assert (offset - offset[:, :1]).abs().max() < 1e-9
    # what every query likes is worth less
    liked = torch.tensor([[0.9, 0.88], [0.9, 0.1], [0.9, 0.2]]).double()
    assert dual_softmax(liked, scale)[0].argmax() == 1


def test_ranks_of_the_dual_softmax_are_those_of_its_scores(model, monkeypatch):
    data = served(model.backbone, explanations=False)
    found = rank_dual_softmax(model, data, progress=False)
    embedded = encode_pairs(model, data, progress=False)
    cosines = (embedded.texts @ embedded.images.T).double()
    scale = float(model.backbone.clip.logit_scale.exp())
    for scores, ranks, own in (
        (dual_softmax(cosines, scale), found.text_to_image, embedded.image_of),
        (dual_softmax(cosines.T, scale), found.image_to_text, embedded.image_of.argsort()),
    ):
        expected = [literal_rank(row.tolist(), int(own[at])) for at, row in enumerate(scores)]
        assert np.abs(np.array(expected) - ranks).max() <= 1
    monkeypatch.setattr(afterwards, "LARGEST", 10)
    with pytest.raises(ValueError, match="needs all 24 × 24 scores at once; lower test_pairs to"):
        rank_dual_softmax(model, data, progress=False)


def test_weights_between_are_a_mean_of_each(model):
    start, end = towers(1), towers(2)
    mixed = between(start, end, 0.3)
    for name, value in mixed.named_parameters():
        first, last = dict(start.named_parameters())[name], dict(end.named_parameters())[name]
        torch.testing.assert_close(value, 0.7 * first + 0.3 * last)
    for alpha, whole in ((0.0, start), (1.0, end)):
        for one, other in zip(
            between(start, end, alpha).parameters(), whole.parameters(), strict=True
        ):
            assert torch.equal(one, other)


def test_how_far_between_is_what_finds_most_of_the_validated_pairs(monkeypatch):
    start, end = towers(1), towers(2)
    sets = [served(start, split, 16, explanations=False) for split in ("val", "val_longtail")]
    asked = []

    def literal(alpha):
        model = EntityCLIP(between(start, end, alpha), EntityCLIPConfig(**NO_EXPERTS)).eval()
        hits = []
        for data in sets:
            found = encode_pairs(model, data, progress=False)
            scores = found.texts @ found.images.T
            hits.append(
                np.mean([
                    literal_rank(row.tolist(), int(found.image_of[at])) == 1
                    for at, row in enumerate(scores)
                ])
            )  # fmt: skip
        asked.append(alpha)
        return np.mean(hits)

    best = max(reversed(ALPHAS), key=literal)
    assert interpolate(start, end, sets)[1] == best
    assert len(asked) == 11
    with pytest.raises(ValueError, match="no validation split to choose weights by"):
        interpolate(start, end, [])
