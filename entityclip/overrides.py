"""Settings typed on a command line: ``--set model.heads=2 finetuning.lr=1e-4``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from entityclip.config import ProfileError


class _Loader(yaml.SafeLoader):
    """YAML as people type it: 1e-4 is a number, not the string YAML 1.1 makes of it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=2"]`` as ``{"model": {"heads": 2}}``; values are read as YAML.

    Raises ProfileError for what is no assignment and for names that contradict each other.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise ProfileError(f"--set {assignment}: write name=value, e.g. finetuning.epochs=3")
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ProfileError(f"--set {assignment}: the value is not YAML: {error}") from error
        *groups, last = name.split(".")
        place = settings
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ProfileError(f"--set {assignment}: {group} is already set to {place!r}")
        if last in place:
            raise ProfileError(f"--set {assignment}: {name} is already set to {place[last]!r}")
        place[last] = value
    return settings
