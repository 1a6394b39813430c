"""Where we differ from the authors' public code, and by how much: measured, and written down.

    python -m benchmarks.public_code            measures all, writes figures/public_code.csv
    python -m benchmarks.public_code NAME ...   measures and prints some

What their code does is written from its facts alone; no code of theirs is used. Each function
below measures one difference on random weights or drawn pairs, on a CPU, in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from entityclip.config import REPOSITORY
from entityclip.files import atomic_write_text

TABLE = REPOSITORY / "figures" / "public_code.csv"


class Difference(NamedTuple):
    """A row of the table; `restored_by` is empty where no setting restores theirs."""

    what: str
    theirs: str
    ours: str
    change: str
    restored_by: str


# EntityCLIP: the draw, the logit scale, precision

# Training: the best checkpoint, preprocessing

# AsCL

# ITR

# Data and evaluation

MEASURED: dict[str, Callable[[], Difference]] = {
    # EntityCLIP
    # training
    # AsCL
    # ITR
    # data and evaluation
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASURED))
    names = parser.parse_args().names
    if unknown := set(names) - set(MEASURED):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(MEASURED)}")
    rows = {name: MEASURED[name]() for name in names or MEASURED}
    for name, row in rows.items():
        print(f"{name}: {row.change}")
    if not names:
        table = pd.DataFrame({"name": name, **row._asdict()} for name, row in rows.items())
        atomic_write_text(TABLE, table.to_csv(index=False))


if __name__ == "__main__":
    main()
