"""The one command: ``entityclip train``, ``entityclip reproduce``, and so on.

Only the chosen subcommand's module is imported, so that help and a misspelt name are at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from entityclip import __version__
from entityclip.console import guarded, print_anything

# subcommand -> the function that is it, and what it does
COMMANDS = {
    "train": ("experiments.commands:train", "train one variant, on one process or many"),
    "sweep": ("experiments.commands:sweep", "train and measure the variants of whole tables"),
    "evaluate": ("experiments.commands:evaluate", "measure a trained variant"),
    "explain": ("explanations.__main__:main", "have a language model explain captions"),
    "embed": ("search.commands:embed", "embed pictures and texts by a trained model"),
    "export": ("search.commands:export", "write a checkpoint as a plain open_clip model"),
    "data": ("datasets.__main__:main", "verify, summarise or prepare a downloaded data set"),
    "figures": ("reproduce.__main__:figures", "redraw tables and figures from stored rows"),
    "reproduce": ("reproduce.__main__:main", "run the notebooks in order"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand, `guarded`; its exit code, or 2 where there is none of that name."""
    print_anything()
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"entityclip {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"entityclip: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    module, function = COMMANDS[name][0].split(":")
    options = {"draw": _draw_summary} if name == "data" else {}

    def command(rest: Sequence[str], **options: Any) -> int:
        return getattr(import_module(f"entityclip.{module}"), function)(rest, **options)

    return guarded(command, rest, **options)


def _draw_summary(summaries: list[Any], folder: Path) -> list[Path]:
    """The figure of ``entityclip data summary``, where what draws it is installed."""
    try:
        from entityclip.reporting.charts import save_summary
    except ImportError as error:
        print(f"no figure: {error.name} is missing; pip install 'entityclip[notebooks]'")
        return []
    return save_summary(summaries, folder)


def help_text() -> str:
    """What ``entityclip --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    head = "usage: entityclip COMMAND …    (entityclip COMMAND --help says more)\n\n"
    more = ["", "  --debug     with any command: where an error came from", "  --version"]
    return head + "\n".join([*lines, *more])


if __name__ == "__main__":
    sys.exit(main())
