"""Finds damage in files that are read again long after they were written.

A file's checksum travels with it: in the zip of `torch.save`, in a seal behind other content, and
under a key of its own in JSON and safetensors.
"""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from spcl_lib.system.files import is_out_of_memory, parse_json, read_list


class DamagedError(Exception):
    """A file is not as it was written. The text says what is wrong with it."""


def raise_if_sound(error: Exception) -> None:
    """Raises an error again that says nothing against the file: no permission, or no memory."""
    if is_out_of_memory(error) or isinstance(error, PermissionError | FileNotFoundError):
        raise error


def describe(error: Exception) -> str:
    """A short text about the error of a reader."""
    first = str(error).strip().partition("\n")[0][:120]
    return first if isinstance(error, DamagedError) else f"{type(error).__name__}: {first}"


# --- torch.save -----------------------------------------------------------------------------------


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
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(content, dict):
            raise DamagedError(f"it holds a {type(content).__name__}, not a dictionary")
        return content
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        raise_if_sound(error)
        raise DamagedError(describe(error)) from error


def check_saved(file: Path) -> None:
    """Compares every part of a file of `torch.save` with its CRC-32; see `load_saved`."""
    try:
        with zipfile.ZipFile(file) as parts:
            broken = parts.testzip()
    except Exception as error:
        raise_if_sound(error)
        raise DamagedError(describe(error)) from error
    if broken is not None:
        raise DamagedError(f"the checksum of '{broken}' is wrong")


# --- sealed files ---------------------------------------------------------------------------------

_BLOCK = 2**22  # bytes
_SAMPLED = 16  # blocks that are compared when a large file is opened: 64 MB, some 0.05 s
_END = struct.Struct(">QI8s")  # length and CRC-32 of the text before it, and a mark
_MARK = b"spclseal"


def seal(file: Path) -> None:
    """Appends the CRC-32 of every 4 MB block to a file, for `check_sealed`."""
    with open(file, "r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        sums = [_sum_of(handle, n, size) for n in range(-(-size // _BLOCK))]
        text = json.dumps({"size": size, "crc32": sums}).encode()
        handle.seek(size)
        handle.write(text + _END.pack(len(text), zlib.crc32(text), _MARK))
        handle.flush()
        os.fsync(handle.fileno())


def check_sealed(file: Path, size: int | None = None, completely: bool = False) -> int:
    """Looks for damage in a file that `seal` has sealed.

    To compare gigabytes takes too long for every start of a run: of a large file, 16 random blocks
    are compared.

    Args:
        file: the file.
        size: bytes without the seal; None if they are not known.
        completely: compare the whole file in any case.

    Returns:
        The number of bytes without the seal.

    Raises:
        DamagedError: a block differs, the size is wrong, or there is no seal.
        OSError: the file is missing, or must not be read.
    """
    with open(file, "rb") as handle:
        sealed = _read_seal(handle)
        if size not in (None, sealed["size"]):
            raise DamagedError(f"it has {sealed['size']:,} bytes; expected {size:,}")
        blocks = range(len(sealed["crc32"]))
        if len(blocks) > _SAMPLED and not completely:
            blocks = random.SystemRandom().sample(blocks, _SAMPLED)
        for n in blocks:
            if _sum_of(handle, n, sealed["size"]) != sealed["crc32"][n]:
                raise DamagedError(f"the checksum of its bytes from {n * _BLOCK:,} on is wrong")
    return sealed["size"]


def _sum_of(handle: BinaryIO, block: int, size: int) -> int:
    handle.seek(block * _BLOCK)
    return zlib.crc32(handle.read(min(_BLOCK, size - block * _BLOCK)))


def _read_seal(handle: BinaryIO) -> dict[str, Any]:
    """What `seal` has appended."""
    length = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, length - _END.size))
    end = handle.read()
    size, crc32, mark = _END.unpack(end) if len(end) == _END.size else (0, 0, b"")
    if mark != _MARK or size > length - _END.size:
        raise DamagedError("it has no checksum, or its end is missing")
    handle.seek(length - _END.size - size)
    text = handle.read(size)
    if zlib.crc32(text) != crc32:
        raise DamagedError("its list of checksums is damaged")
    return json.loads(text)


# --- JSON -----------------------------------------------------------------------------------------

_SUM = "crc32"


def with_sum(content: Mapping[str, Any], varying: Collection[str] = ()) -> dict[str, Any]:
    """The content of a JSON file with its checksum, for `read_summed`.

    Args:
        content: what the file is to hold.
        varying: keys that do not count.
    """
    return {_SUM: _sum_of_json(content, varying), **content}


def read_summed(file: Path, varying: Collection[str] = ()) -> dict[str, Any]:
    """The content that `with_sum` got; an older file without a checksum is not compared.

    Raises:
        ValueError: the file is damaged.
        OSError: the file is missing, or must not be read.
    """
    content = parse_json(read_list(file))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    if _SUM in content and content.pop(_SUM) != _sum_of_json(content, varying):
        raise ValueError("its checksum is wrong")
    return content


def _sum_of_json(content: Mapping[str, Any], varying: Collection[str]) -> str:
    counted = {key: value for key, value in content.items() if key not in varying}
    return f"{zlib.crc32(json.dumps(counted, sort_keys=True).encode()):08x}"
