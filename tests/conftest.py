"""Small shared things: a tiny backbone with random weights, and drawn pairs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")
os.environ.setdefault("TQDM_DISABLE", "1")

from entityclip.config import REPOSITORY
from entityclip.datasets.dataset import PairDataset
from entityclip.models.clip import create_backbone


def pytest_ignore_collect(collection_path, config):
    """tests/soak takes long: it runs where it is named (`make soak`), not with all the others."""
    named = any("soak" in str(argument) for argument in config.args)
    return True if collection_path.name == "soak" and not named else None


def pytest_collection_finish(session):
    """Where a collected test starts processes of its own, they are prepared for at once."""
    processes = sys.modules.get("tests.processes")
    if processes and session.items and not session.config.option.collectonly:
        processes.warm_up()


@pytest.fixture(scope="session")
def backbone():
    torch.manual_seed(0)
    return create_backbone("newsroom-tiny").eval()


@pytest.fixture(scope="session")
def make_dataset(backbone):
    """Drawn pairs as a dataset: `make_dataset(split, n, explanations=False)`."""

    from entityclip.datasets import load_pairs

    def make(split: str, n: int, *, explanations: bool = False) -> PairDataset:
        pairs = load_pairs("newsroom", split, limit=n, seed=0, image_size=64, root=None)
        return PairDataset(
            pairs,
            backbone.preprocess,
            backbone.tokenize,
            with_explanations=explanations,
            cache=True,
        )

    return make


@pytest.fixture
def figure_style():
    """The figures' style for one test, whose figures are closed at its end."""
    import matplotlib.pyplot as plt

    from entityclip.reporting.style import apply_style

    with plt.rc_context():
        apply_style()
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def committed_figures(tmp_path_factory):
    """figures/ as last committed: a reader's `make reproduce` puts its own numbers in their place.

    What is written from them may tell of these or of those on disk. Without git, those on disk.
    """
    try:
        archive = subprocess.run(
            ["git", "archive", "HEAD", "figures"], cwd=REPOSITORY, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return REPOSITORY / "figures"
    folder = tmp_path_factory.mktemp("committed")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder / "figures"
