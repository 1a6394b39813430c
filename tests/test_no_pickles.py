"""Nothing is ever unpickled: the sources are read for it, and pickles are fed in."""

import pickle
import re
import subprocess

import nbformat
import pytest
import torch

from entityclip.__main__ import main as command_line
from entityclip.checkpoints import CheckpointError, read_meta, read_tensors
from entityclip.config import REPOSITORY
from entityclip.models.clip import BackboneError, create_backbone, load_clip_weights

# what unpickles or builds objects, in any source; stricter than need be, so that it stays short
UNSAFE = [
    r"^\s*(import|from)\b.*\b(_?pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b",
    r"\b(read_pickle|(unsafe|full)_load(_all)?|load_all)\b",
    r"\ballow_pickle\s*=\s*(?!False\b)",
    r"\b(torch|jit)\.load\b(?!\([^()]*weights_only=True)",
    r"\byaml\.load\b(?!\(\w+, (Loader=)?(yaml\.SafeLoader|_Loader)\))",
    r"\byaml\.(?!(C?Safe)Loader)\w*Loader\b",
]


def sources():
    """Path and text of all that runs: package, benchmarks, and notebooks' code."""
    for folder in ("entityclip", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        yield path, "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    yield from ((p, p.read_text(encoding="utf-8")) for p in (REPOSITORY / "notebooks").glob("*.py"))


def unsafe(source):
    """What in a Python source could unpickle something."""
    return [match[0] for line in UNSAFE for match in re.finditer(line, source, re.MULTILINE)]


@pytest.mark.parametrize(("path", "text"), sources(), ids=lambda v: getattr(v, "name", ""))
def test_no_source_unpickles(path, text):
    assert unsafe(text) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, joblib.memory",
        "from pickle import loads",
        "from six.moves import cPickle",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import torch; torch.jit.load(path)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import numpy as np; np.lib.format.read_array(file, allow_pickle=flag)",
        "import pandas as pd; pd.read_pickle(path)",
        "import yaml; yaml.load(text)",
        "import yaml; yaml.load(text, yaml.Loader)",
        "import yaml; yaml.load(text, Loader=yaml.UnsafeLoader)",
        "import yaml; yaml.unsafe_load(text)",
        "def f():\n    class Mine(yaml.Loader): pass\n    return yaml.load(text, Mine)",
    ],
)
def test_what_unpickles_would_be_seen(source):
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load(path, weights_only=True)",
        "import numpy as np; np.load(path)",
        "import numpy as np; np.load(path, allow_pickle=False)",
        "import json; json.load(file)",
        "import yaml; yaml.safe_load(text); yaml.load(text, yaml.SafeLoader)",
        "class _Loader(yaml.SafeLoader): pass\nyaml.load(text, _Loader)",
        "picture.load(); experiment.load('clip')",
    ],
)
def test_what_is_harmless_passes(source):
    assert unsafe(source) == []


# ------------------------------------------------------------------------------- pickles fed in


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.target)],)


@pytest.fixture
def bomb(tmp_path):
    """A pickle that leaves a mark, and the mark; proven to work first."""
    mark = tmp_path / "went-off"
    payload = pickle.dumps({"state_dict": Bomb(mark)})
    pickle.loads(payload)
    assert mark.exists()
    mark.unlink()
    yield payload, mark
    assert not mark.exists()


@pytest.mark.parametrize("name", ["best.safetensors", "weights.pt", "weights.bin", "weights.pth"])
def test_a_pickle_is_refused_whatever_its_name(bomb, tmp_path, name):
    payload, _ = bomb
    path = tmp_path / name
    path.write_bytes(payload)
    for read in (read_tensors, read_meta):
        with pytest.raises(CheckpointError, match=rf"{name}: only \.safetensors .* never pickles"):
            read(path)
    with pytest.raises(BackboneError, match=r"safetensors"):
        create_backbone("newsroom-tiny", str(path))
    with pytest.raises(BackboneError, match=r"safetensors"):
        load_clip_weights(create_backbone("newsroom-tiny"), path)
    assert (
        command_line(["export", str(path), str(tmp_path / "out"), "--backbone", "newsroom-tiny"])
        == 1
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["best.safetensors", "weights.pt"])
def test_what_torch_saves_is_refused_too(bomb, tmp_path, name):
    _, mark = bomb
    path = tmp_path / name
    torch.save({"weights": torch.zeros(2), "extra": Bomb(mark)}, path)
    with pytest.raises(CheckpointError, match=r"only \.safetensors .* never pickles"):
        read_tensors(path)
    with pytest.raises(BackboneError, match=r"safetensors"):
        create_backbone("newsroom-tiny", str(path))


def test_a_run_is_not_resumed_from_a_pickle(bomb, tmp_path, make_dataset, backbone):
    from entityclip.config import EntityCLIPConfig, TrainConfig
    from entityclip.models.entityclip import EntityCLIP
    from entityclip.training.loop import train
    from entityclip.variants import NO_EXPERTS

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").write_bytes(bomb[0])
    model = EntityCLIP(backbone, EntityCLIPConfig(**NO_EXPERTS))
    sets = make_dataset("train", 4), make_dataset("val", 2)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: only"):
        train(model, *sets, TrainConfig(epochs=1, batch_size=2), tmp_path / "run", progress=False)
