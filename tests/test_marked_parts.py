"""Parts of Markdown that a program writes: what is replaced, what is refused."""

from __future__ import annotations

import pytest

from benchmarks.marked_parts import replace_part

TEXT = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"


def test_a_part_is_replaced_and_nothing_else():
    replaced = replace_part(TEXT, "a", r"new \1")
    assert replaced == "before\n<!-- a -->\nnew \\1\n<!-- /a -->\nafter\n"
    assert replace_part(replaced, "a", "old") == TEXT


@pytest.mark.parametrize("text", ["before", TEXT + TEXT, "<!-- a -->\nno end"])
def test_a_text_without_exactly_one_such_part_is_refused(text):
    with pytest.raises(ValueError, match="one part between <!-- a -->"):
        replace_part(text, "a", "new")
