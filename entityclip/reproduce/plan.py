"""What `reproduce` is asked to do, checked before anything starts: profile, settings, notebooks."""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entityclip import left_out
from entityclip.config import SHIPPED_PROFILE, Profile, load_profile, parse_settings
from entityclip.console import Refused

# jsonschema, by which nbformat checks notebooks, would compile a grammar of internationalised
# addresses here: three seconds, and a notebook has no such field
with left_out("rfc3987_syntax"):
    import nbformat

CELL_TIMEOUTS = {"smoke": 600, "demo": 3600}  # seconds; other profiles train for days: no limit


class ReproduceError(Refused):
    """The command line or a notebook keeps the run from starting."""


@dataclass(frozen=True)
class Plan:
    """A checked command line: what to run, with what, and where the results go."""

    profile: Profile
    parameters: dict[str, Any]  # passed to each notebook, beside output_dir
    notebooks: list[Path]
    sources: Path  # the folder of all notebooks, also the kernels' working directory
    runs: Path  # the profile's
    figures: Path  # where promoted figures go
    force: bool = False
    timeout: int | None = None  # seconds a cell
    whole: bool = True  # all notebooks but those left out by --skip

    def staging(self, name: str) -> Path:
        """The folder the notebook `name` runs in; emptied before each run."""
        return self.runs / "staging" / name

    def failed(self, name: str) -> Path:
        """Where the last failed run of `name` is kept."""
        return self.runs / "failed" / name

    def executed(self, name: str) -> Path:
        """The last good executed notebook."""
        return self.runs / "notebooks" / f"{name}.ipynb"

    def done(self, name: str) -> Path:
        """The record of the last good run."""
        return self.runs / "done" / f"{name}.json"


def make_plan(arguments: argparse.Namespace, notebooks: Path, figures: Path) -> Plan:
    """Check profile, settings, notebook names and parameters; nothing is run or written.

    Raises ProfileError or ReproduceError naming what is wrong and what there is instead.
    """
    settings, seed, timeout = parse_settings(arguments.set), arguments.seed, arguments.timeout
    profile = load_profile(arguments.profile, seed=seed, settings=settings)
    if timeout is not None and timeout < 0:
        raise ReproduceError(f"--timeout is {timeout}; give seconds, or 0 for no limit")
    parameters = {"profile": profile.name, "seed": seed, "settings": settings}
    chosen = select_notebooks(notebooks, arguments.only, arguments.skip)
    for notebook in chosen:
        check_parameters(notebook, {*parameters, "output_dir"})
    runs = profile.runs.resolve()
    # figures/ shows the demo profile as it is shipped, never somebody's variation of it
    shipped = profile.name == SHIPPED_PROFILE and not settings and seed is None
    return Plan(
        profile,
        parameters,
        chosen,
        sources=notebooks.resolve(),
        runs=runs,
        figures=figures.resolve() if shipped else runs / "figures",
        force=arguments.force,
        timeout=(CELL_TIMEOUTS.get(profile.name) if timeout is None else timeout) or None,
        whole=not arguments.only,
    )


def find_notebooks(folder: Path) -> list[Path]:
    """The notebooks of the chain, ``NN_name.ipynb``, in the order they run."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def select_notebooks(folder: Path, only: Sequence[str], skip: Sequence[str] = ()) -> list[Path]:
    """The notebooks of `folder` named in `only` (all if empty) less `skip`, in running order."""
    known = {path.stem: path for path in find_notebooks(folder)}
    if not known:
        raise ReproduceError(f"there is no NN_name.ipynb in {folder}")
    wanted, skipped = (
        {Path(name).name.removesuffix(".ipynb") for name in names} for names in (only, skip)
    )
    for name in sorted((wanted | skipped) - set(known)):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ReproduceError(f"no notebook {name!r}; {hint}there are {', '.join(known)}")
    chosen = (wanted or set(known)) - skipped
    if not chosen:
        raise ReproduceError("--skip leaves no notebook to run")
    return [path for name, path in known.items() if name in chosen]


def check_parameters(notebook: Path, names: set[str]) -> None:
    """Raise ReproduceError unless the cell tagged `parameters` assigns all `names`.

    papermill itself only warns, and the notebook would run with its defaults.
    """
    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        body = ast.parse(tagged[0].source).body if tagged else []
    except (OSError, ValueError, SyntaxError, nbformat.ValidationError) as error:
        raise ReproduceError(f"{notebook.name} cannot be read: {error}") from error
    if len(tagged) != 1:
        raise ReproduceError(
            f"{notebook.name}: {len(tagged)} cells are tagged `parameters`; tag exactly one"
        )
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    missing = names - {target.id for target in targets if isinstance(target, ast.Name)}
    if missing:
        raise ReproduceError(
            f"{notebook.name}: its `parameters` cell lacks {', '.join(sorted(missing))}; "
            "assign each a default there"
        )
