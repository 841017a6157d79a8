"""C code that is compiled when it is first used, on machines that have a C compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from spcl_lib.system import paths

# No contraction: a * b + c is rounded twice, as in PyTorch's own operations.
_OPTIONS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")
_ON_X86 = ("-mprefer-vector-width=256",)  # rows of heatmaps are short
_SECONDS = 120.0  # a compiler that takes longer counts as missing


@lru_cache
def load_compiled(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file; None if this machine cannot compile it.

    The library is kept in the cache, and made again for another source, compiler or processor, and
    if it is damaged: it could end the process, or compute something else.

    Args:
        source: a C file that uses the standard library only.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    command = [compiler, *_OPTIONS, *(_ON_X86 if x86 else ()), str(source)]
    key = source.read_bytes() + repr((command[:-1], _processor())).encode()
    name = f"{source.stem}-{hashlib.sha256(key).hexdigest()[:16]}.so"
    library = paths.cache() / "compiled" / name
    try:
        if not _is_sound(library):
            _compile(command, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):  # no space, not allowed, an unknown option, ...
        return None


def call(function: Callable[..., int], *arguments: Tensor | int | float | None) -> int:
    """Calls a C function and returns its int.

    Args:
        function: a function of a compiled library.
        arguments: a tensor becomes the pointer of its elements, in order; an int is an int64_t, a
            float is a float, None is a null pointer.
    """
    held = [a.contiguous() if isinstance(a, Tensor) else a for a in arguments]  # until it returns
    passed = [
        None if a is None
        else ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor)
        else ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_float(a)
        for a in held
    ]  # fmt: skip
    return function(*passed)


def _compile(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".") as folder:
        made = Path(folder) / library.name
        subprocess.run(
            [*command, "-o", str(made)], check=True, capture_output=True, timeout=_SECONDS
        )
        ctypes.CDLL(str(made))  # what cannot be loaded is not kept
        note = made.with_suffix(".sha256")
        note.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
        for file in (made, note):
            os.replace(file, library.parent / file.name)


def _is_sound(library: Path) -> bool:
    """Whether a library is there, as it was compiled."""
    try:
        noted = library.with_suffix(".sha256").read_text()
        return noted == hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return False


def _processor() -> str:
    """What identifies the processor's instructions: a cache may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        return f"{platform.system()} {platform.machine()} {platform.processor()}"
