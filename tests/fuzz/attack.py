"""Attacks: one damaged file or one odd option, and a verdict on what came of it."""

import contextlib
import io
import os
import re
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spcl_lib.system.errors import UserError, one_line, printable

SECONDS = 60  # what takes longer hangs
MEMORY = 4 * 2**30  # bytes that an attack may take in addition to what the tests hold
VERDICTS = CLEAR, UNCLEAR, TRACEBACK, SILENT, LOST = (
    "clear", "unclear", "traceback", "silent", "lost",
)  # fmt: skip


class World:
    """A folder of sound files, which is restored after every attack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sound = {name: (self.content(name), self._date(name)) for name in self._names()}

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def changed(self) -> set[str]:
        """Files that are not as they were: other, missing or new ones."""
        now = self._names()
        other = {n for n in now & self.sound.keys() if self.content(n) != self.sound[n][0]}
        return other | (now ^ self.sound.keys())

    def restore(self) -> None:
        now = self._names()
        for name in now - self.sound.keys():
            (self.folder / name).unlink()
        for name, (content, date) in self.sound.items():
            if name not in now or self._date(name) != date or self.content(name) != content:
                self.put(name, content)
                os.utime(self.folder / name, ns=(date, date))

    def put(self, name: str, content: bytes) -> None:
        """Replaces a file; who has mapped the old one into memory keeps it."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name("replacement")
        temporary.write_bytes(content)
        os.replace(temporary, file)

    def _names(self) -> set[str]:
        files = (file for file in self.folder.rglob("*") if file.is_file())
        return {file.relative_to(self.folder).as_posix() for file in files}

    def _date(self, name: str) -> int:
        return (self.folder / name).stat().st_mtime_ns


@dataclass(frozen=True)
class Kind:
    """A kind of file, and how the project reads it.

    Attributes:
        name: its name in the table.
        world: where it lies.
        file: the file in the world.
        read: gives what is read, in a form that can be compared.
        form: a key of `damages.FORMS`.
        must: what a damage may change. "same": nothing, because the file has a checksum. "said":
            the result, after a word. "valid": the result, because a user may write such a file;
            `read` then asserts that it is a valid one.
        writes: starts of the names of files that reading may change.
    """

    name: str
    world: World
    file: str
    read: Callable[[], object]
    form: str = "bytes"
    must: str = "same"
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a call gave back: a value or an error, and what it said."""

    value: object = None
    error: BaseException | None = None
    said: str = ""


class Hanging(BaseException):
    """The call takes too long."""


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """In the block, what would fill the memory raises an error instead."""
    with open("/proc/self/statm") as handle:
        used = int(handle.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = min(size for size in (used + MEMORY, before[1]) if size != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def call(work: Callable[[], object]) -> Outcome:
    """Calls a function; whatever it raises, in a thread too, is part of the outcome."""

    def stop(number, frame):
        raise Hanging

    said, in_threads, hook = io.StringIO(), [], threading.excepthook
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    threading.excepthook = lambda given: in_threads.append(given.exc_value)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            value, error = work(), None
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as raised:
        value, error = None, raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        threading.excepthook = hook
    return Outcome(value, error or (in_threads[0] if in_threads else None), said.getvalue())


def attack(kind: Kind, damage: tuple[str, bytes]) -> tuple[str, str]:
    """Puts a damaged file in its place, reads it, and restores the world.

    Returns:
        The verdict, and its reason.
    """
    world, (how, content) = kind.world, damage
    world.put(kind.file, content)
    try:
        # A sound file with other tensors may be another valid one.
        must = "valid" if how == "change_a_tensor" else kind.must
        return _judge(kind, call(kind.read), content, must)
    finally:
        world.restore()


_sound: dict[str, object] = {}


def read_sound(kind: Kind) -> None:
    """Reads the sound file once; it must give no error."""
    outcome = call(kind.read)
    kind.world.restore()
    if outcome.error is not None:
        raise outcome.error
    _sound[kind.name] = outcome.value


def _judge(kind: Kind, outcome: Outcome, content: bytes, must: str) -> tuple[str, str]:
    error, world, expected = outcome.error, kind.world, _sound[kind.name]
    name = Path(kind.file).name
    changed = {n for n in world.changed() if not _is_lock(n)} - {kind.file}
    half = [n for n in changed if n.endswith(".tmp") or "/.tmp" in n]
    if isinstance(error, UserError):
        text, shown = printable(str(error)), one_line(error)
        if not shown or len(shown) > 2000 + 6 * len(content):  # it may list what the file has
            return UNCLEAR, f"not one line: {shown[:300]!r}"
        named = {Path(n).name for n in world.sound}  # perhaps another file contradicts this one
        quoted = re.findall(r"'([^'\n]+)'", text)
        values = [value for value in quoted if value.encode() in content]  # of the damaged file
        if not (any(n in text for n in named) or Path(name).stem in text or values):
            return UNCLEAR, f"it does not name '{name}': {text[:300]}"
        if world.content(kind.file) != content:
            return LOST, f"refused, but '{name}' was changed: {text[:300]}"
    elif isinstance(error, AssertionError):
        return SILENT, f"no valid content: {where(error)}"
    elif error is not None:
        return TRACEBACK, where(error)
    elif "Traceback" in outcome.said:
        return TRACEBACK, outcome.said[-600:]
    elif outcome.value != expected and must == "same":
        return SILENT, f"another result: {_differ(outcome.value, expected)}"
    elif outcome.value != expected and must == "said" and name not in outcome.said:
        return SILENT, f"another result without a word: {_differ(outcome.value, expected)}"
    lost = {n for n in changed if not n.startswith(kind.writes)} if kind.writes else changed
    if lost or half:
        return LOST, f"changed or left behind: {sorted(lost) or half}"
    return CLEAR, ""


def _differ(one: object, other: object) -> str:
    """Where two results differ, for people."""
    a, b = str(one), str(other)
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    return f"...{a[max(0, at - 40) : at + 80]!r} instead of ...{b[max(0, at - 40) : at + 80]!r}"


def _is_lock(name: str) -> bool:
    return name.endswith(".lock")


def where(error: BaseException) -> str:
    """The error, and the last lines of our code that it came through."""
    lines = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in lines if "spcl_lib" in f.filename
    ]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {' < '.join(reversed(ours[-3:]))}"
