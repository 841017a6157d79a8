"""Writes files whole or not at all, with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spcl_lib.system.errors import UserError
from spcl_lib.system.paths import cache, results

LOCKED = 3  # exit status of a process that could not work for a `LockedError`
_LONGEST_LIST = 2**31  # bytes; the lists of COCO and ImageNet have less than 2**29


class LockedError(UserError):
    """Another process holds the lock of a folder."""


@contextlib.contextmanager
def atomic_write(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """Gives a temporary file beside `path`; renames it to `path` on success, else removes it.

    The file gets the mode of a usual new file. safetensors would let only its owner read it.

    Args:
        path: file to write or to replace.
        ending: end of the temporary file's name, for libraries that look at it.

    Raises:
        UserError: the system refuses (disk full, not allowed); `path` stays as it was.
    """
    with explain_refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}{ending}")
        try:
            temporary.touch()  # the system knows the mode: the umask, or the folder's rules
            mode = temporary.stat().st_mode
            temporary.unlink()
            yield temporary
            with open(temporary, "r+b") as handle:
                os.fsync(handle.fileno())  # else a power cut may leave the name without the content
            if temporary.stat().st_mode != mode:
                with contextlib.suppress(OSError):  # a file system without modes
                    temporary.chmod(mode)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Holds an exclusive lock for writing `path`, and waits for it.

    The system frees the lock when the process ends, even if it is killed. The holder is the only
    writer, so it removes the temporary files that killed writers of this file left.
    """
    with explain_refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    try:
        _remove(path.parent, f".{glob.escape(path.name)}.[0-9]*")
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def lock_folder(folder: Path, seconds: float, what: str) -> Iterator[None]:
    """Holds an exclusive lock for a folder, and removes temporary files of killed writers in it.

    Args:
        folder: it is created if it is missing.
        seconds: how long to wait: a process that is being killed may hold the lock a moment longer.
        what: what the holder does, for the error message, such as "training in".

    Raises:
        LockedError: another process holds it.
        UserError: the system refuses.
    """
    with explain_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise LockedError(
                f"{_name_holder(folder)} is {what} '{folder}'; wait for it or stop it"
            ) from None
    try:
        with contextlib.suppress(OSError):  # only for messages
            (folder / ".lock").write_text(str(os.getpid()))
        _remove(folder, ".*.tmp", ".tmp*")  # our temporary files, and those of safetensors
        yield
    finally:
        lock.release()


def holder_of(folder: Path) -> str | None:
    """Who holds the lock of a folder, such as "process 17"; None if nobody does."""
    with contextlib.suppress(FileNotFoundError), try_lock(folder / ".lock") as is_ours:
        return None if is_ours else _name_holder(folder)
    return None  # no folder, no lock


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Holds the lock file `path` during its block; gives False if another process holds it."""
    lock = FileLock(path)
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _name_holder(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"process {int((folder / '.lock').read_text())}"
    return "another process"


def remove_stale(folder: Path, pattern: str) -> None:
    """Removes temporary files of `atomic_write` whose processes have ended, killed while writing.

    Args:
        folder: folder of the files.
        pattern: pattern of the temporary files' names, without the process and the ending; for
            instance ".predictions.csv".
    """
    if os.name == "posix":  # elsewhere os.kill ends the process
        for file in folder.glob(f"{pattern}.[0-9]*.tmp"):
            number = file.name.split(".")[-2]
            if number.isdecimal() and not _runs(int(number)):
                with contextlib.suppress(OSError):
                    file.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _remove(folder: Path, *patterns: str) -> None:
    """Removes the files that match; a file that cannot be removed stays."""
    for file in [file for pattern in patterns for file in folder.glob(pattern)]:
        with contextlib.suppress(OSError):
            file.unlink()


def read_list(file: Path) -> bytes:
    """The content of a file that must end, such as a list of labels that the user names.

    Raises:
        OSError: the file cannot be read, is no regular file (a pipe or a device may never end), or
            has more than 2 GiB. `strerror` tells which.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    with open(file, "rb") as handle:
        content = b"" if status.st_size > _LONGEST_LIST else handle.read(_LONGEST_LIST + 1)
    if max(status.st_size, len(content)) > _LONGEST_LIST:
        raise OSError(errno.EINVAL, "it has more than 2 GiB", str(file))
    return content


def parse_json(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text.

    Args:
        text: the text, as UTF-8 if it is bytes.
        options: see `json.loads`.

    Raises:
        ValueError: it is no JSON, or lists are nested too deeply in it.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


# --- when the system refuses ----------------------------------------------------------------------

_FULL = {
    errno.ENOSPC: "Free some space", errno.EFBIG: "Files of this size must be allowed",
    getattr(errno, "EDQUOT", errno.ENOSPC): "Free some space",  # Windows has no quotas
}  # fmt: skip
_CLOSED = "Its permissions must be changed"
_MIXED_UP = "There is a file where a folder is needed, or the other way round"
_REFUSALS = _FULL | {
    errno.EACCES: _CLOSED, errno.EPERM: _CLOSED, errno.EROFS: _CLOSED,
    errno.ENOTDIR: _MIXED_UP, errno.EEXIST: _MIXED_UP, errno.EISDIR: _MIXED_UP,
    errno.ENAMETOOLONG: "A shorter path is needed",
    errno.ELOOP: "A link there leads back to itself",
    errno.ENOMEM: "Smaller images (image_side, crop_side, eval_side) or a smaller batch need less",
}  # fmt: skip


@contextlib.contextmanager
def explain_refusals(path: Path | None = None) -> Iterator[None]:
    """Turns a refusal of the system (disk full, not allowed, no memory) into a UserError.

    Args:
        path: the file that the block writes; the message names it unless the system names another.

    Raises:
        UserError: it names the path, the reason, what to do, and the variable of its folder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, named = _refusal(error)
        if number not in _REFUSALS:
            raise
        if path is None or (named is not None and named.parent != path.parent):
            path = named
        raise UserError(_explanation(number, path)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory, also that of a GPU, did not suffice."""
    said = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said


def is_disk_full(error: OSError) -> bool:
    """Whether the system refused because no space is left."""
    return error.errno in _FULL and error.errno != errno.EFBIG


def _refusal(error: BaseException | None) -> tuple[int | None, Path | None]:
    """The system's error number and the path that it names; each is None if it is unknown."""
    if isinstance(error, OSError):
        return error.errno, Path(os.fsdecode(error.filename)) if error.filename else None
    if error is not None and is_out_of_memory(error):
        return errno.ENOMEM, None
    while error is not None:  # torch raises errors of its own, and safetensors quotes the number
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else quoted and int(quoted[1])
        if number in _FULL:
            return number, None
        error = error.__cause__ or error.__context__
    return None, None


def _explanation(number: int, path: Path | None) -> str:
    what = f"'{path}'" if path else "the system refuses"
    text = f"{what}: {os.strerror(number)}. {_REFUSALS[number]}"
    for variable, name, folder in (
        ("SPCL_RESULTS", "results", results()), ("SPCL_CACHE", "cache", cache()),
    ):  # fmt: skip
        # The system may name a parent of the folder, if that parent is missing.
        if path and (path.is_relative_to(folder) or folder.is_relative_to(path)):
            return f"{text}, or choose another folder for the {name}: {variable}=DIR ('{folder}')"
    return text
