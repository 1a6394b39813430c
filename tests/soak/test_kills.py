"""Twenty kills of a training command, and a few of one of two processes: the end is the same.

`make soak` runs this; tests/training/test_run_folder.py has its short form.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from entityclip.config import REPOSITORY
from entityclip.results import KEY, read_rows
from tests.killing import ANY, BETWEEN, STARTING, WRITING, Killer, differences_between

COMMAND = [
    *("-m", "entityclip", "train", "--profile", "smoke", "--variant", "entityclip", "--set"),
    *("train_pairs=32", "val_pairs=16", "test_pairs=16", "test_splits=[test]"),
    *("pretraining.pairs=32", "pretraining.eval_pairs=16", "pretraining.train.batch_size=16"),
    *("finetuning.batch_size=8", "finetuning.checkpoint_every=1", "finetuning.precision=fp32"),
]
TOGETHER = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


class Command:
    """The training command in a session of its own; of several processes, one is killed."""

    def __init__(self, runs: Path, launcher: list[str], epochs: int):
        environment = os.environ | {
            "ENTITYCLIP_RUNS": str(runs), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        runs.mkdir(parents=True, exist_ok=True)
        with open(runs / "output", "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *COMMAND, f"finetuning.epochs={epochs}"],
                cwd=REPOSITORY, env=environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def is_alive(self):
        return self.process.poll() is None

    def kill(self):
        trained = [p for p in psutil.Process(self.process.pid).children() if self.is_alive()]
        if trained:
            random.choice(trained).kill()
            self.process.wait(120)  # the launcher ends the others
        elif self.is_alive():
            self.process.kill()

    def join(self):
        self.process.wait(3600)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    @property
    def exitcode(self):
        return self.process.returncode


@pytest.mark.parametrize(
    ("kills", "launcher", "epochs"),
    [(20, [], 30), (4, TOGETHER, 6)],
    ids=["one process", "one of two processes"],
)
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(
    tmp_path, kills, launcher, epochs
):
    def start(name):
        return Command(tmp_path / name, launcher, epochs)

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0, (tmp_path / "whole" / "output").read_text()[-3000:]
    (run,) = (tmp_path / "whole" / "smoke" / "checkpoints").glob("entityclip-*.lock")
    run = f"smoke/checkpoints/{run.stem}"
    killer = Killer(tmp_path / "killed" / run, lambda: start("killed"), random.randrange(999))
    for moment in itertools.islice(itertools.cycle((ANY, WRITING, BETWEEN, STARTING)), kills):
        assert killer.kill(moment), f"the run ended after {killer.done.total()} kills"
    killer.finish()
    assert differences_between(tmp_path / "whole" / run, tmp_path / "killed" / run) == []
    rows = [
        read_rows(tmp_path / name / "smoke/results/retrieval.jsonl")[[*KEY, "value", "low", "high"]]
        for name in ("whole", "killed")
    ]
    assert rows[0].equals(rows[1])
    counts = ", ".join(f"{n} {moment}" for moment, n in sorted(killer.done.items()))
    print(f"\nsoak: {kills} kills ({counts}); weights, state, log, record and rows bit-identical")
