"""Writes files whole or not at all, with one writer at a time."""

import contextlib
import errno
import json
import os
import secrets
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from spcl_lib.system.errors import UserError, is_out_of_memory
from spcl_lib.system.paths import cache, results

_PATIENCE = 5.0  # seconds to wait for a lock without a word
_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@contextlib.contextmanager
def atomic_write(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """Gives a temporary file beside `path`; renames it to `path` on success, else removes it."""
    with explain_refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # safetensors would let only its owner read it
            yield temporary
            with open(temporary, "r+b") as handle:
                os.fsync(handle.fileno())  # else a power cut may leave the name without the content
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def lock_file(path: Path) -> AbstractContextManager[None]:
    """Waits for an exclusive lock on a file, and removes what killed writers of it left."""
    own = f".{path.name}"
    return _locked(path.with_name(f"{own}.lock"), f"writing '{path}'", f"{own}.????????.tmp")


def lock_folder(folder: Path, what: str) -> AbstractContextManager[None]:
    """The same for a folder; `what` the holder does there is told to others that wait."""
    return _locked(folder / ".lock", f"{what} '{folder}'", ".*tmp*")  # also those of safetensors


@contextlib.contextmanager
def _locked(file: Path, what: str, leftovers: str) -> Iterator[None]:
    """The system frees the lock when the process ends, even if it is killed."""
    with explain_refusals(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            print(f"spcl: waits for another process, which is {what}", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        for left in file.parent.glob(leftovers):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def explain_refusals(path: Path | None = None) -> Iterator[None]:
    """Turns a refusal of the system (disk full, not allowed, no memory) into a UserError.

    `path` is what the block writes, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"there is too little memory ({error}); smaller images or a smaller batch need less"
            ) from error
        refusal = _refusal_in(error)
        if refusal is None:
            raise
        said = f"'{path}' cannot be written: {refusal}" if path else refusal
        for variable, folder in (("SPCL_RESULTS", results()), ("SPCL_CACHE", cache())):
            if path and path.is_relative_to(folder):
                said += f"; {variable}=DIR chooses another folder than '{folder}'"
        raise UserError(said) from error


def _refusal_in(error: Exception) -> str | None:
    """What the system says. torch hides a full disk in a chain, safetensors in its text."""
    if isinstance(error, OSError):
        return str(error)
    said = "".join(traceback.format_exception(error))
    return next((reason for reason in _FULL if reason in said), None)
