"""What tells one run from another: its configs as plain values, and their hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from pydantic import BaseModel

# metadata of a dataclass's field; the second is for one that came later: runs that do not use it
# stay the runs they were
LEFT_OUT = {"identity": "never"}
LEFT_OUT_AT_DEFAULT = {"identity": "unless default"}


def as_dict(config: Any) -> dict[str, Any]:
    """A config (dataclass or pydantic model) as plain JSON-ready values, which identify a run.

    Fields whose metadata say so are left out: always, or at their default.
    """
    if isinstance(config, BaseModel):
        return {name: _plain(getattr(config, name)) for name in type(config).model_fields}
    if dataclasses.is_dataclass(config):
        kept = [f for f in dataclasses.fields(config) if _identifies(config, f)]
        return {field.name: _plain(getattr(config, field.name)) for field in kept}
    return json.loads(as_json(config))


def config_hash(config: Any) -> str:
    """Sixteen hex digits that differ whenever any value of the config does."""
    canonical = json.dumps(as_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _identifies(config: Any, field: dataclasses.Field) -> bool:
    rule = field.metadata.get("identity", "always")
    at_default = getattr(config, field.name) == field.default
    return rule == "always" or (rule == "unless default" and not at_default)


def _plain(value: Any) -> Any:
    """A config's value, configs within lists and mappings too, as `as_dict` has it."""
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return json.loads(as_json(value))


def as_json(value: Any) -> str:
    """Values as JSON; dates, paths and whatever else JSON lacks as their text."""

    def plain(odd: Any) -> Any:
        # str: YAML reads 2024-01-01 as a date, paths come from callers
        return odd.model_dump(mode="json") if isinstance(odd, BaseModel) else str(odd)

    return json.dumps(value, default=plain)
