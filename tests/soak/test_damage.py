"""Thousands of damaged files, all readers; the short form is tests/test_damage.py."""

from collections import Counter

import pytest

from tests.damage import READERS, campaign

_INPUTS = max(120, 2400 // len(READERS))


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name, tmp_path, record_counts):
    counts = campaign(name, tmp_path, inputs=_INPUTS, number=1)
    record_counts[name] = counts
    assert counts["inputs"] >= _INPUTS


@pytest.fixture(scope="module")
def record_counts():
    """A line a reader and a sum, printed when all are done."""
    found: dict[str, Counter] = {}
    yield found
    total = sum(found.values(), Counter())
    for name, counts in [*found.items(), (f"all {len(found)} readers", total)]:
        print(
            f"{name}: {counts['inputs']} inputs, {counts['refused']} refused, "
            f"{counts['accepted']} accepted"
        )
    print(f"readers with a foreign exception: {len(READERS) - len(found)}")
