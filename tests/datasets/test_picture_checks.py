"""Pictures are decoded once, what failed is tried again, and a kill loses next to nothing."""

import io
import time

import pytest
import tqdm

from entityclip import console
from entityclip.datasets import pair
from entityclip.datasets import picture_checks as checks
from entityclip.datasets.picture_checks import JournalError, check_pictures
from tests import processes
from tests.fixtures.pictures import photo


@pytest.fixture
def pictures(tmp_path):
    found = {f"{number}.jpg": tmp_path / f"{number}.jpg" for number in range(5)}
    for number, path in enumerate(found.values()):
        photo(number).save(path)
    return found


@pytest.fixture
def decoded(monkeypatch):
    """The names of the pictures decoded since it was cleared."""
    names, real = [], checks.decode
    monkeypatch.setattr(checks, "decode", lambda path: (names.append(path.name), real(path))[1])
    return names


def check(pictures, journal, **options):
    return check_pictures(pictures, journal, workers=1, progress=False, **options)


def test_what_was_whole_is_not_decoded_again_until_its_file_changes(pictures, tmp_path, decoded):
    journal = tmp_path / "out" / "pictures.jsonl"
    first = check(pictures, journal)
    assert decoded == sorted(pictures)
    decoded.clear()
    second = check(pictures, journal)
    assert (decoded, second.known, second.digest) == ([], 5, first.digest)
    assert (second.looks == first.looks).all()
    photo(9).save(pictures["3.jpg"])
    third = check(pictures, journal)
    assert (decoded, third.known, third.changed, third.broken) == (["3.jpg"], 4, ["3.jpg"], {})
    assert third.digest != first.digest
    assert check(pictures, journal).changed == []


def test_what_failed_is_tried_each_time_and_forgotten_once_it_is_mended(pictures, tmp_path):
    journal, good = tmp_path / "pictures.jsonl", pictures["2.jpg"].read_bytes()
    whole = check(pictures, journal)
    pictures["2.jpg"].write_bytes(good[:100])
    for _ in range(2):
        found = check(pictures, journal)
        assert list(found.broken) == ["2.jpg"]
        assert not found.sums[2].any()
        assert not found.looks[2].any()
    pictures["2.jpg"].write_bytes(good)
    mended = check(pictures, journal)
    assert (mended.broken, mended.changed, mended.digest) == ({}, [], whole.digest)


def test_bytes_that_changed_by_themselves_are_found_where_all_are_read(pictures, tmp_path):
    journal, path = tmp_path / "pictures.jsonl", pictures["1.jpg"]
    check(pictures, journal)
    stamp = checks._stamp(path)
    path.write_bytes(path.read_bytes() + b"\0")
    rows = journal.read_bytes().split(b"\n")
    # the file's change in times and size undone, as a disk's fault leaves them
    rows[1] = rows[1].replace(str(list(stamp)).replace(" ", "").encode(),
                              str(list(checks._stamp(path))).replace(" ", "").encode())  # fmt: skip
    journal.write_bytes(b"\n".join(rows))
    assert check(pictures, journal).decayed == []
    for _ in range(2):  # it does not become the standard
        assert check(pictures, journal, again=True).decayed == ["1.jpg"]
    photo(1).save(path)
    assert check(pictures, journal, again=True).decayed == []


def test_torn_and_foreign_journals(pictures, tmp_path, decoded):
    journal = tmp_path / "pictures.jsonl"
    check(pictures, journal)
    rows = journal.read_bytes()
    journal.write_bytes(rows[:-10])
    decoded.clear()
    assert check(pictures, journal).known == 4
    assert decoded == ["4.jpg"]
    journal.write_bytes(rows.replace(b'"3.jpg"', b'"3.jpg", 7'))
    assert check(pictures, journal).known == 4
    for other in (b'{"mine": 1}\n', b"mine"):
        journal.write_bytes(other)
        with pytest.raises(JournalError, match="holds something else: name another folder"):
            check(pictures, journal)
        assert journal.read_bytes() == other


def test_progress_counts_pictures_and_reckons_from_what_is_left(pictures, tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO()})
            bars.append((self, self.n))

        def update(self, n=1):
            self.steps = [*getattr(self, "steps", []), n]
            super().update(n)

    monkeypatch.setattr(console, "tqdm", Bar)
    check_pictures(dict(list(pictures.items())[:2]), tmp_path / "j", progress=True)
    check_pictures(pictures, tmp_path / "j", progress=True)
    (one, start), (other, skipped) = bars
    assert (start, one.n, one.total, one.steps) == (0, 2, 2, [1, 1])
    assert (skipped, other.n, other.total, other.steps) == (2, 5, 5, [1, 1, 1])


def test_a_pictures_pixels_count_until_it_is_hashed(pictures, monkeypatch):
    held, real = [], checks.perceptual_hash
    monkeypatch.setattr(
        checks, "perceptual_hash",
        lambda picture: (held.append((pair._held.size, pair._budget._used)), real(picture))[1],
    )  # fmt: skip
    check(pictures, None)
    assert held == [(160 * 120 * 4,) * 2] * 5
    assert pair._budget._used == 0


def check_all(folder, journal):
    paths = {path.name: path for path in folder.iterdir()}
    checks._WINDOW = 4
    check_pictures(paths, journal, workers=1, progress=False)


def test_a_killed_check_goes_on(tmp_path, decoded):
    folder, journal = tmp_path / "pictures", tmp_path / "journal"
    folder.mkdir()
    for number in range(80):
        photo(number % 4, (400, 300)).save(folder / f"{number:02d}.jpg")
    process = processes.start(check_all, folder, journal, log=str(tmp_path / "log"))
    end = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < end:
        time.sleep(0.001)
    process.kill()
    process.join()
    paths = {path.name: path for path in folder.iterdir()}
    found = check(paths, journal)
    assert 0 < found.known < 80
    assert len(decoded) == 80 - found.known
    assert found.digest == check(paths, None).digest
