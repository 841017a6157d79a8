"""Writes files whole or not at all, with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spcl_lib.system.errors import UserError
from spcl_lib.system.paths import cache, results

_LONGEST_LIST = 2**31  # bytes; the lists of COCO and ImageNet have less than 2**29
_PATIENCE = 1.0  # seconds to wait for a lock without a word


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
        # Several threads, or machines that share the disk, may write the same file.
        writer = f"{os.getpid()}-{secrets.token_hex(4)}"
        temporary = path.with_name(f".{path.name}.{writer}{ending}")
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
    with _locked(path.with_name(f".{path.name}.lock"), f"writing '{path}'"):
        _remove(path.parent, f".{glob.escape(path.name)}.[0-9]*")
        yield


@contextlib.contextmanager
def lock_folder(folder: Path, what: str) -> Iterator[None]:
    """Holds an exclusive lock for a folder, waits for it, and removes what killed writers left.

    Args:
        folder: it is created if it is missing. It is removed if nothing but the lock is in it at
            the end: the holder has failed before it wrote anything.
        what: what the holder does, for the message while another process waits: "training in".
    """
    lock = folder / ".lock"
    with _locked(lock, f"{what} '{folder}'"):
        _remove(folder, ".*.tmp", ".tmp*")  # our temporary files, and those of safetensors
        try:
            yield
        finally:
            if [file.name for file in folder.iterdir()] == [lock.name]:
                _remove(folder, lock.name)
                with contextlib.suppress(OSError):  # another process makes it again
                    folder.rmdir()


@contextlib.contextmanager
def _locked(file: Path, what: str) -> Iterator[None]:
    with explain_refusals(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            print(f"spcl: waits for {_holder(file)}, which is {what}", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        with contextlib.suppress(OSError):  # only for messages
            file.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"process {int(lock.read_text())}"
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
            number = file.name.split(".")[-2].partition("-")[0]
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
    if status.st_size > _LONGEST_LIST:
        raise OSError(errno.EINVAL, "it has more than 2 GiB", str(file))
    return file.read_bytes()


def parse_json(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text; `options` are those of `json.loads`.

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

_CLOSED = "Its permissions must be changed"
_MIXED_UP = "There is a file where a folder is needed, or the other way round"
_FULL = {
    errno.ENOSPC: "Free some space", errno.EFBIG: "Files of this size must be allowed",
    getattr(errno, "EDQUOT", errno.ENOSPC): "Free some space",  # Windows has no quotas
}  # fmt: skip
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
        number = _number_of(error)
        if number not in _REFUSALS:
            raise
        name = error.filename if isinstance(error, OSError) else None
        named = Path(os.fsdecode(name)) if name else None
        if path is None or (named is not None and named.parent != path.parent):
            path = named
        raise UserError(_explanation(number, path)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory, also that of a GPU, did not suffice."""
    said = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said


def _number_of(error: BaseException | None) -> int | None:
    """The system's number of a refusal. torch hides it in a chain, safetensors in its text."""
    if isinstance(error, OSError):
        return error.errno
    if error is not None and is_out_of_memory(error):
        return errno.ENOMEM
    while error is not None:
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else quoted and int(quoted[1])
        if number in _FULL:
            return number
        error = error.__cause__ or error.__context__
    return None


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
