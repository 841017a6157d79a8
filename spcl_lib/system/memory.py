"""Memory: how much is left, and the reuse of what a step frees."""

import ctypes
import os
import re
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
    """Bytes that this process can still use, within the machine and its container.

    Pages of cached files count, because the system gives them up. Only Linux tells.
    """
    try:
        machine = Path("/proc/meminfo").read_text()
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        return sys.maxsize
    left = 1024 * int(re.search(r"MemAvailable: *(\d+)", machine)[1])
    group = _CGROUPS / own.strip().rpartition("::/")[2]
    return min(left, *map(_left_below, (group, *group.parents)))


def _left_below(group: Path) -> int:
    """What a control group (version 2) may have beyond what it holds, without cached files."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" means no limit
        held = re.search(r"^anon (\d+)", (group / "memory.stat").read_text(), re.M)
        return limit - int(held[1])
    except (OSError, ValueError):
        return sys.maxsize


def require_memory(what: str, needed: int) -> None:
    """Refuses running averages that do not fit into memory.

    The system gives memory page by page. Without this check the run would stop hours later.

    Args:
        what: what needs the memory, in words, for the message.
        needed: bytes.
    """
    if needed > (free := available_memory()):
        raise UserError(
            f"{what} need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are left; "
            "train on fewer images (train_images), with fewer cells (bank_size) or with the "
            "heatmaps of fewer classes per image (bank_classes)"
        )
