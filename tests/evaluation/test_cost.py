"""What a step costs is counted right: parameters, products, memory, times."""

import pytest
import torch

from entityclip.config import EntityCLIPConfig, TrainConfig
from entityclip.datasets.dataset import Batch
from entityclip.evaluation.cost import Spread, query_cost, training_cost
from entityclip.models.clip import create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.variants import NO_EXPERTS

TRAINING = TrainConfig(batch_size=8)


def model(**config):
    torch.manual_seed(0)
    return EntityCLIP(create_backbone("newsroom-tiny"), EntityCLIPConfig(**config))


def batch(pairs=8, explained=True):
    tokenize = create_backbone("newsroom-tiny").tokenize
    texts = tokenize([f"a caption of pair {n}" for n in range(pairs)])
    return Batch(
        [str(n) for n in range(pairs)], torch.randn(pairs, 3, 64, 64), texts,
        texts.clone() if explained else None, torch.arange(pairs), [None] * pairs,
    )  # fmt: skip


def test_experts_add_parameters_products_and_memory():
    plain = training_cost(model(**NO_EXPERTS), batch(explained=False), TRAINING, repeats=1)
    bridge = training_cost(model(**NO_EXPERTS, bridge=1.0), batch(), TRAINING, repeats=1)
    built = model()
    whole = training_cost(built, batch(), TRAINING, repeats=1)
    numbers = sum(p.numel() for p in built.parameters())
    assert whole["parameters"].value == pytest.approx(numbers / 1e6)
    assert plain["parameters"].value == bridge["parameters"].value < whole["parameters"].value
    for name in ("GFLOPs a pair", "memory"):
        assert plain[name].value < bridge[name].value < whole[name].value
    assert plain["MMAE's share"].value == bridge["MMAE's share"].value == 0
    # the towers' products are those of the bridge but for what only reads the tokens
    share = 1 - bridge["GFLOPs a pair"].value / whole["GFLOPs a pair"].value
    assert whole["MMAE's share"].value == pytest.approx(100 * share, abs=1)


def test_memory_is_weights_and_state_and_what_forward_keeps():
    built = model(**NO_EXPERTS)
    weights = 16 * sum(p.numel() for p in built.parameters()) / 2**20
    costs = [training_cost(model(**NO_EXPERTS), batch(n, False), TRAINING, repeats=1)
             for n in (8, 16)]  # fmt: skip
    kept = [cost["memory"].value - weights for cost in costs]
    assert kept[0] > 0
    assert 1.5 < kept[1] / kept[0] < 2.1  # of each pair as much, and a little of the batch


def test_times_are_spread_over_the_repeats_and_no_draw_is_lost():
    built = model()
    torch.manual_seed(3)
    expected = torch.rand(3)
    cost = training_cost(built, batch(), TRAINING, repeats=3)["ms a pair"]
    assert cost.low <= cost.value <= cost.high
    given = batch()
    torch.manual_seed(3)
    training_cost(built, given, TRAINING, repeats=1)
    assert torch.equal(torch.rand(3), expected)
    asked = query_cost(built, ["a caption"] * 300, 20, repeats=3)
    assert 0 < asked.low <= asked.value <= asked.high
    assert Spread.of([3, 1, 2]) == (2, 1, 3)
    with pytest.raises(ValueError, match="repeats is 0; at least one"):
        training_cost(built, given, TRAINING, repeats=0)
