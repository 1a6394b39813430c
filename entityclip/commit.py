"""Which commit of this checkout is running; imports nothing slow."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from entityclip.config import REPOSITORY


def git_commit(repository: Path = REPOSITORY) -> str:
    """The checkout's commit, "-dirty" if package files differ from it, "unknown" outside one.

    Only `entityclip/` is compared: figures and executed notebooks change while a run goes on, and
    the settings stand in the row itself.
    """

    def git(*arguments: str) -> str:
        # a git hook's GIT_DIR would point elsewhere than at the package's own checkout
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(repository), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        return done.stdout.strip()

    try:
        # a package installed below some other project's checkout has no commit of its own
        if Path(git("rev-parse", "--show-toplevel")).resolve() != repository.resolve():
            return "unknown"
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--", "entityclip") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
