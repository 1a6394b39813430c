"""Alignment, uniformity and the plane, on points whose numbers can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from entityclip.evaluation.inspection import alignment, plane, uniformity
from entityclip.evaluation.retrieval import Embeddings


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_alignment_by_hand():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert alignment(east, east) == 0
    assert alignment(east, north) == pytest.approx(2)
    assert alignment(east, -east) == pytest.approx(4)
    assert alignment(east, -east, alpha=1) == pytest.approx(2)
    both = alignment(torch.cat([east, east]), torch.cat([north, east]))
    assert both == pytest.approx(1)


def test_uniformity_by_hand():
    point = torch.tensor([[1.0, 0.0]])
    assert uniformity(point.expand(3, 2)) == 0
    assert uniformity(torch.cat([point, -point])) == pytest.approx(-8)  # -t * 2²
    assert uniformity(torch.cat([point, -point]), t=1) == pytest.approx(-4)


@pytest.mark.parametrize("n", [2, 7, 1500])
def test_uniformity_is_the_mean_over_pairs(n):
    x = unit(n, 6)
    rows, columns = np.triu_indices(n, 1)
    literal = np.exp(-2 * ((x.numpy()[rows] - x.numpy()[columns]) ** 2).sum(1)).mean()
    assert uniformity(x) == pytest.approx(math.log(literal), abs=1e-5)


@pytest.mark.parametrize(("images", "texts"), [((2, 3), (3, 3)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_unpaired_rows_are_refused(images, texts):
    with pytest.raises(ValueError, match="alignment needs pairs"):
        alignment(torch.zeros(images), torch.zeros(texts))
    with pytest.raises(ValueError, match="at least two rows"):
        uniformity(torch.zeros(1, 3))


def test_the_plane_keeps_pairs_labels_and_the_two_widest_directions():
    # pictures 0 and 1; caption rows show pictures 1, 0, 1
    images = torch.tensor([[3.0, 0.0, 0.1], [-3.0, 0.0, 0.0]])
    texts = torch.tensor([[-3.0, 1.0, 0.0], [3.0, -1.0, 0.0], [-3.0, 1.0, 0.1]])
    seen = plane(
        Embeddings(texts, images, torch.tensor([1, 0, 1]), torch.tensor([1, 0])), ["a", "b", None]
    )
    assert seen.points["kind"].tolist() == ["caption"] * 3 + ["picture"] * 2
    assert seen.points["pair"].tolist() == [1, 0, 1, 0, 1]
    assert seen.points["label"].tolist() == ["a", "b", "", "b", "a"]
    assert sum(seen.explained) == pytest.approx(1, abs=0.01)
    x = seen.points["x"].to_numpy() * np.sign(seen.points["x"].iloc[1])
    assert (x > 0).tolist() == [False, True, False, True, False]  # the first axis parts them
    assert np.ptp(x) > 6
    assert seen.alignment == pytest.approx(alignment(images[[1, 0, 1]], texts))
    assert seen.uniformity_images == pytest.approx(uniformity(images))
    assert seen.uniformity_texts == pytest.approx(uniformity(texts))


def test_the_plane_refuses_wrong_labels_and_a_single_picture():
    embeddings = Embeddings(unit(2, 4), unit(1, 4), torch.tensor([0, 0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="1 labels for 2 captions"):
        plane(embeddings, ["a"])
    with pytest.raises(ValueError, match="1 picture"):
        plane(embeddings, ["a", "b"])
