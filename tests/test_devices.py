"""The device that is chosen where there is a GPU, and what Apple's cannot do. No GPU is needed."""

import pytest
import torch

from entityclip import devices


@pytest.fixture
def apple(monkeypatch):
    """A machine with Apple's GPU and no other."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("cuda", "mps", "wish", "kind"),
    [
        (False, False, None, "cpu"),
        (False, True, None, "mps"),
        (True, True, None, "cuda"),
        (True, True, "1", "cpu"),
        (False, True, "true", "cpu"),
        (False, True, "0", "mps"),
    ],
)
def test_the_best_device(monkeypatch, cuda, mps, wish, kind):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if wish is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", wish)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.best_device().type == kind


def test_apples_gpu_is_used_by_embed(apple, backbone, monkeypatch):
    from entityclip import embed

    moved = []

    def to(device):
        moved.append(torch.device(device).type)
        return backbone

    monkeypatch.setattr(backbone, "to", to)
    found = embed(backbone, texts=["a square"], progress=False)
    assert found.texts is not None
    assert moved == ["mps", "cpu"]  # and back


def test_apples_gpu_is_where_experiments_run(apple, monkeypatch):
    from entityclip.config import TrainConfig, load_profile
    from entityclip.evaluation.provenance import environment
    from entityclip.experiments.preflight import gpu_problems
    from entityclip.training.loop import precision

    assert environment()["device"] == "mps"
    assert gpu_problems(load_profile("n24news").settings) == []
    assert precision(TrainConfig()) == "no"  # auto: fp32 there


def test_several_processes_share_no_apple_gpu(apple, monkeypatch):
    from entityclip.training import processes

    asked = []

    class State:
        num_processes, process_index = 2, 0

        def __init__(self, cpu):
            asked.append(cpu)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(processes, "PartialState", State)
    processes.this_world()
    assert asked == [True]


def test_float64_is_made_on_the_cpu_where_the_device_has_none():
    class OnMPS:
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(2)

    assert devices.doubled(OnMPS()).dtype == torch.float64
    assert devices.doubled(torch.ones(2)).dtype == torch.float64


def test_draws_within_leave_the_generators_as_they_were(monkeypatch):
    class Apple:
        state = torch.arange(4, dtype=torch.uint8)

        def get_rng_state(self):
            return self.state

        def set_rng_state(self, state):
            self.state = state

    apple = Apple()
    monkeypatch.setattr(torch, "get_device_module", lambda device: apple)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with devices.own_draws(torch.device("mps")):
        torch.rand(9)
        apple.set_rng_state(torch.zeros(4, dtype=torch.uint8))
    assert torch.equal(torch.get_rng_state(), before)
    assert apple.state.tolist() == [0, 1, 2, 3]
    assert set(devices.random_state(torch.device("mps"))) == {"cpu", "mps"}
    assert set(devices.random_state(torch.device("cpu"))) == {"cpu"}
