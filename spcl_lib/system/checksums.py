"""Checksums find damage in files, and tell whether what a result depends on has changed.

A file's checksum travels with it: in the zip of `torch.save`, or under a key of JSON.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spcl_lib.system.errors import is_out_of_memory


class DamagedError(Exception):
    """A file is not as it was written. The text says what is wrong with it."""


def raise_if_sound(error: Exception) -> None:
    """Raises an error again that says nothing against the file: no permission, or no memory."""
    if is_out_of_memory(error) or isinstance(error, PermissionError | FileNotFoundError):
        raise error


def put_aside(file: Path, error: Exception) -> None:
    """Says that a file is damaged, and gives it the ending .damaged."""
    aside = file.with_name(f"{file.name}.damaged")
    os.replace(file, aside)
    reason = str(error).strip().partition("\n")[0][:120]
    print(f"spcl: '{file}' is damaged or of another version of spcl ({reason}); it does not count, "
          f"and is kept as '{aside.name}'", flush=True)  # fmt: skip


def load_saved(file: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a file of `torch.save`; DamagedError if it is not as it was written."""
    try:
        if zipfile.is_zipfile(file):  # else it is of torch before 1.6, without checksums
            with zipfile.ZipFile(file) as parts:
                broken = parts.testzip()  # by its CRC-32, at which `torch.load` does not look
            if broken is not None:
                raise ValueError(f"the checksum of '{broken}' is wrong")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        raise_if_sound(error)
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def with_sum(content: Mapping[str, Any], varying: Collection[str] = ()) -> dict[str, Any]:
    """The content of a JSON file with its checksum, in which the keys `varying` do not count."""
    counted = {key: value for key, value in content.items() if key not in varying}
    text = json.dumps(counted, sort_keys=True)
    return {"crc32": f"{zlib.crc32(text.encode()):08x}", **content}


def read_summed(file: Path, varying: Collection[str] = ()) -> dict[str, Any]:
    """The content that `with_sum` got; ValueError if it is damaged."""
    content = json.loads(file.read_bytes())
    if content.pop("crc32", None) not in (None, with_sum(content, varying)["crc32"]):
        raise ValueError("its checksum is wrong")
    return content


def fingerprint(sources: Sequence[object]) -> str:
    """Twelve characters that change when any source does; their `repr` says all about them."""
    return hashlib.sha256("".join(map(repr, sources)).encode()).hexdigest()[:12]
