"""One progress bar for scripts and notebooks."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm


def progress_bar(*arguments: Any, show: bool, **options: Any) -> tqdm:
    """A tqdm bar, hidden if `show` is False or ``TQDM_DISABLE`` is set."""
    # tqdm's notebook bar draws an empty widget where only the variable hides it
    hidden = not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return tqdm(*arguments, **options, disable=hidden)
