"""What `reproduce` is asked to do, checked before anything starts: profile, settings, notebooks."""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from entityclip import left_out
from entityclip.config import (
    SHIPPED_PROFILE,
    AsCLSettings,
    PairSource,
    Profile,
    Settings,
    load_profile,
    merged,
    parse_settings,
    parts_of,
)
from entityclip.console import Refused
from entityclip.variants import ARCHIVES, DOMAINS

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
    left_out: dict[str, str] = field(default_factory=dict)  # notebooks without their data, and why

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


def make_plan(
    arguments: argparse.Namespace,
    notebooks: Path,
    figures: Path,
    name: str | None = None,
    roots: Mapping[str, str] | None = None,
) -> Plan:
    """Check profile, settings, notebook names and parameters; nothing is run or written.

    The profile is the arguments', or `name`; its data lie in `roots`. Raises ProfileError or
    ReproduceError naming what is wrong and what there is instead.
    """
    name, seed, timeout = name or arguments.profile, arguments.seed, arguments.timeout
    settings = parse_settings(arguments.set)
    if roots:
        plain = load_profile(name, seed=seed, settings=settings).settings
        settings = merged(settings, rooted(plain, roots))
    profile = load_profile(name, seed=seed, settings=settings)
    if timeout is not None and timeout < 0:
        raise ReproduceError(f"--timeout is {timeout}; give seconds, or 0 for no limit")
    parameters = {"profile": profile.name, "seed": seed, "settings": settings}
    chosen = select_notebooks(notebooks, arguments.only, arguments.skip)
    for notebook in chosen:
        check_parameters(notebook, {*parameters, "output_dir"})
    reasons = {path.stem: chapter_lacks(path.stem, profile.settings) for path in chosen}
    left_out = {stem: reason for stem, reason in reasons.items() if reason}
    runs = profile.runs.resolve()
    # figures/ shows the demo profile as it is shipped, never somebody's variation of it
    shipped = profile.name == SHIPPED_PROFILE and not settings and seed is None
    return Plan(
        profile,
        parameters,
        [path for path in chosen if path.stem not in left_out],
        sources=notebooks.resolve(),
        runs=runs,
        figures=figures.resolve() if shipped else runs / "figures",
        force=arguments.force,
        timeout=(CELL_TIMEOUTS.get(profile.name) if timeout is None else timeout) or None,
        whole=not arguments.only,
        left_out=left_out,
    )


def _sources(settings: Settings) -> dict[str, list[tuple[str, PairSource | AsCLSettings]]]:
    """What the chapters read that is not the profile's own data, by notebook: (setting, source)."""
    itr, ascl = settings.itr, settings.ascl
    roles = ("unlabelled", "labelled", "judged") if itr else ()
    return {
        "08_itr": [(f"itr.{role}", getattr(itr, role)) for role in roles],
        "09_ascl": [("ascl", ascl)] if ascl else [],
    }


def chapter_lacks(notebook: str, settings: Settings) -> str | None:
    """What keeps a chapter with data of its own from being run, in words; None if nothing does."""
    chapters = _sources(settings)
    if notebook not in chapters:
        return None
    if not chapters[notebook]:
        return f"the profile has no `{notebook.partition('_')[2]}` block"
    for setting, source in chapters[notebook]:
        if source.dataset not in DOMAINS and source.data_root is None:
            return f"{source.dataset} is not given ({setting}.data_root)"
    return None


def rooted(settings: Settings, roots: Mapping[str, str]) -> dict[str, Any]:
    """The overrides that put the settings' data sets into these folders; the rest are `domains`."""
    over: dict[str, Any] = {}
    if settings.dataset in roots:
        over["data_root"] = roots[settings.dataset]
    for setting, source in (pair for pairs in _sources(settings).values() for pair in pairs):
        if source.dataset in roots:
            given: dict[str, Any] = {"data_root": roots[source.dataset]}
            for group in reversed(setting.split(".")):
                given = {group: given}
            over = merged(over, given)
    others = {name: roots[name] for name in ARCHIVES if name in roots and name != settings.dataset}
    return over | ({"domains": others} if others and settings.dataset in ARCHIVES else {})


def parse_roots(
    assignments: Sequence[str], named: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """``["n24news=FOLDER"]`` as whole paths by data set, and a line for each that is no folder.

    Raises ReproduceError for what is no assignment and for a data set that is not `named`.
    """
    roots, said = {}, []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in named or name in roots:
            known = ", ".join(sorted(named))
            raise ReproduceError(f"--roots {assignment}: write NAME=FOLDER once, of {known}")
        folder = Path(text).expanduser().resolve()
        if folder.is_dir():
            roots[name] = str(folder)
        else:
            said.append(f"{name} is left out: {folder} is no folder")
    return roots, said


def make_plans(
    arguments: argparse.Namespace, notebooks: Path, figures: Path
) -> tuple[list[Plan], list[str]]:
    """A plan of each profile that takes part, and what is left out, a line each.

    Of a profile of several those take part whose folders are given. Chapters with data of their own
    are the first's: they would measure the same again. Raises as `make_plan`.
    """
    parts = parts_of(arguments.profile)
    profiles = parts or [arguments.profile]
    settings = [load_profile(name, settings=parse_settings(arguments.set)).settings
                for name in profiles]  # fmt: skip
    chapters = [source for one in settings for pairs in _sources(one).values() for source in pairs]
    named = {one.dataset for one in settings} | {source.dataset for _, source in chapters}
    roots, said = parse_roots(arguments.roots, sorted({*named, *ARCHIVES}))
    plans: list[Plan] = []
    for name, own in zip(profiles, settings, strict=True):
        if parts and own.dataset not in roots and not own.data_root:
            if not any(line.startswith(f"{own.dataset} ") for line in said):
                how = f"no folder is given (ROOTS={own.dataset}=FOLDER)"
                said.append(f"{own.dataset} is left out: {how}")
            continue
        plan = make_plan(arguments, notebooks, figures, name, roots)
        said += [f"{name}: {stem} is left out: {why}" for stem, why in plan.left_out.items()]
        shared = {stem for stem in _sources(own) if plans and stem not in plans[0].left_out}
        kept = [path for path in plan.notebooks if path.stem not in shared]
        plans.append(replace(plan, notebooks=kept))
    if not any(plan.notebooks for plan in plans):
        raise ReproduceError("; ".join(said))
    return plans, said


LAST = "10_tables_and_figures"  # draws what all others measured


def find_notebooks(folder: Path) -> list[Path]:
    """The notebooks of the chain, ``NN_name.ipynb``, in the order they run."""
    found = folder.glob("[0-9][0-9]_*.ipynb")
    return sorted(found, key=lambda path: (path.stem == LAST, path.stem))


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
