"""That the lock is exact and whole, what is installed, and resolves wherever we say it does."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entityclip.config import REPOSITORY

LOCKS = ("requirements.lock", "requirements-model.lock", "requirements-uv.lock")
PIN = re.compile(r"([a-z0-9][a-z0-9-]*)(\[[a-z0-9,-]+\])?==(\d[\w.+!]*)")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = ("x86_64-manylinux_2_28", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
UNREACHED = ("network was disabled", "Failed to fetch", "error sending request")  # uv's words
SOURCES_ONLY = "grad-cam"  # no wheel; pure Python


def parse_lock(text, environment=None):
    """``{name: version}``, and what is wrong with each line that is no exact pin.

    Of pins for some systems alone, those for `environment`, by default this one.
    """
    pins, problems = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        line, _, marker = line.partition(" #")[0].partition(" ; ")
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if marker and not Marker(marker).evaluate(environment):
            continue
        pin = PIN.fullmatch(parts[0])
        if not pin:
            problems.append(f"{parts[0]!r} is no name==version")
        elif pin[1] in pins:
            problems.append(f"{pin[1]} is pinned twice")
        else:
            pins[pin[1]] = pin[3]
        problems += [f"{rest!r} is no hash" for rest in parts[1:] if not HASH.fullmatch(rest)]
    return pins, problems


def unmet(requirement, pins):
    """Why these pins do not satisfy the requirement, or None."""
    name = canonicalize_name(requirement.name)
    if name not in pins:
        return f"{name} is not in the lock"
    if not requirement.specifier.contains(pins[name], prereleases=True):
        return f"{name} is locked at {pins[name]}, needed is {requirement.specifier}"
    return None


def declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(r) for group in (project["dependencies"], *extras) for r in group]


def needed_by(name, extras):
    """The requirements of an installed package on this machine."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield requirement


def lock():
    return parse_lock((REPOSITORY / "requirements.lock").read_text(encoding="utf-8"))[0]


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_is_exact(name):
    pins, problems = parse_lock((REPOSITORY / name).read_text(encoding="utf-8"))
    assert pins
    assert problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("numpy>=2.0\n", "'numpy>=2.0' is no name==version"),
        ("numpy\n", "'numpy' is no name==version"),
        ("numpy==2.*\n", "'numpy==2.*' is no name==version"),
        ("a @ https://example.org/a.whl\n", "'a' is no name==version"),
        ("--index-url https://example.org/simple\n", "'--index-url' is no name==version"),
        ("-e .\n", "'-e' is no name==version"),
        ("a==1.0\na==1.1\n", "a is pinned twice"),
        ("a==1.0 \\\n    --hash=md5:aa\n", "'--hash=md5:aa' is no hash"),
    ],
)
def test_what_is_no_pin_is_seen(text, problem):
    assert problem in parse_lock(text)[1]
    good = f"# why\na-b[c]==1.0.post1  # note\nd==2!1 \\\n    --hash=sha256:{'0' * 64}\n"
    assert parse_lock(good) == ({"a-b": "1.0.post1", "d": "2!1"}, [])
    one = "a==1.0 ; sys_platform == 'win32'\na==2.0 ; sys_platform != 'win32'\n"
    for system, version in (("win32", "1.0"), ("linux", "2.0")):
        assert parse_lock(one, {"sys_platform": system}) == ({"a": version}, [])


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_the_lock_satisfies_pyproject(requirement):
    assert unmet(requirement, lock()) is None


def test_what_the_lock_lacks_is_seen():
    assert unmet(Requirement("a>=2"), {"a": "1.9"}) == "a is locked at 1.9, needed is >=2"
    assert unmet(Requirement("A_b"), {"a": "1.9"}) == "a-b is not in the lock"
    assert unmet(Requirement("A_b>=1"), {"a-b": "1.9"}) is None


def test_the_lock_is_whole_and_holds_nothing_else():
    """Everything that a locked package needs is locked, at a version that suits all."""
    pins, open_, seen = lock(), declared(), set()
    problems = []
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        problem = unmet(requirement, pins)
        if problem:
            problems.append(problem)
        elif (name, frozenset(requirement.extras)) not in seen:
            seen.add((name, frozenset(requirement.extras)))
            open_ += needed_by(name, requirement.extras)
    assert problems == []
    assert set(pins) - {name for name, _ in seen} == set()


def test_what_is_installed_is_what_is_locked():
    differing = {
        name: (metadata.version(name), version)
        for name, version in lock().items()
        if metadata.version(name) != version
    }
    assert differing == {}


def test_conda_gets_the_same_pins():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    assert pip == ["-r requirements.lock", "-e ."]
    assert plain == ["python=3.11", "pip"]  # nothing that conda could resolve to another version


# --------------------------------------------------------------- every Python on every system


def uv():
    """The path of uv, which `make` installs; skips without one."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    return found or pytest.skip("no uv here; `make lock-check` installs it")


@pytest.fixture(scope="module")
def offline():
    """What uv said when it did not reach the index: it is not asked again."""
    return []


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_resolves(python, system, offline):
    """All extras, from wheels, at the locked versions and with nothing that is not locked."""
    if offline:
        pytest.skip(f"the package index is not to be had: {offline[0]}")
    command = [
        uv(), "pip", "compile", "pyproject.toml", "--all-extras", "--constraint", LOCKS[0],
        "--no-header", "--no-annotate", "--quiet", "--only-binary", ":all:",
        "--no-binary", SOURCES_ONLY, "--python", sys.executable,
        "--python-version", python, "--python-platform", system,
    ]  # fmt: skip
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # torch's oldest
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if said := [words for words in UNREACHED if words in done.stderr]:
        offline += said
        pytest.skip(f"the package index is not to be had: {offline[0]}")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("==") for line in done.stdout.split())
    systems = {SYSTEMS[0]: "linux", SYSTEMS[1]: "darwin", SYSTEMS[2]: "win32"}
    here = {
        "sys_platform": systems[system],
        "os_name": "nt" if systems[system] == "win32" else "posix",
        "platform_machine": {SYSTEMS[1]: "arm64", SYSTEMS[2]: "AMD64"}.get(system, "x86_64"),
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    text = (REPOSITORY / LOCKS[0]).read_text(encoding="utf-8")
    assert found == parse_lock(text, here)[0]
