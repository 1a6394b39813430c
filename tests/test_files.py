"""The door for files: what is read is checked, what is written is whole or not there."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from entityclip import files
from entityclip.files import (
    atomic_write_bytes,
    atomic_write_text,
    checked,
    json_lines,
    parse_json,
    parse_yaml,
    printable,
    read_json,
    read_text,
    read_yaml,
    replacing,
    unwritable,
)


class Refused(ValueError):
    """Stands for the exception of some kind of file."""


def refused(call, *arguments):
    """The one line in which a reader refuses."""
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --------------------------------------------------------------------------------------- reading


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("{}")
    (tmp_path / "folder").mkdir()
    assert "may not be read: Is a directory" in refused(read_text, tmp_path / "folder", Refused)

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    message = refused(read_json, path, Refused)
    assert message == f"{path} may not be read: Permission denied"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", Refused)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe{}", "no UTF-8 text (at byte 0)"),
        (b"{", "is not JSON"),
        (b"[1]", "Input should be an object"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[" * 200_000, "is not JSON"),
        (b"1" * 6000, "is not JSON"),
    ],
)
def test_json_of_another_shape_is_refused_by_file(tmp_path, content, told):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = refused(read_json, path, Refused)
    assert message.startswith(str(path))
    assert told in message


def test_a_value_of_another_kind_is_refused_by_field():
    kind = dict[str, list[int]]
    assert checked(kind, {"a": [1]}, Refused, "x") == {"a": [1]}
    message = refused(checked, kind, {"a": [1, "2"]}, Refused, "x.json, line 3")
    assert message == "x.json, line 3: a.1: Input should be a valid integer (got '2')"
    assert len(refused(checked, kind, {"a": ["x" * 10_000] * 50}, Refused, "x")) < 600


def test_lines_end_at_newlines_only_and_a_torn_one_is_told(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "a\u2028b\x85c"}\n[2]\n{"to', encoding="utf-8")
    assert list(json_lines(path, Refused)) == [(1, {"t": "a\u2028b\x85c"}), (2, [2])]
    assert "incomplete" in caplog.text
    path.write_text("1\n\n2\n")
    assert f"{path}, line 2 is not JSON" in refused(list, json_lines(path, Refused))


BOMB = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [*{o}, *{o}, *{o}, *{o}, *{o}, *{o}, *{o}, *{o}, *{o}]\n"
    for o, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "aliases make it more than"),
        ("a: &a [*a]", "line 1: refers to itself"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' stands twice"),
        ("a: !!python/object/apply:os.system [id]", "line 1: could not determine a constructor"),
        ("a: [" + "[" * 50_000, "nested deeper"),
        ("- " * 5000, "not YAML"),
        ("a: 1\n" * 60_000, "is larger"),
        ("a: [1\nb: 2", "line 2"),
        ("a: !!int x", "not YAML"),
        ("a: !!bool x", "not YAML"),
        ("a: 2026-13-45", "not YAML"),
        ("? [a, b]\n: 1", "line 1: found unhashable key"),
        ("a: \x07", "not YAML"),
    ],
)
def test_yaml_that_is_none_or_grows_is_refused_by_line(tmp_path, text, told):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    message = refused(read_yaml, path, Refused)
    assert message.startswith(str(path))
    assert told in message


def test_yaml_as_the_library_reads_it():
    text = "a: &x {b: [1, 2.5, null]}\nc: *x\nd: 2026-01-02\n"
    value, node = parse_yaml(text, Refused, "x")
    assert value == yaml.safe_load(text)
    assert node.value[1][0].start_mark.line == 1
    assert parse_yaml("", Refused, "x") == (None, None)


def test_messages_hold_no_control_characters():
    assert printable("Zoë, 東京 a b") == "Zoë, 東京 a b"
    assert printable("\x1b[31mred\x07\n\u202e\ud800") == r"\x1b[31mred\x07\n\u202e\ud800"
    assert parse_json('"\\u00e9"', Refused, "x") == "é"
    assert "surrogates not allowed" in refused(parse_json, '["\\ud800"]', Refused, "x")


# ------------------------------------------------------------------------------ -------- writing


def test_atomic_write_replaces_and_is_readable_by_all(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    atomic_write_text(path, "eins\r\nzwei\n")
    atomic_write_text(path, "drei – 名\n")
    assert path.read_bytes() == "drei – 名\n".encode()
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_last_good_file(tmp_path, monkeypatch, call, failure):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"good")

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(failure)):
        atomic_write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        atomic_write_text(tmp_path / "a.txt", "x")
        os.close(files.open_to_append(tmp_path / "b.jsonl"))
        with files.claimed(tmp_path / "c.lock", wait=True):
            pass
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_what_a_killed_process_left_goes_when_its_folder_is_written_again(tmp_path):
    code = (
        "import os, sys; from entityclip.files import replacing\n"
        "with replacing(sys.argv[1]) as staged:\n"
        "    staged.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "big.bin")], check=False)
    (left,) = os.listdir(tmp_path)
    mine = tmp_path / ".notes.partial"  # somebody's own
    mine.touch()
    files._swept.clear()
    with replacing(tmp_path / "other.txt") as staged:
        staged.write_text("x")
        assert staged.name in os.listdir(tmp_path)
        files._swept.clear()
        atomic_write_text(tmp_path / "third.txt", "x")  # a living process's stays
    assert left.endswith(".partial")
    assert sorted(os.listdir(tmp_path)) == [".notes.partial", "other.txt", "third.txt"]


def test_a_folder_that_takes_nothing_is_told_before_it_is_written(tmp_path, monkeypatch):
    assert unwritable(tmp_path / "not" / "yet") is None
    (tmp_path / "file").touch()
    assert unwritable(tmp_path / "file" / "x") == f"{tmp_path / 'file'} is no folder"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert unwritable(tmp_path / "new") == f"{tmp_path} is not writable"
