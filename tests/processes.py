"""Processes of our own: several that train together, one that is killed, one that knows nothing.

They are forked from a server that has the package imported and has computed nothing yet: a process
starts in a moment, without the threads that a test before it may have started.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from typing import Any

from tests.fixtures.ports import free_port

_PRELOADED = ["entityclip.training.loop", "entityclip.datasets", "tests.training_setup"]


def warm_up() -> None:
    """Start the server now: it imports beside the first tests, and has none of their settings."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def start(function: Callable[..., None], *arguments: Any, log: str) -> ForkServerProcess:
    """Start `function(*arguments)` in a process of its own, its output going to the file `log`."""
    warm_up()
    process = multiprocessing.get_context("forkserver").Process(
        target=_run, args=(function, arguments, log)
    )
    process.start()
    return process


def run_alone(function: Callable[..., None], *arguments: Any) -> str:
    """The last line `function(*arguments)` prints in a process of its own; all, if it fails."""
    with tempfile.NamedTemporaryFile("r") as log:
        process = start(function, *arguments, log=log.name)
        process.join(300)
        process.kill()
        process.join()
        printed = log.read().strip()
        assert process.exitcode == 0, printed
        return printed.rpartition("\n")[2]


def run_together(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run `function(*arguments)` in `processes` that find each other; fail with what they print."""
    with tempfile.NamedTemporaryFile("r") as log:
        port = free_port()
        running = [
            start(_member, rank, processes, port, function, arguments, log=log.name)
            for rank in range(processes)
        ]
        deadline = time.monotonic() + 300
        while any(p.is_alive() for p in running) and time.monotonic() < deadline:
            if any(p.exitcode for p in running):
                break  # the others would wait for it
            time.sleep(0.05)
        for process in running:
            process.kill() if any(p.exitcode for p in running) else None
            process.join(10)
        codes = [process.exitcode for process in running]
        assert codes == [0] * processes, f"exit codes {codes}\n{log.read()}"


def _run(function: Callable[..., None], arguments: tuple, log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def _member(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    function(*arguments)
    from accelerate import PartialState

    PartialState().destroy_process_group()
