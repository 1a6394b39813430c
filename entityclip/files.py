"""One door for files: read typed or refused in one line, written whole or not at all.

What is read back is checked before use, and whoever asks names the exception of that kind of file;
what is written neither a kill, a full disk nor a second process spoils. Also: commit and cores.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

_CHECKOUT = Path(__file__).resolve().parents[1]
_BLOCK = 1 << 16  # bytes read at a time in search of the last newline
_YAML_NODES = 100_000  # a profile or manifest with its aliases written out has a few thousand
_YAML_SIZE, _YAML_DEPTH = 1 << 18, 50  # characters, and brackets in brackets
_MODE = 0o666  # of new files, less the umask
_BINARY = getattr(os, "O_BINARY", 0)  # Windows writes \r\n else
_LOCKED_BYTE = 2**30  # where Windows locks a file: what is locked there nobody else can read
_HELD_OPEN = 2.0  # seconds that Windows' readers and virus scanners may hold a file's old content

# control characters, a terminal's escape codes among them, and what turns lines over or is half a
# character; joiners and unusual spaces are ordinary text
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
Location = tuple[int | str, ...]  # of a field within its file

# ------------------------------------------------------------------------------------- reading


def read_text(path: str | Path, error: type[Exception]) -> str:
    """A file's UTF-8 text, newlines as they are.

    Raises `error`, naming the file, where it may not be read or is no such text; FileNotFoundError.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path} may not be read: {problem.strerror or problem}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} is no UTF-8 text (at byte {problem.start})") from problem


def parse_json(
    text: str | bytes, error: type[Exception], where: str, *, infinite: bool = False
) -> Any:
    """JSON as the standard has it, NaN and Infinity only if `infinite`.

    Raises `error`, which begins with `where`.
    """
    try:
        value = json.loads(text, parse_constant=None if infinite else _refuse_constant)
        if ("\\u" if isinstance(text, str) else b"\\u") in text:  # half a character, as \ud800
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not JSON ({problem})") from problem
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def read_json(path: str | Path, error: type[Exception], kind: Any = dict[str, Any]) -> Any:
    """A JSON file of a `kind`: a type as pydantic takes it. Raises as `read_text` and `checked`."""
    value = parse_json(read_text(path, error), error, str(path))
    return checked(kind, value, error, str(path))


def json_lines(path: str | Path, error: type[Exception]) -> Iterator[tuple[int, Any]]:
    """Each line's number, from 1, and value; lines end at newlines only.

    A last line that a killed process left unfinished is passed over with a warning. Raises `error`,
    naming file and line, for any other that is not JSON.
    """
    *lines, rest = read_text(path, error).split("\n")
    for number, line in enumerate(lines, start=1):
        yield number, parse_json(line, error, f"{path}, line {number}")
    if rest:
        try:
            yield len(lines) + 1, json.loads(rest)
        except (ValueError, RecursionError):
            log.warning("%s: its last line is incomplete and left out", path)


def checked(kind: Any, value: Any, error: type[Exception], where: str) -> Any:
    """A JSON-ready value as a `kind`, strictly. Raises `error`: `where`, field, what is wrong."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as problem:
        raise error(f"{where}: {told(problem)}") from problem


def told(
    problem: Any,
    *,
    place: Callable[[Location], str] = lambda location: ".".join(map(str, location)),
    unknown: Callable[[Location], str] = lambda _: "there is no such field",
) -> str:
    """The first few of a pydantic ValidationError's findings in one line: field, what is wrong.

    `place` names a field by its location, `unknown` says what is wrong with one too many.
    """
    lines = []
    for item in problem.errors(include_url=False)[:4]:
        field, text = place(item["loc"]), item["msg"].removeprefix("Value error, ")
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            text = unknown(item["loc"])
        elif item["type"] not in ("missing", "value_error"):
            text += f" (got {shortened(repr(item['input']))})"
        lines.append(f"{field}: {text}" if field else text)
    more = problem.error_count() - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def shortened(text: str, limit: int = 80) -> str:
    """The text with its middle left out where it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit - 20]}…{text[-18:]}"


