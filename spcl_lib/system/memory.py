"""Memory: how much is left, and the reuse of what a step frees."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from spcl_lib.system.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, see malloc.h


def keep_freed_memory() -> None:
    """Lets this process use freed memory again, instead of returning it to the system.

    A step frees large tensors, and the next step needs as many. glibc returns each to the system at
    once, and the system clears every page that it gives again. Call this before the first tensor:
    then PyTorch asks for large pages, too. It changes no result. Without glibc, it does nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def available_memory() -> int:
    """Bytes of memory that this process can still use, within the machine and its container.

    Pages of cached files count as available, because the system gives them up when memory is
    needed. Only Linux tells; elsewhere there is no limit.
    """
    return min([_of_machine(), *_of_containers()])


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    return 1024 * next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable:"))


def _of_containers() -> list[int]:
    """Bytes that are left under each limit of this process's control groups (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder, left = _CGROUPS / own.strip("/"), []
    while folder.is_relative_to(_CGROUPS):
        left += _left_below(folder)
        folder = folder.parent
    return left


def _left_below(group: Path) -> list[int]:
    """The limit minus the memory in use, without cached files; empty if there is no limit."""
    try:
        limit = int((group / "memory.max").read_text())
        rows = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
        return [limit - next(int(value) for name, value in rows if name == "anon")]
    except (OSError, ValueError, StopIteration):  # "max" means no limit
        return []


def require_memory(what: str, needed: int) -> None:
    """Refuses running averages that do not fit into memory.

    The system gives memory page by page. Without this check the run would stop hours later.

    Args:
        what: what needs the memory, in words, for the message.
        needed: bytes.

    Raises:
        UserError: it does not fit.
    """
    if needed > (free := available_memory()):
        raise UserError(
            f"{what} need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are left; "
            "train on fewer images (train_images), with fewer cells (bank_size) or with the "
            "heatmaps of fewer classes per image (bank_classes)"
        )
