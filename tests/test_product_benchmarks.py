"""The benchmarks that print the time of matrix products alone count the right ones."""

import sys

import torch

from benchmarks import mmae, retrieval
from benchmarks.products import products_alone, products_of
from entityclip.config import EntityCLIPConfig
from entityclip.evaluation.ranks import both_ranks
from entityclip.models.entityclip import GatedMatching
from entityclip.models.experts import MMAE
from entityclip.models.negatives import Negatives


def test_the_experts_run_the_products_that_their_form_needs_and_no_others():
    batch, d, n = 3, 8, 2
    sides = mmae.make_tokens(batch, d, "cpu")
    rows = torch.arange(batch)
    negatives = Negatives(rows.roll(1), rows.roll(2), rows >= 0)
    experts, matching = MMAE(d, EntityCLIPConfig(n, n, n)), GatedMatching(d, 4 * n)
    scale = torch.tensor(14.3)
    products = products_of(
        lambda: mmae.our_loss(experts, matching, sides, negatives, scale).backward()
    )
    # rows of the image's and the text's experts, and of the explanation's: three queries on each
    # pair's own explanation, one on that of the negative text
    queries = batch * n * (1 + 1 + 4)
    weights = 6 * [queries * 12 * d * d / 6]  # four of d x d and two of d x 4d
    keys = 2 * [batch * n * d * (50 + 77 + 4 * 77)]  # scores, weighted sums
    gates = 2 * [batch * d * 2 * n] + 2 * [batch * 2 * n * d]  # image's and text's: weigh, mix
    match = [3 * batch * 2 * d * 4 * n, 3 * batch * 4 * n * d, 3 * batch * d * 2]
    contrast = 2 * [batch * batch * d]
    # each once forward, and once a factor backward, of two operations an entry
    assert len(products) == 3 * (3 * len(weights) + 4 * len(keys) + len(gates + match + contrast))
    assert sum(p.flops for p in products) == 6 * sum(weights + keys + gates + match + contrast)
    again = products_of(products_alone(products))
    assert again == products


def test_products_are_noted_with_their_batch_and_type():
    x = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    (product,) = products_of(lambda: torch.baddbmm(x[:, :1, :1], x, x.mT))
    assert product[:3] == ((2, 3, 4), (2, 4, 3), torch.bfloat16)
    assert product.flops == 2 * 2 * 3 * 4 * 3
    assert products_of(lambda: x + x) == []


def test_each_similarity_is_computed_once_and_the_best_positives_once_more():
    n, d = 1024, 8
    features = torch.randn(n, d)
    once = products_of(lambda: retrieval.products_alone(features, features))
    assert sum(p.flops for p in once) == 2 * n * n * d
    ours = products_of(lambda: both_ranks(features, features))
    similarities = [p for p in ours if p.left[-1] == d]
    assert len(once) == 4
    assert len(similarities) == 4 + 2  # the blocks on the diagonal have positives
    assert set(similarities) == set(once)


def test_both_run(monkeypatch, capsys):
    tiny = {
        mmae: "--batch 3 --width 8 --experts 2 --repeats 1",
        retrieval: "--n 70 --d 8 --literal 70 --repeats 1",
    }
    for benchmark, options in tiny.items():
        monkeypatch.setattr(sys, "argv", ["benchmark", *options.split()])
        benchmark.main()
    printed = capsys.readouterr().out
    assert "105 matrix products alone" in printed
    assert "for the products; ours takes" in printed
