"""Outputs of a run become what notebooks store: results, and nothing that differs by run."""

import copy

import pytest

from benchmarks.notebook_outputs import with_outputs
from entityclip.console import Refused


def cell(source, *outputs, tags=()):
    metadata = {"tags": list(tags)}
    shape = {"cell_type": "code", "execution_count": 9, "metadata": metadata}
    return shape | {"source": source, "outputs": list(outputs)}


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)}


def result(text):
    shape = {"output_type": "execute_result", "metadata": {}, "execution_count": 9}
    return shape | {"data": {"text/plain": [text]}}


@pytest.fixture
def stored():
    cells = [cell("a = 1", tags=["parameters"]), cell("print(a)", printed("1 in 2.0 s\n"))]
    return {"cells": [*cells, cell("a", result("1"))], "metadata": {}}


def run_of(notebook, *outputs):
    """As papermill leaves it, with other outputs of the second cell."""
    run = copy.deepcopy(notebook)
    run["cells"].insert(1, cell("a = 2", tags=["injected-parameters"]))
    run["cells"][2]["outputs"] = list(outputs)
    return run


def test_a_run_that_found_the_same_changes_counts_alone(stored):
    after = with_outputs(stored, run_of(stored, printed("1 in 7.5 s\n")))
    assert [c["execution_count"] for c in after["cells"]] == [1, 2, 3]
    assert after["cells"][1]["outputs"] == stored["cells"][1]["outputs"]
    assert with_outputs(after, run_of(after, printed("1 in 8.5 s\n"))) == after


def test_what_changed_is_taken_in_without_noise(stored):
    noise = printed("epoch 1/2 loss 1, 2 s so far, about 3 s left\n"), printed("!", "stderr")
    lines = printed("2 in 7.5 s\n"), printed("see /home/someone/runs/demo/a.csv\n")
    after = with_outputs(stored, run_of(stored, *noise, *lines))
    assert after["cells"][1]["outputs"] == [printed("2 in 7.5 s\nsee a.csv\n")]
    assert len(after["cells"]) == 3


@pytest.mark.parametrize("other", ["print(b)", None])
def test_another_notebook_is_refused(stored, other):
    run = run_of(stored)
    if other:
        run["cells"][2]["source"] = other
    else:
        run["cells"].pop()
    with pytest.raises(Refused, match=f"code cell {2 if other else 3} is not what was run"):
        with_outputs(stored, run)
