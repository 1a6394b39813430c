"""The one command: it offers what there is, at once, and says what is wrong in a line."""

import os
import subprocess
import sys
import time
from importlib import import_module

import pytest

from entityclip import __main__, __version__
from entityclip.__main__ import COMMANDS, main
from entityclip.config import REPOSITORY


def test_help_names_every_command(capsys):
    for argv in ([], ["--help"]):
        assert main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[2:11]] == list(COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"entityclip {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("trian", "did you mean train?"), ("?", "there are train, sweep, ")]
)
def test_an_unknown_command_is_refused_in_one_line(name, hint, capsys):
    assert main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no command {name!r}; {hint}" in line


def test_the_chosen_one_gets_the_rest_and_gives_the_exit_code(monkeypatch):
    module = import_module("entityclip.experiments.commands")
    monkeypatch.setattr(module, "sweep", lambda argv: len(argv))
    assert main(["sweep", "--profile", "smoke", "--ship"]) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command):
    """What would take seconds is imported when there is work to do."""
    code = (
        "import sys; from entityclip.__main__ import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "finally: assert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: entityclip {command} ")


def test_as_a_module_and_as_a_script():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "entityclip", "--help"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert time.perf_counter() - start < 5  # 0.1 s where nothing else runs
    assert ran.stdout.strip() == __main__.help_text().strip()
