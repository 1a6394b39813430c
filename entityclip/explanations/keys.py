"""API keys belong in the environment: this finds them where they would be saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_KEY_LIKE = re.compile(r"^(?:sk|key|hf|gsk|xai|nvapi)[-_]\w[\w-]{10,}$|^Bearer\s", re.IGNORECASE)
_KEY_NAME = re.compile(r"(?:^|_)(?:api_?key|key|secret|password|access_token|auth)$", re.IGNORECASE)


def refuse_keys(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if a notebook's or profile's parameters hold an API key.

    Parameters are stored in notebooks and run records. The message names the parameter, never its
    value.
    """
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            refuse_keys(value)
        elif isinstance(value, str) and value.strip():
            login = "://" in value and (urlsplit(value).password or "key=" in value.lower())
            if _KEY_NAME.search(name) or _KEY_LIKE.match(value.strip()) or login:
                raise ValueError(
                    f"parameter {name!r} seems to hold a key; parameters are saved with the "
                    "notebook. Clear it, and set OPENAI_API_KEY in the environment instead"
                )
