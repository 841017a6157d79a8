"""Finds damage in files that are read again long after they were written."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


class DamagedError(Exception):
    """A file is not as it was written. The text says what is wrong with it."""


def load_saved(file: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a file of `torch.save`, if it is as it was written.

    `torch.save` writes a zip with a CRC-32 of every part. `torch.load` does not compare them, and
    would return tensors with wrong values.

    Args:
        file: the file.
        mmap: whether its tensors stay in the file until they are read.

    Raises:
        DamagedError: a byte differs, the end is missing, or it is another kind of file.
        OSError: the file is missing, or must not be read.
    """
    try:
        check_saved(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        raise_if_sound(error)
        raise DamagedError(_describe(error)) from error


def check_saved(file: Path) -> None:
    """Compares every part of a file of `torch.save` with its CRC-32; see `load_saved`."""
    try:
        with zipfile.ZipFile(file) as parts:
            broken = parts.testzip()
    except Exception as error:
        raise_if_sound(error)
        raise DamagedError(_describe(error)) from error
    if broken is not None:
        raise DamagedError(f"the checksum of '{broken}' is wrong")


def raise_if_sound(error: Exception) -> None:
    """Raises an error again that says nothing against the file: no permission, or no memory."""
    no_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
    if no_memory or isinstance(error, PermissionError | FileNotFoundError):
        raise error


def _describe(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0][:120]
    return first if isinstance(error, DamagedError) else f"{type(error).__name__}: {first}"
