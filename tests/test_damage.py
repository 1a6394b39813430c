"""Whatever a file has become, its reader gives a value or says in one line what is wrong."""

import pytest

from tests.damage import READERS, campaign


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    counts = campaign(name, tmp_path, inputs=8)
    assert counts["inputs"] >= 8
    assert not READERS[name].refuses or counts["refused"]
