"""What the repository must not hold."""

import io
import os
import pickle
import re
import subprocess
from pathlib import Path

import pytest
import torch

from entityclip.config import REPOSITORY

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
