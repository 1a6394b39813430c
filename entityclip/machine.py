"""What this process may use of its machine."""

from __future__ import annotations

import os
import sys


def cores() -> int:
    """Cores that this process may run on; where the system does not tell, all there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
