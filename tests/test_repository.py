"""What the repository must not hold, and that its lock says exactly what is installed."""

import io
import os
import pickle
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entityclip.config import REPOSITORY

LOCKS = ("requirements.lock", "requirements-model.lock")
PIN = re.compile(r"([a-z0-9][a-z0-9-]*)(\[[a-z0-9,-]+\])?==(\d[\w.+!]*)")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


# --------------------------------------------------------------------------------- the lock


def parse_lock(text):
    """``{name: version}``, and what is wrong with each line that is no exact pin."""
    pins, problems = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        parts = line.partition(" #")[0].split()
        if not parts or parts[0].startswith("#"):
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


# -------------------------------------------------------------------------- what nobody may find


def tracked():
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = (REPOSITORY / os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
    return [path for path in paths if path.is_file()]


SECRETS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50,})",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "address with a password": r"://[^\s/:@'\"{}<>]+:[^\s/:@'\"{}<>]+@[\w-]+\.\w",
    "assigned secret": r"(?i)(?:api_?key|secret|token|passw(?:or)?d)[\"']?\s*[:=]\s*"
    r"[\"'][A-Za-z0-9+/_-]{20,}[\"']",
}
# "someone" is nobody, and stands in tests for the data sets' authors
MACHINE_PATH = re.compile(
    r"(?<![\w.:/\\])/(?:home/(?!someone\b)|Users/|root/|work/|mnt/|srv/|scratch/|tmp/|var/|opt/)\w+"
    r"|(?i:\b[a-z]:\\+users\\+)\w+"
)
PICTURE = re.compile(r'"image/(?:png|jpeg)": "[^"]*"')  # base64 in a notebook


def readable(path):
    """The text of a tracked file, pictures in notebooks left out; None for a binary file."""
    try:
        return PICTURE.sub("", path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return None


def findings(patterns):
    for path in tracked():
        text = readable(path) or ""
        for what, pattern in patterns.items():
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                yield f"{path.relative_to(REPOSITORY)}:{line}: {what}: {match[0][:40]!r}"


def test_no_secret_in_the_repository():
    assert list(findings(SECRETS)) == []


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("private key", ("-----BEGIN RSA PRIV", "ATE KEY-----")),
        ("AWS key", ("AKIA", "0123456789ABCDEF")),
        ("GitHub token", ("ghp_", "a1" * 18)),
        ("Hugging Face token", ("hf_", "a1" * 17)),
        ("API key", ("sk-", "proj-" + "a1" * 20)),
        ("Slack token", ("xoxb-", "123456789012")),
        ("JSON web token", ("eyJhbGciOiJI", "UzI1.eyJzdWIiOiIxMjM0.x")),
        ("address with a password", ("https://me:", "word@example.org")),
        ("assigned secret", ('API_KEY = "', 'a1b2' * 6 + '"')),
    ],
)  # fmt: skip
def test_a_secret_would_be_seen(what, parts):
    assert re.search(SECRETS[what], "".join(parts))


def test_no_path_of_one_machine_in_the_repository():
    here = {str(path) for path in (REPOSITORY, Path.home()) if len(path.parts) > 2}
    exact = {"path of this machine": "|".join(map(re.escape, here))} if here else {}
    assert list(findings({"path of a machine": MACHINE_PATH} | exact)) == []


def test_a_machine_path_would_be_seen():
    for parts in (("home", "me", "x"), ("Users", "me"), ("work", "a"), ("tmp", "x.png")):
        assert MACHINE_PATH.search("in " + "/".join(("", *parts)))
    assert MACHINE_PATH.search("C:" + "\\Users\\me")
    for text in (
        "https://example.org/home/page",
        "figures/tmp/a",
        "/home/someone/x",
        "#!/usr/bin/env",
    ):
        assert not MACHINE_PATH.search(text), text


PICKLED = re.compile(rb"\x80[\x02-\x05](?:\x95|[\]})(cqKXUG])")  # protocol, then an opcode
SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".npy", ".npz", ".dill"}


def holds_a_pickle(name, content):
    # torch.save writes a zip whose pickle lies in the member data.pkl
    inside_zip = content[:2] == b"PK" and b"data.pkl" in content
    return Path(name).suffix.lower() in SUFFIXES or bool(PICKLED.match(content)) or inside_zip


def test_no_pickle_in_the_repository():
    found = [path.name for path in tracked() if holds_a_pickle(path.name, path.read_bytes())]
    assert found == []


def test_a_pickle_would_be_seen():
    for protocol in (2, 3, 4, 5):
        for value in ({}, [1], "a", {"a": 1}, (1, 2), 3.0, len):
            assert holds_a_pickle("a.json", pickle.dumps(value, protocol)), (protocol, value)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    assert holds_a_pickle("a.safetensors", buffer.getvalue())
    assert holds_a_pickle("weights.pt", b"")
    assert not holds_a_pickle("a.png", b"\x89PNG")
