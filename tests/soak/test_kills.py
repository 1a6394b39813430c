"""Twenty kills of a training command, and a few of one of two processes: the end is the same.

`make soak` runs this; tests/test_kills.py is its short form.
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

from entityclip.config import REPOSITORY
from entityclip.results import KEY, read_rows
from tests.killing import (
    ANY,
    BETWEEN,
    STARTING,
    WRITING,
    Killer,
    differences_between,
    told,
)

KILLS = 20
COMMAND = [
    *(
        "-m",
        "entityclip",
        "train",
        "--profile",
        "smoke",
        "--variant",
        "entityclip",
        "--set",
    ),
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


def soak(folder, kills, launcher, epochs):
    def start(name):
        return Command(folder / name, launcher, epochs)

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0, (folder / "whole" / "output").read_text()[-3000:]
    (run,) = (folder / "whole" / "smoke" / "checkpoints").glob("entityclip-*.lock")
    run = f"smoke/checkpoints/{run.stem}"
    killer = Killer(folder / "killed" / run, lambda: start("killed"), random.randrange(999))
    for moment in itertools.islice(itertools.cycle((ANY, WRITING, BETWEEN, STARTING)), kills):
        assert killer.kill(moment), f"the run ended after {killer.done.total()} kills"
    killer.finish()
    assert differences_between(folder / "whole" / run, folder / "killed" / run) == []
    rows = [
        read_rows(folder / name / "smoke/results/retrieval.jsonl")[[*KEY, "value", "low", "high"]]
        for name in ("whole", "killed")
    ]
    assert rows[0].equals(rows[1])
    return killer.done


def test_twenty_kills_of_one_process(tmp_path):
    done = soak(tmp_path, KILLS, [], epochs=30)
    result = "weights, optimizer, log, record and result rows bit-identical"
    print(f"\nsoak, one process: {told(done, [result])}")


def test_kills_of_one_of_two_processes(tmp_path):
    done = soak(tmp_path, 4, TOGETHER, epochs=6)
    result = "weights, optimizer, log, record and result rows bit-identical"
    print(f"\nsoak, two processes: {told(done, [result])}")