def printable(text: str) -> str:
    """The text with control characters, a terminal's escape codes among them, written out."""
    return _CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def read_yaml(path: str | Path, error: type[Exception]) -> Any:
    """A YAML file's value. Raises as `read_text` and `parse_yaml`."""
    return parse_yaml(read_text(path, error), error, str(path))[0]


def parse_yaml(
    text: str, error: type[Exception], where: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader
) -> tuple[Any, yaml.Node | None]:
    """A document's plain value and its node tree, which knows lines.

    Raises `error` (`where`, the line) for what is not YAML, for tags that name code, a key that
    stands twice in a mapping, and aliases that refer to themselves or make it a huge one.
    """
    reader = None
    if len(text) > _YAML_SIZE or _brackets(text) > _YAML_DEPTH:
        raise error(f"{where} is larger or nested deeper than any that people write")
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is not None:
            _yaml_size(node, {})
            return reader.construct_document(node), node
        return None, None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise error(f"{where}{line}: {problem.problem or problem.context}") from problem
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError,
            AttributeError, RecursionError) as problem:  # fmt: skip
        raise error(f"{where} is not YAML ({' '.join(str(problem).split())})") from problem
    finally:
        if reader is not None:
            reader.dispose()


def _brackets(text: str) -> int:
    """The deepest nesting of brackets; with many of them the library takes minutes."""
    opened = itertools.accumulate({"[": 1, "{": 1, "]": -1, "}": -1}.get(c, 0) for c in text)
    return max(opened, default=0)


def _yaml_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes it would be with every alias written out; refuses what `parse_yaml` does."""
    if (known := sizes.get(id(node))) is not None:
        if known < 0:
            raise yaml.MarkedYAMLError(problem="refers to itself", problem_mark=node.start_mark)
        return known
    sizes[id(node)], children = -1, []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"{key.value!r} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)))
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_yaml_size(child, sizes) for child in children)
    if size > _YAML_NODES:
        problem = f"its aliases make it more than {_YAML_NODES} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    sizes[id(node)] = size
    return size


# ------------------------------------------------------------------------------------- writing


def open_to_append(path: Path) -> int:
    """A file descriptor to read and append with; the file is made as needed."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _BINARY, _MODE)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock an open file against all others that open it; whether it is ours."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    while not (ours := _windows_lock(descriptor, "LK_NBLCK")) and wait:
        time.sleep(0.01)
    return ours


def _unlock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    else:
        _windows_lock(descriptor, "LK_UNLCK")


def _windows_lock(descriptor: int, mode: str) -> bool:
    import msvcrt

    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)  # appending goes to the end all the same
    try:
        msvcrt.locking(descriptor, getattr(msvcrt, mode), 1)
    except PermissionError:  # another process has it
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """`open_to_append`, locked against other processes, for one use."""
    descriptor = open_to_append(path)
    try:
        with lock(descriptor):
            yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(descriptor: int) -> Iterator[None]:
    """Lock a file that stays open against whoever else has opened it."""
    _lock(descriptor)
    try:
        yield
    finally:
        _unlock(descriptor)


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the work that `path` stands for is ours; a dead process's claim is void.

    With `wait`, waits until it is; else False where another process has it. `path` is a file, made
    as needed, or a folder, in which Windows, where folders can't be locked, gets a file for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT
    if path.is_dir():
        path, flags = (path, os.O_RDONLY) if fcntl is not None else (path / ".lock", flags)
    descriptor = os.open(path, flags, _MODE)
    try:
        yield _lock(descriptor, wait=wait)
    finally:
        os.close(descriptor)  # and so unlocks


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes of an open file from `offset` on; its position may change."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def append(descriptor: int, payload: bytes, path: Path, *, sync: bool = True) -> None:
    """Append all of `payload` to a locked file or, raising OSError (a full disk), none of it.

    Without `sync` it survives the death of this process, but not of the machine.
    """
    written = 0
    try:
        written = os.write(descriptor, payload)  # one write: readers see whole rows
        if written != len(payload):
            raise OSError(f"{path}: {written} of {len(payload)} bytes written; is the disk full?")
        if sync:
            os.fsync(descriptor)
    except OSError:
        # under the lock, so nobody else's rows are lost
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise


