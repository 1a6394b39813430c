"""Parts of a Markdown text that are written by a program: between ``<!-- name -->`` and its end."""

from __future__ import annotations

import re


def replace_part(text: str, name: str, content: str) -> str:
    """The text with `content`, of no trailing line break, as its part `name`.

    Raises ValueError unless the text has exactly one such part.
    """
    part = re.compile(f"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
    if len(part.findall(text)) != 1:
        raise ValueError(f"there must be one part between <!-- {name} --> and <!-- /{name} -->")
    return part.sub(lambda _: written_part(name, content), text)


def written_part(name: str, content: str) -> str:
    """A part with its marks."""
    return f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
