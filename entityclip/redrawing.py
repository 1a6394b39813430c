"""What the redrawing of chapters shares: a line where rows are lacking, a figure saved and shown.

Functions that nothing but a notebook calls: they print and display.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from entityclip.results import ResultsError
from entityclip.style import preview, save_figure


@contextmanager
def skipping(*errors: type[Exception]) -> Iterator[None]:
    """Print "skipped: …" for a ResultsError, or one of `errors`, instead of raising it.

    Above a function, as ``@skipping()``, what it draws is left out as soon as rows are lacking.
    """
    try:
        yield
    except (ResultsError, *errors) as error:
        print(f"skipped: {error}")


def show(figure: Figure, folder: Path, name: str, *, save: bool, width: int | None = 440) -> None:
    """Show a figure, or `save` it as ``<name>.png`` and ``.svg`` and show it `width` pixels wide.

    None: what is saved is not shown, for it has a chapter of its own that shows it. Closes the
    figure. Outside of a notebook nothing is shown.
    """
    drawn = save_figure(figure, folder, name)[0] if save else None
    if get_ipython() is None or (save and width is None):
        plt.close(figure)
        print(f"drawn: {name}.png, {name}.svg" if save else f"not shown: {name}")
        return
    display(preview(figure, width=width if save else 680, drawn=drawn))