def mend_tail(
    descriptor: int, path: Path, ours: Callable[[bytes], bool], error: type[Exception]
) -> None:
    """Make a locked JSONL file end in a whole line.

    A torn last line, left by a killed process, is moved to ``<name>.torn`` with a warning; a whole
    row that only lacks its newline gets it. A file whose first line (with its newline, if it has
    one) is not `ours` is left as it is: raises `error`.
    """
    size = os.fstat(descriptor).st_size
    first, _, more = read_at(descriptor, _BLOCK, 0).partition(b"\n")
    if size and not ours(first + b"\n" if more or size > len(first) else first):
        raise error(f"{path} holds something else: it is left as it is; name another file")
    if size == 0 or read_at(descriptor, 1, size - 1) == b"\n":
        return
    kept, tail = size, b""
    while kept and b"\n" not in tail:
        start = max(0, kept - _BLOCK)
        tail = read_at(descriptor, kept - start, start) + tail
        kept = start
    kept, tail = kept + tail.rfind(b"\n") + 1, tail[tail.rfind(b"\n") + 1 :]
    try:
        json.loads(tail)
    except ValueError:
        torn = path.with_name(path.name + ".torn")
        with torn.open("ab") as file:
            file.write(tail + b"\n")
            file.flush()
            os.fsync(file.fileno())  # safe there before it goes here
        os.ftruncate(descriptor, kept)
        log.warning("%s ended in a torn line; moved it to %s", path, torn.name)
    else:
        append(descriptor, b"\n", path)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises OSError (e.g. a full disk) with the last good file untouched and no temporary left.
    """
    with replacing(path) as staged:
        staged.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text, newlines as given."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write a large file to; it takes `path`'s place if all went well.

    On an error (a full disk) what stood at `path` still does, and no temporary is left. What killed
    processes of this machine left in the folder goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    staged = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_serial)}.partial")
    try:
        yield staged
        descriptor = os.open(staged, os.O_RDWR | _BINARY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def replace(staged: Path, path: Path) -> None:
    """`os.replace`, on Windows again for a moment while another program holds `path` open."""
    until = time.monotonic() + (_HELD_OPEN if os.name == "nt" else 0)
    while True:
        try:
            return os.replace(staged, path)
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)


_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_serial = itertools.count()
_swept: set[tuple[int, str]] = set()  # (process, folder): once each


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporaries of `replacing` whose process, on this machine, is no more."""
    if (os.getpid(), str(folder)) in _swept:
        return
    _swept.add((os.getpid(), str(folder)))
    with contextlib.suppress(OSError):
        for path in folder.glob(f".*.{_HOST}-*.partial"):
            pid = path.name.rsplit(".", 2)[-2].split("-")[1]
            if pid.isdecimal() and not _alive(int(pid)):
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # where os.kill's signal 0 is Ctrl-C
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def unwritable(folder: str | Path) -> str | None:
    """Why nothing can be written below a folder, which need not exist yet; None where it can."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def cores() -> int:
    """Cores that this process may run on; where the system does not tell, all there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def git_commit(repository: Path = _CHECKOUT) -> str:
    """The checkout's commit, "-dirty" if package files differ from it, "unknown" outside one.

    Only `entityclip/` is compared, profiles apart: figures and executed notebooks change while a
    run goes on, and the settings stand in the row itself.
    """

    def git(*arguments: str) -> str:
        # a git hook's GIT_DIR would point elsewhere than at the package's own checkout
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(repository), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        return done.stdout.strip()

    try:
        # a package installed below some other project's checkout has no commit of its own
        if Path(git("rev-parse", "--show-toplevel")).resolve() != repository.resolve():
            return "unknown"
        commit = git("rev-parse", "--verify", "HEAD")
        compared = ("entityclip", ":!entityclip/profiles")
        return commit + ("-dirty" if git("status", "--porcelain", "--", *compared) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
